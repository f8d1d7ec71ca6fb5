from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from raymlops.bundle.code import collect
from raymlops.errors import UsageError
from raymlops.records import DataRecord
from raymlops.tracking.tag_entries import entries
from raymlops.training.runs.lookup import EVALUATION, Recorded, check_kind, look_up
from raymlops.training.runs.mlflow_run import open_run
from raymlops.training.runs.resume import (
    changed_keys,
    check_data,
    check_files,
    check_resumable,
    check_unfinished,
    code_differs,
    is_evaluated,
    write_changes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.project import Project
    from raymlops.tracking.client import Tracker

DATA = DataRecord("f" * 64, {"train": 300, "validation": 101, "test": 300})


@pytest.fixture
def recorded(project: Project, mlflow: Tracker) -> Recorded:
    """A run as it was opened, back from MLflow."""
    return look_up(mlflow, open_run(mlflow, project, DATA))


def known(project: Project, **changes: Any) -> Recorded:
    """A run that MLflow was not asked for."""
    run = Recorded("r1", "tiny-1", "run", "RUNNING", 0, None, tags={}, metrics={}, deleted=False, spec=project.spec)
    return replace(run, **changes)


def test_the_same_configuration_goes_on(recorded: Recorded, project: Project) -> None:
    """Written to MLflow as YAML and read back, it is equal."""
    assert check_resumable(recorded, project.spec) == []


def test_what_may_change_is_returned(recorded: Recorded, project: Project) -> None:
    """Epochs and workers, for one."""
    other = project.with_params({"train.epochs": 5, "train.num_workers": [1, 2]})
    assert [change.path for change in check_resumable(recorded, other.spec)] == ["train.num_workers", "train.epochs"]


def test_what_decides_the_result_is_refused_with_both_values(recorded: Recorded, project: Project) -> None:
    """The same run would not give the same numbers."""
    with pytest.raises(UsageError, match=r"train\.lr: was 0\.01, now 0\.5"):
        check_resumable(recorded, project.with_params({"train.lr": 0.5}).spec)


def test_a_run_is_not_cut_short_behind_its_own_back(project: Project) -> None:
    """An override of the start that is forgotten now would end it at once, with what it has."""
    long = project.with_params({"train.epochs": 9})
    run = known(project, spec=long.spec, metrics={"epoch": 4.0})
    with pytest.raises(UsageError, match=r"has trained 4 epochs already, and train\.epochs is 2 \(it was 9\)"):
        check_resumable(run, project.spec)
    check_resumable(run, project.with_params({"train.epochs": 4}).spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sweep"}, "is a sweep, not a run"),
        ({"kind": "trial"}, "is a trial of the sweep SWEEP_ID, not a run"),
        ({"kind": ""}, "was not created by raymlops"),
        ({"spec": None}, "no configuration"),
    ],
)
def test_only_a_training_of_its_own_is_resumed(project: Project, changes: Any, message: str) -> None:
    """The message says what it is instead."""
    with pytest.raises(UsageError, match=message):
        check_kind(known(project, **changes), "run")


def test_a_sweep_and_its_trials_go_on_by_another_command(project: Project) -> None:
    """Which the hint is, with the sweep's own id."""
    run = known(project, kind="sweep")
    with pytest.raises(UsageError) as caught:
        check_kind(run, "run")
    assert caught.value.hint == f"To resume it: raymlops sweep --resume {run.run_id}"
    with pytest.raises(UsageError) as caught:
        check_kind(known(project, kind="trial", tags={"mlflow.parentRunId": "p7"}), "run")
    assert caught.value.hint == "To resume its sweep: raymlops sweep --resume p7"


def test_files_that_are_not_here_are_no_reason_to_begin_again(project: Project) -> None:
    """Somewhere else the run may even be running; one that never made a step on this machine has none."""
    fresh = known(project, tags={"raymlops.host": "a"})
    check_files(fresh, there=False, host="a")
    check_files(replace(fresh, metrics={"train/loss": 1.0}), there=True, host="b")
    with pytest.raises(UsageError, match=r"are not at .*/runs/r1, and it was started on a"):
        check_files(fresh, there=False, host="b")
    with pytest.raises(UsageError, match="restore the folder"):
        check_files(replace(fresh, metrics={"train/loss": 1.0}), there=False, host="a")


def test_other_data_is_refused_with_its_rows(recorded: Recorded) -> None:
    """Then and now, split by split."""
    check_data(recorded, DATA)
    with pytest.raises(UsageError) as caught:
        check_data(recorded, DataRecord("0" * 64, {"train": 310, "validation": -1}))
    assert "it had 300 train, 101 validation, 300 test rows (fingerprint ffffffffffff)" in str(caught.value)
    assert "now there are 310 train, uncounted validation rows (000000000000)" in str(caught.value)
    assert caught.value.hint.startswith("Restore the data, or start a new run on the present data. If datasets()")


def test_a_sweep_whose_data_changed_is_told_so_as_a_sweep(recorded: Recorded) -> None:
    """A new run would be no way on."""
    with pytest.raises(UsageError, match=r"no longer what sweep .* was trained on") as caught:
        check_data(replace(recorded, kind="sweep"), DataRecord("0" * 64, {"train": 310}))
    assert caught.value.hint.startswith("Restore the data, or start a new sweep on the present data. ")


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_run_that_did_not_finish_goes_on(project: Project, status: str) -> None:
    """Also one whose driver died between its last checkpoint and its end."""
    check_unfinished(known(project, status=status), project.spec, finished=True, evaluated=False)


