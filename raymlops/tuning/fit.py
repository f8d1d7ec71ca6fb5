"""The Ray Tune run of a sweep: scheduler, reused processes, nothing written that stays.

Owns what Tune is told. Knows nothing of what its hooks do.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from raymlops.tuning.checks import mode_of
from raymlops.tuning.hooks import SweepCallback, SweepSearcher, SweepStopper
from raymlops.tuning.trial import TrialActor

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
    from raymlops.tuning.conductor import Conductor


def fit(conductor: Conductor, *, spec: ProjectSpec, name: str) -> None:
    """Run trials until the conductor wants no more or halts."""
    callback = SweepCallback(conductor)
    # What Tune writes serves its own restore, which we never make: the study and MLflow hold what counts.
    with tempfile.TemporaryDirectory(prefix="raymlops-sweep-") as folder:
        tuner = tune.Tuner(
            TrialActor,
            param_space={},
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(conductor),
                scheduler=_scheduler(spec),
                num_samples=spec.sweep.num_trials,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                callbacks=[callback],
                stop=SweepStopper(conductor, callback=callback),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()


def _scheduler(spec: ProjectSpec) -> Any:
    if spec.sweep.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode=mode_of(spec),
        max_t=spec.train.epochs,
        grace_period=min(spec.sweep.grace_epochs, spec.train.epochs),
        reduction_factor=spec.sweep.reduction_factor,
    )


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"
