"""A killed and resumed sweep draws what an uninterrupted one would have drawn, whenever it was killed."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from importlib.util import find_spec

import pytest
from optuna.storages import InMemoryStorage
from spread import at_most, spread
from sqlalchemy import event

from raymlops.config.space import parse_distribution
from raymlops.config.sweep import SweepSection
from raymlops.records import Objective
from raymlops.tuning.study.samplers import sampler_of
from raymlops.tuning.study.storage import create_study, load_study, open_storage
from raymlops.tuning.study.trials import Trials

LOSS = (Objective("validation/loss", "min"),)
BOTH = (*LOSS, Objective("latency_ms", "min"))
SPACE = {
    "train.lr": parse_distribution({"float": [1e-5, 1e-1], "log": True}),
    "train.optimizer": parse_distribution({"categorical": ["sgd", "adamw"]}),
    "train.momentum": parse_distribution({"float": [0.5, 0.99], "when": {"train.optimizer": "sgd"}}),
    "recipe.config.hidden": parse_distribution({"int": [4, 64]}),
}
STATUSES = ("complete", "pruned", "complete", "failed")


def section_of(**sweep):
    return SweepSection(space=SPACE, startup_trials=3, **sweep)


def run(trials, opened, *, last):
    """End the trials that are open, then ask for more up to number ``last``, one at a time."""
    for trial in opened:
        finish(trials, trial)
    while trials.asked < last:
        finish(trials, trials.ask())
    trials.flush()


def finish(trials, trial):
    loss = abs(math.log10(trial.params["train.lr"]) + 3) + trial.params["recipe.config.hidden"] / 64
    metrics = {"validation/loss": loss, "latency_ms": float(trial.params["recipe.config.hidden"])}
    trials.report(trial.number, epoch=1, value=loss, metrics=metrics, best_metrics=metrics)
    trials.tell(trial.number, STATUSES[trial.number % 4])


def drawn(study):
    return {trial.number: trial.params for trial in study.trials}


class Uninterrupted:
    """A sweep that ran through, with a copy of its database as it was before each write: where a death leaves it."""

    def __init__(self, folder, *, section, objectives, last, from_number=0):
        self.section, self.objectives, self.last = section, objectives, last
        self.copies = []
        self.writes = False
        with open_storage(f"sqlite:///{folder}/optuna.db") as storage:
            study = create_study(storage, "s", objectives=objectives)
            trials = Trials(study, section=section, objectives=objectives)
            run(trials, [], last=from_number)

            @event.listens_for(storage.engine, "before_cursor_execute")
            def _see(_connection, _cursor, statement, *_):
                self.writes = self.writes or not statement.lstrip().upper().startswith(("SELECT", "PRAGMA"))

            @event.listens_for(storage.engine, "commit")
            def _copy(_connection):
                if not self.writes:
                    return
                self.writes = False
                copy = folder / f"{len(self.copies)}.db"
                with (
                    closing(sqlite3.connect(folder / "optuna.db")) as now,
                    closing(sqlite3.connect(copy)) as kept,
                ):
                    now.backup(kept)
                self.copies.append(copy)

            run(trials, [], last=last)
            event.remove(storage.engine, "commit", _copy)
            self.drawn = drawn(study)

    def resumed(self, copy):
        """Return what is drawn altogether by a driver that starts on a copy."""
        with open_storage(f"sqlite:///{copy}") as storage:
            study = load_study(storage, "s")
            trials = Trials(study, section=self.section, objectives=self.objectives)
            run(trials, trials.reopen(), last=self.last)
            return drawn(study)


CMAES = pytest.param(
    "optuna.samplers.CmaEsSampler",
    LOSS,
    (14, 18),
    marks=pytest.mark.skipif(find_spec("cmaes") is None, reason="needs the package cmaes"),
    id="cma-es",
)


@pytest.mark.parametrize(
    ("sampler", "objectives", "numbers"),
    [
        pytest.param("random", LOSS, (0, 2), id="random"),
        pytest.param("tpe", LOSS, (4, 6), id="tpe"),
        pytest.param("tpe", BOTH, (4, 5), id="tpe of several"),
        pytest.param("nsga2", BOTH, (5, 7), id="nsga2"),
        pytest.param("gp", LOSS, (6, 7), id="gp"),
        pytest.param("own_samplers:Good", LOSS, (0, 2), id="own"),
        CMAES,
    ],
)
@at_most(3)
def test_a_driver_that_dies_at_any_write_changes_no_suggestion(tmp_path, sampler, objectives, numbers, most):
    first, last = numbers
    whole = Uninterrupted(
        tmp_path, section=section_of(sampler=sampler), objectives=objectives, last=last, from_number=first
    )
    assert len(whole.copies) >= (last - first) * 2  # drawn and ended
    for copy in spread(whole.copies, most):
        assert whole.resumed(copy) == whole.drawn, copy.name


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sweep_resumed_after_each_of_its_trials_draws_the_same(tmp_path, sampler):
    whole = Uninterrupted(tmp_path, section=section_of(sampler=sampler), objectives=LOSS, last=12, from_number=12)
    with open_storage(f"sqlite:///{tmp_path}/again.db") as storage:
        create_study(storage, "s", objectives=LOSS)
    for number in range(1, 13):
        with open_storage(f"sqlite:///{tmp_path}/again.db") as storage:
            study = load_study(storage, "s")
            trials = Trials(study, section=section_of(sampler=sampler), objectives=LOSS)
            run(trials, trials.reopen(), last=number)
            again = drawn(study)
    assert again == whole.drawn


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "nsga2"])
def test_each_trial_and_each_seed_draws_another_point(tmp_path, sampler):
    with open_storage(f"sqlite:///{tmp_path}/optuna.db") as storage:
        rates = set()
        for seed in (5, 6):
            study = create_study(storage, f"s{seed}", objectives=LOSS)
            run(Trials(study, section=section_of(sampler=sampler, seed=seed), objectives=LOSS), [], last=3)
            rates |= {params["train.lr"] for params in drawn(study).values()}
        assert len(rates) == 6


def test_parameters_that_are_drawn_alone_do_not_follow_each_other(tmp_path):
    """Each has a random stream of its own, and with it no two of a kind get the same value."""
    space = {f"recipe.config.x{index}": parse_distribution({"float": [0, 1]}) for index in range(8)}
    with open_storage(f"sqlite:///{tmp_path}/optuna.db") as storage:
        study = create_study(storage, "s", objectives=LOSS)
        trial = Trials(study, section=SweepSection(space=space, sampler="random"), objectives=LOSS).ask()
    assert len(set(trial.params.values())) == 8


def test_the_sampler_of_a_trial_depends_on_nothing_but_seed_and_number():
    def stream(seed, number):
        return sampler_of(section_of(seed=seed), objectives=LOSS, number=number)._seed("train.lr")

    assert stream(5, 3) == stream(5, 3)
    assert len({stream(5, 3), stream(5, 4), stream(6, 3), stream(53, 0)}) == 4


@pytest.mark.skipif(find_spec("cmaes") is None, reason="needs the package cmaes")
def test_a_resumed_trial_stays_in_its_generation_of_cma_es():
    """Its parameters are known, so that nothing is drawn again: that would count as a draw of the later generation."""
    section = section_of(sampler="optuna.samplers.CmaEsSampler")
    study = create_study(InMemoryStorage(), "s", objectives=LOSS)
    trials = Trials(study, section=section, objectives=LOSS)
    for _ in range(3):
        finish_complete(trials, trials.ask())
    early = trials.ask()
    generation = study.trials[early.number].system_attrs["cma:generation"]
    for _ in range(9):  # a generation of two parameters has 6 trials
        finish_complete(trials, trials.ask())
    trials.flush()
    assert study.trials[-1].system_attrs["cma:generation"] > generation
    (again,) = Trials(study, section=section, objectives=LOSS).reopen()
    assert again.params == early.params
    assert study.trials[early.number].system_attrs["cma:generation"] == generation


def finish_complete(trials, trial):
    loss = abs(math.log10(trial.params["train.lr"]) + 3)
    trials.report(trial.number, epoch=1, value=loss, metrics={}, best_metrics={"validation/loss": loss})
    trials.tell(trial.number, "complete")


def test_options_reach_the_class_of_a_sampler():
    def made(sampler, **args):
        return sampler_of(section_of(sampler=sampler, sampler_args=args), objectives=LOSS, number=0)._joint

    assert made("tpe", n_ei_candidates=7)._n_ei_candidates == 7
    assert made("tpe", n_startup_trials=5)._n_startup_trials == 5
    assert made("tpe", multivariate=False)._group is False
    assert made("nsga2", population_size=6).population_size == 6
    assert made("optuna.samplers:NSGAIIISampler", population_size=6).population_size == 6
    assert made("own_samplers:Good", share=0.5).share == 0.5
