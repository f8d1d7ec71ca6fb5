"""What Optuna is told of trials whose results are invented here."""

from __future__ import annotations

import math
import sqlite3
import threading
from contextlib import closing, contextmanager

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from optuna.trial import create_trial as create_optuna_trial
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from raymlops.config.space import parse_distribution
from raymlops.config.sweep import SweepSection, Threshold
from raymlops.errors import StorageError, UnreachableError
from raymlops.records import Objective
from raymlops.tuning.budget import Tally
from raymlops.tuning.study import view
from raymlops.tuning.study.bulk import create_trial
from raymlops.tuning.study.draws import Draws
from raymlops.tuning.study.import_study import end_outside
from raymlops.tuning.study.records import history_of, reports_of
from raymlops.tuning.study.reruns import retry_failed
from raymlops.tuning.study.selection import winner
from raymlops.tuning.study.storage import create_study, load_study, open_storage
from raymlops.tuning.study.trials import Trials

LOSS = (Objective("validation/loss", "min"),)
BOTH = (*LOSS, Objective("latency_ms", "min"))
SPACE = {
    "train.lr": parse_distribution({"float": [1e-5, 1e-1], "log": True}),
    "train.optimizer": parse_distribution({"categorical": ["sgd", "adamw"]}),
    "train.momentum": parse_distribution({"float": [0.5, 0.99], "when": {"train.optimizer": "sgd"}}),
}
SECTION = SweepSection(startup_trials=3, space=SPACE)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def storage(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/optuna.db", heartbeat_s=60, busy_s=0) as opened:
        yield opened


@pytest.fixture
def study(storage):
    return create_study(storage, "s", objectives=LOSS)


@pytest.fixture
def trials(study, clock):
    return Trials(study, section=SECTION, objectives=LOSS, clock=clock)


def again(storage, clock, *, section=SECTION, objectives=LOSS, **options):
    """Return what another process sees and goes on with."""
    return Trials(load_study(storage, "s"), section=section, objectives=objectives, clock=clock, **options)


def report(trials, number, values, *, first_epoch=1, **best):
    for epoch, value in enumerate(values, start=first_epoch):
        metrics = {"validation/loss": value, **best}
        trials.report(number, epoch=epoch, value=value, metrics=metrics, best_metrics=metrics)


def ended(trials, status, values=(), *, reason="", run_id=None, **best):
    number = trials.ask().number
    report(trials, number, values, **best)
    record = trials.tell(number, status, reason=reason, run_id=run_id)
    trials.flush()
    return record


def test_a_trial_that_ran_to_its_end_is_complete_with_its_curve(study, trials):
    record = ended(trials, "complete", [0.5, 0.4], run_id="r1")
    told = study.trials[0]
    assert (told.state, told.value, told.intermediate_values) == (TrialState.COMPLETE, 0.4, {1: 0.5, 2: 0.4})
    assert told.user_attrs["raymlops"]["run_id"] == "r1"
    assert (record.value, record.epochs, record.metrics) == (0.4, 2, {"validation/loss": 0.4})


def test_a_trial_that_the_scheduler_stopped_is_pruned_and_not_complete(study, trials):
    record = ended(trials, "pruned", [0.5])
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.PRUNED, 0.5)
    assert (record.status, record.value) == ("pruned", 0.5)


@pytest.mark.parametrize(
    ("status", "values", "reason"),
    [
        ("failed", [0.5], "ValueError: no"),
        ("complete", [0.5, math.nan], "its metric is nan"),
        ("complete", [math.inf], "its metric is inf"),
        ("pruned", [], "its metric was never reported"),
    ],
)
def test_a_trial_without_a_finite_value_fails_with_its_reason(study, trials, status, values, reason):
    record = ended(trials, status, values, reason=reason if status == "failed" else "")
    told = study.trials[0]
    assert (told.state, told.user_attrs["raymlops"]["reason"]) == (TrialState.FAIL, reason)
    assert (record.status, record.value, record.reason) == ("failed", None, reason)


