"""A trial's process without a cluster: what each call returns, and that nothing is lost where it goes on."""

from __future__ import annotations

import json
import math
import os
import threading

import drawn
import pytest
import torch
import trial_recipes
from tiny import Tiny

from raymlops.config.load import load_data
from raymlops.data.cache import DataCache
from raymlops.errors import TrainingError
from raymlops.project import Project, bind
from raymlops.tuning.trial.actor import TrialActor, limit_memory, release_memory
from raymlops.tuning.trial.epoch_stream import TrialThread

RISING = {"epochs": 20, "batch_size": 16, "lr": 0.15, "patience": 3}
"""With dropout 0.2 the loss is lowest after epoch 7, rises and falls before, and ends after epoch 10."""
SPACE = {"train.lr": {"float": [1e-4, 1e-1], "log": True}, "recipe.config.hidden": {"int": [4, 32]}}


def back(result):
    """Return the metrics of the epochs that a checkpoint brought back."""
    return {entry["epoch"]: entry["metrics"] for entry in json.loads(result["restored"])}


@pytest.fixture
def configure(tmp_path):
    def make(recipe=Tiny, *, number=0, resume=False, train=None, sweep=None, config=None):
        rows = {"train_rows": 96, "validation_rows": 60, "test_rows": 10}
        data = {
            "project": {"name": "tiny"},
            "recipe": {"import": recipe, "config": rows | (config or {})},
            "train": {"epochs": 3, "batch_size": 32, "lr": 0.03, "threads_per_worker": 1} | (train or {}),
            "sweep": {"metric": "validation/auc", "mode": "max", "space": SPACE} | (sweep or {}),
            "storage": {"path": str(tmp_path / "storage")},
        }
        return {
            "number": number,
            "project": json.dumps(bind(load_data(data)).to_dict()),
            "shared": json.dumps(None),
            "sys_path": "[]",
            "cwd": str(tmp_path / "no-such-folder"),
            "folder": str(tmp_path / "trials" / str(number)),
            "resume": resume,
        }

    return make


@pytest.fixture
def begin():
    actors = []

    def make(config, splits=None):
        actor = TrialActor.__new__(TrialActor)  # Tune's own constructor wants a running Ray
        actor.setup(config, splits)
        actors.append(actor)
        return actor

    yield make
    for actor in actors:
        actor.cleanup()


def to_the_end(actor):
    results = [actor.step()]
    while not results[-1]["done"]:
        results.append(actor.step())
    return results


def shown(result):
    """What must not depend on where a trial was interrupted."""
    return {key: value for key, value in result.items() if key not in {"pid", "saved", "restored"}}


def test_each_step_is_an_epoch_and_the_last_says_so(configure, begin):
    results = to_the_end(begin(configure()))
    assert [(result["epochs"], result["step"], result["done"]) for result in results] == [
        (1, 3, False),
        (2, 6, False),
        (3, 9, True),
    ]
    assert [result.get("resource") for result in results] == [1, 2, None]
    last = results[-1]
    assert (last["outcome"], last["reason"], last["saved"], last["pid"]) == ("complete", "", False, os.getpid())
    assert last["value"] == last["best_metrics"]["validation/auc"]


class SplitBySeed(Tiny):
    """Draws other rows with each seed."""

    def datasets(self):
        return type(self)(self.config.model_copy(update={"data_seed": self.seed})).splits()

    def splits(self):
        return super().datasets()


@pytest.mark.parametrize(("recipe", "same"), [(Tiny, True), (SplitBySeed, False)])
def test_a_repeat_says_which_rows_it_had(configure, begin, recipe, same):
    """By its own fingerprint, and the driver's where a trial has its data; a sweep without repeats needs none."""
    marks = []
    for sweep in ({}, {"repeats": {"top": 1, "seeds": 2}}):
        driver, trials = (
            DataCache(),
            [configure(recipe, train={"seed": seed, "epochs": 1}, sweep=sweep) for seed in (0, 1)],
        )
        prepared = driver.get(Project.from_dict(json.loads(trials[0]["project"])))
        for trial in trials:
            last = to_the_end(begin(trial | {"shared": json.dumps(driver.share())}))[-1]
            marks.append(last["fingerprint"])
    assert marks[:3] == ["", "", prepared.data.fingerprint]
    assert (marks[2] == marks[3]) is same


