"""How a run is doing: from what MLflow, the lease and the checkpoints say to one record."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from raymlops.records import DataRecord
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.training.checkpoints.retention import Entry, Kept
from raymlops.training.run import train
from raymlops.training.runs.lookup import EVALUATION, Recorded, look_up
from raymlops.training.runs.mlflow_run import open_run
from raymlops.training.runs.status import CheckpointStatus, RunStatus
from raymlops.training.runs.status_reader import Found, run_status, summarize

if TYPE_CHECKING:
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker

NOW = datetime(2026, 11, 25, 12, 0, 40, tzinfo=UTC)
PROGRESS = {
    "epoch": 3,
    "epochs": 10,
    "step": 120,
    "steps": 400,
    "eta_s": 70,
    "rows_per_s": 5300.0,
    "workers": 2,
    "at": "2026-11-25T12:00:30+00:00",
}
LAST = CheckpointStatus("step-00000100-a-3", 100, "2026-11-25T12:00:00+00:00", 40.0, 1000)
KEPT = Kept((Entry("step-00000080-a-2", 80, 2), Entry(LAST.name, 100, 3)), best="step-00000080-a-2", last=LAST.name)
STATE = {"step": 100, "epoch": 3, "run": {"history": [{"m": 3.0}, {"m": 1.0}], "best_epoch": 2, "skipped": [7, 9]}}
FOUND = Found(KEPT, LAST, STATE)


@pytest.fixture
def recorded(project: Project) -> Recorded:
    """A run in the middle of its third epoch."""
    tags = {"raymlops.progress": json.dumps(PROGRESS), "raymlops.project": "tiny"}
    return Recorded("r1", "tiny-1", "run", "RUNNING", 0, None, tags=tags, metrics={}, deleted=False, spec=project.spec)


def status(recorded: Recorded, held: str = "free", who: str = "", found: Found = FOUND) -> RunStatus:
    return summarize(recorded, tracking_uri="sqlite:///x", now=NOW, lease=(held, who), found=found)


@pytest.mark.parametrize(
    ("mlflow_says", "held", "state"),
    [
        ("RUNNING", "held", "running"),
        ("RUNNING", "free", "interrupted"),
        ("RUNNING", "unknown", "unknown"),
        ("FINISHED", "free", "finished"),
        ("FINISHED", "unknown", "finished"),
        ("FAILED", "free", "failed"),
        ("KILLED", "free", "killed"),
        ("KILLED", "held", "running"),
        ("SCHEDULED", "free", "unknown"),
    ],
)
def test_the_state_is_what_lease_and_mlflow_say_together(
    recorded: Recorded, mlflow_says: str, held: str, state: str
) -> None:
    """Who died could not tell MLflow; the lease knows."""
    assert status(replace(recorded, status=mlflow_says), held, "ada@box").state == state


def test_a_running_run_says_how_far_it_is(recorded: Recorded) -> None:
    """120 of 400 steps are 30%; of the 70 s left ten seconds ago, 60 are left."""
    now = status(recorded, "held", "ada@box (process 3)")
    assert (now.epoch, now.epochs, now.step, now.steps, now.percent) == (3, 10, 120, 400, 30.0)
    assert (now.eta_s, now.rows_per_s, now.workers, now.holder) == (60.0, 5300.0, 2, "ada@box (process 3)")
    assert now.detail == "by ada@box (process 3)"
    assert now.resume == "refused while ada@box (process 3) trains it"


def test_an_interrupted_run_says_what_resuming_does(recorded: Recorded) -> None:
    """From which step, and how; there is no time left where nobody trains."""
    now = status(recorded)
    assert now.eta_s is None
    assert now.detail == "MLflow says RUNNING, but no process holds its lease"
    assert now.resume == "resumes from step 100: raymlops train --resume r1"
    assert "restarts from scratch" in status(recorded, found=Found()).resume
    assert status(recorded, found=Found(problem="no disk")).resume == "unknown: no disk"


def test_the_best_epoch_comes_from_the_last_checkpoint_until_the_end(recorded: Recorded) -> None:
    """And from the run's tags when they say it; before any report there are only the newest values."""
    now = status(recorded)
    assert (now.best_epoch, now.metrics, now.best_checkpoint) == (2, {"m": 1.0}, "step-00000080-a-2")
    tags = {**recorded.tags, "raymlops.best.m": "0.5", "raymlops.best_epoch": "7"}
    done = status(replace(recorded, tags=tags, status="FINISHED"))
    assert (done.best_epoch, done.metrics) == (7, {"m": 0.5})
    young = status(replace(recorded, metrics={"train/loss": 2.0, "system/cpu": 1.0}), found=Found())
    assert (young.best_epoch, young.metrics) == (None, {"train/loss": 2.0})


