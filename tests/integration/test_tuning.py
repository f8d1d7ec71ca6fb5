"""Sweeps on a running Ray: what the study, MLflow and the disk hold afterwards, however they end."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import ray
from optuna.trial import TrialState

from raymlops.config.load import load, load_data
from raymlops.errors import SweepError, UsageError
from raymlops.lifecycle.sweeps.run import run_sweep, sweep_request
from raymlops.project import bind
from raymlops.tracking.client import tracker
from raymlops.tuning.study.storage import open_storage, optuna_url
from raymlops.tuning.sweep import sweep

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

LR = {"float": [1e-3, 1e-1], "log": True}


def project(path, *, recipe="faulty:Faulty", train=None, **section):
    data = {
        "project": {"name": "tiny"},
        "recipe": {"import": recipe, "config": {"train_rows": 400, "validation_rows": 200, "test_rows": 50}},
        "train": {"epochs": 3, "batch_size": 100, "threads_per_worker": 1, **(train or {})},
        "sweep": {"metric": "validation/auc", "mode": "max", "space": {"train.lr": LR}, **section},
        "storage": {"path": str(path)},
    }
    return bind(load_data(data))


def states(swept):
    """Return the states of the only study's trials."""
    import optuna

    with open_storage(optuna_url(swept.spec)) as storage:
        (name,) = optuna.get_all_study_names(storage)
        return [trial.state for trial in optuna.load_study(study_name=name, storage=storage).trials]


def runs(swept, kind):
    """Return the MLflow runs of a kind."""
    client = tracker(swept.spec).client
    experiment = client.get_experiment_by_name("tiny")
    return client.search_runs([experiment.experiment_id], filter_string=f"tags.`raymlops.kind` = '{kind}'")


def statuses(swept, kind):
    return Counter(run.info.status for run in runs(swept, kind))


def actors():
    """Return the classes of the actors that are alive."""
    from ray.util.state import list_actors

    return [actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])]


def test_a_sweep_with_failing_regions_finds_a_winner_and_records_every_trial(tmp_path):
    """Trials that raise or give NaN are FAIL, those that ASHA stopped PRUNED; `train` takes the winner's file."""
    space = {"train.lr": LR, "recipe.config.fault": {"categorical": ["none", "raises", "nan"]}}
    # With this seed: nan none nan nan none nan raises raises.
    swept = project(tmp_path, num_trials=8, sampler="random", seed=3, space=space)
    events = []
    record = sweep(swept, on_event=events.append, tags={"team": "a"})

    expected = {"none": {"complete", "pruned"}, "raises": {"failed"}, "nan": {"failed"}}
    assert len(record.trials) == 8
    assert {trial.params["recipe.config.fault"] for trial in record.trials} == set(expected)
    for trial in record.trials:
        assert trial.status in expected[trial.params["recipe.config.fault"]]
    reasons = {trial.params["recipe.config.fault"]: trial.reason for trial in record.trials}
    assert "ValueError: no such thing" in reasons["raises"]
    assert reasons["nan"] == "validation/auc is nan after epoch 1"

    told = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    assert states(swept) == [told[trial.status] for trial in record.trials]

    mlflow = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    assert statuses(swept, "trial") == Counter(mlflow[trial.status] for trial in record.trials)
    children = {run.info.run_id: run for run in runs(swept, "trial")}
    assert set(children) == {trial.run_id for trial in record.trials}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {record.sweep_id}
    best = children[record.best.run_id]
    assert best.data.params["train.lr"] == json.dumps(record.best.params["train.lr"])
    curve = tracker(swept.spec).client.get_metric_history(record.best.run_id, "validation/auc")
    assert sorted({point.step for point in curve}) == [1, 2, 3]
    assert best.data.metrics["validation/auc"] == record.best.value

    (parent,) = runs(swept, "sweep")
    assert (parent.info.status, parent.data.tags["team"]) == ("FINISHED", "a")
    assert json.loads(tracker(swept.spec).read_text(record.sweep_id, "data/checks.json"))["findings"] == []
    assert parent.data.metrics["validation/auc"] == record.best.value
    loaded = bind(load(record.best_config))
    assert loaded.spec == swept.with_params(record.best.params).spec
    assert tracker(swept.spec).read_text(record.sweep_id, "config/best.yaml") == Path(record.best_config).read_text()
    assert Counter({state: n for state, n in events[-1].counts.items() if n}) == Counter(
        trial.status for trial in record.trials
    )
    assert "TrialActor" not in actors()


