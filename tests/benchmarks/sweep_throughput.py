"""Trials a second of `sweep`, of plain Optuna and of Ray Tune with its OptunaSearch, in turns in one run.

All three run the same objective two trials at a time on two CPUs, drawn by the same seeded TPE, with a study in SQLite:

- `sweep`: a recipe whose loop reports one number, at once or after 100 ms. It trains nothing, but is a recipe: its
  model is built, its data is there, and each trial is a child run in MLflow with parameters and metrics, in SQLite
  too. The peers log nothing.
- plain Optuna: two processes, each of which calls `study.optimize` on the one study, as "Easy Parallelization" of its
  tutorial has it. Its documentation advises another database for many processes; two are few.
- Ray Tune with OptunaSearch: a class trainable, reused processes, two trials at a time, the study given as `storage`.

A rate is taken from the first trial's end to the last one's; the total has all of the start but Ray's own. Of 100 ms
trials the ideal is what two processes that do nothing but sleep would reach.

    python tests/benchmarks/sweep_throughput.py [--part trivial|slow|random|tpe|draws|all] [--trials N] [--turns N]

`random` shows what a trial costs in the first and the last fifth of a long sweep that draws at random (--trials of
it, 1,000 by default), `tpe` what one costs at the 100th and the 500th beside plain Optuna, whose sampler is the same.
`draws` is that without Ray: CPU time to draw, report and end a trial in a study that has --trials, 5,000 by default.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import optuna
import ray
from optuna.distributions import FloatDistribution
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from slow_sweep import objective

from raymlops.config.load import load_data
from raymlops.project import bind
from raymlops.records import Objective
from raymlops.tuning.execution.tuner import prepared_tune
from raymlops.tuning.study.storage import create_study, open_storage
from raymlops.tuning.study.trials import Trials
from raymlops.tuning.sweep import sweep

FIXTURES = Path(__file__).parent.parent / "fixtures"
AT_A_TIME = 2
SLOW_S = 0.1
LR, MOMENTUM = (1e-4, 1e-1), (0.5, 0.99)
TRIALS = {"trivial": 200, "slow": 100, "random": 1000, "tpe": 520, "draws": 5000}
WINDOW = 40
"""Trials that a cost at the 100th and the 500th is the mean of."""


@dataclass(frozen=True)
class Ran:
    """When trials ended, and how long all of it took."""

    ends: list[float]
    total_s: float

    @property
    def rate(self) -> float:
        return (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])

    def cost_ms(self, first: int, last: int) -> float:
        """Return how far apart the ends of these trials are, on average."""
        return 1000 * mean(after - before for before, after in pairwise(self.ends[first:last]))


def ours(folder, *, trials, trial_s, sampler="tpe"):
    """Run `sweep`."""
    project = project_in(folder, trials=trials, trial_s=trial_s, sampler=sampler)
    ends = []
    began = time.monotonic()
    record = sweep(project, on_event=lambda event: event.kind == "ended" and ends.append(time.monotonic()))
    assert [trial.status for trial in record.trials] == ["complete"] * trials
    return Ran(ends, time.monotonic() - began)


def project_in(folder, *, trials, trial_s=0.0, sampler="tpe"):
    """Return the project of a sweep."""
    return bind(
        load_data(
            {
                "project": {"name": "throughput"},
                "recipe": {"import": "slow_sweep:Reports", "config": {"epoch_s": trial_s}},
                "train": {"epochs": 1, "batch_size": 64, "threads_per_worker": 1},
                "sweep": {
                    "num_trials": trials,
                    "scheduler": "none",
                    "sampler": sampler,
                    "max_concurrent": AT_A_TIME,
                    "space": {
                        "train.lr": {"float": list(LR), "log": True},
                        "train.momentum": {"float": list(MOMENTUM)},
                    },
                },
                "storage": {"path": str(folder)},
            }
        )
    )


def space(trial):
    """Draw the same parameters as `sweep`."""
    lr = trial.suggest_float("lr", *LR, log=True)
    momentum = trial.suggest_float("momentum", *MOMENTUM)
    return lr, momentum


def tune_space(trial):
    """Draw them for Tune, which wants nothing back."""
    space(trial)


def sampler_of(name, seed=0):
    """Return the sampler that `sweep` uses."""
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True, group=True, constant_liar=True)


def _optimize(url, trials, trial_s, sampler, seed):
    quiet()

    def run(trial):
        lr, momentum = space(trial)
        time.sleep(trial_s)
        return objective(lr, momentum)

    study = optuna.load_study(study_name="plain", storage=url, sampler=sampler_of(sampler, seed))
    study.optimize(run, n_trials=trials)


def plain_optuna(folder, *, trials, trial_s, sampler="tpe"):
    """Run plain Optuna in two processes."""
    url = f"sqlite:///{folder}/plain.db"
    began = time.monotonic()
    study = optuna.create_study(study_name="plain", storage=url)
    context = multiprocessing.get_context("spawn")
    shares = [trials // AT_A_TIME + (index < trials % AT_A_TIME) for index in range(AT_A_TIME)]
    processes = [
        context.Process(target=_optimize, args=(url, share, trial_s, sampler, seed))
        for seed, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    total_s = time.monotonic() - began
    assert not any(process.exitcode for process in processes)
    return Ran(sorted(trial.datetime_complete.timestamp() for trial in study.get_trials(deepcopy=False)), total_s)


class PlainTrial(tune.Trainable):
    """The same objective, as one step of a trainable."""

    def setup(self, config):
        self.reset_config(config)

    def reset_config(self, new_config):
        self._config = new_config
        return True

    def step(self):
        time.sleep(self._config["trial_s"])
        return {"loss": objective(self._config["lr"], self._config["momentum"]), "done": True}


class Ends(tune.Callback):
    """Remembers when trials ended."""

    def __init__(self) -> None:
        self.times = []

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.times.append(time.monotonic())


def plain_tune(folder, *, trials, trial_s, sampler="tpe"):
    """Run Tune with OptunaSearch."""
    ends = Ends()
    began = time.monotonic()
    search = OptunaSearch(
        space=tune_space,
        metric="loss",
        mode="min",
        study_name="tune",
        sampler=sampler_of(sampler),
        storage=optuna.storages.RDBStorage(f"sqlite:///{folder}/tune.db"),
    )
    with prepared_tune():
        tune.Tuner(
            PlainTrial,
            param_space={"trial_s": trial_s},
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=trials, reuse_actors=True, max_concurrent_trials=AT_A_TIME
            ),
            run_config=tune.RunConfig(
                storage_path=str(folder),
                callbacks=[ends],
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    return Ran(ends.times, time.monotonic() - began)


RUNNERS = {"sweep": ours, "optuna": plain_optuna, "tune": plain_tune}


def compare(folder, *, part, trials, turns):
    """Run all three in turns and print what each reached."""
    trial_s = SLOW_S if part == "slow" else 0.0
    for turn in range(turns):
        ran = {}
        for name, run in RUNNERS.items():
            here = Path(folder) / f"{part}-{turn}-{name}"
            here.mkdir()
            ran[name] = run(here, trials=trials, trial_s=trial_s)
        print(f"{part}, {trials} trials, turn {turn + 1}:")
        for name, one in ran.items():
            ideal = f", {one.rate * SLOW_S / AT_A_TIME:.0%} of the ideal" if part == "slow" else ""
            print(f"  {name:<7} {one.rate:7.1f}/s{ideal}, {trials / one.total_s:.1f}/s with start-up")
        mine = ran.pop("sweep")
        ratios = ", ".join(f"{mine.rate / one.rate:.2f} of {name}" for name, one in ran.items())
        whole = ", ".join(f"{one.total_s / mine.total_s:.2f} of {name}" for name, one in ran.items())
        print(f"  sweep is {ratios}; with start-up {whole}", flush=True)


def at_random(folder, *, trials):
    """Print what a trial costs at the beginning and at the end of a long sweep."""
    here = Path(folder) / "random"
    here.mkdir()
    one, fifth = ours(here, trials=trials, trial_s=0.0, sampler="random"), trials // 5
    first, last = one.cost_ms(0, fifth), one.cost_ms(trials - fifth, trials)
    print(
        f"random, {trials} trials: {one.rate:.1f}/s; a trial costs {first:.1f} ms in the first fifth, {last:.1f} ms in "
        f"the last ({last / first:.2f} times)",
        flush=True,
    )


def growing(folder, *, trials):
    """Print what a trial costs as TPE learns from more of them."""
    costs = {}
    for name in ("sweep", "optuna"):
        here = Path(folder) / f"tpe-{name}"
        here.mkdir()
        one = RUNNERS[name](here, trials=trials, trial_s=0.0)
        costs[name] = {at: one.cost_ms(at - WINDOW // 2, at + WINDOW // 2) for at in (100, 500) if at < trials}
    for name, cost in costs.items():
        print(f"tpe {name:<7}", ", ".join(f"{ms:.1f} ms at n={at}" for at, ms in cost.items()))
    print("tpe sweep is", ", ".join(f"{ms / costs['optuna'][at]:.2f} at n={at}" for at, ms in costs["sweep"].items()))


def drawing(folder, *, trials):
    """Print what drawing and telling a trial costs in a study that has many."""
    here, rng = Path(folder) / "draws", random.Random(0)
    here.mkdir()
    section = project_in(here, trials=trials).spec.sweep
    keys = list(section.space)
    suggest = {keys[0]: FloatDistribution(*LR, log=True), keys[1]: FloatDistribution(*MOMENTUM)}
    objectives = (Objective("loss", "min"),)
    with open_storage(f"sqlite:///{here}/ours.db") as storage:
        study = create_study(storage, "s", objectives=objectives)
        for _ in range(trials):
            params = {key: rng.uniform(each.low, each.high) for key, each in suggest.items()}
            study.add_trial(optuna.create_trial(value=rng.random(), params=params, distributions=suggest))
    shutil.copy(here / "ours.db", here / "optuna.db")

    def theirs(study):
        trial = study.ask(suggest)
        loss = objective(*trial.params.values())
        trial.report(loss, 1)
        study.tell(trial, loss)

    def ours(trials):
        opened = trials.ask()
        loss = objective(*opened.params.values())
        trials.report(opened.number, epoch=1, value=loss, metrics={"loss": loss}, best_metrics={"loss": loss})
        trials.tell(opened.number, "complete")

    costs = {}
    for name in ("ours", "optuna", "ours", "optuna"):
        with open_storage(f"sqlite:///{here}/{name}.db") as storage:
            study = optuna.load_study(study_name="s", storage=storage, sampler=sampler_of("tpe"))
            turn, of = (
                (ours, Trials(study, section=section, objectives=objectives)) if name == "ours" else (theirs, study)
            )
            turn(of)
            began = time.process_time()
            for _ in range(WINDOW):
                turn(of)
            costs.setdefault(name, []).append(1000 * (time.process_time() - began) / WINDOW)
    mine, plain = mean(costs["ours"]), mean(costs["optuna"])
    print(f"draws, n={trials}: {mine:.1f} ms a trial, plain Optuna {plain:.1f} ({mine / plain:.2f})", flush=True)


def quiet():
    """Keep Optuna to itself."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def local_ray():
    """Give Ray two CPUs for the block."""
    os.environ["PYTHONPATH"] = str(FIXTURES)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=AT_A_TIME,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,  # a process of Tune's that is ended in its start shows a stack trace
    )
    try:
        yield
    finally:
        ray.shutdown()


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*TRIALS, "all"], default="all")
    parser.add_argument("--trials", type=int, help="of the part; default: " + str(TRIALS))
    parser.add_argument("--turns", type=int, default=2)
    asked = parser.parse_args()
    quiet()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} CPUs, {load:.1f} of them busy before the start")
    with tempfile.TemporaryDirectory() as folder, local_ray():
        for part in TRIALS if asked.part == "all" else [asked.part]:
            trials = asked.trials or TRIALS[part]
            if part == "random":
                at_random(folder, trials=trials)
            elif part == "tpe":
                growing(folder, trials=trials)
            elif part == "draws":
                drawing(folder, trials=trials)
            else:
                compare(folder, part=part, trials=trials, turns=asked.turns)


if __name__ == "__main__":
    main()