def test_a_trial_cannot_be_told_twice(trials):
    number = trials.ask().number
    trials.tell(number, "failed")
    with pytest.raises(KeyError):
        trials.tell(number, "failed")


def test_open_and_ended_trials_are_counted(trials):
    first, second = trials.ask().number, trials.ask().number
    trials.tell(second, "failed")
    assert (tuple(trials.open), trials.asked, [record.number for record in trials.records]) == ((first,), 2, [second])


def test_another_process_reads_the_same_records_and_curves(storage, clock, trials):
    number = trials.ask().number
    trials.start(number)
    trials.report(number, epoch=1, value=0.5, metrics={"validation/loss": 0.5, "n": 1}, best_metrics={"n": 1.0})
    trials.report(number, epoch=2, value=0.5, metrics={"validation/loss": math.nan}, best_metrics={"n": 1.0})
    clock.now += 7
    trials.tell(number, "complete", run_id="r1")
    ended(trials, "failed", reason="ValueError: no")
    study = load_study(storage, "s")
    assert again(storage, clock).records == trials.records
    assert trials.records[0].duration_s == 7
    history = history_of(study.trials[0])
    assert history[1] == {"validation/loss": 0.5, "n": 1.0}
    assert math.isnan(history[2]["validation/loss"])


def test_a_study_of_another_program_is_read_too():
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.25, 3)
    study.tell(trial, state=TrialState.PRUNED)
    study.ask()
    (record,) = Trials(study, section=SECTION, objectives=LOSS).records
    assert (record.status, record.value, record.epochs, record.params) == ("pruned", 0.25, 3, trial.params)


def test_nothing_is_written_before_it_is_flushed(study, trials):
    number = trials.ask().number
    report(trials, number, [0.5])
    trials.tell(number, "complete")
    assert study.trials[0].state == TrialState.RUNNING
    trials.ask()
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_storage_that_refuses_keeps_everything_for_the_next_time(tmp_path, study, trials):
    number = trials.ask().number
    report(trials, number, [0.5, 0.4])
    trials.tell(number, "complete")
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="Optuna's study s cannot be used: database is locked"):
            trials.flush()
        other.rollback()
    trials.flush()
    assert (study.trials[0].value, study.trials[0].intermediate_values) == (0.4, {1: 0.5, 2: 0.4})


def test_an_end_whose_answer_was_lost_is_told_again_without_harm(storage, study, trials, clock):
    number = trials.ask().number
    other = again(storage, clock)
    other.reopen()
    for teller in (trials, other):
        report(teller, number, [0.5])
        teller.tell(number, "complete")
        teller.flush()
    assert study.trials[0].value == 0.5


def test_a_trial_that_another_process_ended_otherwise_is_an_error_and_stops_no_later_write(storage, study, trials):
    first, second = trials.ask().number, trials.ask().number
    load_study(storage, "s").tell(first, state=TrialState.FAIL)
    report(trials, first, [0.5])
    report(trials, second, [0.5])
    trials.tell(first, "complete")
    trials.tell(second, "complete")
    with pytest.raises(StorageError, match=r"ended by another process: FAIL there, COMPLETE here"):
        trials.flush()
    trials.flush()
    assert study.trials[second].state == TrialState.COMPLETE


def test_what_is_fixed_in_advance_is_not_drawn_and_the_rest_is(storage, study, clock):
    points = [{"train.lr": 0.01, "train.optimizer": "adamw"}, {"train.optimizer": "sgd"}, {"train.lr": 0.02}]
    section = SECTION.model_copy(update={"enqueue": points})
    trials = Trials(study, section=section, objectives=LOSS, clock=clock)
    assert trials.ask().params == points[0]
    second = trials.ask().params
    assert second["train.optimizer"] == "sgd"
    assert {"train.lr", "train.momentum"} <= second.keys()
    # The third point is asked for by its index, also by another process.
    third = again(storage, clock, section=section)
    assert third.ask().params["train.lr"] == 0.02


