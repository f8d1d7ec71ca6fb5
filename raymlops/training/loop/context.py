"""What a training loop stands on: its rank's recipe, data and device, where its run stands, and where results go.

The contract of a custom ``train_loop(ctx)``: every rank calls ``report`` equally often and with equal metrics, stops
when it returns True, and reports a model whose state ``recipe.model()`` can load. One that calls ``restore`` first goes
on where a checkpoint left it; one that does not starts again. Knows nothing of Ray or MLflow: both stand behind
``emit`` and the saver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from raymlops.data.order import seed_all
from raymlops.errors import NonFiniteError, RecipeError, TrainingError
from raymlops.recipe import RecipeBase, call_recipe
from raymlops.training.checkpoints.host_copies import entries_not_finite
from raymlops.training.checkpoints.saver import Snapshot, restore
from raymlops.training.checkpoints.state import Best, RunState
from raymlops.training.loop.evaluation import merge_over_ranks, named_values, totals
from raymlops.training.loop.nonfinite import non_finite as non_finite_error
from raymlops.training.loop.nonfinite import on_non_finite
from raymlops.training.loop.optimizer import total_steps
from raymlops.training.loop.parallel import explained, parallelize
from raymlops.training.loop.precision import autocast
from raymlops.training.loop.rank_sync import Agreement
from raymlops.training.loop.telemetry import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.training.checkpoints.retention import Kept
    from raymlops.training.checkpoints.saver import Saver
    from raymlops.training.events import Event

SKIPPED = "raymlops.skipped_steps"
"""Tag: how many batches were left out so far."""
_EVALUATION = 1
"""Sets an evaluation's random numbers apart from those of the step after it."""


