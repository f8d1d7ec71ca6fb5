"""The handle of a sweep: attached by an id alone, asked how it stands, waited for, registered."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from fake_jobs import fake_jobs
from recorded_sweep import project_in, recorded_sweep

from raymlops.cluster.jobs import explicit
from raymlops.errors import ClusterError, NotFoundError, RefusedError, SweepError, UsageError
from raymlops.lifecycle.sweeps.handle import attach, sweep
from raymlops.lifecycle.sweeps.run import SweepRequest, sweep_request
from raymlops.lifecycle.sweeps.submit import submit
from raymlops.lifecycle.sweeps.wait import wait_for
from raymlops.records import SpentRecord
from raymlops.state.database import state_url
from raymlops.state.lease import lease
from raymlops.tracking.client import tracker
from raymlops.tuning.study.reruns import add_repeats

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fake_jobs import FakeJobs
    from recorded_sweep import RecordedSweep

    from raymlops.lifecycle.sweeps.handle import Sweep


@pytest.fixture(autouse=True)
def home(storage_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing names an MLflow or a cluster but RAYMLOPS_HOME."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAYMLOPS_HOME", str(storage_path))


@pytest.fixture
def begun(storage_path: Path) -> Iterator[RecordedSweep]:
    """A sweep of four trials, of which none has begun."""
    with recorded_sweep(project_in(storage_path)) as made:
        yield made


@pytest.fixture
def ended(begun: RecordedSweep) -> Sweep:
    """The handle of a sweep that has ended well, found by its id alone."""
    for value in (0.5, 0.25, 0.75):
        begun.run(value)
    begun.run(0.1, "failed", reason="broke")
    tags = {"raymlops.report": "/s/report.html", "raymlops.best_config": "/s/best.yaml"}
    begun.parent.end("FINISHED", tags | {"raymlops.spent": json.dumps(SpentRecord(wall_s=7.0).to_dict())})
    return attach(begun.sweep_id)


class Events(list[Any]):
    """Keeps what a display would show."""

    __call__ = list.append


def test_a_sweep_is_found_by_its_id(ended: Sweep) -> None:
    """With its trials, its best one, its report, and its status in a line and in a table."""
    assert list(ended.trials()["status"]) == ["complete", "complete", "complete", "failed"]
    assert (ended.best.number, ended.best.value) == (1, 0.25)
    assert ended.report == "/s/report.html"
    assert ended.status().state == "finished"
    assert repr(ended) == f"Sweep('{ended.sweep_id}': finished, 4 of 4 trials, best 0.25 in trial 1)"
    assert ">trial 1: validation/loss 0.25" in ended._repr_html_()


def test_a_plot_is_drawn_from_the_study(ended: Sweep) -> None:
    """By plotly, whose figures a notebook shows."""
    assert "plotly" in type(ended.plot("history")).__module__


def test_waiting_for_an_ended_sweep_returns_its_record(ended: Sweep) -> None:
    """At once, with a last event."""
    events = Events()
    record = ended.wait(on_event=events)
    assert (record.sweep_id, record.best.number, len(record.trials)) == (ended.sweep_id, 1, 4)
    assert (record.duration_s, record.best_config, record.report) == (7.0, "/s/best.yaml", "/s/report.html")
    assert [event.kind for event in events] == ["end"]
    assert record.storage.endswith("/optuna.db")


def test_user_attributes_are_columns_of_the_trials(storage_path: Path) -> None:
    """Of a running trial they are not known."""
    with recorded_sweep(project_in(storage_path, user_attrs=["other"])) as made:
        made.run(0.5)
        made.report(0.25)
        shown = attach(made.sweep_id).trials()
    assert list(shown.columns)[:5] == ["number", "status", "value", "other", "train.lr"]
    assert shown["other"].fillna(0.0).tolist() == [-0.5, 0.0]


def test_a_winner_of_several_seeds_is_shown_with_its_mean(storage_path: Path) -> None:
    """By every way to ask for it; what is registered is its best run by validation, with that run's seed."""
    project = project_in(storage_path, repeats={"seeds": 3, "top": 1}, num_trials=2)
    with recorded_sweep(project) as made:
        made.run(0.5)
        made.run(0.25)
        assert attach(made.sweep_id).status().resume.startswith("resumes 2 repeats: ")
        assert add_repeats(made.study, spec=project.spec) == 2
        opened = made.trials.reopen(repeats=True)
        for trial, value in zip(opened, (0.35, 0.15), strict=True):
            metrics = {"validation/loss": value}
            made.trials.report(trial.number, epoch=1, value=value, metrics=metrics, best_metrics=metrics)
            made.trials.tell(trial.number, "complete")
        made.trials.flush()
        made.parent.end("FINISHED", {"raymlops.best_config": "/s/best.yaml"})
        handle = attach(made.sweep_id)
    status = handle.status()
    assert (status.ended, status.num_trials) == (2, 2)
    assert status.summary()["repeats"] == "trial 1: validation/loss 0.25 ± 0.058 (3 seeds, 0.25 without the search's)"
    assert "0.25 ± 0.058" in handle._repr_html_()
    assert (handle.best.number, handle.best.repeat_of, handle.best.seed) == (3, 1, 2)
    assert handle.wait(on_event=Events()).repeats == status.repeats
    assert handle.trials()["repeat_of"].fillna(-1).tolist() == [-1, -1, 1, 1]
    assert repr(handle).endswith("2 of 2 trials, best 0.25 ± 0.058 (3 seeds, 0.25 without the search's) in trial 1)")
    assert status.resume.startswith("nothing left to do: it has ended all 2 trials")


