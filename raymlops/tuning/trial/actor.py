"""A trial in its own process: a Ray Tune trainable that steps through a training epoch by epoch.

Owns the hand-over between training, which calls back after each epoch, and Tune, which asks for one. What the
training raises becomes a result and not a dead actor: the process lives on for the next trial, and the driver
gets the reason in one line. Only a training that hangs, or has broken its device, is the end of its process: ``step``
raises. A trial that goes on begins at its newest checkpoint. Knows nothing of Optuna, MLflow or the other trials.

A result holds ``epochs``, how many there were, and ``step``; ``value``, the sweep's first objective at the best of them
by ``train.metric``, which is the one that ``train`` would keep; ``metrics`` of this epoch and ``best_metrics`` of
that one; ``saved``, whether there is a checkpoint; in the first one ``restored``, the epochs that a checkpoint held; at
the end ``done`` with ``outcome`` and ``reason``. A trial that the scheduler stops has no outcome. ``resource`` is the
scheduler's clock.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.tune import PlacementGroupFactory, Trainable

from raymlops.config.changes import identity
from raymlops.data.cache import DataCache
from raymlops.data.shared import Lent
from raymlops.errors import ProcessSpoiledError, TrainingError, TrialHungError, describe
from raymlops.project import Project
from raymlops.storage import filesystem
from raymlops.training.checkpoints.latest import recall, recorded_fit
from raymlops.training.checkpoints.state import Best
from raymlops.training.inprocess import run_in_process
from raymlops.training.runs.lookup import CHECKPOINTS
from raymlops.tuning.trial.checkpoints import TrialSaver, section_of
from raymlops.tuning.trial.epoch_stream import EpochStream, TrialThread
from raymlops.tuning.trial.reported_values import judged_metrics, numbers, refusal
from raymlops.tuning.trial.watchdog import ExitBackstop, Watchdog

if TYPE_CHECKING:
    from raymlops.data.shared import SharedData
    from raymlops.training.checkpoints.latest import Recalled
    from raymlops.tuning.trial.epoch_stream import Epoch, Metrics

_NOTHING = {"memory": 1}
"""One byte: Tune refuses a trial that reserves nothing, and a CPU's smallest share would be missing to its workers."""
_CLEANUP_S = 5.0
_STORE_SHARE = 0.5
"""Of a node's object store, that data may take: beyond it would be written to the disk, and read from there."""


class TrialActor(Trainable):  # type: ignore[misc]
    """One process that runs trials one after the other."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Return what one trial reserves; one on several workers leaves that to them."""
        project = json.loads(config["project"])
        if project["sweep"]["workers_per_trial"] > 1:
            return PlacementGroupFactory([_NOTHING])
        train = project["train"]
        bundle = {"CPU": train["cpus_per_worker"], "GPU": train["gpus_per_worker"]}
        return PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}])

    def setup(self, config: dict[str, Any], splits: SharedData | None = None) -> None:
        """Begin the first trial of this process. ``splits`` is the driver's data."""
        self._thread = TrialThread()
        self._data = DataCache(splits)
        self._trial = _Trial(config, data=self._data, thread=self._thread)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in the same process.

        Raises:
            ProcessSpoiledError: the one before does not end.
        """
        try:
            self._trial.stream.stop()
        except TrialHungError as error:
            raise ProcessSpoiledError(f"the trial before does not end: {error.message}") from None
        self._trial = _Trial(new_config, data=self._data, thread=self._thread)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch and return its result.

        Raises:
            TrialHungError: the training makes no progress.
            TrainingError: no training can use this process's device any more.
        """
        trial = self._trial
        try:
            return trial.step()
        except TrialHungError:
            raise
        except Exception as error:
            reason = describe(error)
            if _broke_device(error):
                raise TrainingError(f"the process cannot use its device any more: {reason}") from None
            return trial.result(None, outcome="failed", reason=reason)

    def cleanup(self) -> None:
        """End the training as soon as it can, but wait for none that hangs."""
        with suppress(TrialHungError):
            self._trial.stream.stop(timeout_s=self._trial.grace_s)