@dataclass
class Outcome:
    """What a loop reached: ``history`` holds each reported epoch's metrics, in order."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    epochs: int = 0
    steps: int = 0
    stopped: str = ""
    """The order that ended the loop before its time; its last checkpoint is where it goes on."""
    workers: int = 1
    """How many ranks there were at the end."""

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
        orders: Callable[[], str] = lambda: "",
        alive: Callable[[int], None] = lambda _step: None,
        control: Any = None,
        resume: str | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.spec = spec
        self.prepared = prepared
        self.recipe: RecipeBase = prepared.recipe
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.steps = total_steps(spec, rows=prepared.splits["train"].rows)
        self.run_state = RunState()
        """Where the run stands; the loop moves it on."""
        for split in prepared.splits.values():
            split.on_progress = lambda: alive(self.run_state.step)
        self._saver = saver
        self._unused_parameters = unused_parameters
        self._should_stop = should_stop
        self._orders = orders
        self._alive = alive
        self._control = control
        self._resume = resume
        self._identity = dict(identity or {})
        self._agreement = Agreement(
            orders,
            every_minutes=spec.checkpoint_every_minutes,
            ready=lambda: not saver.busy,
            group=control,
            rank=rank,
            world_size=world_size,
        )
        self._reporter = Reporter(
            emit,
            recipe=self.recipe,
            epochs=spec.epochs,
            steps=self.steps,
            rank=rank,
            workers=world_size,
            peak_tflops=spec.peak_tflops,
        )
        self.watch = self._reporter.watch
        """Where the time goes; the loop marks its parts."""
        self._trained: tuple[Any, Any, Any] = (None, None, None)
        self._not_finite_at_start: dict[str, torch.Tensor] = {}
        self._stopped = ""

    def model(self) -> nn.Module:
        """Return the untrained model on this rank's device, the same on every rank."""
        torch.manual_seed(self.spec.seed)
        model: nn.Module = call_recipe(f"{type(self.recipe).__name__}.model()", self.recipe.model)
        model = model.to(self.device)
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
        """Load the checkpoint that this run goes on from, if there is one, and return where the run stands.

        What is given here is what checkpoints hold from now on.

        Raises:
            StorageError: a file of it is damaged.
            UsageError: it is one of another recipe or configuration.
        """
        self._trained = (model, optimizer, scaler)
        # As each rank holds it from here on.
        self._not_finite_at_start = entries_not_finite(model.state_dict())
        if self._resume is not None:
            self._load(self._resume, kept=self._saver.kept)
            # model() builds what the start was; what changed code builds may lack what is in the checkpoint.
            self._not_finite_at_start = entries_not_finite(model.state_dict(), besides=self._not_finite_at_start)
            # More steps or epochs may have been asked for since.
            state = self.run_state
            if state.cut is not None and state.step < self.steps:
                state.epoch, state.batch = state.cut
                state.cut = None
            state.finished = self._over()
            self._reporter.goes_on(state)
            self._reporter.tell("start", state, epoch=state.epoch, step=state.step)
        return self.run_state

    @property
    def guarded(self) -> bool:
        """Return whether each step's gradient is looked at before it is used."""
        return self.spec.on_non_finite != "stop"

    @property
    def sharded(self) -> bool:
        """Return whether each rank holds a part of the parameters."""
        return self.spec.strategy == "fsdp"

    def seed_step(self, step: int) -> None:
        """Seed dropout and the like for a step: differently on each rank, the same whenever the step is taken."""
        seed_all(self.spec.seed, step, self.rank, device=self.device)

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor summed over all ranks."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Return the recipe's metrics over a whole split as ``split/name``, the same on every rank."""
        # Metrics may draw too, such as negatives: what an attempt did before it must not show.
        seed_all(self.spec.seed, self.run_state.step, self.rank, _EVALUATION, device=self.device)
        if self.world_size > 1:
            for buffer in model.buffers():  # running statistics drift apart between ranks
                torch.distributed.broadcast(buffer, src=0)
        with autocast(self.spec, self.device), explained():
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
        """Tell whoever watches, and the run's log; ``tags`` are set on the run."""
        state = self.run_state
        self._reporter.tell("message", state, epoch=state.epoch, step=state.step, message=text, tags=tags)

    def judge(self, *, loss: torch.Tensor, norm: torch.Tensor | None, lr: float) -> Literal["take", "skip", "rollback"]:
        """Return what becomes of a step that ``run_state`` does not count yet; the same on every rank.

        After ``rollback`` the run stands at its last checkpoint. With ``on_non_finite: stop`` nothing is looked at
        here: the losses are when they are merged, and the weights before they are written.

        Raises:
            NonFiniteError: it happened too often.
        """
        if not self.guarded:
            return "take"
        finite = torch.isfinite(loss) & (torch.isfinite(norm) if norm is not None else True)
        broken = torch.tensor(float(not bool(finite)))
        if self.world_size > 1:
            torch.distributed.all_reduce(broken, group=self._control)
        return self.fault(lr=lr) if broken else "take"

    def fault(self, *, lr: float) -> Literal["skip", "rollback"]:
        """Decide about a step whose loss or gradient is no finite number on some rank; every rank calls it.

        Raises:
            NonFiniteError: the policy is to stop, or it happened too often.
        """
        state, step = self.run_state, self.run_state.step + 1
        self._saver.wait()
        last_uri = self._shared(self._saver.last_uri)
        decision = on_non_finite(
            step,
            policy=self.spec.on_non_finite,
            faults=state.faults,
            checkpoint=None if last_uri is None else last_uri.partition("?")[0].rpartition("/")[2],
        )
        said = f"loss or gradient is NaN or infinite at epoch {state.epoch}, step {step}, learning rate {lr:.3g}"
        if decision.action == "stop":
            raise non_finite_error(f"{said}: {decision.reason}")
        faults, points, first = [*state.faults, step], state.points, step
        if decision.action == "rollback" and last_uri is not None:
            self._load(last_uri)
            first = self.run_state.step + 1
        state = self.run_state
        state.faults, state.points = faults, points
        state.skipped = sorted({*state.skipped, *range(first, step + 1)})
        self.message(f"{said}: {decision.reason}", tags={SKIPPED: str(len(state.skipped))})
        return "rollback" if decision.action == "rollback" else "skip"

    def after_step(self, *, before_save: Callable[[], None]) -> bool:
        """Take in a step that ``run_state`` counts already: write a checkpoint if it is time; return whether to stop.

        ``before_save`` brings ``run_state`` up to date where the loop lets something lag behind.

        Raises:
            StorageError: a checkpoint cannot be written, and ``on_checkpoint_error`` is ``stop``.
        """
        state, spec = self.run_state, self.spec
        self._alive(state.step)
        agreed = self._agreement.at_step(state.step)
        by_steps = spec.checkpoint_every_steps is not None and state.step % spec.checkpoint_every_steps == 0
        if agreed.order or agreed.due or by_steps:
            before_save()
            self._save({}, best=False, last=bool(agreed.order))
        self._stopped = agreed.order
        return bool(agreed.order)

    def report(
        self,
        *,
        epoch: int,
        step: int,
        metrics: dict[str, float],
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> bool:
        """Take in an epoch: judge it, keep the model, and return whether to stop.

        ``model`` and ``optimizer`` may be left out where ``restore`` was given them.

        Raises:
            RecipeError: ``train.metric`` is not among the metrics, or another rank reports less often.
            NonFiniteError: it is NaN or infinite.
            StorageError: the model cannot be written; what was kept before is still there.
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
        self._alive(step)
        if improved or stop or len(state.history) % self.spec.checkpoint_every_epochs == 0:
            self._save(dict(metrics), best=improved, last=stop)
        self.watch.mark("report")
        if self._should_stop is not None and self._should_stop(epoch, dict(metrics)):
            return True
        return stop

    def run(self, loop: Callable[[TrainContext], None]) -> Outcome:
        """Run the recipe's own loop or ``loop``, and return what it reached."""
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
            if own is None:  # a loop of its own stands anywhere by now: it goes on from its last report
                self._save({}, best=False, last=True)
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
        """Return the best report so far, as ``run_state`` has it."""
        state = self.run_state
        value = math.nan if state.best_value is None else state.best_value
        return Best(self.spec.metric, self.spec.mode, self.spec.patience, state.best_epoch, value, state.waited)

    def _over(self) -> bool:
        state = self.run_state
        # In mid-epoch the last step may be taken, and its epoch not reported yet.
        reported = state.batch == 0
        return reported and (self._best.exhausted or state.epoch > self.spec.epochs or state.step >= self.steps)

    def _load(self, uri: str, *, kept: Kept | None = None) -> None:
        """Load a checkpoint. ``kept`` is what is there, where every rank knows that: a best one may have been lost."""
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

    def _shared(self, last_uri: str | None) -> str | None:
        """Return rank 0's last checkpoint on every rank: it alone knows what was written."""
        if self.world_size == 1:
            return last_uri
        box = [last_uri]
        torch.distributed.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

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
        self._alive(self.run_state.step)
        # One rank alone may leave an evaluation, which the next attempt does again; several finish it together.
        if self.world_size == 1 and (order := self._orders()):
            raise StopAskedError(order)


class StopAskedError(BaseException):
    """Leaves an evaluation that an order cuts short; no error, so that no recipe takes it for one of its own."""

    def __init__(self, order: str) -> None:
        super().__init__(order)
        self.order = order

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.order,)