def test_waiting_shows_what_happens_until_the_end(begun: RecordedSweep) -> None:
    """While the driver holds its lease the sweep runs, whatever its study holds."""
    events = Events()
    with ExitStack() as driver:
        driver.enter_context(lease(state_url(begun.project.spec), begun.sweep_id, purpose="sweeping"))

        def go_on(_seconds: float) -> None:
            begun.run(0.5)
            if len(events) == 2:
                begun.parent.end("FINISHED", {})
                driver.close()

        record = wait_for(begun.tracker, begun.sweep_id, on_event=events, sleep=go_on)
    assert [(event.kind, event.ended) for event in events] == [("epoch", 0), ("epoch", 1), ("end", 2)]
    assert record.best.value == 0.5


def test_waiting_has_an_end(begun: RecordedSweep) -> None:
    """The sweep goes on."""
    with (
        lease(state_url(begun.project.spec), begun.sweep_id, purpose="sweeping"),
        pytest.raises(TimeoutError, match="still running after 0 s"),
    ):
        attach(begun.sweep_id).wait(0, on_event=Events())


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        ("FAILED", "SweepError: none of 2 trials gave a usable value", "failed: none of 2 trials"),
        ("FAILED", "TrackingError: MLflow is away", "failed: TrackingError: MLflow is away"),
        ("KILLED", "KeyboardInterrupt: ", "ended early: stopped by a signal"),
    ],
)
def test_a_sweep_that_did_not_get_to_its_end_is_an_error(
    begun: RecordedSweep, status: Any, reason: str, message: str
) -> None:
    """With why, and how it goes on."""
    begun.run(0.5)
    begun.parent.end(status, {"raymlops.reason": reason})
    with pytest.raises(SweepError, match=message) as caught:
        attach(begun.sweep_id).wait(on_event=Events())
    assert f"raymlops sweep --resume {begun.sweep_id}" in str(caught.value.hint)


def test_a_driver_that_died_is_an_error_after_some_looks(begun: RecordedSweep) -> None:
    """A new one has its run a moment before its lease."""
    with lease(state_url(begun.project.spec), begun.sweep_id, purpose="sweeping"):
        begun.run(0.5)
    looks: list[float] = []
    with pytest.raises(SweepError, match="broke off: its driver exited"):
        wait_for(begun.tracker, begun.sweep_id, on_event=Events(), sleep=looks.append)
    assert len(looks) == 2


