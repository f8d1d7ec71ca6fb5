"""The process of a trial: a Ray Tune trainable that steps through a training epoch by epoch.

An exception of the training becomes a result and not a dead actor: the process is reused for the next trial, and the
driver gets the reason in one line. Only where the training hangs or has broken its device does ``step`` raise, which
ends the process. A resumed trial starts at its newest checkpoint. Knows nothing of Optuna, MLflow or other trials.

A result holds ``epochs``, how many there were, and ``step``; ``value``, the sweep's first objective at the best epoch
by ``train.metric``, which is the epoch that ``train`` would keep; ``metrics`` of this epoch and ``best_metrics`` of
the best one; ``saved``, whether there is a checkpoint; in the first result ``restored``, the epochs in the checkpoint;
at the end ``done`` with ``outcome``, ``reason`` and whether it ``diverged``. A trial that the scheduler stops has no
outcome; one that ``sweep.trial_timeout_s`` stops is ``pruned``. ``resource`` is the scheduler's clock.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.tune import PlacementGroupFactory, Trainable

from raymlops.cluster.import_paths import take_over
from raymlops.cluster.resource_usage import TRIAL_MARK
from raymlops.config.changes import identity
from raymlops.data.cache import DataCache, fingerprint_of
from raymlops.data.shared import StoredObject
from raymlops.errors import (
    NonFiniteError,
    PlacesLostError,
    ProcessSpoiledError,
    TrainingError,
    TrialHungError,
    describe,
)
from raymlops.project import Project
from raymlops.storage import filesystem
from raymlops.training.checkpoints.latest import recall, recorded_fit
from raymlops.training.inprocess import run_in_process
from raymlops.training.loop.early_stopping import Best
from raymlops.training.loop.outcome import Hooks
from raymlops.training.priority import lower_priority
from raymlops.training.runs.lookup import CHECKPOINTS
from raymlops.tuning.trial.checkpoints import TrialSaver, section_of
from raymlops.tuning.trial.epoch_stream import EpochStream, TrialThread
from raymlops.tuning.trial.reported_values import judged_metrics, not_finite, numbers, refusal
from raymlops.tuning.trial.watchdog import Watchdog, exit_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.data.shared import SharedData
    from raymlops.training.checkpoints.latest import Recalled
    from raymlops.tuning.trial.epoch_stream import Epoch, Metrics

_CLEANUP_S = 5.0
_STORE_SHARE = 0.5
"""The share of a node's object store for the data: beyond it, Ray spills to disk."""


class TrialActor(Trainable):  # type: ignore[misc]
    """One process that runs trials one after the other."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Return the resources of one trial; of several workers each has a bundle, after that of this process."""
        project = json.loads(config["project"])
        train, workers = project["train"], project["sweep"]["workers_per_trial"]
        return _resource_request(workers, train["cpus_per_worker"], train["gpus_per_worker"])

    def setup(self, config: dict[str, Any], splits: SharedData | None = None) -> None:
        """Start the first trial of this process. ``splits`` is the driver's data."""
        lower_priority()
        self._thread = TrialThread(after=release_memory)
        self._data = DataCache(splits)
        limit_memory(json.loads(config["project"])["train"]["gpus_per_worker"])
        self._trial = _Trial(config, data=self._data, thread=self._thread)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in the same process.

        Raises:
            ProcessSpoiledError: the previous trial does not end.
        """
        try:
            self._trial.stream.stop()
        except TrialHungError as error:
            raise ProcessSpoiledError(f"the previous trial does not end: {error.message}") from None
        self._trial = _Trial(new_config, data=self._data, thread=self._thread)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch and return its result.

        Raises:
            TrialHungError: the training makes no progress.
            PlacesLostError: its workers' places were lost.
            TrainingError: this process cannot use its device any more.
        """
        trial = self._trial
        try:
            return trial.step()
        except (TrialHungError, PlacesLostError):
            raise
        except Exception as error:
            reason = describe(error)
            if _broke_device(error):
                raise TrainingError(f"the process cannot use its device any more: {reason}") from None
            return trial.result(None, outcome="failed", reason=reason, diverged=isinstance(error, NonFiniteError))

    def cleanup(self) -> None:
        """End the training; do not wait for one that hangs."""
        with suppress(TrialHungError):
            self._trial.stream.stop(timeout_s=self._trial.grace_s)


