"""The course of a sweep, event by event, without Ray: what the study and the child runs are told."""

from __future__ import annotations

import json

import pytest
from optuna.trial import TrialState
from ray import exceptions
from staged_sweep import Stage

from raymlops.errors import LeaseLostError, SweepError, UnreachableError, UsageError
from raymlops.records import SpentRecord
from raymlops.tuning.study.fencing import Fence
from raymlops.tuning.study.reruns import add_repeats, retry_failed
from raymlops.tuning.study.storage import open_storage

DIED = exceptions.RayActorError(None, "The actor died.\nWorker exits with an exit code 7.")


@pytest.fixture
def storage(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/optuna.db") as opened:
        yield opened


def test_no_more_trials_are_drawn_than_run_at_a_time_or_are_wanted(storage):
    stage = Stage(storage, num_trials=3)
    controller = stage.controller
    drawn = [controller.next_trial() for _ in range(3)]
    assert [trial and trial["number"] for trial in drawn] == [0, 1, None]
    controller.end(0, "failed", reason="x")
    assert (controller.next_trial()["number"], controller.wanted, controller.done) == (2, 0, False)
    for number in (1, 2):
        controller.end(number, "failed", reason="x")
    assert (controller.next_trial(), controller.done) == (None, True)


def test_a_short_trial_is_drawn_while_others_run_once_these_are_on_their_way(storage):
    stage = Stage(storage, num_trials=9)
    stage.run("complete", 0.5)
    for _ in range(2):
        stage.controller.tick()
        stage.controller.next_trial()
    assert stage.controller.next_trial() is None
    assert len(stage.study.get_trials()) == 3
    stage.controller.tick()
    assert len(stage.study.get_trials()) == 4
    stage.controller.end(1, "failed", reason="x")
    assert stage.controller.next_trial()["number"] == 3


def test_a_study_is_written_to_once_the_next_trial_is_on_its_way(storage):
    stage = drawn_in_advance(storage, num_trials=9)
    stage.controller.end(1, "failed", reason="x", diverged=True)
    for expected in (TrialState.RUNNING, TrialState.FAIL):
        stage.controller.tick()
        assert stage.study.get_trials()[1].state is expected
        stage.controller.next_trial()


def test_of_trials_that_run_one_by_one_none_is_drawn_in_advance(storage):
    """The sampler is to know the one that runs."""
    stage = Stage(storage, num_trials=9)
    stage.run("complete", 0.5)
    stage.slots = 1
    for _ in range(2):  # two counts in a row must agree
        stage.now += 3.0
        stage.controller.tick()
    stage.controller.started(stage.controller.next_trial()["number"])
    stage.controller.tick()
    assert len(stage.study.get_trials()) == 2


def test_the_last_trial_is_left_to_hand_out_where_it_was_drawn_in_advance(storage):
    """A process that becomes free is kept for it."""
    controller = drawn_in_advance(storage, num_trials=4).controller
    assert (controller.wanted, controller.more, controller.done) == (0, True, False)
    controller.end(1, "failed", reason="x")
    assert (controller.ready, controller.next_trial()["number"]) == (True, 3)
    assert (controller.more, controller.ready) == (False, False)


def test_a_trial_that_was_drawn_in_advance_is_none_of_the_repeats(storage):
    stage = drawn_in_advance(storage, num_trials=9, target=0.9, repeats={"top": 1, "seeds": 2})
    stage.epoch(1, 1, 0.95)
    stage.controller.end(1, "complete")
    assert stage.controller.halt == "good enough"
    stage.controller.close()
    add_repeats(stage.study, spec=stage.spec)
    stage.controller.repeat(stage.trials.reopen(repeats=True))
    handed_out = [stage.controller.next_trial() for _ in range(2)]
    assert [trial and trial["number"] for trial in handed_out] == [4, None]


def drawn_in_advance(storage, **section):
    """Return a stage on which two short trials run, and a third one is drawn."""
    stage = Stage(storage, **section)
    stage.run("complete", 0.5)
    for _ in range(2):
        stage.controller.started(stage.controller.next_trial()["number"])
    stage.controller.tick()
    assert len(stage.study.get_trials()) == 4
    return stage


def test_running_trials_are_handled_while_another_one_is_drawn(storage, monkeypatch):
    """With none that runs the draw is waited for: Tune would ask again only after a second."""
    stage = Stage(storage, num_trials=9)
    monkeypatch.setattr(stage.trials, "prepare", lambda *, wait_s: False)
    number = stage.controller.next_trial()["number"]
    assert stage.controller.next_trial() is None
    assert (stage.controller.more, stage.controller.done) == (True, False)
    stage.controller.end(number, "failed", reason="x")
    assert stage.controller.next_trial()["number"] == 1


def test_long_trials_are_drawn_when_there_is_room(storage):
    """The sampler is to know all that has ended."""
    stage = Stage(storage, num_trials=9)
    number = stage.controller.next_trial()["number"]
    stage.now = 60.0
    stage.controller.end(number, "failed", reason="x")
    for _ in range(2):
        stage.controller.next_trial()
    stage.controller.tick()
    assert stage.controller.next_trial() is None
    assert len(stage.study.get_trials()) == 3


def test_a_trial_is_handed_the_whole_configuration_with_its_parameters(storage):
    stage = Stage(storage)
    config = stage.controller.next_trial()
    assert json.loads(config["project"])["train"]["lr"] == stage.study.get_trials()[0].params["train.lr"]
    assert (config["folder"], config["resume"]) == ("/sweeps/s/trials/0", False)


def test_study_and_runs_are_told_the_same(storage):
    stage = Stage(storage)
    stage.run("complete", 0.6)
    stage.trials.flush()
    assert stage.runs.said == [(0, "start"), (0, 1), (0, "complete")]
    told = stage.study.get_trials()[0]
    assert (told.state, told.value, told.user_attrs["raymlops"]["run_id"]) == (TrialState.COMPLETE, 0.6, "run-0")


class Refusing:
    """A project whose recipe refuses a trial's parameters while ``error`` is set."""

    def __init__(self, project, error):
        self.spec, self.error, self._project = project.spec, error, project

    def with_params(self, params):
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self._project.with_params(params)


@pytest.mark.parametrize("error", [UsageError("hidden 3 does not go with it"), ZeroDivisionError("division by zero")])
def test_a_combination_that_the_recipe_refuses_costs_no_trial_and_is_known_to_the_sampler(storage, error):
    """Whatever it raises."""
    stage = Stage(storage, num_trials=1)
    stage.controller._queue._project = Refusing(stage.controller._queue._project, error)
    assert stage.controller.next_trial()["number"] == 1
    assert stage.runs.said == [(1, "start")]
    assert [event.message for event in stage.events if event.message] == [
        f"the recipe rejects the point of trial 0, another one is drawn: {type(error).__name__}: {error}"
    ]
    assert (stage.controller.wanted, stage.trials.total) == (0, 1)
    stage.epoch(1, 1, 0.5)
    stage.controller.end(1, "complete")
    stage.trials.flush()
    refused, ended = stage.study.get_trials()
    assert (refused.state, ended.state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert refused.constraints == {"accepted by the recipe": 1.0}
    again = Stage(storage, study=stage.study, num_trials=1)
    assert (again.controller.wanted, again.controller.done) == (0, True)
    assert [record.number for record in again.trials.records] == [1]


def test_a_grid_goes_on_after_a_point_that_the_recipe_refuses(storage):
    """Three points, of which one cannot be: two trials, each of another point."""
    space = {"train.epochs": {"int": [1, 3]}}
    stage = Stage(storage, num_trials=9, sampler="grid", space=space)
    assert stage.trials.total == 3
    stage.controller._queue._project = Refusing(stage.controller._queue._project, UsageError("no"))
    drawn = [json.loads(stage.controller.next_trial()["project"])["train"]["epochs"] for _ in range(2)]
    assert (stage.trials.total, stage.controller.wanted, len(set(drawn))) == (2, 0, 2)
    assert stage.controller.next_trial() is None
    again = Stage(storage, study=stage.study, num_trials=9, sampler="grid", space=space)
    assert (again.trials.total, again.controller.wanted) == (2, 0)


def test_a_space_whose_every_point_is_refused_ends_the_sweep(storage):
    stage = Stage(storage, num_trials=2)

    class Never(Refusing):
        def with_params(self, params):
            raise UsageError("no")

    stage.controller._queue._project = Never(stage.controller._queue._project, None)
    with pytest.raises(
        SweepError, match=r"rejected the last 200 points of sweep\.space, 200 in all with: UsageError: no"
    ):
        stage.controller.next_trial()


def test_one_whose_driver_died_before_it_was_told_to_be_refused_is_refused_at_the_resume(storage):
    stage = Stage(storage, num_trials=2)
    stage.trials.ask()
    again = Stage(storage, study=stage.study, num_trials=2)
    again.controller._queue._project = Refusing(again.controller._queue._project, UsageError("no"))
    for opened in again.trials.reopen():
        again.controller.requeue(opened)
    assert again.controller.next_trial()["number"] == 1
    assert (again.trials.records, again.controller.wanted) == ((), 1)
    assert again.events[-1].counts["waiting"] == 1


def fail(stage, reason, **more):
    number = stage.controller.next_trial()["number"]
    stage.controller.end(number, "failed", reason=reason, **more)
    return number


def test_trials_that_fail_in_a_row_for_one_reason_halt_the_sweep_and_start_again_when_it_is_resumed(storage):
    """A missing file is no trial's fault. Reasons that differ in numbers alone are one reason."""
    stage = Stage(storage, num_trials=9, max_failures=3)
    for step in range(3):
        assert not stage.controller.halting
        fail(stage, f"OSError: [Errno 2] No such file: data.csv at step {step}")
    assert stage.controller.halt == "broken"
    assert "3 trials in a row failed for one reason: OSError: [Errno 2] No such file" in str(stage.controller.error)
    stage.controller.close()
    assert stage.states() == [TrialState.WAITING] * 3
    assert stage.runs.said[-3:] == [(number, "waiting") for number in range(3)]

    again = Stage(storage, study=stage.study, num_trials=9, max_failures=3)
    for opened in again.trials.reopen():
        again.controller.requeue(opened)
    assert [again.run("complete", 0.5) for _ in range(3)] == [0, 1, 2]
    assert again.controller.wanted == 6


def test_other_failures_are_the_trials_own(storage):
    """Another reason, another end or a value that diverged begin anew; the study has each failed trial."""
    stage = Stage(storage, num_trials=9, max_failures=2)
    fail(stage, "ValueError: a")
    fail(stage, "ValueError: b")
    stage.run("complete", 0.5)
    fail(stage, "ValueError: b")
    fail(stage, "validation/loss is nan after epoch 1", diverged=True)
    fail(stage, "validation/loss is nan after epoch 1", diverged=True)
    fail(stage, "ValueError: b")
    assert not stage.controller.halting
    names = ["FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert [state.name for state in stage.states()] == names
    for _ in range(2):
        stage.run("complete", 0.5)
    assert [record.status for record in stage.trials.records].count("failed") == 6


def test_the_last_trials_of_a_sweep_may_fail_alike(storage):
    """Fewer than the limit: they have failed, and the sweep ends."""
    stage = Stage(storage, num_trials=2)
    for _ in range(2):
        fail(stage, "ValueError: a")
    assert (stage.controller.done, stage.controller.halt) == (True, None)
    assert stage.states() == [TrialState.FAIL] * 2
    assert stage.runs.said[-2:] == [(0, "failed"), (1, "failed")]


def test_failures_before_a_last_point_that_the_recipe_refuses_end_too(storage):
    """No trial is left that could have another end."""
    stage = Stage(storage, num_trials=9, sampler="grid", space={"train.epochs": {"int": [1, 3]}})
    for _ in range(2):
        fail(stage, "ValueError: a")
    stage.controller._queue._project = Refusing(stage.controller._queue._project, UsageError("no"))
    assert stage.controller.next_trial() is None
    assert (stage.controller.done, stage.controller.halt) == (True, None)
    assert stage.states() == [TrialState.FAIL] * 2 + [TrialState.PRUNED]


def test_failed_trials_are_trained_again_in_their_place(storage):
    """Each once; the sweep still has the trials that it was to have."""
    stage = Stage(storage, num_trials=3)
    fail(stage, "ValueError: a")
    stage.run("complete", 0.5)
    fail(stage, "ValueError: b")
    assert stage.states() == [TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL]
    assert retry_failed(stage.study) == [0, 2]
    assert retry_failed(stage.study) == []

    again = Stage(storage, study=stage.study, num_trials=3)
    for opened in again.trials.reopen():
        again.controller.requeue(opened)
    assert (again.trials.total, again.controller.wanted, again.controller.done) == (3, 0, False)
    assert [again.run("complete", value) for value in (0.6, 0.7)] == [3, 4]
    assert again.controller.done
    again.trials.flush()
    first, *_, retried, _ = again.study.get_trials()
    assert (retried.params, retried.state) == (first.params, TrialState.COMPLETE)
    assert [record.number for record in again.trials.records] == [1, 3, 4]


def test_a_driver_whose_sweep_was_taken_over_writes_nothing_more(storage):
    """Its lease was released by the server; the other driver has its own token in the study."""
    stage = Stage(storage, num_trials=9)
    fence = Fence(stage.study)
    stage.trials._writes._check = fence.check
    stage.run("complete", 0.5)
    stage.trials.flush()
    stage.controller.next_trial()
    stage.epoch(1, 1, 0.9)
    Fence(stage.study).check()
    stage.now += 5.0
    with pytest.raises(LeaseLostError, match="another driver has taken over") as lost:
        stage.controller.tick()
    stage.controller.fail(lost.value)
    with pytest.raises(LeaseLostError):
        stage.controller.close()
    assert [trial.state for trial in stage.study.get_trials()] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert stage.study.get_trials()[1].intermediate_values == {}


def test_a_used_up_budget_halts_the_sweep_and_puts_back_what_runs(storage):
    stage = Stage(storage, timeout_s=60.0)
    stage.controller.next_trial()
    stage.controller.next_trial()
    stage.epoch(0, 1, 0.6)
    stage.now = 59.9
    assert not stage.controller.halting
    stage.now = 60.0
    assert stage.controller.halting
    stage.controller.close()
    assert not stage.controller.all_ended  # their checkpoints are kept
    assert stage.states() == [TrialState.WAITING] * 2
    assert (stage.controller.stopped, stage.controller.next_trial()) == ("reached its timeout_s of 60 s", None)


def test_time_before_a_resume_counts_and_draws_nothing_once_it_is_up(storage):
    stage = Stage(storage, timeout_s=60.0, before=SpentRecord(wall_s=50.0))
    stage.now = 10.0
    assert (stage.controller.next_trial(), stage.controller.done, stage.trials.asked) == (None, True, 0)


def test_what_it_took_is_noted_now_and_then_and_at_the_end(storage):
    stage = Stage(storage)
    stage.controller.next_trial()
    stage.now = 1000.0  # it waited for a process
    stage.controller.started(0)
    stage.now = 1036.0
    stage.controller.tick()
    assert json.loads(stage.noted[-1]["raymlops.spent"])["cpu_hours"] == 0.01
    stage.controller.close()
    assert len(stage.noted) == 2


def test_each_trial_costs_what_it_reserves_itself(storage):
    space = {"train.cpus_per_worker": {"categorical": [4.0]}, "train.lr": {"float": [0.1, 0.2]}}
    stage = Stage(storage, space=space, workers_per_trial=2, max_cpu_hours=1.0)
    stage.controller.next_trial()
    stage.controller.started(0)
    stage.now = 450.0  # an eighth of an hour of 2 * 4 CPUs
    assert (stage.controller.spent.cpu_hours, stage.controller.halting) == (1.0, True)


def test_a_target_ends_the_sweep(storage):
    stage = Stage(storage, target=0.9)
    stage.run("complete", 0.8)
    assert not stage.controller.halting
    stage.run("complete", 0.95)
    assert (stage.controller.halting, stage.controller.stopped) == (True, "reached its target of 0.9 with 0.95")
    stage.trials.flush()
    again = Stage(storage, study=stage.study, target=0.9)
    assert (again.controller.next_trial(), again.controller.done) == (None, True)


def test_checkpoints_are_kept_until_the_study_has_every_end(storage):
    """A last write that failed leaves the trial running in the study, and it resumes from its checkpoint."""
    stage = Stage(storage, target=0.9)
    stage.run("complete", 0.95)
    assert not stage.controller.all_ended
    flush = stage.trials.flush

    def failing():
        raise UnreachableError("the database does not answer")

    stage.trials.flush = failing
    with pytest.raises(UnreachableError):
        stage.controller.close()
    assert (stage.controller.halt, stage.controller.all_ended) == ("good enough", False)
    stage.trials.flush = flush
    stage.controller.close()
    assert (stage.states(), stage.controller.all_ended) == ([TrialState.COMPLETE], True)


@pytest.mark.parametrize("halt", ["interrupted", "broken"])
def test_a_sweep_that_was_stopped_early_keeps_checkpoints(storage, halt):
    """The trials of the driver before may not have been reopened yet."""
    controller = Stage(storage).controller
    if halt == "broken":
        controller.fail(ValueError("x"))
    controller.halt = halt
    controller.close()
    assert not controller.all_ended


def test_patience_counts_trials_without_a_better_one(storage):
    stage = Stage(storage, patience=2)
    for value in (0.5, 0.6, 0.4):
        stage.run("complete", value)
    assert not stage.controller.halting
    stage.run("pruned", 0.3)
    assert stage.controller.stopped == "found nothing better in 2 trials (patience 2)"


def test_an_interrupted_sweep_puts_its_trials_back_and_they_go_on(storage):
    stage = Stage(storage, num_trials=3)
    params = [json.loads(stage.controller.next_trial()["project"])["train"]["lr"] for _ in range(2)]
    stage.epoch(0, 1, 0.6)
    stage.controller.halt = "interrupted"
    stage.controller.close()
    assert stage.states() == [TrialState.WAITING] * 2
    assert stage.runs.said[-2:] == [(0, "waiting"), (1, "waiting")]

    again = Stage(storage, study=stage.study, num_trials=3)
    for opened in again.trials.reopen():
        again.controller.requeue(opened)
    first, second = again.controller.next_trial(), again.controller.next_trial()
    assert [json.loads(config["project"])["train"]["lr"] for config in (first, second)] == params
    assert (first["number"], first["resume"], second["number"]) == (0, True, 1)
    assert again.states() == [TrialState.RUNNING] * 2
    again.controller.end(0, "failed", reason="x")
    config = again.controller.next_trial()
    assert (config["number"], config["resume"], again.controller.wanted) == (2, False, 0)


def back(*values):
    """Return what a trial's process tells of epochs that its checkpoint held, the best of them the highest."""
    entries, best = [], 0
    for epoch, value in enumerate(values, start=1):
        best = epoch if not best or value > values[best - 1] else best
        metrics = {"validation/auc": value}
        entries.append({"epoch": epoch, "best": best, "value": values[best - 1], "metrics": metrics})
    return json.dumps(entries)


def test_epochs_that_a_checkpoint_brought_back_are_told_where_they_are_not_known(storage):
    stage = Stage(storage)
    stage.controller.next_trial()
    stage.epoch(0, 4, 0.6, restored=back(0.4, 0.5, 0.3))
    assert stage.runs.said == [(0, "start"), (0, 1), (0, 2), (0, 3), (0, 4)]
    stage.controller.end(0, "complete")
    stage.trials.flush()
    assert stage.study.get_trials()[0].intermediate_values == {1: 0.4, 2: 0.5, 3: 0.5, 4: 0.6}


@pytest.mark.parametrize(
    ("last", "judged"),
    [({"resource": 3, "outcome": None}, [1, 2, 3]), ({"outcome": None}, [1, 2]), ({"outcome": "complete"}, [])],
)
def test_epochs_that_came_back_with_the_end_of_a_trial_are_judged_by_nobody(storage, last, judged):
    """Tune asks no scheduler about a result that ends a trial."""
    stage = Stage(storage)
    stage.controller.next_trial()
    stage.epoch(0, 3, 0.6, restored=back(0.4, 0.5), **last)
    reports = stage.trials.open[0].reports
    assert [epoch for epoch, report in reports.items() if report.order is not None] == judged


def test_a_trial_whose_last_checkpoint_was_its_end_has_its_value(storage):
    stage = Stage(storage)
    stage.controller.next_trial()
    result = {"epochs": 2, "step": 20, "value": 0.9, "metrics": None, "best_metrics": {"validation/auc": 0.9}}
    stage.controller.result(0, {**result, "saved": True, "restored": back(0.9, 0.7), "fingerprint": "v3:abc"})
    stage.controller.end(0, "complete")
    (record,) = stage.trials.records
    assert record.fingerprint == "v3:abc"
    assert (record.status, record.value, record.epochs, record.metrics) == ("complete", 0.9, 2, {"validation/auc": 0.9})


def test_a_trial_that_the_scheduler_had_stopped_is_not_run_again(storage):
    stage = Stage(storage)
    stage.run("complete", 0.7)
    opened = stage.trials.ask()
    stage.trials.report(opened.number, epoch=1, value=0.2, metrics={}, best_metrics={"validation/auc": 0.2})
    stage.trials.flush()
    again = Stage(storage, study=stage.study)
    (opened,) = again.trials.reopen()
    again.controller.end_stopped(opened)
    assert again.states() == [TrialState.COMPLETE, TrialState.PRUNED]
    assert again.runs.said == [(1, "start"), (1, "pruned")]


def test_a_trial_whose_process_died_resumes_in_another_one_and_then_fails(storage):
    stage = Stage(storage, num_trials=1, max_restarts=1)
    stage.controller.next_trial()
    stage.controller.process_died(0, DIED)
    assert not stage.controller.done
    config = stage.controller.next_trial()
    assert (config["number"], config["resume"]) == (0, True)
    assert stage.events[-2].message.startswith("trial 0 resumes in another process: the trial's process died")
    stage.controller.process_died(0, DIED)
    assert stage.controller.done
    assert stage.trials.records[0].reason.endswith("Worker exits with an exit code 7. (2 times)")


def test_the_time_of_a_trial_is_that_in_its_processes(storage):
    """Also in one that died, and before the driver was killed, as it has reported; time pending does not count."""
    stage = Stage(storage, num_trials=2)
    stage.controller.next_trial()
    stage.now = 4000.0
    stage.controller.started(0)
    stage.now += 30
    stage.controller.process_died(0, DIED)
    stage.now += 4000
    assert stage.controller.next_trial()["before_s"] == 30
    stage.controller.next_trial()
    stage.controller.started(0)
    stage.now += 12
    stage.epoch(0, 1, 0.5)
    stage.controller.tick()  # the driver is killed after it
    again = Stage(storage, study=stage.study, num_trials=2)
    for opened in again.trials.reopen():
        again.controller.requeue(opened)
    again.now = 4000.0
    assert [again.controller.next_trial()["before_s"] for _ in range(2)] == [42, 0]
    again.controller.started(0)
    again.now += 3
    again.controller.close()
    assert [opened.before_s for opened in Stage(storage, study=stage.study).trials.reopen()] == [45, 0]


def test_a_trial_that_ended_leaves_no_checkpoint(storage):
    stage = Stage(storage)
    stage.controller.next_trial()
    stage.controller.next_trial()
    stage.epoch(0, 1, 0.5, saved=True)
    for number in (0, 1):
        stage.controller.end(number, "complete")
    assert stage.discarded == []  # the study does not know of the end yet
    stage.controller.next_trial()
    stage.controller.next_trial()
    stage.controller.tick()
    stage.controller.next_trial()
    assert stage.discarded == [0]


def test_a_database_that_is_away_stops_no_trial_that_runs(storage):
    stage = Stage(storage)
    stage.controller.next_trial()
    flush, away = stage.trials.flush, [True]

    def failing():
        if away[0]:
            raise UnreachableError("the database does not answer")
        flush()

    stage.trials.flush = failing
    stage.epoch(0, 1, 0.5)
    assert stage.controller.next_trial() is None
    stage.now = 200.0
    stage.controller.tick()
    assert (stage.controller.halt, [event.message for event in stage.events if event.message]) == (
        None,
        ["the database does not answer; no trial is drawn until it does"],
    )
    away[0] = False
    assert stage.controller.next_trial()["number"] == 1
    stage.now = 220.0
    stage.controller.tick()
    assert stage.events[-1].message == "the study's database answers again"
    away[0], stage.now = True, 240.0
    stage.controller.tick()
    stage.now = 600.0
    with pytest.raises(UnreachableError):
        stage.controller.tick()


def test_the_best_is_the_best_of_those_that_ran_to_their_end(storage):
    stage = Stage(storage)
    for status, value in (("pruned", 0.9), ("complete", 0.7), ("complete", 0.8), ("failed", 0.95)):
        stage.run(status, value)
    assert (stage.events[-1].best.number, stage.events[-1].best.value) == (2, 0.8)


def test_a_resumed_sweep_shows_what_it_had(storage):
    stage = Stage(storage, num_trials=4)
    stage.run("complete", 0.7)
    stage.trials.flush()
    again = Stage(storage, study=stage.study, num_trials=4)
    again.controller.next_trial()
    event = again.events[-1]
    assert (event.best.number, event.counts["complete"], event.total) == (0, 1, 4)


def test_the_time_left_follows_from_the_rate_so_far(storage):
    stage = Stage(storage, num_trials=4)
    stage.controller.next_trial()
    assert stage.events[-1].eta_s is None
    stage.now = 10.0
    stage.controller.end(0, "pruned")
    assert stage.events[-1].eta_s == 30.0  # one of four took 10 s


def test_a_display_that_raises_is_asked_no_more_and_keeps_no_trial_open(storage):
    stage = Stage(storage)
    stage.controller.next_trial()
    stage.controller.next_trial()
    stage.controller._events._on_event = lambda event: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stage.controller.close()
    stage.controller.close()
    assert TrialState.RUNNING not in stage.states()


def test_slots_are_counted_again_every_few_seconds(storage):
    """What two counts say holds: more room is used, and with less no trial is drawn until fewer run."""
    stage = Stage(storage, num_trials=9, max_concurrent=None)
    controller = stage.controller

    def drawn(at_s, slots):
        stage.now, stage.slots = at_s, slots
        controller.tick()
        return [trial["number"] for _ in range(9) if (trial := controller.next_trial()) is not None]

    assert drawn(0.0, 2) == [0, 1]
    assert drawn(2.0, 3) == []  # once, for a moment
    assert drawn(4.0, 2) == []
    assert drawn(6.0, 3) == []
    assert drawn(7.9, 4) == []  # not counted yet
    assert drawn(8.0, 4) == [2]  # 3, then 4: at least 3
    controller.end(0, "failed", reason="x")
    assert drawn(10.0, 1) == [3]  # 4, then 1: it stays 3
    for number in (1, 2):
        controller.end(number, "failed", reason="x")
    assert drawn(12.0, 1) == []
    controller.end(3, "failed", reason="x")
    assert drawn(12.0, 1) == [4]


def test_a_count_that_fails_leaves_the_number_as_it_was(storage):
    """Ray's head may be away for a moment."""
    stage = Stage(storage, num_trials=9)
    del stage.slots
    stage.now = 60.0
    stage.controller.tick()
    assert [stage.controller.next_trial() is None for _ in range(3)] == [False, False, True]


def test_a_trial_waits_until_it_has_a_process(storage):
    stage = Stage(storage, num_trials=9)
    number = stage.controller.next_trial()["number"]
    assert (stage.events[-1].kind, stage.events[-1].counts["waiting"]) == ("waiting", 1)
    stage.controller.started(number)
    event = stage.events[-1]  # before its first epoch, which may take hours
    assert (event.kind, event.counts["waiting"], event.counts["running"]) == ("started", 0, 1)


def test_trials_that_lose_their_slots_before_they_have_a_process_are_handed_out_first_later(storage):
    """The last ones of those without a process; what waited for a process is no trial's time."""
    stage = Stage(storage, num_trials=9, max_concurrent=None)
    controller = stage.controller
    stage.now, stage.slots = 2.0, 4
    controller.tick()
    stage.now = 4.0
    controller.tick()
    params = [json.loads(controller.next_trial()["project"])["train"]["lr"] for _ in range(4)]
    controller.started(1)
    assert controller.surplus == []
    for now in (6.0, 8.0):
        stage.now, stage.slots = now, 2
        controller.tick()
    assert controller.surplus == [3, 2]
    for number in (3, 2):
        controller.withdrawn(number)
    assert (controller.surplus, controller.next_trial(), controller.done) == ([], None, False)
    controller.end(1, "failed", reason="x")
    again = controller.next_trial()
    assert (again["number"], json.loads(again["project"])["train"]["lr"]) == (2, params[2])
    controller.end(0, "failed", reason="y")
    assert controller.next_trial()["number"] == 3