def test_a_finished_run_is_refused(project: Project) -> None:
    """With what it did, and how it could go on."""
    done = known(project, status="FINISHED", tags={"raymlops.epochs": "2", "raymlops.steps": "10"})
    with pytest.raises(UsageError, match=r"is finished \(2 epochs, 10 steps\).*\n.*what ends it: train\.epochs=4"):
        check_unfinished(done, project.spec, finished=True, evaluated=False)


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [
        ({}, {"train.epochs": 3}, True),
        ({}, {"train.epochs": 1}, False),
        ({"train.max_steps": 5}, {"train.max_steps": 6}, True),
        ({"train.max_steps": 5}, {"train.max_steps": None}, True),
        ({"train.max_steps": 5}, {"train.max_steps": 4}, False),
        ({}, {"train.max_steps": 6}, False),
        ({"train.epochs": None, "train.max_steps": 5}, {"train.max_steps": 6}, True),
        ({"train.epochs": None, "train.max_steps": 5}, {"train.max_steps": 4}, False),
        ({"train.patience": 2}, {"train.patience": None}, True),
    ],
)
def test_a_finished_run_goes_on_when_a_limit_was_raised(
    project: Project, before: Any, now: Any, *, goes_on: bool
) -> None:
    """Whichever limit it was that ended it."""
    done = known(project, status="FINISHED", spec=project.with_params(before).spec)
    wanted = project.with_params({**before, **now}).spec
    if goes_on:
        check_unfinished(done, wanted, finished=True, evaluated=False)
    else:
        with pytest.raises(UsageError, match="nothing is left to train"):
            check_unfinished(done, wanted, finished=True, evaluated=False)


def test_a_finished_run_whose_checkpoint_has_more_to_do_goes_on(project: Project) -> None:
    """What is in the checkpoint counts."""
    check_unfinished(known(project, status="FINISHED"), project.spec, finished=False, evaluated=False)


def test_a_registered_run_stays_as_it_is(project: Project, mlflow: Tracker, recorded: Recorded) -> None:
    """Its version says what its weights did on the test split, and one run is one version."""
    assert not is_evaluated(mlflow, recorded.run_id)
    mlflow.log_text(recorded.run_id, "{}", EVALUATION)
    assert is_evaluated(mlflow, recorded.run_id)
    longer = project.with_params({"train.epochs": 9}).spec
    with pytest.raises(UsageError, match="was registered"):
        check_unfinished(replace(recorded, status="FINISHED"), longer, finished=True, evaluated=True)


def test_changed_keys_are_named() -> None:
    """Changed, gone and new ones; equal ones are not."""
    assert changed_keys({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}) == ["b", "c", "d"]


def test_nothing_is_written_where_nothing_changed(recorded: Recorded, project: Project, mlflow: Tracker) -> None:
    """No tag tells of a resume that is the same."""
    assert write_changes(mlflow, recorded, project=project, changes=[]) == ()
    assert look_up(mlflow, recorded.run_id).tags == recorded.tags


def test_changes_are_on_the_run_afterwards(recorded: Recorded, project: Project, mlflow: Tracker) -> None:
    """The configuration, its digest, and what was changed when; a second resume compares with the first."""
    effect = "(the learning rate follows the new length from here on)"
    first, second = f"train.epochs: was 2, now 5 {effect}", f"train.epochs: was 5, now 6 {effect}"
    for epochs, said in ((5, first), (6, second)):
        wanted = project.with_params({"train.epochs": epochs})
        before = look_up(mlflow, recorded.run_id)
        assert write_changes(mlflow, before, project=wanted, changes=check_resumable(before, wanted.spec)) == (said,)
    after = look_up(mlflow, recorded.run_id)
    assert after.spec == wanted.spec
    assert after.tags["raymlops.config_sha"] == wanted.spec.sha()
    assert [entry["changes"] for entry in entries(after.tags, "raymlops.resumed_with_changes")] == [[first], [second]]


def test_changed_code_is_allowed_told_and_registered_later(
    recorded: Recorded, project: Project, mlflow: Tracker
) -> None:
    """Registering asks for the code of the weights, which is now that of the resume."""
    mlflow.log_text(recorded.run_id, json.dumps({"tiny.py": "0", "gone.py": "0"}), "code/files.json")
    mlflow.log_batch(recorded.run_id, tags={"raymlops.code_sha": "0" * 64})
    before = look_up(mlflow, recorded.run_id)
    said = write_changes(mlflow, before, project=project, changes=[])
    assert said == ("code changed: gone.py", "code changed: tiny.py")
    code = collect(project.recipe_class)
    assert look_up(mlflow, recorded.run_id).tags["raymlops.code_sha"] == code.sha()
    assert json.loads(mlflow.read_text(recorded.run_id, "code/files.json")) == code.digests()


def test_code_is_compared_by_its_digest_alone(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git, which reads every changed file of a repository, is not asked."""
    (tmp_path / "git").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert code_differs(known(project, tags={"raymlops.code_sha": "0" * 64}), project)
    assert not code_differs(known(project, tags={"raymlops.code_sha": collect(project.recipe_class).sha()}), project)
    assert not (tmp_path / "asked").exists()


def test_the_tag_of_changes_stays_within_its_bounds(recorded: Recorded, project: Project, mlflow: Tracker) -> None:
    """The newest of many are kept, and it can be read."""
    many = [
        change
        for epochs in range(3, 90)
        for change in check_resumable(recorded, project.with_params({"train.epochs": epochs}).spec)
    ]
    for _ in range(3):
        write_changes(mlflow, look_up(mlflow, recorded.run_id), project=project, changes=many)
    found = entries(look_up(mlflow, recorded.run_id).tags, "raymlops.resumed_with_changes")
    assert 1 <= len(found) <= 3
    assert found[-1]["changes"][0].startswith("train.epochs: was 2, now 3 (")