@pytest.mark.soak
def test_a_sweep_whose_every_trial_fails_says_how(tmp_path):
    """A process that dies is a failed trial like one that raises."""
    space = {"recipe.config.fault": {"categorical": ["raises", "dies"]}}
    enqueue = [{"recipe.config.fault": fault} for fault in ("raises", "dies")]
    swept = project(tmp_path, num_trials=2, sampler="random", space=space, enqueue=enqueue)
    with pytest.raises(SweepError) as caught:
        sweep(swept)
    assert "none of 2 trials gave a usable value" in caught.value.message
    assert "ValueError: no such thing" in caught.value.message
    assert "the trial's process died: " in caught.value.message
    assert "(2 times)" in caught.value.message
    assert states(swept) == [TrialState.FAIL] * 2
    assert (statuses(swept, "trial"), statuses(swept, "sweep")) == ({"FAILED": 2}, {"FAILED": 1})


@pytest.mark.soak
def test_an_interrupted_sweep_keeps_what_finished_and_goes_on(tmp_path):
    """Ctrl-C: the parent run is KILLED, nothing runs on; what was not finished waits, and goes on at the resume.

    Once all trials have ended it is extended.
    """
    swept = project(
        tmp_path,
        recipe="tiny:Tiny",
        train={"epochs": 12},
        num_trials=6,
        scheduler="none",
        checkpoint_every_s=0.0,
    )
    before = signal.getsignal(signal.SIGINT)
    seen = {}

    def interrupt(event):
        if event.kind == "epoch":
            (seen[event.number],) = (view.epoch for view in event.rows if view.number == event.number)
        # More than once: impatience must not leave the books open.
        if event.counts["complete"] == 2 and event.kind == "epoch" and seen[event.number] > 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        sweep(swept, on_event=interrupt)
    assert "raymlops sweep --resume" in stopped.value.__notes__[0]
    assert TrialState.RUNNING not in states(swept)
    assert Counter(states(swept))[TrialState.COMPLETE] >= 2
    assert statuses(swept, "trial")["RUNNING"] == 0
    (parent,) = runs(swept, "sweep")
    assert parent.info.status == "KILLED"
    summary = json.loads(tracker(swept.spec).read_text(parent.info.run_id, "sweep/trials.json"))
    assert Counter(trial["status"] for trial in summary["trials"])["complete"] >= 2
    assert "TrialActor" not in actors()
    assert signal.getsignal(signal.SIGINT) is before
    assert not ray.util.placement_group_table() or all(
        group["state"] == "REMOVED" for group in ray.util.placement_group_table().values()
    )

    before = {trial["number"]: trial for trial in summary["trials"]}
    went_on = {}

    def watch(event):
        if event.kind == "epoch":
            (epoch,) = (view.epoch for view in event.rows if view.number == event.number)
            went_on.setdefault(event.number, epoch)

    record = sweep(swept, resume=parent.info.run_id, on_event=watch)
    assert [trial.number for trial in record.trials] == list(range(6))
    assert all(record.trials[number].value == trial["value"] for number, trial in before.items())
    unfinished = [number for number in seen if number not in before and seen[number] > 2]
    assert unfinished
    # Its last epoch may be done again: the checkpoint of it was on its way to the disk.
    assert all(went_on[number] > 1 for number in unfinished)
    assert statuses(swept, "trial") == {"FINISHED": 6}
    assert statuses(swept, "sweep") == {"FINISHED": 1}
    assert not list((tmp_path / "sweeps" / record.sweep_id).glob("trials/*"))
    curve = tracker(swept.spec).client.get_metric_history(record.trials[unfinished[0]].run_id, "validation/auc")
    assert [point.step for point in curve][:12] == list(range(1, 13))
    with pytest.raises(UsageError, match="has ended all 6 trials") as over:
        sweep(swept, resume=parent.info.run_id)
    assert "--extend num_trials=+" in over.value.hint
    longer = run_sweep(sweep_request(swept.spec.to_dict(), resume=parent.info.run_id, extend=["num_trials=+1"]))
    assert [trial.value for trial in longer.trials[:6]] == [trial.value for trial in record.trials]
    assert [trial.status for trial in longer.trials] == ["complete"] * 7