def test_a_short_trial_leaves_no_file(configure, begin, tmp_path):
    to_the_end(begin(configure()))
    assert not (tmp_path / "trials").exists()


def test_the_value_is_that_of_the_best_epoch_by_the_training_s_metric(configure, begin):
    """Not the best value of the sweep's own: ``train`` would keep the epoch with the lowest loss."""
    results = to_the_end(begin(configure(train=RISING, config={"dropout": 0.2})))
    losses = [result["metrics"]["validation/loss"] for result in results]
    assert losses.index(min(losses)) == 6
    assert results[-1]["best_metrics"] == results[6]["metrics"]
    values = [result["metrics"]["validation/auc"] for result in results]
    assert results[-1]["value"] == values[6] < max(values)


def test_early_stopping_is_the_end_of_the_epoch_that_exhausts_it(configure, begin):
    """The scheduler never sees that epoch as one after which it could stop the trial."""
    results = to_the_end(begin(configure(train=RISING, config={"dropout": 0.2})))
    assert (len(results), results[-1]["outcome"]) == (10, "complete")
    assert results[-1]["metrics"] is not None


def test_max_steps_is_the_end_too(configure, begin):
    results = to_the_end(begin(configure(train={"max_steps": 4})))
    assert [(result["step"], result["outcome"]) for result in results] == [(3, None), (4, "complete")]


def test_each_validation_by_steps_is_a_result(configure, begin):
    """Of three in the only epoch, the scheduler sees the first two; the last one is the end."""
    results = to_the_end(begin(configure(train={"epochs": 1, "eval_every_steps": 1}, sweep={"resource": "step"})))
    assert [(result["step"], result.get("resource"), result["done"]) for result in results] == [
        (1, 1, False),
        (2, 2, False),
        (3, None, True),
    ]


def test_a_trial_that_goes_on_ends_as_if_nothing_had_happened(configure, begin):
    """Epochs, value, best metrics and early stopping, although it is interrupted after each epoch."""
    config = {"dropout": 0.2}
    whole = to_the_end(begin(configure(train=RISING, config=config, number=1)))
    results = []
    for epoch in range(1, 11):
        sweep = {"checkpoint_every_s": 0.0}
        actor = begin(configure(train=RISING, sweep=sweep, config=config, resume=epoch > 1))
        results.append(actor.step())
        actor.cleanup()
        restored = {number: result["metrics"] for number, result in enumerate(results[:-1], start=1)}
        assert (back(results[-1]), results[-1]["saved"]) == (restored, True)
    assert [shown(result) for result in results] == [shown(result) for result in whole]


def test_a_trial_that_goes_on_keeps_what_it_learnt_from_its_data(configure, begin, tmp_path):
    """Its weights belong to that; another process would learn its colours in another order."""
    states = []
    for resume in (False, True):
        actor = begin(configure(drawn.Reordered, sweep={"checkpoint_every_s": 0.0}, resume=resume))
        actor.step()
        actor.cleanup()
        newest = max((tmp_path / "trials" / "0" / "checkpoints").glob("step-*/state.json"))
        states.append(json.loads(newest.read_text()))
    assert [state["epoch"] for state in states] == [2, 3]
    assert states[1]["fit"] == states[0]["fit"]


def test_what_was_restored_is_told_once(configure, begin):
    first = begin(configure(sweep={"checkpoint_every_s": 0.0}))
    metrics = first.step()["metrics"]
    first.cleanup()
    rest = to_the_end(begin(configure(resume=True)))
    assert [back(result) for result in rest] == [{1: metrics}, {}]


def test_a_trial_that_was_killed_in_mid_epoch_goes_on_at_its_newest_checkpoint(configure, begin):
    """The one before the step that it was killed in."""
    sweep = {"checkpoint_every_s": 0.0}
    whole = to_the_end(begin(configure(trial_recipes.Stuck, number=1, sweep=sweep)))
    trial_recipes.arm(step=5)
    killed = begin(configure(trial_recipes.Stuck, sweep=sweep))
    assert killed.step()["epochs"] == 1
    stream = killed._trial.stream
    asked = threading.Thread(target=killed.step)
    asked.start()
    trial_recipes.REACHED.wait(60)
    killed._trial._saver.wait()  # a killed process writes no more
    again = begin(configure(trial_recipes.Stuck, sweep=sweep, resume=True))
    rest = to_the_end(again)
    assert (back(rest[0]), rest[0]["epochs"]) == ({1: whole[0]["metrics"]}, 2)
    assert [shown(result) for result in rest] == [shown(result) for result in whole[1:]]
    trial_recipes.release()
    asked.join(60)
    stream.stop()


