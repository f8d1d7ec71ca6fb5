"""gc: what may go and why, and that nothing else does."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_s3 import fake_s3
from pyarrow.fs import FileInfo, FileType

from raymlops.config.load import dump
from raymlops.records import DataRecord
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.state.store import State
from raymlops.tracking.client import Tracker
from raymlops.training.checkpoints.retention import Entry, Kept
from raymlops.training.runs.garbage import Owner, Standing, Waste, decide, look, newest_whole, remove
from raymlops.training.runs.lookup import EVALUATION, mark_origin
from raymlops.training.runs.mlflow_run import CONFIG, open_run

if TYPE_CHECKING:
    from raymlops.project import Project

KEPT = Kept((Entry("step-00000020-a-2", 20, 2), Entry("step-00000030-a-3", 30, 3)), best="step-00000020-a-2")
KEPT = Kept(KEPT.entries, best=KEPT.best, last="step-00000030-a-3")


def file(path: str, size_bytes: int = 10) -> FileInfo:
    return FileInfo(path, type=FileType.File, size=size_bytes)


def checkpoint(name: str, *files: str) -> list[FileInfo]:
    """A folder as a listing shows it; each file has ten bytes."""
    parts = [file(f"checkpoints/{name}/{path}") for path in files]
    return [FileInfo(f"checkpoints/{name}", type=FileType.Directory), *parts]


def whole(name: str) -> list[FileInfo]:
    return checkpoint(name, "state.json", "manifest.json")


def run_of(*files: FileInfo, uri: str = "/s/runs/r1", kept: Kept | None = KEPT) -> Owner:
    return Owner("run", "r1", uri, {info.path: info for info in files}, kept)


def waste(*files: FileInfo, standing: Standing | None = None, kept: Kept | None = KEPT) -> dict[str, str]:
    """What of one run may go, by its place in the run's folder, with the reason."""
    run = run_of(file("checkpoints/index.json", 5), *files, kept=kept)
    found = decide(run, standing or Standing("active", "RUNNING"))
    return {item.uri.removeprefix("/s/runs/r1").lstrip("/"): item.reason for item in found}


def test_what_the_pointer_names_stays() -> None:
    """The last one, the best one, and one that is newer than the pointer: its writer died before it could say so."""
    files = [*whole("step-00000020-a-2"), *whole("step-00000030-a-3"), *whole("step-00000040-a-4")]
    assert waste(*files) == {}


def test_what_no_run_can_use_goes() -> None:
    """Unfinished, damaged on a disk, damaged on an object store, replaced, and left over from writing."""
    files = [
        *checkpoint("step-00000040-b-1", "state.json"),
        *checkpoint("step-00000050-b-2"),
        *whole("damaged-step-00000030-a-3"),
        *checkpoint("step-00000030-c-9", "state.json", "manifest.json", "damaged"),
        *whole("step-00000010-a-1"),
        file("checkpoints/.index.json-1f", 3),
    ]
    assert waste(*files) == {
        "checkpoints/step-00000040-b-1": "never finished",
        "checkpoints/step-00000050-b-2": "never finished",
        "checkpoints/damaged-step-00000030-a-3": "damaged, and set aside",
        "checkpoints/step-00000030-c-9": "damaged, and set aside",
        "checkpoints/step-00000010-a-1": "replaced by newer ones",
        "checkpoints/.index.json-1f": "left over from writing",
    }


def test_without_a_pointer_no_checkpoint_is_called_old() -> None:
    """Nobody knows which one the run will go on from."""
    assert waste(*whole("step-00000010-a-1"), *whole("step-00000020-a-2"), kept=None) == {}


def test_a_finished_run_keeps_its_best_checkpoint_and_its_last() -> None:
    """Its weights are in one, and from the other it can be trained for longer."""
    files = [*whole("step-00000020-a-2"), *whole("step-00000025-a-9"), *whole("step-00000030-a-3")]
    kept = replace(KEPT, entries=(*KEPT.entries, Entry("step-00000025-a-9", 25, 4)))
    done = Standing("active", "FINISHED", "/s/runs/r1/checkpoints/step-00000020-a-2")
    assert waste(*files, standing=done, kept=kept) == {
        "checkpoints/step-00000025-a-9": "the run is finished, and this is neither its best nor its last"
    }
    assert waste(*files, standing=done, kept=None) == {}


