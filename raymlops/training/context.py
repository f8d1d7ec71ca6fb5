"""What a training loop stands on: its rank's recipe, data and device, and where its results go.

The contract of a custom ``train_loop(ctx)``: every rank calls ``report`` equally often and with equal metrics, stops
when it returns True, and reports a model whose state ``recipe.model()`` can load. Knows nothing of Ray or
MLflow: both stand behind ``emit`` and ``save``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from raymlops.errors import NonFiniteError, RecipeError, TrainingError
from raymlops.recipe import Batch, RecipeBase, call_recipe
from raymlops.training.evaluate import totals
from raymlops.training.metrics import merge_over_ranks, named_values
from raymlops.training.optimize import total_steps
from raymlops.training.progress import Event
from raymlops.training.sampling import derived_seed
from raymlops.training.stopping import Best

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from raymlops.config.schema import TrainSection
    from raymlops.training.data import Prepared


class Saver(Protocol):
    """Keeps models: in a folder for a run, in memory for a trial."""

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:
        """Keep a snapshot, if it is the best one, the last one or due."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """A model as reported; ``epoch`` counts reports. ``model`` and ``optimizer`` are live: copy what is to be kept."""

    epoch: int
    step: int
    metrics: dict[str, float]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    state: Mapping[str, Any]


@dataclass
class Outcome:
    """What a loop reached: ``history`` holds each reported epoch's metrics, in order."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    epochs: int = 0
    steps: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """Return the metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


class TrainContext:
    """One rank of a run. ``spec`` is the train section; ``prepared`` holds the splits."""

    def __init__(
        self,
        spec: TrainSection,
        prepared: Prepared,
        *,
        saver: Saver,
        emit: Callable[[Event], None],
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        unused_parameters: bool = False,
        should_stop: Callable[[int, dict[str, float]], bool] | None = None,
        check_signals: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.prepared = prepared
        self.recipe: RecipeBase = prepared.recipe
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.steps = total_steps(spec, rows=prepared.splits["train"].rows)
        self.outcome = Outcome()
        self._saver = saver
        self._emit = emit
        self._unused_parameters = unused_parameters
        self._should_stop = should_stop
        self.check_signals = check_signals
        """Raise KeyboardInterrupt if a Ctrl-C got lost since: a loop asks at every step, evaluation at every batch."""
        self._best = Best(spec.metric, spec.mode, patience=spec.patience)
        self._started = time.monotonic()

    def model(self) -> nn.Module:
        """Return the untrained model on this rank's device, the same on every rank."""
        torch.manual_seed(self.spec.seed)
        model: nn.Module = call_recipe(f"{type(self.recipe).__name__}.model()", self.recipe.model)
        return model.to(self.device)

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return a module that maps a batch to its loss and, over several ranks, averages gradients.

        The recipe's loss sees the plain model: DDP wraps the computation of the loss around it.
        """
        loss = _Loss(self.recipe, model)
        if self.world_size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return loss
        return torch.nn.parallel.DistributedDataParallel(loss, find_unused_parameters=self._unused_parameters)

    def seed_epoch(self, epoch: int) -> None:
        """Seed dropout and the like for an epoch: differently on each rank, the same in each run."""
        torch.manual_seed(derived_seed(self.spec.seed, epoch, self.rank))

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor summed over all ranks."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Return the recipe's metrics over a whole split as ``split/name``, the same on every rank."""
        if self.world_size > 1:
            for buffer in model.buffers():  # running statistics drift apart between ranks
                torch.distributed.broadcast(buffer, src=0)
        sums = totals(
            self.recipe,
            model,
            self.prepared.splits[split],
            batch_size=self.spec.eval_batch_size,
            rank=self.rank,
            world=self.world_size,
            device=self.device,
            before_batch=self.check_signals,
        )
        if self.world_size > 1:
            sums = merge_over_ranks(sums, device=self.device)
        return named_values(self.recipe, sums, split=split)

    def log(self, *, epoch: int, step: int, metrics: dict[str, float], rows_per_s: float = 0.0) -> None:
        """Log metrics of a step. Cheap, but not for every step: ``spec.log_every_steps`` says how often."""
        self._send("step", epoch=epoch, step=step, metrics=metrics, rows_per_s=rows_per_s)

    def report(
        self,
        *,
        epoch: int,
        step: int,
        metrics: dict[str, float],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> bool:
        """Take in an epoch: judge it, keep the model, and return whether to stop.

        Raises:
            RecipeError: ``train.metric`` is not among the metrics.
            NonFiniteError: it is NaN or infinite.
            StorageError: the model cannot be written; what was kept before is still there.
        """
        self.check_signals()
        value = metrics.get(self._best.metric)
        if value is None:
            raise RecipeError(
                f"train.metric is {self._best.metric!r}, which was not reported; reported: {', '.join(sorted(metrics))}"
            )
        if not math.isfinite(value):
            raise NonFiniteError(f"{self._best.metric} is {value} after epoch {epoch} (step {step})")
        self.outcome.history.append(dict(metrics))
        self.outcome.epochs, self.outcome.steps = len(self.outcome.history), step
        improved = self._best.update(len(self.outcome.history), value)
        self.outcome.best_epoch = self._best.epoch
        self._send("epoch", epoch=epoch, step=step, metrics=metrics)
        stop = self._agreed(self._best.exhausted or epoch >= self.spec.epochs or step >= self.steps)
        if self.rank == 0:
            snapshot = Snapshot(self.outcome.epochs, step, dict(metrics), model, optimizer, self.prepared.state)
            self._saver.save(snapshot, best=improved, last=stop)
        if self._should_stop is not None and self._should_stop(epoch, dict(metrics)):
            return True
        return stop

    def run(self, loop: Callable[[TrainContext], None]) -> Outcome:
        """Run the recipe's own loop or ``loop``, and return what it reached."""
        self._send("start", epoch=0, step=0, metrics={})
        own = self.recipe.train_loop
        if own is None:
            loop(self)
        else:
            call_recipe(f"{type(self.recipe).__name__}.train_loop()", lambda: own(self))
        if not self.outcome.history:
            raise TrainingError(
                f"{type(self.recipe).__name__}.train_loop() ended without a report",
                hint="Call ctx.report(...) after each epoch.",
            )
        return self.outcome

    def _agreed(self, stop: bool) -> bool:
        """Return rank 0's decision, so that ranks never part ways."""
        if self.world_size == 1:
            return stop
        decision = torch.tensor(float(stop and self.rank == 0), device=self.device)
        return bool(self.sum_over_ranks(decision).item())

    def _send(self, kind: Any, *, epoch: int, step: int, metrics: dict[str, float], rows_per_s: float = 0.0) -> None:
        if self.rank == 0:
            self._emit(
                Event(
                    kind,
                    epoch=epoch,
                    epochs=self.spec.epochs,
                    step=step,
                    steps=self.steps,
                    metrics=dict(metrics),
                    elapsed_s=time.monotonic() - self._started,
                    rows_per_s=rows_per_s,
                    timestamp_ms=int(time.time() * 1000),
                )
            )


class _Loss(torch.nn.Module):
    """The recipe's loss as a module, which is what DDP can wrap."""

    def __init__(self, recipe: RecipeBase, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe

    def forward(self, batch: Batch) -> torch.Tensor:
        return self._recipe.loss(self.model, batch)