def test_a_running_trial_is_taken_up_with_its_parameters_and_what_it_reported(storage, clock, trials):
    first = trials.ask()
    report(trials, first.number, [0.5, 0.4])
    trials.flush()
    other = again(storage, clock)
    assert (other.asked, tuple(other.open)) == (1, ())
    (opened,) = other.reopen()
    assert (opened.number, opened.params, opened.value, opened.epochs) == (0, first.params, 0.4, 2)
    assert (other.asked, tuple(other.open)) == (1, (0,))
    assert other.ask().number == 1


def test_a_trial_that_goes_on_from_an_older_checkpoint_may_report_an_epoch_again(storage, clock, trials, study):
    number = trials.ask().number
    report(trials, number, [0.5, 0.4, 0.3])
    trials.flush()
    other = again(storage, clock)
    other.reopen()
    report(other, number, [0.41, 0.3, 0.2], first_epoch=2)
    other.tell(number, "complete")
    other.flush()
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.41, 3: 0.3, 4: 0.2}


def test_a_suspended_trial_waits_and_goes_on_with_all_it_knew(storage, clock, trials, study):
    first = trials.ask()
    trials.start(first.number)
    report(trials, first.number, [0.5, 0.4], latency_ms=3.0)
    clock.now += 30
    trials.suspend(first.number)
    trials.flush()
    assert (study.trials[0].state, tuple(trials.open), trials.asked, trials.records) == (TrialState.WAITING, (), 1, ())
    other = again(storage, clock)
    (opened,) = other.reopen()
    assert study.trials[0].state == TrialState.RUNNING
    assert (opened.params, opened.value, opened.epochs) == (first.params, 0.4, 2)
    assert opened.metrics == {"validation/loss": 0.4, "latency_ms": 3.0}
    assert sorted(opened.history) == [1, 2]
    clock.now += 600  # it waits for a process
    other.start(0)
    clock.now += 5
    assert other.tell(0, "pruned").duration_s == 35


def test_a_failing_draw_leaves_no_trial(study, clock):
    section = SECTION.model_copy(update={"enqueue": [{"train.optimizer": "none of them"}]})
    trials = Trials(study, section=section, objectives=LOSS, clock=clock)
    for _ in range(2):
        with pytest.raises(ValueError, match="none of them"):
            trials.ask()
    assert study.trials == []


def test_a_trial_that_another_program_adds_does_not_confuse_the_numbers(storage, study, trials):
    trials.ask()
    storage.create_new_trial(load_study(storage, "s")._study_id)
    later = [trials.ask() for _ in range(2)]
    assert [trial.number for trial in later] == [2, 3]
    assert [study.trials[trial.number].params for trial in later] == [trial.params for trial in later]


def test_what_another_program_added_uses_up_no_trial_and_never_wins(study, trials):
    """It may have other parameters than the sweep; a resumed sweep runs as many trials as one that was not."""
    ended(trials, "complete", [0.5])
    trials.flush()
    for state, value in ((TrialState.COMPLETE, -9.0), (TrialState.FAIL, None)):
        other = {"params": {"other": 0.5}, "distributions": {"other": FloatDistribution(0.0, 1.0)}}
        study.add_trial(create_optuna_trial(state=state, value=value, **other))
    resumed = Trials(study, section=SECTION, objectives=LOSS)
    assert (resumed.asked, resumed.total) == (1, SECTION.num_trials)
    assert [record.carried_from for record in resumed.records] == ["", "optuna:1", "optuna:2"]
    assert winner(resumed.records, objectives=LOSS).number == 0
    tally = Tally.of(resumed.ended, mode="min")
    assert (tally.ended, tally.since_best, tally.best.number) == (1, 0, 0)
    assert retry_failed(study) == []