def test_a_registered_run_keeps_its_best_checkpoint_alone() -> None:
    """Resuming it is refused; the last one is of no use to anybody."""
    files = [*whole("step-00000020-a-2"), *whole("step-00000030-a-3")]
    done = Standing("active", "FINISHED", "/s/runs/r1/checkpoints/step-00000020-a-2", evaluated=True)
    expected = {"checkpoints/step-00000030-a-3": "the run was registered, and this is not its best"}
    assert waste(*files, standing=done) == expected
    assert waste(*files, standing=done, kept=None) == expected


def test_a_finished_run_whose_best_is_gone_keeps_the_others() -> None:
    """They are all that is left of it."""
    done = Standing("active", "FINISHED", "/s/runs/r1/checkpoints/step-00000020-a-2")
    assert waste(*whole("step-00000030-a-3"), standing=done) == {}


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_run_that_can_go_on_keeps_what_it_goes_on_from(status: str) -> None:
    """Whatever stopped it."""
    files = [*whole("step-00000020-a-2"), *whole("step-00000030-a-3")]
    assert waste(*files, standing=Standing("active", status)) == {}


@pytest.mark.parametrize(
    ("place", "reason"), [("deleted", "the run was deleted in MLflow"), ("missing", "MLflow has no such run")]
)
def test_a_run_that_mlflow_has_no_more_goes_as_a_whole(place: Any, reason: str) -> None:
    """Its log too."""
    assert waste(*whole("step-00000030-a-3"), file("log.txt", 9), standing=Standing(place)) == {"": reason}


def test_what_is_spared_is_not_looked_at() -> None:
    """A partial checkpoint of a run that is held is being written."""
    files = checkpoint("step-00000040-a-4", "state.json")
    assert waste(*files, standing=Standing("active", "RUNNING", spared="in use by ada")) == {}
    assert waste(*files, standing=Standing("missing", spared="in use by ada")) == {}


def test_files_that_are_no_checkpoints_stay() -> None:
    """Whatever somebody put there."""
    done = Standing("active", "FINISHED", "/s/runs/r1/checkpoints/step-00000020-a-2")
    assert waste(file("checkpoints/notes.txt", 3), file("log.txt", 3), *whole("step-00000020-a-2"), standing=done) == {}


def test_sizes_are_of_all_files() -> None:
    """Two files of ten bytes."""
    run = run_of(*whole("step-00000010-a-1"), uri="s3://b/runs/r1")
    (item,) = decide(run, Standing("active", "RUNNING"))
    assert item == Waste("r1", "s3://b/runs/r1/checkpoints/step-00000010-a-1", 20, "replaced by newer ones")


class Run:
    """A run in MLflow with folders as a training leaves them: 20 best, 30 last, 40 never finished."""

    def __init__(self, project: Project, mlflow: Tracker) -> None:
        self.id = open_run(mlflow, project, DataRecord("f", {"train": 1}))
        self.folder = Path(project.spec.storage.path) / "runs" / self.id
        for entry in KEPT.entries:
            self.add(entry.name, "manifest.json")
        self.add("step-00000040-b-1")
        (self.folder / "checkpoints/index.json").write_bytes(KEPT.to_json())
        mark_origin(str(self.folder), mlflow)
        with lease(state_url(project.spec), self.id, purpose="test"):
            pass

    def add(self, name: str, *more: str) -> None:
        (self.folder / "checkpoints" / name).mkdir(parents=True)
        for file in ("state.json", *more):
            (self.folder / "checkpoints" / name / file).write_text("0123456789")

    def names(self) -> set[str]:
        return {path.name for path in (self.folder / "checkpoints").iterdir()} if self.folder.exists() else set()


@pytest.fixture
def run(project: Project, mlflow: Tracker) -> Run:
    return Run(project, mlflow)


@pytest.fixture
def clean(project: Project, mlflow: Tracker) -> Any:
    """Look, remove what was found, and return what was found."""

    def work() -> Any:
        found = look(mlflow, project.spec)
        assert remove(mlflow, project.spec, found.waste) == []
        return found

    return work


