"""The Ray Tune run of a sweep: scheduler, reused processes, nothing written that stays.

Owns what Tune is told. Knows nothing of what its hooks do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune

from raymlops.storage.scratch import scratch
from raymlops.tuning.execution.tune_hooks import SweepCallback, SweepSearcher, SweepStopper
from raymlops.tuning.execution.tune_patches import mended_tune

if TYPE_CHECKING:
    from raymlops.tuning.execution.controller import Conductor
    from raymlops.tuning.execution.schedulers import Judge


def fit(conductor: Conductor, *, trainable: Any, judge: Judge, name: str) -> None:
    """Run trials until the conductor has none left or halts."""
    callback = SweepCallback(conductor)
    # What Tune writes serves its own restore, which we never make: the study and MLflow hold what counts.
    with scratch() as folder, mended_tune():
        tuner = tune.Tuner(
            trainable,
            param_space={},
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(conductor),
                scheduler=judge,
                num_samples=-1,  # the searcher says when it is over: a trial that goes on is a new one to Tune
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_dirname,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder),
                callbacks=[callback],
                stop=SweepStopper(conductor, callback=callback),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


def _trial_dirname(trial: Any) -> str:
    # One that goes on is another trial to Tune, with a file of its own for what ended its process.
    return f"trial-{trial.config['number']}-{trial.trial_id}"
