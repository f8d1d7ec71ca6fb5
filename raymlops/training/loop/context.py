"""The per-rank training context: recipe, data, device, progress, checkpoints and reporting.

The contract of a custom ``train_loop(ctx)``: every rank calls ``report`` equally often and with equal metrics, stops
when it returns True, and reports a model whose state ``recipe.model()`` can load. A loop that calls ``restore`` first
resumes from the newest checkpoint; one that does not starts from scratch. Knows nothing of Ray or MLflow: both are
behind ``Hooks`` and the saver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from raymlops.data.order import EVALUATION, seed_all
from raymlops.errors import NonFiniteError, RecipeError, TrainingError
from raymlops.recipe import RecipeBase, call_recipe, model_of
from raymlops.training.checkpoints.host_copies import entries_not_finite
from raymlops.training.checkpoints.saver import Snapshot, restore
from raymlops.training.checkpoints.state import RunState
from raymlops.training.loop.early_stopping import Best
from raymlops.training.loop.evaluation import merge_over_ranks, named_values, totals
from raymlops.training.loop.optimizer import total_steps
from raymlops.training.loop.parallel import parallelize
from raymlops.training.loop.rank_sync import Agreed, Agreement, Ranks
from raymlops.training.loop.telemetry import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.training.checkpoints.retention import Kept
    from raymlops.training.checkpoints.saver import Saver
    from raymlops.training.events import Event

"""Sets an evaluation's random numbers apart from those of the step after it."""


@dataclass(frozen=True)
class Hooks:
    """How a rank talks to the process that runs it."""

    emit: Callable[[Event], None] = lambda _event: None
    orders: Callable[[], str] = lambda: ""
    """Returns why to stop after a last checkpoint; empty while there is no reason."""
    heartbeat: Callable[[int], None] = lambda _step: None
    """Called with the steps done, at each step and evaluation batch and while data is read."""
    should_stop: Callable[[int, dict[str, float]], bool] = lambda _epoch, _metrics: False
    """Called with each epoch and its metrics, also with the last one."""


