"""Spark beside raymlops: it writes the training data, reads the predictions, and predicts the same numbers itself."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from own_environment import own_environment
from shell_user import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.soak

SPARK_JOB = ROOT / "tests" / "fixtures" / "spark_job.py"

RECIPE = """
from iris_like import IrisLike
from pydantic import Field

from raymlops import Splits

PARTS = ("train", "validation", "test")


class Lake(IrisLike):
    class Config(IrisLike.Config):
        path: str = Field("", description="with {} for the part")

    def datasets(self):
        return Splits(*(self.config.path.format(part) for part in PARTS))
"""
CONFIG = """
project: {name: lake}
recipe: {import: "lake:Lake"}
train: {epochs: 8, batch_size: 64, lr: 0.01, metric: validation/loss, mode: min}
cluster: {address: local, num_cpus: 2}
"""


@pytest.fixture(scope="module")
def spark(tmp_path_factory) -> Path:
    """Return a Python that has PySpark beside what this one has."""
    if shutil.which("java") is None:
        pytest.skip("java is not on the PATH")
    folder = tmp_path_factory.mktemp("environment")
    return own_environment("spark", "pyspark>=4,<5", folder=folder, beside=True) / "python"


@pytest.fixture
def lake(user, spark):
    """Return a user with a recipe and a configuration, and a function that runs Spark's job."""
    shutil.copy(ROOT / "examples" / "own_recipe" / "iris_like.py", user.cwd)
    (user.cwd / "lake.py").write_text(RECIPE)
    (user.cwd / "config.yaml").write_text(CONFIG)
    home = user.cwd / "home" / ".raymlops"
    user.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{home}/mlflow.db"

    def job(*arguments):
        return json.loads(user.run(spark, SPARK_JOB, *arguments, timeout_s=900).stdout.splitlines()[-1])

    return user, job


def trained(user, path):
    """Train on a path, register the run, and return it and the version's number."""
    run = of(user, "train", "--config", "config.yaml", f"recipe.config.path={path}")
    return run, of(user, "models", "register", run["run_id"], "--config", "config.yaml", f"recipe.config.path={path}")


def of(user, *words):
    return json.loads(user.raymlops(*words, "--json").stdout)


def test_from_a_table_to_predictions_that_spark_reads(lake):
    """Trained on Parquet and on a Delta table that Spark's rows are in, the runs are equal; so are all predictions."""
    user, job = lake
    data = user.cwd / "data"
    assert job("write", data) == {"rows": 1500}
    files, _ = trained(user, f"{data}/parquet/{{}}")
    table, version = trained(user, f"{data}/delta/part={{}}")
    assert table["data"]["rows"] == files["data"]["rows"] == {"train": 1000, "validation": 250, "test": 250}
    assert table["data"]["tables"] == {part: f"{data}/delta@v1/part={part}" for part in ("train", "validation", "test")}
    number = version["version"]
    parquet, delta = user.cwd / "out", user.cwd / "predictions"
    batch = ("predict", "lake", "--version", number, "--config", "config.yaml", "--keep", "id")
    first = of(user, *batch, "--batch", data / "parquet" / "*" / "*.parquet", "--out", parquet)
    second = of(user, *batch, "--batch", f"{data}/delta", "--out", f"delta+{delta}")
    again = of(user, *batch, "--batch", f"{data}/delta", "--out", delta)
    assert (first["rows"], second["rows"], second["table_version"]) == (1500, 1500, 0)
    assert second["input"] == f"{data}/delta@v1"
    assert (again["repeated"], again["table_version"]) == (True, 0)
    read = job("read", parquet, delta)
    assert len(read["parquet"]) == 1500
    assert read["delta"] == read["parquet"]
    divided = user.cwd / "divided"
    of(user, *batch, "--keep", "part", "--keep", "until", "--batch", data / "divided", "--out", divided)
    kept = pq.read_table(divided).to_pylist()
    answered = {str(row["id"]): row["setosa"].hex() for row in kept}
    assert answered == {row: value for row, (value, _) in read["parquet"].items()}
    assert Counter(row["part"] for row in kept) == {"train": 1000, "validation": 250, "test": 250}
    assert {row["until"].replace(tzinfo=None) for row in kept} == {datetime(9999, 12, 31, 23, 59, 59)}  # noqa: DTZ001
    answers = job("udf", data / "parquet", f"models:/lake/{number}")
    assert answers == {row: value for row, (value, _) in read["parquet"].items()}
    print(f"{len(answers)} rows: Spark's own workers and both batch predictions answer equally, to the last bit")
