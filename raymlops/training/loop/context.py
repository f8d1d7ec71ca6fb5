"""The per-rank training context: recipe, data, device, progress, checkpoints and reporting.

The contract of a custom ``train_loop(ctx)``, which every rank runs alike::

    model = ctx.model()                                    # on this rank's device, the same on every rank, or sharded
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
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

from raymlops.data.order import EVALUATION, micro_batches, seed_all
from raymlops.errors import DamagedError, NonFiniteError, RecipeError, TrainingError, describe
from raymlops.recipe import Progress, RecipeBase, call_recipe, defines_loss
from raymlops.training.checkpoints.host_copies import entries_not_finite
from raymlops.training.loop.early_stopping import Best
from raymlops.training.loop.evaluation import evaluate, numbers
from raymlops.training.loop.gradients import average, differ
from raymlops.training.loop.outcome import Outcome, StopAskedError
from raymlops.training.loop.progress import RankProgress
from raymlops.training.model.build import build, build_sharded
from raymlops.training.model.parallel import parallelize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import torch
    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.recipe import Batch
    from raymlops.training.checkpoints.format import Optimizers


class TrainContext(RankProgress):
    """One rank of a run, as a loop sees it."""

    def model(self) -> nn.Module:
        """Return the untrained model on this rank's device, the same on every rank, with its first weights.

        Under ``strategy: fsdp`` it is sharded: each rank has its part of each parameter.

        Raises:
            RecipeError: ``model()`` or ``initialize()`` raises, or ``train.init_from`` does not fit.
            UsageError: it cannot be sharded.
        """
        fresh = self._resume is None
        if self.sharded:
            model = build_sharded(self.recipe, self.spec, ranks=self.ranks, fresh=fresh, notice=self.message)
        else:
            model = build(self.recipe, self.spec, ranks=self.ranks, fresh=fresh)
        self._not_finite_at_start = entries_not_finite(model.state_dict())
        return model

    def parallel(self, model: nn.Module, *, mean: bool = True) -> nn.Module:
        """Return a module that maps a batch to its mean loss and, over several ranks, averages gradients.

        The recipe's loss sees the plain model. Build the optimizer after it.
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

    def evaluate(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Return the recipe's metrics over a whole split as ``split/name``, the same on every rank.

        Of the validation split, at most ``train.eval_max_rows`` rows.
        """
        return self._evaluated(model, split, self.spec)

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
        was given them. Another ``model`` than it was given, such as an average, is what is kept and registered, and
        that one is still what a resumed run trains.

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
        self._take(model, optimizer)
        self._refuse_unknown_model("report")
        if not state.history:
            self._warn_of_other_weights()
        if self._callbacks.on_evaluation:
            found |= self._callback_metrics(found, epoch=epoch, step=step)
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
        with closing(self.loader):  # it reads the test split too
            self.loader.start()
            self._train(loop)
            return self._outcome()

    def _train(self, loop: Callable[[TrainContext], None]) -> None:
        own = self.recipe.train_loop
        try:
            if own is None:
                loop(self)
            else:
                call_recipe(f"{type(self.recipe).__name__}.train_loop()", lambda: own(self))
        except StopAskedError as asked:
            self._stopped = asked.order
            if own is None and not asked.saved:  # a loop with batches of its own resumes from its last report
                self.save_checkpoint(last=True)

    def _outcome(self) -> Outcome:
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
            test={} if self._stopped else self._end(),
            best_epoch=state.best_epoch,
            best_step=state.best_step if self.spec.eval_every_steps else None,
            epochs=state.epoch - (0 if state.batch else 1),
            steps=state.step,
            stopped=self._stopped,
            workers=self.world_size,
        )

    def _evaluated(self, model: nn.Module, split: str, spec: TrainSection) -> dict[str, float]:
        state = self.run_state
        data = self.prepared.splits[split]
        # A sweep's trials share the splits, and the recipe that encodes them, but not their own.
        self.recipe.progress = data.recipe.progress = Progress(state.step, state.epoch, self.steps)
        # Metrics may draw too, such as negatives; the result must not depend on what this attempt did before.
        seed_all(self.spec.seed, state.step, self.rank, EVALUATION, device=self.device)
        return evaluate(
            self.recipe,
            model,
            data,
            spec,
            ranks=self.ranks,
            loader=self.loader,
            before_batch=self._before_evaluation_batch,
        )

    def _callback_metrics(self, metrics: Mapping[str, float], *, epoch: int, step: int) -> dict[str, float]:
        """Run the callbacks of an evaluation with the weights that were evaluated; return the metrics that they log."""
        found: dict[str, float] = {}

        def log(logged: Mapping[str, Any]) -> None:
            values = numbers(logged, where="ctx.log()")
            if taken := sorted(values.keys() & (metrics.keys() | found.keys())):
                raise RecipeError(f"ctx.log() got {', '.join(taken)}, which this evaluation has already")
            if taken := sorted(name for name in values if name.startswith("test/")):
                raise RecipeError(
                    f"ctx.log() got {', '.join(taken)}, the name of a metric of the test split",
                    hint="That is evaluated once, when the training ends: log it in on_end, or under another name.",
                )
            found.update(values)

        ema = self._trained.get("ema")
        with nullcontext() if ema is None or self.sharded else ema.applied():
            self._call_back("on_evaluation", metrics, epoch=epoch, step=step, log=log)
        return found

    def _end(self) -> dict[str, float]:
        """Return the test metrics of the weights that are kept, where they can be had; run the callbacks of the end."""
        state = self.run_state
        test: dict[str, float] = {}
        try:
            if not self._ended_before:
                test = self._test_metrics()
            elif self._callbacks.on_end and not (self.sharded or self._hooks.trial):
                self._load_weights_here(self._saver.best_uri)
        except (Exception, StopAskedError) as error:
            # The other ranks wait for this one: the attempt ends, and the next one finds that the training has ended.
            # Weights that are damaged cannot be registered either: the next attempt keeps others.
            if isinstance(error, DamagedError) or (self.world_size > 1 and not self._ended_before):
                raise
            why = "it was interrupted" if isinstance(error, StopAskedError) else describe(error)
            self.message(f"the test split is not evaluated here, but at registration: {why}")
        if self._callbacks.on_end and (state.finished or not self._hooks.trial):
            metrics = {**state.history[state.best_epoch - 1], **test}
            self._call_back("on_end", metrics, epoch=state.epoch, step=state.step, log=self.log)
        return test

    def _test_metrics(self) -> dict[str, float]:
        """Load the weights that are kept, and evaluate the test split as registration would: in float32."""
        kept, model = self._saver.kept, self._trained["model"]
        if self._hooks.trial or kept is None:
            return {}
        uri = self.ranks.from_first("" if kept.best is None else self._saver.best_uri)
        if not uri:
            return {}
        self._load_weights(uri)
        recipe = type(self.recipe)
        has_metrics = defines_loss(recipe) or recipe.metrics is not RecipeBase.metrics
        if not has_metrics or (self.sharded and self.spec.precision != "fp32"):  # of which its weights are gathered
            return {}
        return self._evaluated(model, "test", self.spec.model_copy(update={"precision": "fp32"}))

    def _take(self, model: nn.Module | None, optimizer: Optimizers | None) -> None:
        """Take what a report was given; a model in place of the one that ``restore`` was given is only what is kept."""
        if optimizer is not None:
            self._trained["optimizer"] = optimizer
        if "keep" not in self._trained:  # nothing was given to restore
            self._trained["model"] = self._trained["model"] if model is None else model
            return
        self._reported = None if model is self._trained["model"] else model
        if self._reported is not None and self.sharded:
            raise RecipeError(
                "ctx.report() got another model than ctx.restore(), under train.strategy fsdp",
                hint="Report the model that is trained, and set train.ema for an average of it.",
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

    def _before_evaluation_batch(self) -> None:
        self.heartbeat()
        # A rank may leave an evaluation only where it is alone: the next attempt repeats it.
        if self.world_size == 1 and (order := self._hooks.orders()):
            raise StopAskedError(order)
