"""gc: which trials of sweeps go on no more, and that nothing else of a sweep goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_s3 import fake_s3
from pyarrow.fs import FileInfo, FileType

from raymlops.records import DataRecord
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.training.runs.garbage import Owner, Standing, Waste, decide, look, remove
from raymlops.training.runs.mlflow_run import open_run

if TYPE_CHECKING:
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker

FINISHED = "the sweep is finished: none of its trials is resumed"


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (Standing("active", "FINISHED"), FINISHED),
        (Standing("active", "FINISHED", extendable=True), None),
        (Standing("deleted", "KILLED"), "the sweep was deleted in MLflow"),
        (Standing("active", "KILLED"), None),
        (Standing("active", "FAILED"), None),
        (Standing("active", "RUNNING"), None),
        (Standing("active", "FINISHED", spared="in use by ada"), None),
        (Standing("deleted", spared="in use by ada"), None),
    ],
)
def test_trials_go_where_none_of_them_goes_on(standing: Standing, reason: str | None) -> None:
    """A sweep that was stopped, however that was, can be resumed."""
    files = {f"trials/3/{name}": FileInfo(name, type=FileType.File, size=10) for name in "ab"}
    expected = [] if reason is None else [Waste("s1", "s3://b/sweeps/s1/trials", 20, reason)]
    assert decide(Owner("sweep", "s1", "s3://b/sweeps/s1", files), standing) == expected


class Sweep:
    """A sweep in MLflow with files as its trials leave them."""

    def __init__(self, project: Project, mlflow: Tracker) -> None:
        self.id = open_run(mlflow, project, DataRecord("f", {"train": 1}), kind="sweep")
        self.folder = Path(project.spec.storage.path) / "sweeps" / self.id
        fill(self.folder)
        with lease(state_url(project.spec), self.id, purpose="test"):
            pass

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def fill(folder: Path) -> None:
    checkpoint = folder / "trials" / "3" / "checkpoints" / "step-00000020-a-1"
    checkpoint.mkdir(parents=True)
    for name in ("state.json", "manifest.json"):
        (checkpoint / name).write_text("0123456789")
    (folder / "report.html").write_text("<!doctype html>")


@pytest.fixture
def sweep(project: Project, mlflow: Tracker) -> Sweep:
    return Sweep(project, mlflow)


@pytest.fixture
def found(project: Project, mlflow: Tracker) -> Any:
    """Look, and return what was found."""
    return lambda: look(mlflow, project.spec)


def test_a_finished_sweep_loses_its_trials_and_keeps_its_report(
    sweep: Sweep, found: Any, project: Project, mlflow: Tracker
) -> None:
    """With the size of their files."""
    mlflow.end_run(sweep.id, "FINISHED")
    before = found()
    assert before.waste == (Waste(sweep.id, str(sweep.folder / "trials"), 20, FINISHED),)
    assert remove(mlflow, project.spec, before.waste) == []
    assert sweep.names() == {"report.html"}
    assert (found().sweeps, found().waste) == (0, ())


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_a_sweep_that_can_go_on_keeps_its_trials(sweep: Sweep, found: Any, mlflow: Tracker, status: Any) -> None:
    """Those that wait go on from their checkpoints."""
    mlflow.end_run(sweep.id, status)
    assert (found().sweeps, found().waste, found().spared) == (1, (), ())


def test_a_deleted_sweep_loses_its_trials(sweep: Sweep, found: Any, mlflow: Tracker) -> None:
    """Whatever stopped it."""
    mlflow.end_run(sweep.id, "KILLED")
    mlflow.client.delete_run(sweep.id)
    assert [item.reason for item in found().waste] == ["the sweep was deleted in MLflow"]


def test_a_sweep_that_is_held_is_left_alone(sweep: Sweep, found: Any, project: Project, mlflow: Tracker) -> None:
    """Whatever MLflow says: it was extended just now."""
    mlflow.end_run(sweep.id, "FINISHED")
    before = found()
    for delete in (False, True):
        if delete:
            mlflow.client.delete_run(sweep.id)
        with lease(state_url(project.spec), sweep.id, purpose="sweeping"):
            record = found()
            assert record.waste == ()
            assert [(spared.run_id, "sweeping" in spared.reason) for spared in record.spared] == [(sweep.id, True)]
            (problem,) = remove(mlflow, project.spec, before.waste)
        assert "in use by" in problem
    assert "trials" in sweep.names()


def test_a_sweep_that_was_resumed_and_stopped_since_keeps_its_trials(
    sweep: Sweep, found: Any, project: Project, mlflow: Tracker
) -> None:
    """Between looking and removing a person thinks about the question."""
    mlflow.end_run(sweep.id, "FINISHED")
    before = found()
    mlflow.reopen_run(sweep.id)
    mlflow.end_run(sweep.id, "KILLED")
    assert remove(mlflow, project.spec, before.waste) == []
    assert "trials" in sweep.names()


def test_what_this_mlflow_does_not_know_as_a_sweep_is_left_alone(
    sweep: Sweep, found: Any, project: Project, mlflow: Tracker
) -> None:
    """Another MLflow may have it."""
    run_id = open_run(mlflow, project, DataRecord("f", {"train": 1}))
    mlflow.end_run(run_id, "FINISHED")
    for name in ("0" * 32, "no id at all", run_id):
        fill(sweep.folder.with_name(name))
    record = found()
    reasons = {spared.run_id: spared.reason for spared in record.spared}
    assert "has no such sweep, but no origin.json says which MLflow it belongs to" in reasons["0" * 32]
    assert "has no such sweep" in reasons["no id at all"]
    assert "has it as run, not a sweep" in reasons[run_id]
    assert record.waste == ()


def test_a_sweep_that_may_run_elsewhere_is_left_alone(sweep: Sweep, found: Any, project: Project) -> None:
    """MLflow says RUNNING, and its lease was never taken beside this database."""
    (Path(project.spec.storage.path) / "leases" / f"{sweep.id}.lock").unlink()
    assert "it may be in use: its lease is not kept here" in found().spared[0].reason


def test_trials_in_an_object_store_go_too(project: Project, mlflow: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no folders, and its URI has options behind the path."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "any")
    state = f"sqlite:///{project.spec.storage.path}/state.db"
    with fake_s3() as store:
        places = {"storage.path": store.uri("bucket/x"), "storage.state": state, "tracking.uri": mlflow.uri}
        far = project.with_params(places)
        sweep_id = open_run(mlflow, far, DataRecord("f", {"train": 1}), kind="sweep")
        mlflow.end_run(sweep_id, "FINISHED")
        folder = f"bucket/x/sweeps/{sweep_id}"
        store.objects.update({f"{folder}/trials/0/checkpoints/s/a": b"0123", f"{folder}/report.html": b"1"})
        (item,) = look(mlflow, far.spec).waste
        assert item.size_bytes == 4
        assert remove(mlflow, far.spec, [item]) == []
        left = [key for key in store.objects if not key.endswith("/")]
    assert left == [f"{folder}/report.html"]