def test_an_interrupted_run_loses_what_is_unfinished(run: Run, clean: Any) -> None:
    """Nobody holds it, so that nobody finishes it."""
    found = clean()
    assert [(Path(item.uri).name, item.size_bytes) for item in found.waste] == [("step-00000040-b-1", 10)]
    assert run.names() == {"step-00000020-a-2", "step-00000030-a-3", "index.json"}
    assert clean().waste == ()


def test_a_run_that_is_held_is_left_alone(run: Run, project: Project, mlflow: Tracker) -> None:
    """Whatever MLflow says, and by whom is said."""
    mlflow.end_run(run.id, "KILLED")
    with lease(state_url(project.spec), run.id, purpose="training it"):
        found = look(mlflow, project.spec)
    assert found.waste == ()
    assert [(spared.run_id, "training it" in spared.reason) for spared in found.spared] == [(run.id, True)]


def test_a_run_that_was_resumed_meanwhile_is_refused(run: Run, project: Project, mlflow: Tracker) -> None:
    """Between looking and removing a person thinks about the question."""
    found = look(mlflow, project.spec)
    with lease(state_url(project.spec), run.id, purpose="training it"):
        (problem,) = remove(mlflow, project.spec, found.waste)
    assert "training it" in problem
    assert "step-00000040-b-1" in run.names()


def test_only_what_may_still_go_is_removed(run: Run, project: Project, mlflow: Tracker) -> None:
    """It was registered, then brought back by hand: its last checkpoint is not waste any more."""
    mlflow.log_batch(run.id, tags={"raymlops.weights_uri": str(run.folder / "checkpoints/step-00000020-a-2")})
    mlflow.end_run(run.id, "FINISHED")
    assert {Path(item.uri).name for item in look(mlflow, project.spec).waste} == {"step-00000040-b-1"}
    mlflow.log_text(run.id, "{}", EVALUATION)
    found = look(mlflow, project.spec)
    assert {Path(item.uri).name for item in found.waste} == {"step-00000030-a-3", "step-00000040-b-1"}
    mlflow.reopen_run(run.id)
    assert remove(mlflow, project.spec, found.waste) == []
    assert run.names() == {"step-00000020-a-2", "step-00000030-a-3", "index.json"}


def test_a_deleted_run_goes_and_a_stranger_stays(run: Run, project: Project, mlflow: Tracker, clean: Any) -> None:
    """A folder that no MLflow is known of may be anybody's, also that of a run in another MLflow."""
    mlflow.client.delete_run(run.id)
    stranger = run.folder.with_name("0" * 32)
    (stranger / "checkpoints").mkdir(parents=True)
    (stranger / "log.txt").write_text("a line\n")
    other = run.folder.with_name("1" * 32)
    mark_origin(str(other), Tracker("http://elsewhere:5000"))
    gone = run.folder.with_name("2" * 32)
    mark_origin(str(gone), mlflow)
    found = clean()
    assert {(item.run_id, item.reason) for item in found.waste} == {
        (run.id, "the run was deleted in MLflow"),
        ("2" * 32, "MLflow has no such run"),
    }
    assert {path.name for path in run.folder.parent.iterdir()} == {"0" * 32, "1" * 32}
    reasons = {spared.run_id: spared.reason for spared in found.spared}
    assert "no origin.json says which MLflow" in reasons["0" * 32]
    assert "it belongs to the MLflow at http://elsewhere:5000" in reasons["1" * 32]


def test_a_run_that_may_run_elsewhere_is_left_alone(run: Run, project: Project, mlflow: Tracker) -> None:
    """MLflow says RUNNING, and its lease was never taken beside this database."""
    (Path(project.spec.storage.path) / "leases" / f"{run.id}.lock").unlink()
    found = look(mlflow, project.spec)
    assert found.waste == ()
    assert "it may be in use: its lease is not kept here" in found.spared[0].reason


