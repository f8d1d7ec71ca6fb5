"""A trial in its own process: a Ray Tune trainable that steps through a training epoch by epoch.

Owns the hand-over between training, which calls back after each epoch, and Tune, which asks for one. What the
training raises becomes a result and not a dead actor: the process lives on for the next trial, and the driver
gets the reason in one line. Knows nothing of Optuna, MLflow or the other trials.

A result holds ``epochs``, how many there were; ``value``, the sweep's metric at the best of them by
``train.metric``, which is the one that ``train`` would keep; ``metrics`` of this epoch and ``best_metrics`` of
that one; at the end ``done`` with ``outcome`` and ``reason``. A trial that the scheduler stops has no outcome.
``epoch`` is the scheduler's clock.
"""

from __future__ import annotations

import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import PlacementGroupFactory, Trainable

from raymlops.project import Project
from raymlops.training.run import run_local
from raymlops.training.stopping import Best
from raymlops.tuning.datacache import DataCache
from raymlops.tuning.epochs import EpochStream
from raymlops.tuning.reasons import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.tuning.epochs import Epoch, Metrics

_DATA = DataCache()


class TrialActor(Trainable):  # type: ignore[misc]
    """One process that runs trials one after the other."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Return what one trial reserves."""
        train = json.loads(config["project"])["train"]
        bundle = {"CPU": train["cpus_per_worker"], "GPU": train["gpus_per_worker"]}
        return PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}])

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trial of this process."""
        # One thread for all trials: torch keeps a pool of its own for each thread that it meets.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raymlops-trial")
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in the same process."""
        self._stream.stop()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch and return its result."""
        try:
            return self._step()
        except Exception as error:
            return self._result(None, outcome="failed", reason=describe(error))

    def cleanup(self) -> None:
        """End the training at its next epoch."""
        self._stream.stop()
        self._thread.shutdown()

    def _begin(self, config: dict[str, Any]) -> None:
        sys.path += [
            entry for entry in json.loads(config["sys_path"]) if entry not in sys.path and Path(entry).exists()
        ]
        self._spec = json.loads(config["project"])
        self._shared = json.loads(config["shared"])
        train, sweep = self._spec["train"], self._spec["sweep"]
        self._metric = sweep["metric"] or train["metric"]
        self._best = Best(train["metric"], train["mode"])
        self._best_metrics: Metrics = {}
        self._epochs = 0
        self._stream = EpochStream(self._train, thread=self._thread)

    def _train(self, on_epoch: Callable[[int, Metrics], bool]) -> None:
        project = Project.from_dict(self._spec)
        run_local(project, prepared=_DATA.get(project, shared=self._shared), on_epoch=on_epoch)

    def _step(self) -> dict[str, Any]:
        epoch = self._stream.next()
        if epoch is None:
            return self._result(None, outcome="complete")
        self._epochs = epoch.number
        if self._best.update(epoch.number, epoch.metrics[self._best.metric]):
            self._best_metrics = epoch.metrics
        value = epoch.metrics.get(self._metric)
        if value is None:
            reason = f"{self._metric} was not reported; reported: {', '.join(sorted(epoch.metrics))}"
            return self._result(epoch, outcome="failed", reason=reason)
        if not math.isfinite(value):
            return self._result(epoch, outcome="failed", reason=f"{self._metric} is {value} after epoch {epoch.number}")
        if epoch.number >= self._spec["train"]["epochs"]:
            # Its last epoch: wait for its end and say so in the same result, which the scheduler would
            # otherwise count as one that it stopped.
            self._stream.next()
            return self._result(epoch, outcome="complete")
        return self._result(epoch)

    def _result(self, epoch: Epoch | None, *, outcome: str | None = None, reason: str = "") -> dict[str, Any]:
        result: dict[str, Any] = {
            "epochs": self._epochs,
            "value": self._best_metrics.get(self._metric, math.nan),
            "metrics": None if epoch is None else epoch.metrics,
            "best_metrics": self._best_metrics,
            "done": outcome is not None,
            "outcome": outcome,
            "reason": reason,
            "pid": os.getpid(),
        }
        # Without its clock the scheduler judges no result: NaN has no place among the values it compares.
        return result if epoch is None or outcome == "failed" else {**result, "epoch": epoch.number}