class _Trial:
    """One trial, from its first epoch or from a checkpoint."""

    def __init__(self, config: dict[str, Any], *, data: DataCache, thread: TrialThread) -> None:
        take_over(config)
        self._config = config
        self._data = data
        self._spec = json.loads(config["project"])
        train, sweep = self._spec["train"], self._spec["sweep"]
        self._resource = sweep["resource"]
        self._judged = judged_metrics(self._spec)
        self._best = Best(train["metric"], train["mode"])
        self._best_metrics: Metrics = {}
        self._epochs = self._step = 0
        self._whole = train["epochs"] or math.inf
        self._ahead: Epoch | None = None
        """A report that came while the end of the training was expected."""
        self._fingerprint = ""
        self._restored: dict[int, Metrics] = {}
        """Metrics by epoch in the checkpoint; set by the training's thread before its first epoch."""
        self._unreported: list[dict[str, Any]] = []
        """The same with the trial's value after each epoch, until the first result has it."""
        self._restored_seen = False
        self._saver: TrialSaver | None = None
        self._saved = False
        limit_s = sweep["trial_timeout_s"]
        self._until_s = math.inf if limit_s is None else time.monotonic() + limit_s - config.get("before_s", 0.0)
        self._nested = sweep["workers_per_trial"] > 1
        self.grace_s = max(_CLEANUP_S, train["stop_grace_s"]) if self._nested else _CLEANUP_S
        """How long the process may wait for the training's end: its workers write a last checkpoint."""
        self._watchdog = (
            Watchdog()  # its workers have a hang detector
            if self._nested
            else Watchdog(hang_timeout_s=train["hang_timeout_s"], compiles=train["compile"], backstop=exit_process)
        )
        self.stream = EpochStream(self._train, thread=thread, watchdog=self._watchdog, holds=not self._nested)

    def step(self) -> dict[str, Any]:
        """Return the result of the next epoch, or of the end."""
        epoch, self._ahead = self._ahead, None
        if epoch is None:
            try:
                epoch = self.stream.next(left_s=self._left_s)
            except TimeoutError:
                return self._timed_out()
        self._record_restored(epoch)
        if epoch is None:
            return self.result(None, outcome="complete")
        epoch, reason = self._record(epoch)
        if reason:
            return self.result(epoch, outcome="failed", reason=reason)
        if not self._may_be_last(epoch):
            return self.result(epoch)
        # Wait for the end and report it in the same result; otherwise the scheduler may stop a trial that is over.
        more = not epoch.last and epoch.number > self._whole
        try:
            self._ahead = self.stream.next(left_s=self._left_s if more else lambda: math.inf)
        except TimeoutError:
            return self._timed_out(epoch)
        return self.result(epoch, outcome="complete" if self._ahead is None else None)

    def result(
        self, epoch: Epoch | None, *, outcome: str | None = None, reason: str = "", diverged: bool = False
    ) -> dict[str, Any]:
        """Return the result for Tune and the driver."""
        restored, self._unreported = self._unreported, []
        result: dict[str, Any] = {
            "epochs": self._epochs,
            "step": max(self._step, self._watchdog.step) if epoch is None else epoch.step,
            "value": self._best_metrics.get(self._judged[0], math.nan),
            "metrics": None if epoch is None else epoch.metrics,
            "best_metrics": self._best_metrics,
            "done": outcome is not None,
            "outcome": outcome,
            "reason": reason,
            "diverged": diverged
            or (outcome == "failed" and epoch is not None and not_finite(epoch.metrics, names=self._judged)),
            "pid": os.getpid(),
            "fingerprint": self._fingerprint,
            # Workers always write one at the end.
            "saved": self._nested or (self._saved if self._saver is None else self._saver.saved),
            # As text: Tune flattens nested results.
            "restored": json.dumps(restored),
        }
        if epoch is None or outcome is not None or epoch.number < self._epochs:
            return result  # without a clock the scheduler ignores it
        clock = {"epoch": epoch.number, "step": epoch.step}.get(self._resource)
        return {**result, "resource": epoch.metrics[self._resource] if clock is None else clock}

    def _left_s(self) -> float:
        return self._until_s - time.monotonic()

    def _may_be_last(self, epoch: Epoch) -> bool:
        """Return whether the training may be over: a recipe's own loop may report more often than once an epoch."""
        # Validations by steps may be more than epochs.
        return epoch.last or (self._spec["train"]["eval_every_steps"] is None and epoch.number >= self._whole)

    def _timed_out(self, epoch: Epoch | None = None) -> dict[str, Any]:
        """Stop the training, and return the result of a trial that is over with what it reported, ``epoch`` last."""
        self.stream.stop()
        self._record_restored(epoch)
        reason = f"stopped after {self._spec['sweep']['trial_timeout_s']:g} s (sweep.trial_timeout_s)"
        if self._epochs == 0:
            return self.result(None, outcome="failed", reason=f"{reason}, before its first report")
        return self.result(epoch, outcome="pruned", reason=reason)

    def _record(self, epoch: Epoch) -> tuple[Epoch, str]:
        """Record an epoch; return it with the metrics that are numbers, and what is wrong with it."""
        self._epochs, self._step = max(self._epochs, epoch.number), max(self._step, epoch.step)
        reason = refusal(epoch.metrics, names=self._judged, epoch=epoch.number)
        epoch = replace(epoch, metrics=numbers(epoch.metrics))
        if not reason and self._best.update(epoch.number, epoch.metrics[self._best.metric]):
            self._best_metrics = epoch.metrics
        return epoch, reason

    def _record_restored(self, epoch: Epoch | None) -> None:
        if self._restored_seen:
            return
        self._restored_seen = True
        if epoch is not None and epoch.number <= len(self._restored):
            return  # the recipe's own training loop started from scratch
        best = 0
        for number, metrics in self._restored.items():
            self._epochs = number
            if self._best.update(number, metrics.get(self._best.metric, math.nan)):
                best, self._best_metrics = number, metrics
            value = self._best_metrics.get(self._judged[0], math.nan)
            self._unreported.append({"epoch": number, "best": best, "value": value, "metrics": metrics})

    def _train(self, stream: EpochStream) -> None:
        """Train, in the training's thread."""
        project = Project.from_dict(self._spec)
        uri = filesystem.join(self._config["folder"], CHECKPOINTS)
        state = recorded_fit(uri) if self._config["resume"] else None
        shared = json.loads(self._config["shared"])
        prepared = self._data.get(project, shared=shared, state=state)
        self._fingerprint = fingerprint_of(project, prepared, shared=shared)
        found = self._recalled(uri)
        self._watchdog.start(0 if found is None or found.state is None else found.state.step)
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
        watchdog, own_identity = self._watchdog, identity(project.spec)
        section = section_of(project.spec.train)
        saver = self._saver = TrialSaver(
            section,
            uri,
            every_s=project.spec.sweep.checkpoint_every_s,
            token=secrets.token_hex(3),
            identity=own_identity,
            kept=None if found is None else found.kept,
            alive=lambda: watchdog.alive(watchdog.step),
        )

        def on_epoch(number: int, metrics: Metrics) -> bool:
            return stream.report(number, metrics, step=watchdog.step, last=saver.finished)

        run_in_process(
            project.with_train(section),
            prepared,
            saver=saver,
            hooks=Hooks(
                orders=lambda: "interrupted" if stream.stopping else "",
                heartbeat=watchdog.alive,
                should_stop=on_epoch,
                trial=True,
            ),
            resume=None if found is None else found.uri,
            identity=own_identity,
        )

    def _recalled(self, uri: str) -> Recalled | None:
        if not self._config["resume"]:
            return None
        train = self._spec["train"]
        # On several workers the supervisor recalls it again.
        found = recall(uri, metric=train["metric"], mode=train["mode"], repair=not self._nested)
        if found.state is not None:
            self._saved = True
            self._restored = dict(enumerate(found.state.history, start=1))
        return found