def test_a_sweep_without_a_usable_trial_has_no_best(begun: RecordedSweep) -> None:
    """And no report."""
    handle = attach(begun.sweep_id)
    with pytest.raises(SweepError, match="before any trial"):
        _ = handle.best
    with pytest.raises(NotFoundError, match="no report yet"):
        _ = handle.report
    assert list(handle.trials()["number"]) == []


def test_the_winner_is_trained_and_registered_once(ended: Sweep) -> None:
    """Its run says which trial of which sweep it is, and is used again."""
    version = ended.register()
    again = attach(ended.sweep_id).register()
    assert (again.version, again.run_id) == (version.version, version.run_id)
    run = ended._tracker.run(version.run_id)
    assert (run.data.tags["raymlops.sweep_id"], run.data.tags["raymlops.trial"]) == (ended.sweep_id, "1")
    assert float(run.data.params["train.lr"]) == pytest.approx(ended.best.params["train.lr"])


def test_what_still_runs_is_not_registered(begun: RecordedSweep) -> None:
    """Its winner is not known."""
    begun.run(0.5)
    with lease(state_url(begun.project.spec), begun.sweep_id, purpose="sweeping"), pytest.raises(RefusedError):
        attach(begun.sweep_id).register()


def test_a_process_of_its_own_is_not_stopped_from_here(begun: RecordedSweep) -> None:
    """It is named."""
    handle = attach(begun.sweep_id)
    with (
        lease(state_url(begun.project.spec), begun.sweep_id, purpose="sweeping"),
        pytest.raises(RefusedError, match="sweeping"),
    ):
        handle.stop()
    assert handle.stop().state == "interrupted"


def test_only_a_sweep_has_a_handle(begun: RecordedSweep) -> None:
    """A trial names its sweep, and a wrong id near ones."""
    trial = begun.tracker.start_run("tiny", name="t", tags={"raymlops.kind": "trial"}, parent_run_id=begun.sweep_id)
    with pytest.raises(UsageError, match="is a trial of the sweep"):
        attach(trial)
    with pytest.raises(NotFoundError) as caught:
        attach(begun.sweep_id[:12])
    assert begun.sweep_id in str(caught.value.hint)


def test_an_mlflow_that_is_away_is_told_and_not_raised_in_a_cell(ended: Sweep, storage_path: Path) -> None:
    """The last line of a cell is shown by ``repr``."""
    (storage_path / "mlflow.db").write_text("no database")
    assert ended.sweep_id in repr(ended)
    assert "finished" not in ended._repr_html_()


# --- sent as a job


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJobs]:
    """A cluster that takes jobs, named by the environment."""
    with fake_jobs(tmp_path) as serving:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", serving.place.url)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(serving.place.token_path))
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        serving.states = ["RUNNING"]
        yield serving


def test_a_job_is_told_what_its_configuration_leaves_to_this_process(storage_path: Path, cluster: FakeJobs) -> None:
    """Where MLflow and files are, and the tags; it is known by the id that it gives to its run."""
    project = project_in(storage_path)
    with ExitStack() as driver:

        def begin(_seconds: float) -> None:
            driver.enter_context(recorded_sweep(project, submission_id=cluster.submitted[0]["submission_id"]))

        sweep_id = submit(SweepRequest(project), tags={"why": "test"}, sleep=begin)
    tags = tracker(project.spec).run(sweep_id).data.tags
    assert tags["raymlops.submission_id"] == cluster.submitted[0]["submission_id"]
    (package,) = cluster.packages.values()
    text = package["raymlops-job.yaml"].decode()
    assert f"uri: sqlite:///{storage_path}/mlflow.db" in text
    assert "why: test" in text
    assert "tiny.py" in package


def test_what_a_job_refuses_is_raised_here(storage_path: Path, cluster: FakeJobs) -> None:
    """As the error that it was there."""
    cluster.states = ["FAILED"]
    cluster.log = json.dumps({"error": {"type": "UsageError", "message": "too few CPUs", "hint": "wait"}})
    with pytest.raises(UsageError, match="too few CPUs"):
        sweep(project_in(storage_path), wait=False)