class _Trial:
    """One trial from its beginning, at its first epoch or at a checkpoint, to its end."""

    def __init__(self, config: dict[str, Any], *, data: DataCache, thread: TrialThread) -> None:
        sys.path += [
            entry for entry in json.loads(config["sys_path"]) if entry not in sys.path and Path(entry).exists()
        ]
        if Path(config["cwd"]).is_dir():
            os.chdir(config["cwd"])
        self._config = config
        self._data = data
        self._spec = json.loads(config["project"])
        train, sweep = self._spec["train"], self._spec["sweep"]
        self._resource = sweep["resource"]
        self._judged = judged_metrics(self._spec)
        self._best = Best(train["metric"], train["mode"])
        self._best_metrics: Metrics = {}
        self._epochs = self._step = 0
        self._restored: dict[int, Metrics] = {}
        """What a checkpoint held; set by the training's thread before its first epoch, and told once."""
        self._back: list[dict[str, Any]] = []
        """The same with what the trial was worth after each epoch, until it is told."""
        self._taken = False
        self._saver: TrialSaver | None = None
        self._saved = False
        self._nested = sweep["workers_per_trial"] > 1
        self.grace_s = max(_CLEANUP_S, train["stop_grace_s"]) if self._nested else _CLEANUP_S
        """How long the process may wait for the end: workers elsewhere write a last checkpoint."""
        self._watchdog = (
            Watchdog()  # they are watched where they run
            if self._nested
            else Watchdog(hang_timeout_s=train["hang_timeout_s"], compiles=train["compile"], backstop=ExitBackstop())
        )
        self.stream = EpochStream(self._train, thread=thread, watchdog=self._watchdog, holds=not self._nested)

    def step(self) -> dict[str, Any]:
        """Return the result of the next epoch, or of the end."""
        epoch = self.stream.next()
        self._take_in_restored(epoch)
        if epoch is None:
            return self.result(None, outcome="complete")
        epoch, reason = self._take_in(epoch)
        if reason:
            return self.result(epoch, outcome="failed", reason=reason)
        if epoch.last or epoch.number >= self._spec["train"]["epochs"]:
            # Wait for its end and say so in the same result, which the scheduler would otherwise count as one that it
            # stopped.
            while (late := self.stream.next()) is not None:
                late, reason = self._take_in(late)
                if reason:
                    return self.result(late, outcome="failed", reason=reason)
            return self.result(epoch, outcome="complete")
        return self.result(epoch)

    def result(self, epoch: Epoch | None, *, outcome: str | None = None, reason: str = "") -> dict[str, Any]:
        """Return what Tune and the driver get."""
        restored, self._back = self._back, []
        result: dict[str, Any] = {
            "epochs": self._epochs,
            "step": max(self._step, self._watchdog.step) if epoch is None else epoch.step,
            "value": self._best_metrics.get(self._judged[0], math.nan),
            "metrics": None if epoch is None else epoch.metrics,
            "best_metrics": self._best_metrics,
            "done": outcome is not None,
            "outcome": outcome,
            "reason": reason,
            "pid": os.getpid(),
            # Whoever trains on workers writes one at the end in any case.
            "saved": self._nested or (self._saved if self._saver is None else self._saver.saved),
            # As text: Tune takes a nested result apart.
            "restored": json.dumps(restored),
        }
        if epoch is None or outcome is not None or epoch.number < self._epochs:
            return result  # without its clock the scheduler judges no result
        clock = {"epoch": epoch.number, "step": epoch.step}.get(self._resource)
        return {**result, "resource": epoch.metrics[self._resource] if clock is None else clock}

    def _take_in(self, epoch: Epoch) -> tuple[Epoch, str]:
        """Take in an epoch; return it with those metrics that are numbers, and what is wrong with it."""
        self._epochs, self._step = max(self._epochs, epoch.number), max(self._step, epoch.step)
        reason = refusal(epoch.metrics, names=self._judged, epoch=epoch.number)
        epoch = replace(epoch, metrics=numbers(epoch.metrics))
        if not reason and self._best.update(epoch.number, epoch.metrics[self._best.metric]):
            self._best_metrics = epoch.metrics
        return epoch, reason

    def _take_in_restored(self, epoch: Epoch | None) -> None:
        if self._taken:
            return
        self._taken = True
        if epoch is not None and epoch.number <= len(self._restored):
            return  # a loop of the recipe's own, which began again
        best = 0
        for number, metrics in self._restored.items():
            self._epochs = number
            if self._best.update(number, metrics.get(self._best.metric, math.nan)):
                best, self._best_metrics = number, metrics
            value = self._best_metrics.get(self._judged[0], math.nan)
            self._back.append({"epoch": number, "best": best, "value": value, "metrics": metrics})

    def _train(self, stream: EpochStream) -> None:
        """Train, in the training's thread."""
        project = Project.from_dict(self._spec)
        uri = filesystem.join(self._config["folder"], CHECKPOINTS)
        state = recorded_fit(uri) if self._config["goes_on"] else None
        prepared = self._data.get(project, shared=json.loads(self._config["shared"]), state=state)
        found = self._recalled(uri)
        self._watchdog.begins(0 if found is None or found.state is None else found.state.step)
        if self._nested:
            from raymlops.tuning.trial.multi_worker import train_on_workers

            train_on_workers(
                project,
                prepared,
                folder=self._config["folder"],
                after=len(self._restored),
                on_epoch=stream.report,
                stopping=lambda: stream.stopping,
            )
            return
        watchdog, mine = self._watchdog, identity(project.spec)
        section = section_of(project.spec.train)
        saver = self._saver = TrialSaver(
            section,
            uri,
            every_s=project.spec.sweep.checkpoint_every_s,
            token=secrets.token_hex(3),
            identity=mine,
            kept=None if found is None else found.kept,
            alive=lambda: watchdog.alive(watchdog.step),
        )

        def on_epoch(number: int, metrics: Metrics) -> bool:
            return stream.report(number, metrics, step=watchdog.step, last=saver.finished)

        run_in_process(
            replace(project, spec=project.spec.model_copy(update={"train": section})),
            prepared,
            saver=saver,
            emit=lambda _event: None,
            on_epoch=on_epoch,
            orders=lambda: "interrupted" if stream.stopping else "",
            alive=watchdog.alive,
            resume=None if found is None else found.uri,
            identity=mine,
        )

    def _recalled(self, uri: str) -> Recalled | None:
        if not self._config["goes_on"]:
            return None
        train = self._spec["train"]
        # On several workers it is recalled again, by whoever starts them.
        found = recall(uri, metric=train["metric"], mode=train["mode"], repair=not self._nested)
        if found.state is not None:
            self._saved = True
            self._restored = dict(enumerate(found.state.history, start=1))
        return found


def trainable(shared: SharedData | None) -> type[TrialActor]:
    """Return what the Tuner is given: with data, which then lies once on each node. Ray must be initialised.

    What it takes in the object store is given back by ``release``.
    """
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    if shared is None or shared.size_bytes > _STORE_SHARE * min(stores, default=0.0):
        return TrialActor
    lent = Lent(shared)

    class WithData(TrialActor):
        data = lent

        def setup(self, config: dict[str, Any], splits: SharedData | None = None) -> None:
            super().setup(config, lent.get() if splits is None else splits)

    WithData.__name__ = WithData.__qualname__ = TrialActor.__name__  # as what Ray and Tune show it
    return WithData


def release(given: type[TrialActor]) -> None:
    """Give back what ``trainable`` put into the object store; trials that run keep what they have."""
    lent = vars(given).get("data")
    if lent is not None:
        lent.release()


def _broke_device(error: BaseException) -> bool:
    """Return whether a card reported an error after which no call to it succeeds; want of memory is none of these."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, torch.AcceleratorError):
            return True
        found = found.__cause__ or found.__context__
    return False
