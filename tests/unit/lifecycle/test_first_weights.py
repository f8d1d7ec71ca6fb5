"""A training that begins with the weights of a run or of a version."""

from __future__ import annotations

from typing import Any

import mlflow
import pytest

import raymlops as rm
from raymlops.errors import NotFoundError, RecipeError, UsageError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training whose steps hardly move the weights, so that its metrics are those it begins with."""
    return {
        "project": {"name": "fine"},
        "recipe": {"import": "tiny:Tiny", "config": {"train_rows": 300, "validation_rows": 101}},
        "train": {"epochs": 1, "lr": 1e-9, "threads_per_worker": 1},
        "storage": {"path": str(tmp_path_factory.mktemp("fine"))},
    }


@pytest.fixture(scope="module")
def run(config: dict[str, Any]) -> Any:
    record = rm.train(config, overrides=["train.lr=0.05", "train.epochs=6", "train.batch_size=64"])
    assert rm.register(config, record.run_id).version == 1
    return record


def test_a_run_begins_with_the_weights_of_a_run_or_a_version(config: dict[str, Any], run: Any) -> None:
    """Named by the run, by number, by alias or as MLflow does: the metrics are those of the trained model."""
    assert rm.train(config).metrics["validation/loss"] > run.metrics["validation/loss"] + 0.05
    for name in (run.run_id, "fine@1", "fine@candidate", "models:/fine/1", run.weights_uri):
        found = rm.train(config, overrides=[f"train.init_from={name}"])
        assert found.metrics["validation/loss"] == pytest.approx(run.metrics["validation/loss"], abs=1e-5), name


def test_what_the_weights_do_not_fit_is_refused_before_the_run(config: dict[str, Any], run: Any) -> None:
    """Another architecture names the tensors; a run or version that is not there, and a run without weights, too."""
    for name, error, message in (
        (run.run_id, RecipeError, r"does not fit the model of Tiny: .*layers\.0\.weight"),
        ("fine@7", NotFoundError, "7"),
        ("f" * 32, NotFoundError, "f" * 32),
        ("/nowhere/at/all", NotFoundError, "/nowhere/at/all"),
        ("teacher.pt", UsageError, r"'teacher\.pt', a file, not .*def initialize\(self, model\)"),
        ("old/model.safetensors", UsageError, "a file"),
    ):
        with pytest.raises(error, match=f"(?s){message}"):
            rm.train(config, overrides=["recipe.config.hidden=8", f"train.init_from={name}"])


def test_a_run_without_weights_is_named(config: dict[str, Any]) -> None:
    """It failed in its first step."""

    with pytest.raises(Exception, match="nan"):
        rm.train(config, overrides=["train.lr=1e38", "train.batch_size=8", "train.epochs=3", "train.optimizer=sgd"])
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{config['storage']['path']}/mlflow.db")
    experiment = client.get_experiment_by_name("fine")
    failed = client.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")[0].info.run_id
    with pytest.raises(UsageError, match=f"run {failed}, which has no weights"):
        rm.train(config, overrides=[f"train.init_from={failed}"])


def test_what_resumes_keeps_the_weights_that_it_began_with(config: dict[str, Any], run: Any) -> None:
    """Whatever the name leads to by now: the version may be gone."""
    first = rm.train(config, overrides=["train.init_from=fine@1"])
    longer = ["train.init_from=fine@99", "train.epochs=2"]
    resumed = rm.train(config, resume=first.run_id, overrides=longer)
    assert (resumed.run_id, resumed.epochs) == (first.run_id, 2)
    assert resumed.metrics["validation/loss"] == pytest.approx(run.metrics["validation/loss"], abs=1e-5)
