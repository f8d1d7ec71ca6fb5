from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from raymlops.errors import ConfigError, NotFoundError
from raymlops.records import DataRecord
from raymlops.training.runs.lookup import look_up, read_config
from raymlops.training.runs.mlflow_run import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.project import Project
    from raymlops.tracking.client import Tracker


@pytest.fixture
def run_id(project: Project, mlflow: Tracker) -> str:
    return open_run(mlflow, project, DataRecord("f", {"train": 300}))


def test_a_run_is_found_with_its_configuration_and_its_files(
    run_id: str, project: Project, mlflow: Tracker, storage_path: Path
) -> None:
    """Everything that resume, status and logs need to know first."""
    found = look_up(mlflow, run_id)
    assert (found.run_id, found.kind, found.status) == (run_id, "run", "RUNNING")
    assert found.spec == project.spec
    assert found.files_uri == f"{storage_path}/runs/{run_id}"


def test_the_place_of_its_files_is_what_it_was_then(run_id: str, mlflow: Tracker) -> None:
    """A relative storage.path means another folder from here."""
    mlflow.log_batch(run_id, tags={"raymlops.storage_path": "/elsewhere"})
    assert look_up(mlflow, run_id).files_uri == f"/elsewhere/runs/{run_id}"


@pytest.mark.parametrize("wrong", [lambda run_id: run_id[:6], lambda run_id: run_id[:-1] + "x", lambda _: "tiny-2"])
def test_an_id_that_is_nearly_right_leads_to_the_run(run_id: str, mlflow: Tracker, wrong: Any) -> None:
    """Its beginning, a slip of the hand, or the beginning of its name."""
    with pytest.raises(NotFoundError) as caught:
        look_up(mlflow, wrong(run_id))
    assert caught.value.exit_code == 3
    assert f"Similar: {run_id} (tiny-2" in str(caught.value)


@pytest.mark.parametrize("wrong", ["nothing-like-it", "a/b", "", "x" * 300])
def test_any_other_text_is_no_run(run_id: str, mlflow: Tracker, wrong: str) -> None:
    """It may be in another MLflow."""
    with pytest.raises(NotFoundError, match="RAYMLOPS_HOME"):
        look_up(mlflow, wrong)


def test_a_deleted_run_says_how_it_comes_back(run_id: str, mlflow: Tracker) -> None:
    """MLflow keeps it for a while."""
    mlflow.client.delete_run(run_id)
    with pytest.raises(NotFoundError, match=f"mlflow runs restore --run-id {run_id}"):
        look_up(mlflow, run_id)


def test_a_run_of_somebody_else_has_neither_kind_nor_configuration(mlflow: Tracker) -> None:
    """Other programs write to the same MLflow."""
    found = look_up(mlflow, mlflow.start_run("other", name="theirs", tags={}))
    assert (found.kind, found.spec, found.files_uri) == ("", None, None)


def test_a_configuration_of_another_version_is_read_as_far_as_it_is_known() -> None:
    """A key that went away since is no reason to lose a run."""
    text = "project: {name: a}\nrecipe: {import: 'm:R'}\ntrain: {epochs: 3, gone: 1}\n"
    assert read_config(text).train.epochs == 3


@pytest.mark.parametrize("text", ["{", "- 1", "", "project: {name: a}\n"])
def test_a_configuration_that_cannot_be_read_says_so(text: str) -> None:
    """Instead of a run without any."""
    with pytest.raises(ConfigError):
        read_config(text)