def test_what_another_program_enqueued_outside_the_space_is_not_trained(study):
    """Optuna trains it as it is: no choice of a categorical, a number beyond its range."""
    space = {**SPACE, "model.sizes": parse_distribution({"categorical": [[4], [4, 4]]})}
    trials = Trials(study, section=SECTION.model_copy(update={"space": space}), objectives=LOSS)
    own = trials.ask()
    enqueued = [{"model.sizes": "[2]"}, {"model.sizes": "[4, 4]", "train.lr": 1e-3}, {"train.lr": -3.0}]
    for params in enqueued:
        study.enqueue_trial(params)
    assert end_outside(study, space=space) == ["trial 1: model.sizes is '[2]'", "trial 3: train.lr is -3.0"]
    resumed = Trials(study, section=SECTION.model_copy(update={"space": space}), objectives=LOSS)
    again, trained = resumed.reopen()
    assert again.params == own.params
    assert trained.params.items() >= {"model.sizes": "[4, 4]", "train.lr": 1e-3}.items()
    assert [record.carried_from for record in resumed.records] == ["optuna:1", "optuna:3"]
    assert resumed.asked == 2


def test_what_another_program_enqueued_is_trained_as_far_as_there_is_room(study, storage, clock):
    """``num_trials`` bounds all of them; the rest stays in the queue until the sweep is extended."""
    section = SECTION.model_copy(update={"num_trials": 4})
    trials = Trials(study, section=section, objectives=LOSS)
    ended(trials, "complete", [0.5])
    own = trials.ask().number
    for rate in (1e-3, 2e-3, 3e-3):
        study.enqueue_trial({"train.lr": rate})
    resumed = again(storage, clock, section=section)
    assert (resumed.asked, resumed.total) == (2, 4)
    assert [trial.number for trial in resumed.reopen()] == [own, 2, 3]
    assert (resumed.asked, resumed.total, study.trials[4].state) == (4, 4, TrialState.WAITING)
    for number in (own, 2, 3):
        report(resumed, number, [0.4])
        resumed.tell(number, "complete")
    resumed.flush()
    assert again(storage, clock, section=section).reopen() == []
    extended = again(storage, clock, section=section.model_copy(update={"num_trials": 6}))
    (last,) = extended.reopen()
    assert (last.number, last.params["train.lr"], extended.asked) == (4, 3e-3, 5)
    assert extended.ask().number == 5


@pytest.mark.parametrize("of_earlier_release", [False, True])
def test_a_trial_of_its_own_that_another_program_ended_is_no_imported_one(study, trials, of_earlier_release):
    """Optuna's ``optimize`` with a heartbeat fails trials whose process is gone; those of a killed driver, say."""
    ended(trials, "complete", [0.5])
    number = trials.ask().number
    trials.report(number, epoch=1, value=0.4, metrics={"validation/loss": 0.4}, best_metrics={"validation/loss": 0.4})
    trials.flush()
    if of_earlier_release:
        with study._storage._backend.engine.begin() as connection:
            connection.execute(text("DELETE FROM trial_system_attributes WHERE key = 'raymlops:started'"))
    else:
        number = trials.ask().number  # it has reported nothing yet
    study._storage.set_trial_state_values(study.trials[number]._trial_id, TrialState.FAIL)
    resumed = Trials(study, section=SECTION, objectives=LOSS)
    assert resumed.asked == len(study.trials)
    assert [(record.status, record.carried_from) for record in resumed.records] == [("complete", ""), ("failed", "")]
    assert retry_failed(study) == [number]


def test_several_objectives_are_all_told(storage, clock):
    study = create_study(storage, "s", objectives=BOTH)
    trials = Trials(study, section=SECTION, objectives=BOTH, clock=clock)
    record = ended(trials, "complete", [0.5, 0.4], latency_ms=3.0)
    stopped = ended(trials, "pruned", [0.6], latency_ms=2.0)
    assert (record.value, record.values, study.trials[0].values) == (0.4, (0.4, 3.0), [0.4, 3.0])
    assert (stopped.values, study.trials[1].state) == ((0.6, 2.0), TrialState.PRUNED)
    assert study.trials[0].intermediate_values == {}
    assert again(storage, clock, objectives=BOTH).records == trials.records