def test_what_happened_is_on_it(recorded: Recorded) -> None:
    """Restarts with reasons, changes at a resume, steps that were left out."""
    tags = {
        "raymlops.restart_count": "31",
        "raymlops.restarts": json.dumps([{"at": "t", "step": 80, "workers": 1, "reason": "rank 1 died"}]),
        "raymlops.resumed_with_changes": json.dumps([{"at": "t", "changes": ["train.epochs: was 5, now 10"]}]),
    }
    now = status(replace(recorded, tags={**recorded.tags, **tags}))
    assert (now.restart_count, now.restarts[0]["reason"]) == (31, "rank 1 died")
    assert now.resumed_with_changes[0]["changes"] == ["train.epochs: was 5, now 10"]
    assert now.skipped_steps == (7, 9)


def test_a_failed_run_says_why(recorded: Recorded) -> None:
    """In MLflow's tag; a signal leaves the name of an exception alone."""
    why = {"raymlops.reason": "TrainingError: rank 1 died 4 times"}
    assert status(replace(recorded, status="FAILED", tags=why)).detail == "TrainingError: rank 1 died 4 times"
    signal = {"raymlops.reason": "KeyboardInterrupt: "}
    assert status(replace(recorded, status="KILLED", tags=signal)).detail == "stopped by a signal"


def test_a_checkpoint_that_is_further_than_the_last_word_counts(recorded: Recorded) -> None:
    """The run tells MLflow every few seconds, and died in between."""
    further = Found(KEPT, replace(LAST, step=130), {**STATE, "epoch": 4})
    assert (status(recorded, found=further).step, status(recorded, found=further).epoch) == (130, 4)
    silent = status(replace(recorded, tags={}))
    assert (silent.step, silent.steps, silent.percent) == (100, None, None)


@pytest.mark.parametrize("tag", ["", "{", "[1]", "3", '{"step": 0, "steps": 0}'])
def test_a_progress_that_cannot_be_read_is_none(recorded: Recorded, tag: str) -> None:
    """Anyone may write tags, and a run that has just started has none."""
    assert status(replace(recorded, tags={"raymlops.progress": tag}), found=Found()).step is None


def test_a_finished_run_could_be_trained_for_longer(recorded: Recorded) -> None:
    """Which is all that resuming could do."""
    assert (
        "to train longer: raymlops train --resume r1 train.epochs=4"
        in status(replace(recorded, status="FINISHED")).resume
    )


def test_a_registered_run_is_trained_no_more(recorded: Recorded) -> None:
    """Resuming would refuse it, whatever is raised."""
    done = replace(recorded, status="FINISHED")
    now = summarize(done, tracking_uri="", now=NOW, lease=("free", ""), found=FOUND, evaluated=True)
    assert now.resume.startswith("refused: it is finished and registered")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("trial", "a trial of the sweep p"),
        ("", "not a run of raymlops"),
    ],
)
def test_other_kinds_of_runs_say_what_they_are(recorded: Recorded, kind: str, says: str) -> None:
    """And have no lease of their own."""
    other = replace(recorded, kind=kind, tags={"mlflow.parentRunId": "p"}, spec=None)
    now = summarize(other, tracking_uri="", now=NOW)
    assert (now.state, now.detail.startswith(says), now.resume) == ("unknown", True, "only a run can be resumed")


@pytest.mark.parametrize(
    ("tags", "detail"),
    [
        ({}, "trial 19 of the sweep p"),
        ({"raymlops.trial_status": "pruned"}, "pruned: trial 19 of the sweep p"),
        (
            {"raymlops.trial_status": "failed", "raymlops.reason": "RecipeError: no"},
            "failed: trial 19 of the sweep p; RecipeError: no",
        ),
    ],
)
def test_a_trial_says_how_its_sweep_ended_it(recorded: Recorded, tags: dict[str, str], detail: str) -> None:
    """MLflow says KILLED of a pruned one."""
    all_tags = {"mlflow.parentRunId": "p", "raymlops.trial": "19", **tags}
    trial = replace(recorded, kind="trial", status="KILLED", tags=all_tags, spec=None)
    now = summarize(trial, tracking_uri="", now=NOW)
    assert (now.state, now.detail) == ("killed", detail)


ANNOUNCED = RunStatus(
    run_id="r1",
    name="flights-1",
    kind="run",
    project="flights",
    state="interrupted",
    detail="MLflow says RUNNING, but no process holds its lease",
    holder=None,
    tracking_uri="sqlite:///x",
    started_at="2026-11-25T12:00:00+00:00",
    ended_at=None,
    epoch=3,
    epochs=10,
    step=120,
    steps=400,
    percent=30.0,
    rows_per_s=5300.0,
    seen_at="2026-11-25T12:00:30+00:00",
    best_epoch=2,
    metrics={"validation/loss": 0.35},
    workers=2,
    restart_count=21,
    restarts=({"at": "2026-11-25T12:00:10+00:00", "step": 80, "workers": 1, "reason": "rank 1 died"},),
    resumed_with_changes=({"at": "2026-11-25T12:00:00+00:00", "changes": ["train.epochs: was 5, now 10"]},),
    skipped_steps=tuple(range(12)),
    checkpoint=CheckpointStatus("step-00000100-a-3", 100, None, 3700.0, 2_500_000),
    best_checkpoint="step-00000080-a-2",
    files_uri="/s/runs/r1",
    log_uri="/s/runs/r1/log.txt",
    resume="resumes from step 100: raymlops train --resume r1",
)