@dataclass
class Outcome:
    """The result of a loop: ``history`` holds each reported epoch's metrics, in order."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    epochs: int = 0
    steps: int = 0
    stopped: str = ""
    """The order that stopped the loop early; it can be resumed from its last checkpoint."""
    workers: int = 1
    """The number of ranks at the end."""

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
        hooks: Hooks | None = None,
        ranks: Ranks | None = None,
        unused_parameters: bool = False,
        resume: str | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a rank; ``resume`` is the checkpoint to start from, ``identity`` what it must share with this run."""
        self.spec = spec
        self.prepared = prepared
        self.recipe: RecipeBase = prepared.recipe
        self.ranks = ranks or Ranks()
        self.rank, self.world_size, self.device = self.ranks.rank, self.ranks.world_size, self.ranks.device
        self.steps = total_steps(spec, rows=prepared.splits["train"].rows)
        self.run_state = RunState()
        """The progress of the run, which the loop advances."""
        self._hooks = hooks or Hooks()
        for split in prepared.splits.values():
            split.on_progress = self.heartbeat
        self._saver = saver
        self._unused_parameters = unused_parameters
        self._resume = resume
        self._identity = dict(identity or {})
        self._agreement = Agreement(
            self._hooks.orders,
            every_minutes=spec.checkpoint_every_minutes,
            ready=lambda: not saver.busy,
            ranks=self.ranks,
        )
        self._reporter = Reporter(self._hooks.emit, self.recipe, spec, steps=self.steps, ranks=self.ranks)
        self.watch = self._reporter.watch
        """Measures where the time goes; the loop marks the end of each part."""
        self._trained: tuple[Any, Any, Any] = (None, None, None)
        self._not_finite_at_start: dict[str, torch.Tensor] = {}
        self._stopped = ""

    def model(self) -> nn.Module:
        """Return the untrained model on this rank's device, the same on every rank."""
        torch.manual_seed(self.spec.seed)
        model = model_of(self.recipe).to(self.device)
        self._not_finite_at_start = entries_not_finite(model.state_dict())
        return model

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return a module that maps a batch to its loss and, over several ranks, averages gradients.

        The recipe's loss sees the plain model, which ``strategy: fsdp`` shards in place: build the optimizer after it.
        """
        return parallelize(
            self.recipe,
            model,
            self.spec,
            world_size=self.world_size,
            device=self.device,
            unused_parameters=self._unused_parameters,
        )

    def restore(self, *, model: nn.Module, optimizer: torch.optim.Optimizer | None, scaler: Any = None) -> RunState:
        """Load the checkpoint to resume from, if there is one, and return the run's progress.

        Checkpoints hold the given model, optimizer and scaler from now on.

        Raises:
            StorageError: a file of the checkpoint is damaged.
            UsageError: the checkpoint belongs to another recipe or configuration.
        """
        self._trained = (model, optimizer, scaler)
        # As each rank holds it from here on.
        self._not_finite_at_start = entries_not_finite(model.state_dict())
        if self._resume is not None:
            self._load(self._resume, kept=self._saver.kept)
            # model() builds what the start was; what changed code builds may lack what is in the checkpoint.
            self._not_finite_at_start = entries_not_finite(model.state_dict(), besides=self._not_finite_at_start)
            # The run may have been extended since.
            state = self.run_state
            if state.cut is not None and state.step < self.steps:
                state.epoch, state.batch = state.cut
                state.cut = None
            state.finished = self._over()
            self._reporter.resume(state)
            self._reporter.tell("start", state, epoch=state.epoch, step=state.step)
        return self.run_state

    @property
    def guarded(self) -> bool:
        """Return whether each step's loss and gradient are checked before the optimizer uses them."""
        return self.spec.on_non_finite != "stop"

    @property
    def sharded(self) -> bool:
        """Return whether each rank holds a part of the parameters."""
        return self.spec.strategy == "fsdp"

    def seed_step(self, step: int) -> None:
        """Seed what a step draws, such as dropout: differently on each rank, the same each time the step is taken."""
        seed_all(self.spec.seed, step, self.rank, device=self.device)

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor summed over all ranks."""
        return self.ranks.sum(tensor)

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Return the recipe's metrics over a whole split as ``split/name``, the same on every rank."""
        # Metrics may draw too, such as negatives; the result must not depend on what this attempt did before.
        seed_all(self.spec.seed, self.run_state.step, self.rank, EVALUATION, device=self.device)
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
            before_batch=self._before_evaluation_batch,
            exchanges=self.sharded,
            spec=self.spec,
        )
        if self.world_size > 1:
            sums = merge_over_ranks(sums, device=self.device)
        return named_values(self.recipe, sums, split=split)

    def log(self, *, epoch: int, step: int, metrics: dict[str, float]) -> None:
        """Log metrics of a step. Cheap, but not for every step: ``spec.log_every_steps`` says how often."""
        self._reporter.tell("step", self.run_state, epoch=epoch, step=step, metrics=metrics)

    def log_with_costs(self, metrics: dict[str, float], *, rows: int) -> None:
        """Log metrics of the steps since the last log, with throughput, the shares of time and the machine's load."""
        state = self.run_state
        self.log(epoch=state.epoch, step=state.step, metrics={**metrics, **self._reporter.costs(rows=rows)})

    def message(self, text: str, *, tags: Mapping[str, str] | None = None) -> None:
        """Write a message to the display and the run's log; ``tags`` are set on the run."""
        state = self.run_state
        self._reporter.tell("message", state, epoch=state.epoch, step=state.step, message=text, tags=tags)

    def heartbeat(self) -> None:
        """Report that this rank is alive, and how far it is."""
        self._hooks.heartbeat(self.run_state.step)

    def agree(self) -> Agreed:
        """Return what all ranks do after a step that ``run_state`` counts already: stop, or write a checkpoint."""
        step, every = self.run_state.step, self.spec.checkpoint_every_steps
        agreed = self._agreement.at_step(step)
        self._stopped = agreed.order
        due = bool(agreed.order) or agreed.due or (every is not None and step % every == 0)
        return Agreed(agreed.order, due=due)

    def save_checkpoint(self, *, last: bool) -> None:
        """Write a checkpoint in mid-epoch; ``run_state`` must be up to date.

        Raises:
            StorageError: a checkpoint cannot be written, and ``on_checkpoint_error`` is ``stop``.
        """
        self._save({}, best=False, last=last)

    def last_checkpoint(self) -> str | None:
        """Return the URI of the last checkpoint, the same on every rank; every rank must call it."""
        self._saver.wait()
        return self.ranks.from_first(self._saver.last_uri)  # rank 0 alone knows what was written

    def roll_back(self, uri: str) -> None:
        """Load a checkpoint of this run again."""
        self._load(uri)

    def report(
        self,
        *,
        epoch: int,
        step: int,
        metrics: dict[str, float],
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> bool:
        """Report an epoch: compare it with the best, write a checkpoint if one is due, and return whether to stop.

        ``model`` and ``optimizer`` may be omitted after ``restore``, which was given them.

        Raises:
            RecipeError: ``train.metric`` is not among the metrics, or another rank reports less often.
            NonFiniteError: it is NaN or infinite.
            StorageError: the model cannot be written; earlier checkpoints are kept.
        """
        best = self._best
        value = metrics.get(best.metric)
        if value is None:
            raise RecipeError(
                f"train.metric is {best.metric!r}, which was not reported; reported: {', '.join(sorted(metrics))}"
            )
        if not math.isfinite(value):
            raise NonFiniteError(f"{best.metric} is {value} after epoch {epoch} (step {step})")
        if model is not None:
            self._trained = (model, optimizer, None)
        state = self.run_state
        state.history.append(dict(metrics))
        improved = best.update(len(state.history), value)
        state.best_epoch, state.best_value, state.waited = best.epoch, best.value, best.waited
        state.epoch, state.batch, state.step = epoch + 1, 0, step
        state.loss_sum, state.loss_rows = 0.0, 0
        self._reporter.tell("epoch", state, epoch=epoch, step=step, metrics=metrics)
        over, order = self._agreement.at_report(len(state.history), stop=self._over())
        stop = over or bool(order)
        state.finished = over
        self._stopped = "" if over else order
        self._hooks.heartbeat(step)
        if improved or stop or len(state.history) % self.spec.checkpoint_every_epochs == 0:
            self._save(dict(metrics), best=improved, last=stop)
        self.watch.mark("report")
        return self._hooks.should_stop(epoch, dict(metrics)) or stop

    def run(self, loop: Callable[[TrainContext], None]) -> Outcome:
        """Run the recipe's own loop or ``loop`` and return its outcome."""
        if self._resume is None:
            self._reporter.tell("start", self.run_state, epoch=0, step=0)
        if self.spec.compile:
            self.message("compiling: the first step takes longer, a minute or more on a CPU")
        own = self.recipe.train_loop
        try:
            if own is None:
                loop(self)
            else:
                call_recipe(f"{type(self.recipe).__name__}.train_loop()", lambda: own(self))
        except StopAskedError as asked:
            self._stopped = asked.order
            if own is None:  # a custom loop may be anywhere by now: it resumes from its last report
                self.save_checkpoint(last=True)
        state = self.run_state
        if not self._stopped:
            self._agreement.at_end(len(state.history))
        self._saver.wait()
        if not state.history and not self._stopped:
            raise TrainingError(
                f"{type(self.recipe).__name__}.train_loop() ended without a report",
                hint="Call ctx.report(...) after each epoch.",
            )
        return Outcome(
            history=state.history,
            best_epoch=state.best_epoch,
            epochs=len(state.history),
            steps=state.step,
            stopped=self._stopped,
            workers=self.world_size,
        )

    @property
    def _best(self) -> Best:
        """Return the best report so far."""
        state = self.run_state
        value = math.nan if state.best_value is None else state.best_value
        return Best(self.spec.metric, self.spec.mode, self.spec.patience, state.best_epoch, value, state.waited)

    def _over(self) -> bool:
        state = self.run_state
        # In mid-epoch the last step may have been taken while its epoch is not reported yet.
        reported = state.batch == 0
        return reported and (self._best.exhausted or state.epoch > self.spec.epochs or state.step >= self.steps)

    def _load(self, uri: str, *, kept: Kept | None = None) -> None:
        """Load a checkpoint; ``kept`` lists the existing ones where every rank knows them: the best may be lost."""
        model, optimizer, scaler = self._trained
        self.run_state = restore(
            uri,
            identity=self._identity,
            model=model,
            optimizer=optimizer,
            scaler=scaler,
            sharded=self.sharded,
            kept=kept,
        )
        self._agreement.moved_to(self.run_state.step)

    def _save(self, metrics: dict[str, float], *, best: bool, last: bool) -> None:
        model, optimizer, scaler = self._trained
        self.run_state.elapsed_s = self._reporter.elapsed_s
        self.watch.mark("other")
        snapshot = Snapshot(
            state=self.run_state,
            metrics=metrics,
            model=model,
            optimizer=optimizer,
            scaler=scaler,
            fit=self.prepared.state,
            not_finite_at_start=self._not_finite_at_start,
        )
        self._saver.save(snapshot, best=best, last=last)
        self._agreement.saved()
        self.watch.mark("checkpoint")

    def _before_evaluation_batch(self) -> None:
        self.heartbeat()
        # A rank may leave an evaluation only where it is alone: the next attempt repeats it.
        if self.world_size == 1 and (order := self._hooks.orders()):
            raise StopAskedError(order)


class StopAskedError(BaseException):
    """Stops an evaluation early; not an Exception, so that no recipe handles it as an error of its own."""

    def __init__(self, order: str) -> None:
        super().__init__(order)
        self.order = order

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.order,)
