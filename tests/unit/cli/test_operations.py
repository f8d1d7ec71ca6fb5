from __future__ import annotations

import json

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.cli.main import main
from raymlops.cli.operations import _duration, _size, run_text
from raymlops.records import DataRecord
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.tracking.client import Tracker
from raymlops.training.runs.lookup import mark_origin
from raymlops.training.runs.status import CheckpointStatus, RunStatus

STATUS = RunStatus(
    run_id="r1",
    name="flights-1",
    kind="run",
    project="flights",
    state="interrupted",
    detail="MLflow says RUNNING, but nobody trains it",
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
    resume="goes on from step 100: raymlops train --resume r1",
)


def test_a_run_is_told_in_lines():
    """One line a question, more where there is more than one answer."""
    assert run_text(STATUS).splitlines() == [
        "run        r1 (flights-1)",
        "state      interrupted: MLflow says RUNNING, but nobody trains it",
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
        "resume     goes on from step 100: raymlops train --resume r1",
    ]


def test_what_is_not_known_is_left_out():
    """A run that has just begun, and a sweep."""
    young = RunStatus(
        "r1", "", "run", "", "running", "by ada", "ada", "", "", None, resume="refused while ada trains it"
    )
    assert run_text(young) == "run        r1\nstate      running: by ada\nresume     refused while ada trains it"
    sweep = RunStatus("s1", "", "sweep", "", "finished", "a sweep, not a run", None, "", "", None, trials={"failed": 2})
    assert run_text(sweep) == "sweep      s1\nstate      finished: a sweep, not a run\ntrials     2 failed"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (2_500_000, "2.5 MB"), (3 * 10**12, "3.0 TB")],
)
def test_sizes_are_short(size, text):
    """Three digits, powers of ten."""
    assert _size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0:00"), (59.6, "1:00"), (3700, "1:01:40"), (90_000, "1 d 1 h"), (0, "0:00")]
)
def test_durations_are_short(seconds, text):
    """Minutes and seconds, with hours and days where there are any."""
    assert _duration(seconds) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--resume RUN_ID"),
        (["train", "--resume"], "requires an argument"),
        (["status", "--config", "a.yaml", "--root", "x"], "both say where the state is"),
        (["status", "r1", "--root", "x"], "a run is found by its id alone"),
        (["logs"], "RUN_ID"),
        (["status", "r1", "--env", "prod"], "--config FILE"),
    ],
)
def test_what_does_not_go_together_is_said(arguments, message, capsys):
    """On stderr, with exit code 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.fixture
def home(storage_path, monkeypatch):
    monkeypatch.setenv("RAYMLOPS_HOME", str(storage_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return storage_path


@pytest.fixture
def deleted(home):
    """The folder of a run that was deleted in MLflow."""
    tracker = Tracker(f"sqlite:///{home}/mlflow.db")
    run_id = tracker.start_run("tiny", name="tiny-1", tags={"raymlops.kind": "run"})
    tracker.client.delete_run(run_id)
    folder = home / "runs" / run_id
    mark_origin(str(folder), tracker)
    return folder


def test_gc_says_what_would_go(deleted, capsys):
    """And touches nothing."""
    assert main(["gc", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{deleted.name}  the run was deleted in MLflow" in out
    assert f"would remove 1 folder in {deleted.parent.parent}, " in out
    assert deleted.exists()


def test_gc_asks_first(deleted, capsys):
    """Without a terminal it needs --yes."""
    assert main(["gc"]) == 2
    err = capsys.readouterr().err
    assert "Remove 1 folder in" in err
    assert "Add --yes" in err
    assert deleted.exists()


def test_gc_removes_with_yes(deleted, capsys):
    """With sizes as numbers for a program."""
    size = sum(file.stat().st_size for file in deleted.iterdir())
    assert main(["gc", "--yes", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["removed"], record["size_bytes"], record["failed"]) == (True, size, [])
    assert not deleted.exists()
    assert main(["gc", "--yes"]) == 0
    assert "nothing to remove: 0 runs and trials of 0 sweeps in" in capsys.readouterr().out


def test_status_and_logs_of_an_unknown_run_exit_3(home, capsys):
    """With --json the error is an object, and near ids are in its hint."""
    tracker = Tracker(f"sqlite:///{home}/mlflow.db")
    run_id = tracker.start_run("tiny", name="tiny-1", tags={"raymlops.kind": "run"})
    for verb in ("status", "logs"):
        assert main([verb, run_id[:7], "--json"]) == 3
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["type"] == "NotFoundError"
        assert run_id in error["hint"]


def test_logs_print_a_line_each(home, capsys):
    """With --json an object each, as it may be followed for hours."""
    from raymlops.config.load import load_data
    from raymlops.project import bind
    from raymlops.training.runs.mlflow_run import open_run

    tracker = Tracker(f"sqlite:///{home}/mlflow.db")
    project = bind(load_data({"project": {"name": "tiny"}, "recipe": {"import": "tiny:Tiny"}}))
    run_id = open_run(tracker, project, DataRecord("f", {"train": 1}))
    folder = home / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("one\ntwo\n")
    assert main(["logs", run_id]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert main(["logs", run_id, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["schema_version"], line["run_id"], line["line"]) for line in lines] == [
        (1, run_id, "one"),
        (1, run_id, "two"),
    ]


def test_status_of_a_sweep_says_how_it_goes_on(home, capsys):
    """In lines for a person, as one object for a program."""
    with recorded_sweep(project_in(home)) as sweep:
        with lease(state_url(sweep.project.spec), sweep.sweep_id, purpose="sweeping"):
            sweep.run(0.25)
        assert main(["status", sweep.sweep_id]) == 0
        lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert lines["state"] == "interrupted: MLflow says RUNNING, but nobody runs it"
        assert lines["trials"] == "1 of 4 ended: 1 complete"
        assert lines["resume"] == f"goes on with 3 new trials: raymlops sweep --resume {sweep.sweep_id}"
        assert main(["status", sweep.sweep_id, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["best"]["value"], data["trials"]["complete"], data["num_trials"]) == (0.25, 1, 4)