def test_without_a_checkpoint_it_begins_again(configure, begin):
    results = to_the_end(begin(configure(resume=True)))
    assert [result["epochs"] for result in results] == [1, 2, 3]
    assert back(results[0]) == {}


def test_an_order_in_mid_epoch_writes_a_checkpoint_at_once(configure, begin, tmp_path):
    """As when the sweep is stopped before a trial's first epoch is over, which would be lost."""
    trial_recipes.arm(step=2)
    actor = begin(configure(trial_recipes.Stuck))
    trial_recipes.REACHED.wait(60)
    actor._trial.stream.stopping = True
    trial_recipes.release()
    actor.cleanup()
    names = [path.name for path in (tmp_path / "trials" / "0" / "checkpoints").iterdir() if path.is_dir()]
    assert [name[:13] for name in names] == ["step-00000002"]


def test_a_trial_that_takes_too_long_is_stopped_with_the_value_that_it_has(configure, begin):
    """Time in processes before counts; the epoch that is over is reported first."""
    limited = {"trial_timeout_s": 3600.0}
    actor = begin(configure(sweep=limited))
    first = actor.step()
    assert not first["done"]
    late = begin({**configure(number=1, sweep=limited), "before_s": 3600.0})
    assert late._trial._left_s() <= 0 < actor._trial._left_s()
    actor._trial._until_s = -math.inf
    last = actor.step()
    assert (last["done"], last["outcome"], last["epochs"], last["metrics"]) == (True, "pruned", 1, None)
    assert last["reason"] == "stopped after 3600 s (sweep.trial_timeout_s)"
    assert (last["value"], last["best_metrics"]) == (first["value"], first["metrics"])
    assert actor.reset_config(configure(number=2, sweep=limited))
    assert actor.step()["epochs"] == 1


def test_one_that_takes_too_long_before_its_first_report_failed(configure, begin):
    """It is stopped in mid-epoch, after its step."""
    trial_recipes.arm(step=2)
    actor = begin(configure(trial_recipes.Stuck, sweep={"trial_timeout_s": 1e-9}))
    trial_recipes.REACHED.wait(60)
    results = []
    asked = threading.Thread(target=lambda: results.append(actor.step()))
    asked.start()
    while not actor._trial.stream.stopping:
        asked.join(0.01)
    trial_recipes.release()
    asked.join(60)
    (result,) = results
    assert (result["outcome"], result["epochs"]) == ("failed", 0)
    assert result["reason"] == "stopped after 1e-09 s (sweep.trial_timeout_s), before its first report"


def test_a_trial_that_the_scheduler_stopped_begins_no_further_step(configure, begin):
    actor = begin(configure())
    first = actor.step()
    assert actor.reset_config(configure(number=1, train={"lr": 0.001}))
    assert actor._trial.stream is not None
    second = actor.step()
    assert (first["epochs"], second["epochs"], second["outcome"]) == (1, 1, None)
    assert first["metrics"] != second["metrics"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "ValueError: no such thing"),
        ("exits", "exit"),
        ("memory", "MemoryError"),
        ("nan", "validation/auc is nan after epoch 1"),
        ("inf", "validation/auc is inf after epoch 1"),
        ("none", "validation/f1 is None; a metric is a number"),
        ("text", "validation/f1 is 'high'; a metric is a number"),
        ("missing", "validation/auc was not reported; reported: "),
    ],
)
def test_what_goes_wrong_in_a_trial_is_its_result_and_the_process_takes_the_next(configure, begin, fault, reason):
    actor = begin(configure(trial_recipes.Wrong, config={"fault": fault}))
    result = actor.step()
    assert (result["done"], result["outcome"]) == (True, "failed")
    assert reason in result["reason"]
    assert "resource" not in result
    assert actor.reset_config(configure())
    assert to_the_end(actor)[-1]["outcome"] == "complete"


def test_a_broken_device_is_the_end_of_the_process(configure, begin):
    actor = begin(configure(trial_recipes.Wrong, config={"fault": "device"}))
    with pytest.raises(TrainingError, match="cannot use its device any more"):
        actor.step()


