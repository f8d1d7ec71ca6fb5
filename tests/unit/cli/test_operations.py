from __future__ import annotations

import json

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.cli.main import main
from raymlops.records import DataRecord
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.tracking.client import Tracker
from raymlops.training.runs.lookup import mark_origin


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
        assert lines["state"] == "interrupted: MLflow says RUNNING, but no process holds its lease"
        assert lines["trials"] == "1 of 4 ended: 1 complete"
        assert lines["resume"] == f"resumes 3 new trials: raymlops sweep --resume {sweep.sweep_id}"
        assert main(["status", sweep.sweep_id, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["best"]["value"], data["trials"]["complete"], data["num_trials"]) == (0.25, 1, 4)


@pytest.mark.parametrize("command", [["status", "r"], ["logs", "r"], ["compare", "r", "s"]])
def test_values_replace_those_of_the_environment(home, command, tmp_path, capsys):
    """Without a configuration too: another MLflow is looked at."""
    assert main([*command, f"tracking.uri=sqlite:///{tmp_path}/other.db"]) == 3
    assert "other.db does not exist yet" in capsys.readouterr().err


def test_the_status_is_of_one_run(home, capsys):
    """A second one is not passed over."""
    assert main(["status", "r", "s"]) == 2
    assert "status takes one id, of a run, a sweep, a trial or a model, or none; got r, s" in capsys.readouterr().err
