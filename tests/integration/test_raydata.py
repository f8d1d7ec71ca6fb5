"""Ray Data becomes Parquet files once, and no process after the first runs the pipeline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from raymlops.config.load import load_data
from raymlops.data.prepare import fixed, prepare
from raymlops.data.ray_dataset import materialize
from raymlops.errors import RecipeError
from raymlops.project import bind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from raymlops.project import Project

pytestmark = pytest.mark.integration


@pytest.fixture
def ray_project(tmp_path: Path) -> Callable[..., Project]:
    """Return a factory of projects on a recipe of ``sourced``."""

    def make(recipe: str) -> Project:
        data = {
            "project": {"name": "sourced"},
            "recipe": {"import": f"sourced:{recipe}", "config": {"train_rows": 200}},
            "storage": {"path": str(tmp_path / "storage")},
        }
        return bind(load_data(data))

    return make


@pytest.mark.usefixtures("ray_local")
def test_a_pipeline_is_written_once_and_read_by_all(ray_project: Any, tmp_path: Path) -> None:
    """The rows are those of the pipeline in its order; another process reads the files without running it again."""
    driver = prepare(ray_project("FromRay"))
    table = prepare(ray_project("Tabled"))
    assert driver.data == table.data
    assert driver.state == table.state
    sources = json.loads(json.dumps(driver.sources()))
    assert set(fixed(sources)) == {"train"}

    worker = prepare(ray_project("NoPipeline"), state=driver.state, sources=sources)
    indices = torch.tensor([199, 0, 77])
    for name, values in table.splits["train"].batch(indices).items():
        assert torch.equal(worker.splits["train"].batch(indices)[name], values)

    assert prepare(ray_project("FromRay")).sources()["train"] == sources["train"]
    folders = [path for path in (tmp_path / "storage" / "data").iterdir() if path.is_dir()]
    assert len(folders) == 1, "equal rows lie there once"


@pytest.mark.usefixtures("ray_local")
def test_a_pipeline_that_fails_or_gives_nothing_is_refused(tmp_path: Path) -> None:
    """The error says which split it was and what the pipeline raised."""
    import ray.data

    def fail(_row: Any) -> Any:
        msg = "the line is dead"
        raise ValueError(msg)

    with pytest.raises(RecipeError, match=r"pipeline of the train split, a Ray Data dataset, failed: .*line is dead"):
        materialize(ray.data.range(3).map(fail), str(tmp_path), part="train")
    with pytest.raises(RecipeError, match=r"has no rows"):
        materialize(ray.data.range(3).limit(0), str(tmp_path), part="train")


def test_without_ray_it_is_refused(tmp_path: Path) -> None:
    """In a process of its own, where Ray was never initialised, the error says what to do."""
    import subprocess
    import sys

    code = (
        "import sys, ray.data\n"
        "from raymlops.data.ray_dataset import is_ray_dataset, materialize\n"
        "dataset = ray.data.Dataset.__new__(ray.data.Dataset)\n"
        "assert is_ray_dataset(dataset)\n"
        "materialize(dataset, sys.argv[1], part='train')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "RecipeError: the train split is a Ray Data dataset, but Ray is not initialised" in done.stderr
    assert "Set train.num_workers to at least 1" in done.stderr
