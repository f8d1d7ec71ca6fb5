"""The per-rank training context: recipe, data, device, progress, checkpoints and reporting.

The contract of a custom ``train_loop(ctx)``, which every rank runs alike::

    model = ctx.model()                                    # on this rank's device, the same on every rank
    optimizer = torch.optim.Adam(model.parameters())
    ctx.restore(model=model, optimizer=optimizer)          # the checkpoint of a resumed run, if there is one
    while not ctx.finished:
        for batch in ctx.batches():                        # this rank's rows of each step left in the epoch
            ...                                            # one step; ctx.log({"loss": loss}) where it is wanted
        ctx.report(ctx.evaluate(model))                    # the end of an epoch

``optimizer`` may be several by name; ``keep`` is for whatever else has ``state_dict`` and ``load_state_dict``, such as
schedulers and averages. ``ctx.batches`` counts steps, seeds them, and hears orders; a loop with batches of its own
resumes from its last report. It yields nothing once the training is finished, and what is reported then does not count:
a loop ``for epoch in range(...)`` trains as long after a resume as without. Every rank calls ``report`` equally often
and with equal metrics, and reports a model whose state ``recipe.model()`` can load. Gradients are the loop's own: see
``average_gradients``. So is what ``ctx.spec`` says of optimizer, schedule, average, clipping, micro-batches, precision.

Knows nothing of Ray or MLflow: both are behind ``Hooks`` and the saver.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raymlops.data.loading.loader import Loader
from raymlops.data.order import EVALUATION, micro_batches, seed_all, seed_start
from raymlops.data.sampler import epoch_rows
from raymlops.errors import NonFiniteError, RecipeError, TrainingError
from raymlops.recipe import Progress, RecipeBase, call_recipe, model_of, to_device
from raymlops.training.checkpoints.host_copies import entries_not_finite
from raymlops.training.checkpoints.saver import Snapshot, restore
from raymlops.training.checkpoints.state import RunState
from raymlops.training.loop.batches import global_batches
from raymlops.training.loop.early_stopping import Best
from raymlops.training.loop.evaluation import evaluate, numbers
from raymlops.training.loop.first_weights import has_first_weights, load_first_weights
from raymlops.training.loop.gradients import average, differ
from raymlops.training.loop.optimizer import total_steps
from raymlops.training.loop.outcome import Hooks, Outcome, StopAskedError
from raymlops.training.loop.parallel import parallelize
from raymlops.training.loop.rank_sync import Agreed, Agreement, Ranks
from raymlops.training.loop.telemetry import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.recipe import Batch
    from raymlops.training.checkpoints.retention import Kept
    from raymlops.training.checkpoints.saver import Optimizers, Saver, Stateful
    from raymlops.training.ema import Ema


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
        self._epoch_rows = epoch_rows(prepared.splits["train"], seed=spec.seed)
        self.steps = total_steps(spec, rows=self._epoch_rows)
        """Optimizer steps of the whole run, if it has one for each batch."""
        self.run_state = RunState()
        """The progress of the run, which the loop advances."""
        self._hooks = hooks or Hooks()
        for split in prepared.splits.values():
            split.on_progress = self.heartbeat
        self.loader = Loader(
            prepared.splits,
            processes=spec.data_workers,
            ahead=spec.prefetch,
            # Sooner than the driver, which knows less of it.
            timeout_s=0.8 * spec.hang_timeout_s,
            pinned=self.device.type == "cuda",
            on_progress=self.heartbeat,
        )
        """Reads the batches of the splits, ahead where ``train.data_workers`` says so."""
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
        self.share = 1.0
        """What this rank's mean loss of the batch counts times, so that the average over ranks is that of all rows."""
        self._trained: dict[str, Any] = {"model": None, "optimizer": None}
        self._logged_step = 0
        self._in_step = 0
        self._past_end = False
        self._not_finite_at_start: dict[str, torch.Tensor] = {}
        self._stopped = ""

    def model(self) -> nn.Module:
        """Return the untrained model on this rank's device, the same on every rank, with its first weights.

        Raises:
            RecipeError: ``model()`` or ``initialize()`` raises, or ``train.init_from`` does not fit.
        """
        seed_start(self.spec.seed)
        model = model_of(self.recipe)
        first = self._resume is None and has_first_weights(self.recipe, self.spec.init_from)
        if first and self.rank == 0:
            load_first_weights(self.recipe, model, self.spec.init_from)
        model = model.to(self.device)
        if first:
            self.ranks.copy_from_first([*model.parameters(), *model.buffers()])
        if self.spec.sync_batch_norm and self.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self._not_finite_at_start = entries_not_finite(model.state_dict())
        return model

    def parallel(self, model: nn.Module, *, mean: bool = True) -> nn.Module:
        """Return a module that maps a batch to its mean loss and, over several ranks, averages gradients.

        The recipe's loss sees the plain model, which ``strategy: fsdp`` shards in place: build the optimizer after it.
        Without ``mean`` it returns the ``LossValue``.
        """
        return parallelize(
            self.recipe,
            model,
            self.spec,
            world_size=self.world_size,
            device=self.device,
            unused_parameters=self._unused_parameters,
            mean=mean,
        )

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Average the gradients of parameters over all ranks: after ``backward``, in a loop without ``parallel``."""
        average(parameters, world_size=self.world_size)

    def restore(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizers | None,
        scaler: Any = None,
        ema: Ema | None = None,
        keep: Mapping[str, Stateful] | None = None,
    ) -> RunState:
        """Load the checkpoint to resume from, if there is one, and return the run's progress.

        Checkpoints hold all that is given from now on: one optimizer or several by name, and in ``keep`` what else has
        a state.

        Raises:
            StorageError: a file of the checkpoint is damaged.
            UsageError: the checkpoint belongs to another recipe or configuration.
        """
        self._trained = {"model": model, "optimizer": optimizer, "scaler": scaler, "ema": ema, "keep": keep or {}}
        # As each rank holds it from here on.
        self._not_finite_at_start = entries_not_finite(model.state_dict())
        if self._resume is not None:
            self._load(self._resume, kept=self._saver.kept)
            # model() builds what the start was; what changed code builds may lack what is in the checkpoint.
            self._not_finite_at_start = entries_not_finite(model.state_dict(), besides=self._not_finite_at_start)
            state = self.run_state
            self._reporter.resume(state)
            self._reporter.tell("start", state, epoch=state.epoch, step=state.step)
        return self.run_state

    @property
    def last_step(self) -> int | None:
        """Return where the run ends: a custom loop may take any number of steps an epoch."""
        return self.spec.max_steps if self.recipe.train_loop is not None else self.steps

    @property
    def finished(self) -> bool:
        """Return whether there is nothing left to train."""
        return self.run_state.finished

    @property
    def guarded(self) -> bool:
        """Return whether each step's loss and gradient are checked before the optimizer uses them."""
        return self.spec.on_non_finite != "stop"

    @property
    def sharded(self) -> bool:
        """Return whether each rank holds a part of the parameters."""
        return self.spec.strategy == "fsdp"

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's rows of each global batch left in the epoch, on its device; each one is counted as a step.

        What is drawn in a step is seeded as in the default loop. ``share`` is that of the batch: where ranks have
        unequally many rows, a mean loss times it makes the average over ranks exact. Checkpoints that are due are
        written between steps. An order raises, after a last checkpoint, what is no Exception: let it pass.

        Raises:
            RecipeError: ``restore`` was not called, or ``sampler()`` breaks its contract.
        """
        self._refuse_unknown_model("batches")
        state, split = self.run_state, self.prepared.splits["train"]
        if state.finished:
            if not self._past_end:
                self.message("the training is finished: what train_loop reports from here on does not count")
            self._past_end = True
            return

        def pieces_of(indices: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
            return micro_batches(indices, rank=self.rank, world=self.world_size, pieces=1)

        for indices in self.global_batches(pieces_of):
            if self.last_step is not None and state.step >= self.last_step:
                state.cut = [state.epoch, state.batch]
                return
            self.seed_step(state.step)
            ((piece, self.share),) = pieces_of(indices)
            batch = self.batch(split, piece)
            self.watch.mark("data")
            self._in_step = 1
            try:
                yield batch
            finally:  # also where the loop breaks off the epoch
                self._in_step = 0
                state.step += 1
                state.batch += 1
            self.watch.mark("forward_backward")
            self.heartbeat()
            agreed = self.agree()
            if agreed.due:
                self.save_checkpoint(last=bool(agreed.order))
            if agreed.order:
                raise StopAskedError(agreed.order, saved=True)

    def batch(self, split: SplitData, rows: torch.Tensor) -> Batch:
        """Return these rows of a split on this rank's device."""
        return to_device(self.loader.batch(split, rows), self.device)

    def global_batches(
        self, pieces_of: Callable[[torch.Tensor], list[tuple[torch.Tensor, float]]] | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield the row numbers of each global batch left in the epoch, the same on every rank; count them yourself.

        ``pieces_of`` says which pieces of it, each with its weight, this rank is going to read, so that they can be
        read ahead.

        Raises:
            RecipeError: ``sampler()`` breaks its contract.
        """
        spec, state = self.spec, self.run_state
        split = self.prepared.splits["train"]
        batches = global_batches(split, spec, state, epoch_rows=self._epoch_rows)
        steps: Iterator[tuple[Progress, torch.Tensor]]
        steps = ((Progress(at, state.epoch, self.steps), rows) for at, rows in enumerate(batches, state.step))
        if pieces_of is not None:
            steps = self.loader.steps(split, steps, pieces_of)
        for _, indices in steps:
            self.recipe.progress = Progress(state.step, state.epoch, self.steps)
            yield indices

    def seed_step(self, step: int) -> None:
        """Seed what a step draws, such as dropout: differently on each rank, the same each time the step is taken."""
        seed_all(self.spec.seed, step, self.rank, device=self.device)

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor summed over all ranks."""
        return self.ranks.sum(tensor)

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Return the recipe's metrics over a whole split as ``split/name``, the same on every rank.

        Of the validation split, at most ``train.eval_max_rows`` rows.
        """
        state = self.run_state
        self.recipe.progress = Progress(state.step, state.epoch, self.steps)
        # Metrics may draw too, such as negatives; the result must not depend on what this attempt did before.
        seed_all(self.spec.seed, state.step, self.rank, EVALUATION, device=self.device)
        return evaluate(
            self.recipe,
            model,
            self.prepared.splits[split],
            self.spec,
            ranks=self.ranks,
            loader=self.loader,
            before_batch=self._before_evaluation_batch,
        )

    def log(self, metrics: Mapping[str, Any], *, epoch: int | None = None, step: int | None = None) -> None:
        """Log metrics of a step, numbers or tensors of one element: by default of the one that ``batches`` is at.

        Cheap, but not for every step: ``spec.log_every_steps`` says how often.

        Raises:
            RecipeError: a metric is no number, or the step is one before the last that was logged.
        """
        state = self.run_state
        step = state.step + self._in_step if step is None else step
        if step < self._logged_step:
            raise RecipeError(
                f"ctx.log() got step {step} after step {self._logged_step}, and MLflow would drop it",
                hint="Count steps over the whole run, or leave step out: ctx.batches() counts them.",
            )
        self._logged_step = step
        found = numbers(metrics, where="ctx.log()")
        self._reporter.tell("step", state, epoch=state.epoch if epoch is None else epoch, step=step, metrics=found)

    def log_with_costs(self, metrics: dict[str, float], *, rows: int) -> None:
        """Log metrics of the steps since the last log, with throughput, the shares of time and the machine's load."""
        self.log({**metrics, **self._reporter.costs(rows=rows)})

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
        self._logged_step = self.run_state.step

    def report(
        self,
        metrics: Mapping[str, Any],
        *,
        epoch: int | None = None,
        step: int | None = None,
        model: nn.Module | None = None,
        optimizer: Optimizers | None = None,
        mid_epoch: bool = False,
    ) -> bool:
        """Report an epoch, or one of several evaluations in it: compare it with the best and return whether to stop.

        A checkpoint is written if one is due. Metrics are numbers or tensors of one element. ``epoch`` and ``step`` are
        by default those that ``batches`` counts; ``model`` and ``optimizer`` may be omitted after ``restore``, which
        was given them.

        Raises:
            RecipeError: ``train.metric`` is not reported, a metric is no number, no model is known, or another rank
                reports less often.
            NonFiniteError: it is NaN or infinite.
            StorageError: the model cannot be written; earlier checkpoints are kept.
        """
        if self._past_end:
            return True
        found = numbers(metrics, where="ctx.report()")
        state = self.run_state
        best = Best.of_run(state, self.spec)
        epoch, step = state.epoch if epoch is None else epoch, state.step if step is None else step
        value = found.get(best.metric)
        if value is None:
            raise RecipeError(
                f"train.metric is {best.metric!r}, which was not reported; reported: {', '.join(sorted(found))}"
            )
        if not math.isfinite(value):
            raise NonFiniteError(f"{best.metric} is {value} after epoch {epoch} (step {step})")
        given = {"model": model, "optimizer": optimizer}
        self._trained |= {name: value for name, value in given.items() if value is not None}
        self._refuse_unknown_model("report")
        if not state.history:
            self._warn_of_other_weights()
        state.history.append(dict(found))
        improved = best.update(len(state.history), value)
        state.best_epoch, state.best_value = best.epoch, best.value
        state.waited, state.waited_from = best.waited, best.waited_from
        state.step = state.reported_step = step
        state.best_step = step if improved else state.best_step
        if not mid_epoch:
            state.epoch, state.batch = epoch + 1, 0
        state.loss_sums, state.loss_rows = {}, 0.0
        number = len(state.history)
        self._reporter.tell("epoch", state, epoch=epoch, step=step, metrics=found, report=number)
        over, order = self._agreement.at_report(number, stop=self._over())
        stop = over or bool(order)
        state.finished = over
        self._stopped = "" if over else order
        self._hooks.heartbeat(step)
        due = not mid_epoch and epoch % self.spec.checkpoint_every_epochs == 0
        if improved or stop or due:
            self._save(dict(found), best=improved, last=stop)
        self.watch.mark("report")
        return self._hooks.should_stop(number, dict(found)) or stop

    def run(self, loop: Callable[[TrainContext], None]) -> Outcome:
        """Run the recipe's own loop or ``loop`` and return its outcome."""
        if self._resume is None:
            self._reporter.tell("start", self.run_state, epoch=0, step=0)
        if self.spec.compile:
            self.message("compiling: the first step takes longer, a minute or more on a CPU")
        own = self.recipe.train_loop
        self.loader.start()
        try:
            if own is None:
                loop(self)
            else:
                call_recipe(f"{type(self.recipe).__name__}.train_loop()", lambda: own(self))
        except StopAskedError as asked:
            self._stopped = asked.order
            if own is None and not asked.saved:  # a loop with batches of its own resumes from its last report
                self.save_checkpoint(last=True)
        finally:
            self.loader.close()
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
            best_step=state.best_step if self.spec.eval_every_steps else None,
            epochs=state.epoch - (0 if state.batch else 1),
            steps=state.step,
            stopped=self._stopped,
            workers=self.world_size,
        )

    def _refuse_unknown_model(self, method: str) -> None:
        if self._trained["model"] is None:
            raise RecipeError(
                f"ctx.{method}() knows no model that checkpoints could hold",
                hint="Call ctx.restore(model=..., optimizer=...) once both are built; it also loads what a resumed run "
                "continues from.",
            )

    def _warn_of_other_weights(self) -> None:
        own = self.recipe.train_loop is not None and not self.sharded
        if own and differ(self._trained["model"].parameters(), ranks=self.ranks):
            self.message(
                "the workers hold different weights, of which the first worker's are kept: train_loop should call "
                "ctx.average_gradients(...) between backward() and step()"
            )

    def _over(self) -> bool:
        state, last = self.run_state, self.last_step
        # In mid-epoch the last step may have been taken while its epoch is not reported yet.
        if state.batch != 0 and state.reported_step != state.step:
            return False
        ended = state.batch == 0 and state.epoch > self.spec.epochs
        return Best.of_run(state, self.spec).exhausted or ended or (last is not None and state.step >= last)

    def _load(self, uri: str, *, kept: Kept | None = None) -> None:
        """Load a checkpoint; ``kept`` lists the existing ones where every rank knows them: the best may be lost."""
        self.run_state = restore(uri, identity=self._identity, sharded=self.sharded, kept=kept, **self._trained)
        state = self.run_state
        # The run may have been extended since.
        if state.cut is not None and state.step < self.steps:
            state.epoch, state.batch = state.cut
            state.cut = None
        state.finished = self._over()
        self._agreement.moved_to(state.step)

    def _save(self, metrics: dict[str, float], *, best: bool, last: bool) -> None:
        self.run_state.elapsed_s = self._reporter.elapsed_s
        self.watch.mark("other")
        snapshot = Snapshot(
            state=self.run_state,
            metrics=metrics,
            fit=self.prepared.state,
            not_finite_at_start=self._not_finite_at_start,
            **self._trained,
        )
        self._saver.save(snapshot, best=best, last=last)
        self._agreement.saved()
        self.watch.mark("checkpoint")

    def _before_evaluation_batch(self) -> None:
        self.heartbeat()
        # A rank may leave an evaluation only where it is alone: the next attempt repeats it.
        if self.world_size == 1 and (order := self._hooks.orders()):
            raise StopAskedError(order)