@functools.cache
def _resource_request(workers: int, cpus: float, gpus: float) -> PlacementGroupFactory:
    """Return the request of a trial, one object for all: Tune compares requests often, which takes long otherwise."""
    worker = {name: amount for name, amount in {"CPU": cpus, "GPU": gpus}.items() if amount}
    if workers > 1:
        return PlacementGroupFactory([TRIAL_MARK, *[worker] * workers])
    return PlacementGroupFactory([TRIAL_MARK | worker])


def limit_memory(gpus: float) -> None:
    """Limit this process to its share of a card that it shares with others."""
    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


def release_memory() -> None:
    """Return the card's memory that the previous trial used: the process of another trial may need it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()  # models are often in reference cycles, with their hooks
        torch.cuda.empty_cache()


@contextmanager
def trainable(shared: SharedData | None) -> Iterator[type[TrialActor]]:
    """Yield the class for the Tuner; with data, which the object store holds once on each node until the end.

    Ray must be initialised.
    """
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    if shared is None or shared.size_bytes > _STORE_SHARE * min(stores, default=0.0):
        yield TrialActor
        return
    stored = StoredObject(shared)

    class WithData(TrialActor):
        data = stored

        def setup(self, config: dict[str, Any], splits: SharedData | None = None) -> None:
            super().setup(config, self.data.get() if splits is None else splits)

    WithData.__name__ = WithData.__qualname__ = TrialActor.__name__  # the name that Ray and Tune show
    try:
        yield WithData
    finally:
        stored.release()


def _broke_device(error: BaseException) -> bool:
    """Return whether the device reported an error after which no call succeeds, unlike running out of memory."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, torch.AcceleratorError):
            return True
        found = found.__cause__ or found.__context__
    return False