@pytest.mark.parametrize("resource", ["step", "validation/rows"])
def test_the_scheduler_s_clock_is_what_the_sweep_counts(configure, begin, resource):
    results = to_the_end(begin(configure(sweep={"resource": resource, "scheduler": "none"})))
    expected = [3, 6] if resource == "step" else [60.0, 60.0]
    assert [result.get("resource") for result in results] == [*expected, None]


def test_of_several_objectives_the_first_is_the_value_and_each_must_be_there(configure, begin):
    objectives = {"validation/accuracy": "max", "validation/loss": "min"}
    result = begin(configure(sweep={"metric": None, "mode": None, "objectives": objectives})).step()
    assert result["value"] == result["best_metrics"]["validation/accuracy"]
    constraints = {"validation/size": {"max": 3}, "validation/cost": {"max": 1}}
    result = begin(configure(number=1, sweep={"constraints": constraints})).step()
    assert result["outcome"] == "failed"
    assert result["reason"].startswith("validation/size, validation/cost was not reported; reported: train/loss")


def test_a_loop_of_the_recipe_s_own_that_does_not_stop_is_ended(configure, begin):
    actor = begin(configure(trial_recipes.Stubborn))
    actor.step()
    assert actor.reset_config(configure(number=1))
    assert to_the_end(actor)[-1]["outcome"] == "complete"


def test_a_loop_of_the_recipe_s_own_that_begins_again_is_taken_at_its_word(configure, begin):
    sweep = {"checkpoint_every_s": 0.0}
    first = begin(configure(trial_recipes.Stubborn, sweep=sweep))
    first.step()
    first.cleanup()
    again = begin(configure(trial_recipes.Stubborn, sweep=sweep, resume=True)).step()
    assert (again["epochs"], back(again)) == (1, {})


def test_each_report_beyond_the_epochs_is_a_result_that_is_judged(configure, begin):
    """A recipe's own loop may report each so many steps: ``train.epochs`` is not the number of its reports."""
    actor = begin(configure(trial_recipes.Often))
    results = to_the_end(actor)
    assert [(result["epochs"], result.get("resource"), result["outcome"]) for result in results] == [
        *((number, number, None) for number in range(1, 5)),
        (5, None, "complete"),
    ]
    assert [result["metrics"]["validation/auc"] for result in results] == [0.1, 0.2, 0.3, 0.4, 0.5]
    late = begin(configure(trial_recipes.Often, sweep={"trial_timeout_s": 60.0}))
    for _ in range(3):
        late.step()
    late._trial._until_s = 0.0
    result = late.step()
    assert (result["epochs"], result["outcome"]) == (4, "pruned")
    assert "sweep.trial_timeout_s" in result["reason"]


def test_with_the_driver_s_data_nothing_is_prepared_again(configure, begin):
    from raymlops.project import Project

    config = configure(trial_recipes.Counting)
    driver = DataCache()
    driver.get(Project.from_dict(json.loads(config["project"])))
    trial_recipes.CALLS.clear()
    actor = begin(config, splits=driver.shared_data())
    shared = to_the_end(actor)
    assert trial_recipes.CALLS == []
    own = to_the_end(begin(config))
    assert trial_recipes.CALLS == ["datasets", "fit"]
    assert [shown(result) for result in shared] == [shown(result) for result in own]


def test_the_value_of_a_trial_that_failed_at_once_is_nan(configure, begin):
    result = begin(configure(trial_recipes.Wrong, config={"fault": "raises"})).step()
    assert math.isnan(result["value"])
    assert (result["epochs"], result["metrics"], result["best_metrics"]) == (0, None, {})


def test_a_process_with_a_share_of_a_card_has_that_share_of_its_memory(monkeypatch):
    """One that has the whole card, or none, has no limit."""
    limits = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    for gpus in (0.0, 0.5, 1.0, 2.0):
        limit_memory(gpus)
    assert limits == [0.5]


def test_a_trial_s_memory_on_the_card_is_returned_before_the_next_one_trains(monkeypatch):
    """Once nothing holds it: what is in cycles is collected first."""
    returned, freed = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: returned.append(list(freed)))

    class Model:
        def __init__(self):
            self.itself = self

        def __del__(self):
            freed.append("model")

    def train():
        Model()

    thread, done = TrialThread(after=release_memory), threading.Event()
    thread.submit(train)
    thread.submit(done.set)
    assert done.wait(10)
    assert returned[0] == ["model"]