@pytest.mark.soak
def test_an_error_in_the_caller_s_own_display_breaks_the_sweep_off_in_order(tmp_path):
    """Tune would turn it into the text of an error of its own and leave the trials open."""
    swept = project(tmp_path, recipe="tiny:Tiny", num_trials=4)

    def broken(event):
        if event.kind == "epoch":
            raise RuntimeError("cannot draw")

    with pytest.raises(SweepError, match="the sweep failed: RuntimeError: cannot draw") as caught:
        sweep(swept, on_event=broken)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert TrialState.RUNNING not in states(swept)
    assert (statuses(swept, "trial")["RUNNING"], statuses(swept, "sweep")) == (0, {"FAILED": 1})


@pytest.mark.soak
def test_a_resumed_sweep_suggests_what_it_would_have(tmp_path):
    """One trial at a time, TPE, stopped once; training and sampler are seeded. The best one is trained again."""
    section = {
        "repeats": {"top": 1, "seeds": 2},
        "num_trials": 6,
        "startup_trials": 3,
        "max_concurrent": 1,
        "space": {"train.lr": LR, "recipe.config.hidden": {"int": [4, 32]}},
        "scheduler": "asha",
    }
    whole = sweep(project(tmp_path / "whole", recipe="tiny:Tiny", **section))
    stopped = project(tmp_path / "stopped", recipe="tiny:Tiny", **section)

    def interrupt(event):
        if event.kind == "epoch" and event.ended == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep(stopped, on_event=interrupt)
    (parent,) = runs(stopped, "sweep")
    record = sweep(stopped, resume=parent.info.run_id)
    assert [trial.params for trial in record.trials] == [trial.params for trial in whole.trials]
    assert [(trial.status, trial.value) for trial in record.trials] == [
        (trial.status, trial.value) for trial in whole.trials
    ]
    assert [(trial.repeat_of, trial.seed) for trial in record.trials[6:]] == [(whole.repeats[0].number, 1)]
    assert record.repeats == whole.repeats
    values = [trial.value for trial in record.trials if trial.number in record.repeats[0].trials]
    assert (len(values), record.repeats[0].mean) == (2, pytest.approx(sum(values) / 2))
    assert load(record.best_config).spec.train.seed == values.index(max(values))
    tagged = [run.data.tags.get("raymlops.repeat_of") for run in runs(stopped, "trial")]
    assert list(filter(None, tagged)) == [str(record.repeats[0].number)]


@pytest.mark.soak
def test_a_sweep_of_several_objectives_has_a_front(tmp_path):
    """No trial of it is beaten in both, and none that breaks a constraint is in it."""
    swept = project(
        tmp_path,
        recipe="tiny:Tiny",
        num_trials=6,
        metric=None,
        mode=None,
        objectives={"validation/auc": "max", "validation/loss": "min"},
        # A network of that width and rate has learnt more than that; one at the lowest rate has not.
        constraints={"validation/accuracy": {"min": 0.6}},
        enqueue=[{"train.lr": 0.1}, {"train.lr": 0.001}],
        sampler="nsga2",
    )
    record = sweep(swept)
    feasible = {trial.number for trial in record.trials if trial.feasible}
    assert 0 in feasible
    assert feasible == {trial.number for trial in record.trials if trial.metrics["validation/accuracy"] >= 0.6}
    assert len(feasible) < 6
    assert record.best.number in record.pareto
    assert set(record.pareto) <= feasible
    values = {trial.number: trial.values for trial in record.trials}
    for number in record.pareto:
        auc, loss = values[number]
        others = [values[other] for other in feasible - {number}]
        assert not any(other[0] >= auc and other[1] <= loss and other != (auc, loss) for other in others)
    assert Path(record.report).exists()