def test_a_trial_without_one_of_several_objectives_fails(storage, clock):
    study = create_study(storage, "s", objectives=BOTH)
    trials = Trials(study, section=SECTION, objectives=BOTH, clock=clock)
    assert ended(trials, "complete", [0.5]).reason == "its objective latency_ms was never reported"
    assert ended(trials, "complete", [0.5], latency_ms=math.nan).reason == "its objective latency_ms is nan"


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_every_sampler_draws_from_a_history_with_constraints_and_learns_which_were_broken(storage, clock, sampler):
    section = SweepSection(
        startup_trials=2, space=SPACE, sampler=sampler, constraints={"latency_ms": Threshold(max=3.0)}
    )
    study = create_study(storage, "s", objectives=LOSS)
    trials = Trials(study, section=section, objectives=LOSS, clock=clock)
    kept = ended(trials, "complete", [0.5], latency_ms=2.0)
    broken = ended(trials, "complete", [0.4], latency_ms=5.0)
    stopped = ended(trials, "pruned", [0.4], latency_ms=4.0)
    ended(trials, "complete", [0.3], latency_ms=1.0)
    assert [kept.feasible, broken.feasible, stopped.feasible] == [True, False, False]
    assert [trial.constraints for trial in study.trials[:3]] == [
        {"latency_ms max": -1.0},
        {"latency_ms max": 2.0},
        {"latency_ms max": 1.0},
    ]
    assert again(storage, clock, section=section).records == trials.records
    assert trials.ask().number == 4


@pytest.mark.parametrize(
    ("best", "reason"),
    [
        ({}, "its constraint latency_ms was never reported"),
        ({"latency_ms": math.inf}, "its constraint latency_ms is inf"),
    ],
)
def test_a_trial_that_cannot_be_held_against_a_constraint_fails(study, clock, best, reason):
    section = SECTION.model_copy(update={"constraints": {"latency_ms": Threshold(max=3.0)}})
    record = ended(Trials(study, section=section, objectives=LOSS, clock=clock), "complete", [0.5], **best)
    assert (record.status, record.reason) == ("failed", reason)


def test_open_trials_say_once_a_minute_that_they_live(storage, study, trials, clock):
    number = trials.ask().number
    beats = _beats(storage)
    trials.heartbeat()
    assert beats() == 0
    clock.now += 60
    trials.heartbeat()
    assert beats() == 1
    clock.now += 600
    trials.heartbeat()
    trials.tell(number, "failed")
    trials.flush()
    assert (beats(), study.trials[0].state) == (1, TrialState.FAIL)


def _beats(storage):
    def count():
        with storage.engine.connect() as connection:
            return connection.execute(text("SELECT count(*) FROM trial_heartbeats")).scalar()

    return count


def test_the_newest_thousand_epochs_are_kept(storage, study, trials):
    number = trials.ask().number
    for epoch in range(1, 1103):
        trials.report(number, epoch=epoch, value=math.nan, metrics={"n": float(epoch)}, best_metrics={})
    trials.tell(number, "failed")
    trials.flush()
    assert (min(history_of(study.trials[0])), len(history_of(study.trials[0]))) == (103, 1000)
    orders = [report.order for report in reports_of(study.trials[0]).values()]
    assert orders == list(range(1102))  # the scheduler judges all of them again where the sweep is resumed


@pytest.fixture
def transactions(storage):
    """The statements of each transaction that wrote something."""
    statements, found = [], []
    event.listen(storage.engine, "before_cursor_execute", lambda _c, _cur, sql, *_: statements.append(sql))

    @event.listens_for(storage.engine, "commit")
    def _commit(_connection):
        if any(not _reads(sql) for sql in statements):
            found.append(list(statements))
        statements.clear()

    return found


def test_a_short_trial_is_two_transactions(study, trials, transactions):
    """One with all that was drawn, one with all that it came to."""
    number = trials.ask().number
    report(trials, number, [0.5, 0.4])
    trials.tell(number, "complete")
    trials.flush()
    assert len(transactions) == 2
    assert study.trials[0].params == trials.records[0].params