def test_a_job_that_ends_without_a_word_is_an_error(storage_path: Path, cluster: FakeJobs) -> None:
    """With the end of its log."""
    cluster.states, cluster.log = ["FAILED"], "Killed\n"
    with pytest.raises(SweepError, match=r"ended before its sweep started(.|\n)*Killed"):
        sweep(project_in(storage_path), wait=False)


def test_an_interrupt_before_the_sweep_has_an_id_ends_the_job(storage_path: Path, cluster: FakeJobs) -> None:
    """Nobody could attach to it."""

    def interrupt(_seconds: float) -> None:
        cluster.states = ["RUNNING", "STOPPED"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(SweepRequest(project_in(storage_path)), sleep=interrupt)
    assert cluster.stopped == [cluster.submitted[0]["submission_id"]]


def test_a_configuration_that_cannot_be_swept_starts_no_job(storage_path: Path, cluster: FakeJobs) -> None:
    """It fails in the cell."""
    with pytest.raises(UsageError, match=r"sweep\.space is empty"):
        sweep(project_in(storage_path, space={}), wait=False)
    assert cluster.submitted == []


def test_without_a_cluster_nothing_is_sent(storage_path: Path) -> None:
    """The error says how to get one."""
    with pytest.raises(ClusterError, match="no running cluster"):
        sweep(project_in(storage_path), wait=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait": True, "working_dir": "."}, "is for a job"),
        ({"wait": False, "on_event": print}, "cannot see"),
        ({"wait": False}, "nothing to search"),
        ({"wait": False, "resume": "a", "fork": "b"}, "not both"),
        ({"wait": False, "extend": ["num_trials=+1"]}, "a sweep to extend"),
    ],
)
def test_what_does_not_go_together_is_said(options: dict[str, Any], message: str) -> None:
    """Before anything starts."""
    with pytest.raises(UsageError, match=message):
        sweep(**options)


def test_a_job_resumes_a_sweep_with_its_raised_limits(ended: Sweep, storage_path: Path, cluster: FakeJobs) -> None:
    """The configuration of the job has them; four trials were configured."""
    request = sweep_request(None, resume=ended.sweep_id, extend=["num_trials=+2"])
    client = tracker(request.project.spec).client

    def begin(_seconds: float) -> None:
        client.set_tag(ended.sweep_id, "raymlops.submission_id", cluster.submitted[0]["submission_id"])

    assert submit(request, sleep=begin) == ended.sweep_id
    assert f"--resume {ended.sweep_id}" in cluster.submitted[0]["entrypoint"]
    (package,) = cluster.packages.values()
    assert "num_trials: 6" in package["raymlops-job.yaml"].decode()


def test_a_password_does_not_travel(storage_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URI that holds one is left to the environment of the cluster."""
    spec = project_in(storage_path).spec
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert explicit(spec, tags={}).tracking.uri == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:word@db/mlflow")
    assert explicit(spec, tags={}).tracking.uri is None


def test_stopping_ends_the_job_and_tells_what_became_of_the_sweep(storage_path: Path, cluster: FakeJobs) -> None:
    """Once the job has ended; what it wrote last is what is returned."""
    cluster.submitted.append({"submission_id": "s1"})
    cluster.states = ["RUNNING", "STOPPED"]
    with recorded_sweep(project_in(storage_path), submission_id="s1") as made:
        made.run(0.5)
        assert attach(made.sweep_id).stop().submission_id == "s1"
    assert cluster.stopped == ["s1"]


def test_a_sweep_whose_job_is_gone_with_its_cluster_is_stopped_already(storage_path: Path) -> None:
    """There is nothing to ask."""
    project = project_in(storage_path)
    with recorded_sweep(project, submission_id="s1") as made:
        with lease(state_url(project.spec), made.sweep_id, purpose="sweeping"):
            made.run(0.5)
        assert attach(made.sweep_id).stop().state == "interrupted"