def test_a_run_is_told_in_lines() -> None:
    """One line a question, more where there is more than one answer."""
    assert ANNOUNCED.text().splitlines() == [
        "run        r1 (flights-1)",
        "state      interrupted: MLflow says RUNNING, but no process holds its lease",
        "progress   epoch 3 of 10, step 120 of 400, 30% (at 2026-11-25 12:00:30 UTC)",
        "metrics    epoch 2, the best: validation/loss 0.35",
        "workers    2",
        "restarts   21, the newest 1:",
        "           2026-11-25 12:00:10 UTC from step 80 with 1 worker: rank 1 died",
        "changed    2026-11-25 12:00:00 UTC train.epochs: was 5, now 10",
        "skipped    12 steps with a non-finite loss or gradient: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more",
        "checkpoint step-00000100-a-3 of step 100, 1:01:40 old, 2.5 MB; best step-00000080-a-2",
        "files      /s/runs/r1",
        "log        /s/runs/r1/log.txt, or raymlops logs r1",
        "resume     resumes from step 100: raymlops train --resume r1",
    ]


def test_what_is_unknown_is_left_out() -> None:
    """A run that has just started."""
    young = RunStatus(
        run_id="r1",
        name="",
        kind="run",
        project="",
        state="running",
        detail="by ada",
        holder="ada",
        tracking_uri="",
        started_at="",
        ended_at=None,
        resume="refused while ada trains it",
    )
    assert young.text() == "run        r1\nstate      running: by ada\nresume     refused while ada trains it"
    assert young._repr_html_().count("<tr>") == 3


def test_the_record_survives_json(recorded: Recorded) -> None:
    """As --json prints it."""
    data = json.loads(json.dumps(status(recorded).to_dict()))
    assert data["checkpoint"]["step"] == 100
    assert data["state"] == "interrupted"


def test_a_real_run_is_looked_at(project: Project, mlflow: Tracker) -> None:
    """From its folder: name, step, size and age of its last checkpoint."""
    record = train(project)
    now = run_status(mlflow, look_up(mlflow, record.run_id))
    assert (now.state, now.step, now.best_epoch) == ("finished", record.steps, record.best_epoch)
    assert now.metrics == record.metrics
    assert now.checkpoint is not None
    assert (now.checkpoint.step, now.checkpoint.size_bytes > 1000) == (record.steps, True)
    assert 0 <= (now.checkpoint.age_s or 0) < 60
    assert now.weights_uri == record.weights_uri
    assert now.log_uri == f"{now.files_uri}/log.txt"
    assert "to train longer" in now.resume
    mlflow.log_text(record.run_id, "{}", EVALUATION)
    assert run_status(mlflow, look_up(mlflow, record.run_id)).resume.startswith(
        "refused: it is finished and registered"
    )


def test_a_run_without_a_pointer_is_looked_at_too(project: Project, mlflow: Tracker) -> None:
    """Its newest whole checkpoint is what it would go on from."""
    record = train(project)
    (Path(record.weights_uri).parent / "index.json").unlink()
    now = run_status(mlflow, look_up(mlflow, record.run_id))
    assert now.checkpoint is not None
    assert now.checkpoint.step == record.steps


@pytest.mark.parametrize("text", ['{"step": "1', "[3]", "\udcff"])
def test_a_damaged_checkpoint_says_what_resuming_does(project: Project, mlflow: Tracker, text: str) -> None:
    """It passes it over; one that is gone too."""
    record = train(project)
    kept = Kept.from_json((Path(record.weights_uri).parent / "index.json").read_bytes())
    assert kept is not None
    last = Path(record.weights_uri).parent / str(kept.last)
    (last / "state.json").write_bytes(text.encode(errors="surrogateescape"))
    mlflow.client.set_terminated(record.run_id, "FAILED")
    command = f"raymlops train --resume {record.run_id}"
    assert run_status(mlflow, look_up(mlflow, record.run_id)).resume == (
        f"the newest checkpoint {last.name} is damaged; resuming sets it aside and continues from the previous "
        f"one, or from scratch: {command}"
    )
    last.rename(last.parent.parent / "moved")
    assert run_status(mlflow, look_up(mlflow, record.run_id)).resume == (
        f"the newest checkpoint {last.name} is missing; resuming continues from the previous one, or from scratch: "
        f"{command}"
    )


def test_who_holds_a_real_run_is_told(project: Project, mlflow: Tracker) -> None:
    """While it does; afterwards the run is an interrupted one. Before, its lease was never here."""
    run_id = open_run(mlflow, project, DataRecord("f", {"train": 1}))
    assert run_status(mlflow, look_up(mlflow, run_id)).state == "unknown"
    with lease(state_url(project.spec), run_id, purpose="training it"):
        assert run_status(mlflow, look_up(mlflow, run_id)).state == "running"
    assert run_status(mlflow, look_up(mlflow, run_id)).state == "interrupted"