def test_a_long_draw_keeps_no_one_waiting(storage, study, trials, monkeypatch):
    """What happens in the meantime is written; the draw does not see it, nor does a crash leave anything of it."""
    number = trials.ask().number
    complete, drawn = Draws.complete, threading.Event()
    monkeypatch.setattr(Draws, "complete", lambda *args, **options: drawn.wait() and complete(*args, **options))
    monkeypatch.setattr(trials._draws, "_took_s", 100.0)
    report(trials, number, [0.5])
    assert [trials.prepare(wait_s=0.0) for _ in range(2)] == [False, False]
    assert load_study(storage, "s").trials[0].last_step == 1  # the draw knows what was reported before it
    daemons = [thread.daemon for thread in threading.enumerate() if thread.name == "raymlops-draw"]
    trials.tell(number, "complete")
    trials.flush()
    assert [trial.state.name for trial in load_study(storage, "s").trials] == ["COMPLETE"]
    drawn.set()
    assert daemons == [True]  # nobody may ask for the trial: that must keep no process alive
    assert trials.prepare(wait_s=60.0)
    opened = trials.ask()
    assert (opened.number, study.trials[1].params) == (1, opened.params)
    assert trials._draws.quick(60.0)  # the last one was


def test_what_several_trials_have_reported_is_one_transaction(study, trials, transactions):
    numbers = [trials.ask().number for _ in range(3)]
    del transactions[:]
    for number in numbers:
        report(trials, number, [0.5])
    trials.suspend(numbers[0])
    trials.tell(numbers[1], "failed", reason="x")
    trials.flush()
    assert len(transactions) == 1
    assert [trial.state.name for trial in study.trials] == ["WAITING", "FAIL", "RUNNING"]
    assert reports_of(study.trials[2])[1].metrics == {"validation/loss": 0.5}


def test_a_draw_reads_nothing_of_the_trials_before(trials, transactions):
    """Otherwise it takes the longer the more there are."""
    counts = []
    for _ in range(12):
        ended(trials, "complete", [0.5])
        counts.append([len(statements) for statements in transactions])
        del transactions[:]
    made, told = counts[-1]
    assert made <= 4 * 3 + 6  # of up to three parameters
    assert told <= 12


@contextmanager
def broken(storage, *, at):
    """The database fails at a statement."""

    def fail(_connection, _cursor, statement, *_):
        if statement.startswith(at):
            raise OperationalError(statement, {}, sqlite3.OperationalError("disk I/O error"))

    event.listen(storage.engine, "before_cursor_execute", fail)
    yield
    event.remove(storage.engine, "before_cursor_execute", fail)


def test_a_write_that_fails_undoes_those_of_its_transaction(storage, study, trials):
    """A crash, or a server that breaks off, leaves no trial half told."""
    number = trials.ask().number
    report(trials, number, [0.5])
    trials.flush()
    report(trials, number, [0.4], first_epoch=2)
    trials.tell(number, "complete")
    with broken(storage, at="UPDATE trials"):
        with pytest.raises(StorageError):
            trials.flush()
        assert "raymlops" not in study.trials[0].user_attrs
    trials.flush()
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.COMPLETE, 0.4)


def _reads(statement):
    return statement.lstrip().upper().startswith(("SELECT", "PRAGMA"))


def test_what_was_reported_before_a_kill_is_known_with_its_order_and_metrics(storage, study, clock):
    """Nothing is lost but what was not written: a constraint that was reported is kept."""
    section = SECTION.model_copy(update={"constraints": {"auc": Threshold(min=0.5)}})
    trials = Trials(study, section=section, objectives=LOSS, clock=clock)
    first, second = trials.ask().number, trials.ask().number
    report(trials, first, [0.5], auc=0.9)
    report(trials, second, [0.4], auc=0.6)
    report(trials, first, [0.6], first_epoch=2, auc=0.4)
    trials.flush()

    resumed = again(storage, clock, section=section)
    opened = {one.number: one for one in resumed.reopen()}
    orders = {number: {epoch: one.order for epoch, one in opened[number].reports.items()} for number in opened}
    assert orders == {0: {1: 0, 2: 2}, 1: {1: 1}}
    assert opened[0].history == {1: {"validation/loss": 0.5, "auc": 0.9}, 2: {"validation/loss": 0.6, "auc": 0.4}}
    assert opened[1].metrics == {"validation/loss": 0.4, "auc": 0.6}
    report(resumed, second, [0.4, 0.3], auc=0.7)  # the first one again, from a checkpoint
    assert [one.order for one in resumed.open[second].reports.values()] == [1, 3]
    record = resumed.tell(second, "pruned")
    assert (record.status, record.feasible) == ("pruned", True)
    resumed.flush()
    assert history_of(study.trials[1]) == {
        1: {"validation/loss": 0.4, "auc": 0.7},
        2: {"validation/loss": 0.3, "auc": 0.7},
    }