def test_bundles_are_not_looked_at(project: Project, run: Run, clean: Any) -> None:
    """Whatever lies beside the runs."""
    bundle = Path(project.spec.storage.path) / "bundles" / "abc"
    bundle.mkdir(parents=True)
    (bundle / "model.safetensors").write_bytes(b"0")
    clean()
    assert (bundle / "model.safetensors").exists()


def test_no_runs_no_waste(project: Project, mlflow: Tracker) -> None:
    """A fresh storage."""
    assert (look(mlflow, project.spec).runs, look(mlflow, project.spec).waste) == (0, ())


def test_an_object_store_is_cleaned_too(project: Project, mlflow: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no folders, and its URI has options behind the path."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "any")
    state = f"sqlite:///{project.spec.storage.path}/state.db"
    with fake_s3() as store:
        places = {"storage.path": store.uri("bucket/x"), "storage.state": state, "tracking.uri": mlflow.uri}
        far = project.with_params(places)
        run_id = open_run(mlflow, far, DataRecord("f", {"train": 1}))
        folder = f"bucket/x/runs/{run_id}/checkpoints"
        objects = {f"{folder}/{entry.name}/{name}": b"0" for entry in KEPT.entries for name in ("a", "manifest.json")}
        objects |= {f"{folder}/index.json": KEPT.to_json(), f"{folder}/step-00000040-b-1/a": b"0123"}
        store.objects.update(objects)
        mlflow.log_batch(run_id, tags={"raymlops.weights_uri": store.uri(f"{folder}/step-00000020-a-2")})
        mlflow.end_run(run_id, "FINISHED")
        mlflow.log_text(run_id, "{}", EVALUATION)
        found = look(mlflow, far.spec)
        assert {(Path(item.uri.partition("?")[0]).name, item.size_bytes) for item in found.waste} == {
            ("step-00000030-a-3", 2),
            ("step-00000040-b-1", 4),
        }
        assert remove(mlflow, far.spec, found.waste) == []
        left = {key.removeprefix(f"{folder}/") for key in store.objects if not key.endswith("/")}
    assert left == {"index.json", "step-00000020-a-2/a", "step-00000020-a-2/manifest.json"}


def test_the_newest_whole_checkpoint_is_known_without_a_pointer(run: Run) -> None:
    """Step 40 was never finished, and a damaged one does not count."""
    run.add("damaged-step-00000090-a-9", "manifest.json")
    assert newest_whole(str(run.folder / "checkpoints")) == "step-00000030-a-3"
    assert newest_whole(str(run.folder / "none")) is None


def test_the_record_is_plain_data(run: Run, project: Project, mlflow: Tracker) -> None:
    """As --json prints it."""
    data = json.loads(json.dumps(look(mlflow, project.spec).to_dict()))
    assert data["waste"][0]["run_id"] == run.id


def test_a_deleted_run_whose_lease_cannot_be_read_is_left_alone(run: Run, project: Project, mlflow: Tracker) -> None:
    """Its own state may be on another machine; the others are looked at all the same."""
    storage = project.spec.storage.model_copy(update={"state": "sqlite:////proc/nowhere/state.db"})
    mlflow.log_text(run.id, dump(project.spec.model_copy(update={"storage": storage})), CONFIG)
    other = Run(project, mlflow)
    for one in (run, other):
        mlflow.client.delete_run(one.id)
    found = look(mlflow, project.spec)
    assert [(spared.run_id, "its lease cannot be read" in spared.reason) for spared in found.spared] == [(run.id, True)]
    assert {item.run_id for item in found.waste} == {other.id}


def test_an_mlflow_from_a_backup_need_not_know_what_is_older(
    run: Run, project: Project, mlflow: Tracker, clean: Any
) -> None:
    """A run that was there when the state was restored stays; one that was left since goes."""
    before, since = (run.folder.with_name(digit * 32) for digit in "12")
    mark_origin(str(before), mlflow)
    with State.open(state_url(project.spec)) as state:
        state.record(action="restore", subject="state")
    mark_origin(str(since), mlflow)
    os.utime(since / "origin.json", times=(time.time() + 1,) * 2)
    found = clean()
    assert [item.run_id for item in found.waste if item.reason == "MLflow has no such run"] == [since.name]
    assert "came from a backup" in {spared.run_id: spared.reason for spared in found.spared}[before.name]
