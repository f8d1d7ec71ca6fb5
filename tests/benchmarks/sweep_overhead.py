"""Trials a second of `sweep` beside plain Ray Tune with its own OptunaSearch, on trials that train for milliseconds.

Both run the same training (one epoch of the tiny recipe) two at a time on two CPUs, with reused processes, seeded
TPE and a study in SQLite. The peer is set up as Ray's documentation advises; it logs nothing, `sweep` also writes a
child run with parameters and metrics to MLflow for each trial. The rate is taken from the first trial's end to the
last one's.

    python tests/benchmarks/sweep_overhead.py [TRIALS]
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import ray
from ray import tune

from raymlops.config.load import load_data
from raymlops.project import Project, bind
from raymlops.tuning.quiet import quiet_tune
from raymlops.tuning.study import sweep


def tiny(folder, trials):
    return bind(
        load_data(
            {
                "project": {"name": "overhead"},
                "recipe": {"import": "tiny:Tiny", "config": {"train_rows": 64, "validation_rows": 64, "test_rows": 8}},
                "train": {"epochs": 1, "batch_size": 64, "threads_per_worker": 1},
                "sweep": {
                    "num_trials": trials,
                    "scheduler": "none",
                    "space": {
                        "train.lr": {"float": [1e-4, 1e-1], "log": True},
                        "recipe.config.hidden": {"int": [4, 64]},
                    },
                },
                "storage": {"path": str(folder)},
            }
        )
    )


def ours(folder, trials):
    """Return the rate of `sweep`."""
    ends = []
    sweep(tiny(folder, trials), on_event=lambda event: event.kind == "ended" and ends.append(time.monotonic()))
    return (len(ends) - 1) / (ends[-1] - ends[0])


class PlainTrial(tune.Trainable):
    """The same training, as one step of a trainable."""

    def setup(self, config):
        self._project = Project.from_dict(config["project"])
        self.reset_config(config)

    def reset_config(self, new_config):
        self._params = {key: new_config[key] for key in ("train.lr", "recipe.config.hidden")}
        return True

    def step(self):
        from raymlops.training.data import prepare
        from raymlops.training.run import run_local

        project = self._project.with_params(self._params)
        if not hasattr(self, "_prepared"):
            self._prepared = prepare(project)
        from raymlops.training.data import Prepared

        kept = self._prepared
        result = run_local(project, prepared=Prepared(project.recipe(state=kept.state), kept.splits, kept.state))
        return {"loss": result.metrics["validation/loss"], "done": True}


class Ends(tune.Callback):
    """Remembers when trials ended."""

    def __init__(self) -> None:
        self.times = []

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.times.append(time.monotonic())


def space(trial):
    """Draw the same parameters as `sweep`."""
    trial.suggest_float("train.lr", 1e-4, 1e-1, log=True)
    trial.suggest_int("recipe.config.hidden", 4, 64)


def theirs(folder, trials):
    """Return the rate of Tune with OptunaSearch."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    ends = Ends()
    search = OptunaSearch(
        space=space,
        metric="loss",
        mode="min",
        study_name="plain",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=8, multivariate=True, group=True),
        storage=optuna.storages.RDBStorage(f"sqlite:///{folder}/plain.db"),
    )
    tune.Tuner(
        PlainTrial,
        param_space={"project": tiny(folder, trials).to_dict()},
        tune_config=tune.TuneConfig(search_alg=search, num_samples=trials, reuse_actors=True, max_concurrent_trials=2),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            callbacks=[ends],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    return (len(ends.times) - 1) / (ends.times[-1] - ends.times[0])


def main() -> None:
    """Run both in turns and print their rates."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    warnings.simplefilter("ignore")
    logging.getLogger("optuna").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent / "fixtures")
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
        try:
            for turn in range(2):
                here = Path(folder) / str(turn)
                here.mkdir()
                with quiet_tune():
                    plain = theirs(here, trials)
                mine = ours(here, trials)
                print(f"{trials} trials: sweep {mine:.1f}/s, OptunaSearch {plain:.1f}/s, ratio {mine / plain:.2f}")
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