def test_a_report_that_is_written_with_the_end_has_no_attribute_of_its_own(study, trials):
    """Short trials cost one write less; each epoch is in the study once."""
    ended(trials, "complete", [0.5, 0.4])
    number = trials.ask().number
    report(trials, number, [0.5])
    trials.flush()
    report(trials, number, [0.4], first_epoch=2)
    trials.tell(number, "complete")
    trials.flush()
    first, second = study.trials
    assert not [key for key in first.system_attrs if "report" in key]
    assert first.user_attrs["raymlops"]["orders"] == {"1": 0, "2": 1}
    assert [key for key in second.system_attrs if "report" in key] == ["raymlops:report:1"]
    assert second.user_attrs["raymlops"]["history"] == {"2": {"validation/loss": 0.4}}
    assert list(history_of(second)) == [1, 2]


def test_trials_are_known_in_the_order_in_which_they_ended(storage, trials, clock):
    """Patience counts so, at a resume as before."""
    slow, quick = trials.ask().number, trials.ask().number
    for number in (quick, slow):
        report(trials, number, [0.5])
        trials.tell(number, "complete")
    trials.flush()
    resumed = again(storage, clock)
    assert [record.number for record in resumed.ended] == [quick, slow]
    assert [record.number for record in resumed.records] == [slow, quick]


def test_a_trial_whose_creation_got_no_answer_is_the_next_one(study, trials, monkeypatch):
    """The server created it, and the connection broke: the next call draws that one, not a second."""

    def unanswered(*args):
        create_trial(*args)
        raise OperationalError("INSERT", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patch:
        patch.setattr(view, "create_trial", unanswered)
        with pytest.raises(UnreachableError):
            trials.ask()
    assert [trials.ask().number for _ in range(2)] == [0, 1]
    assert len(study.trials) == 2


def test_an_optuna_that_ignores_given_parameters_is_refused(study, clock, monkeypatch):
    """A grid would silently be random."""
    section = SECTION.model_copy(update={"enqueue": [{"train.lr": 1e-3, "train.optimizer": "adamw"}]})
    trials = Trials(study, section=section, objectives=LOSS, clock=clock)
    monkeypatch.setattr(optuna.trial.Trial, "_is_fixed_param", lambda *_: False)
    with pytest.raises(StorageError, match=r"another value than the one that trial 0 was given for train\.lr"):
        trials.ask()


def test_a_reported_metric_is_a_user_attribute_where_that_is_asked_for(study, clock):
    """Of the best epoch; a trial that did not report it has none."""
    section = SECTION.model_copy(update={"user_attrs": ["size", "other"]})
    trials = Trials(study, section=section, objectives=LOSS, clock=clock)
    number = trials.ask().number
    for epoch, value, size in ((1, 0.2, 7.0), (2, 0.3, 9.0)):
        metrics = {"validation/loss": value, "size": size}
        best = {"validation/loss": 0.2, "size": 7.0}
        trials.report(number, epoch=epoch, value=0.2, metrics=metrics, best_metrics=best)
    trials.tell(number, "complete")
    trials.flush()
    (attrs,) = [trial.user_attrs for trial in study.get_trials()]
    assert attrs["size"] == 7.0
    assert set(attrs) == {"size", "raymlops"}
