"""One rank's progress through a run: what it restores, counts, logs, agrees on with the other ranks, and saves.

Knows nothing of how a step is taken or a model is evaluated, nor of Ray or MLflow: both are behind ``Hooks`` and the
saver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.callback import CallbackContext
from raymlops.data.loading.loader import Loader
from raymlops.data.order import seed_step
from raymlops.data.sampler import epoch_batches, epoch_rows
from raymlops.errors import RecipeError
from raymlops.recipe import Progress, RecipeBase, to_device
from raymlops.training.callbacks import Callbacks
from raymlops.training.checkpoints.format import TRAINED, trained
from raymlops.training.checkpoints.host_copies import entries_not_finite
from raymlops.training.checkpoints.restore import restore, restore_weights
from raymlops.training.checkpoints.saver import Snapshot
from raymlops.training.checkpoints.state import RunState
from raymlops.training.loop.early_stopping import Best
from raymlops.training.loop.evaluation import numbers
from raymlops.training.loop.optimizer import total_steps
from raymlops.training.loop.outcome import Hooks
from raymlops.training.loop.rank_sync import Agreed, Agreement
from raymlops.training.loop.telemetry import Reporter
from raymlops.training.model.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.recipe import Batch
    from raymlops.records import Artifact
    from raymlops.training.callbacks import Hook
    from raymlops.training.checkpoints.format import Optimizers, Stateful
    from raymlops.training.checkpoints.retention import Kept
    from raymlops.training.checkpoints.saver import Saver
    from raymlops.training.ema import Ema


class RankProgress:
    """The progress of one rank. ``spec`` is the train section; ``prepared`` holds the splits."""

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
        # A trial never evaluates the test split.
        trial = self._hooks.trial
        self.loader = Loader(
            {name: split for name, split in prepared.splits.items() if not (trial and name == "test")},
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
        self._reported: nn.Module | None = None
        """What was reported in place of the model that is trained, such as an average of it."""
        self._callbacks = Callbacks(self.recipe, rank=self.rank, device=self.device, tell=self.message)
        self._logged_step = 0
        self._logged_metrics: dict[str, float] = {}
        self._in_step = 0
        self._past_end = False
        self._not_finite_at_start: dict[str, torch.Tensor] = {}
        self._stopped = ""
        self._ended_before = False

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
            self._ended_before = self.run_state.finished
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
        batches = epoch_batches(split, spec, epoch=state.epoch, skip=state.batch, rows=self._epoch_rows)
        steps: Iterator[tuple[Progress, torch.Tensor]]
        steps = ((Progress(at, state.epoch, self.steps), rows) for at, rows in enumerate(batches, state.step))
        if pieces_of is not None:
            steps = self.loader.steps(split, steps, pieces_of)
        for progress, indices in steps:
            self.recipe.progress = split.recipe.progress = progress
            yield indices

    def seed_step(self, step: int) -> None:
        """Seed what a step draws, such as dropout: differently on each rank, the same each time the step is taken."""
        seed_step(self.spec.seed, step, self.rank, device=self.device)

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor summed over all ranks."""
        return self.ranks.sum(tensor)

    def log(self, metrics: Mapping[str, Any], *, epoch: int | None = None, step: int | None = None) -> None:
        """Log metrics of a step, numbers or tensors of one element: by default of the one that ``batches`` is at.

        Whatever is given is logged, also at every step; ``spec.log_every_steps`` is the default loop's.

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
        found = numbers(metrics, where="ctx.log()")
        self._logged_metrics = {**self._logged_metrics, **found} if step == self._logged_step else found
        self._logged_step = step
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
        if self._callbacks.on_step:
            metrics = self._logged_metrics if step == self._logged_step else {}
            self._call_back("on_step", metrics, epoch=self.run_state.epoch, step=step, log=self.log)
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

    def _call_back(
        self,
        hook: Hook,
        metrics: Mapping[str, float],
        *,
        epoch: int,
        step: int,
        log: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Run the callbacks that have a hook: before the checkpoint that counts its step, so that none is left out."""

        def send(artifact: Artifact) -> None:
            self._reporter.tell("artifact", self.run_state, epoch=epoch, step=step, artifact=artifact)

        ctx = CallbackContext(
            step=step,
            epoch=epoch,
            metrics=metrics,
            model=None if self.sharded else self._shown_model(hook),
            log=log,
            send=None if self._hooks.trial else send,
            logged=self._callbacks.logged_at(step),
        )
        self._callbacks.run(hook, ctx)

    def _shown_model(self, hook: Hook) -> nn.Module:
        """Return what was evaluated where that is what a hook is about, else what is trained."""
        model: nn.Module = self._trained["model"]
        return self._reported if hook == "on_evaluation" and self._reported is not None else model

    def _over(self) -> bool:
        state, last = self.run_state, self.last_step
        # In mid-epoch the last step may have been taken while its epoch is not reported yet.
        if state.batch != 0 and state.reported_step != state.step:
            return False
        ended = state.batch == 0 and state.epoch > self.spec.last_epoch
        return Best.of_run(state, self.spec).exhausted or ended or (last is not None and state.step >= last)

    def _load(self, uri: str, *, kept: Kept | None = None) -> None:
        """Load a checkpoint; ``kept`` lists the existing ones where every rank knows them: the best may be lost."""
        self.run_state = restore(
            uri,
            identity=self._identity,
            sharded=self.sharded,
            kept=kept,
            node=self.ranks.node,
            on_progress=self.heartbeat,
            **self._trained,
        )
        state = self.run_state
        # The run may have been extended since.
        if state.cut is not None and state.step < self.steps:
            state.epoch, state.batch = state.cut
            state.cut = None
        state.finished = self._over()
        self._agreement.moved_to(state.step)

    def _load_weights(self, uri: str) -> None:
        """Load the weights of a checkpoint alone. All ranks call this together."""
        restore_weights(
            uri,
            model=self._trained["model"],
            sharded=self.sharded,
            node=self.ranks.node,
            on_progress=self.heartbeat,
        )

    def _load_weights_here(self, uri: str) -> None:
        """Load the weights of a whole checkpoint, on this rank alone."""
        with trained(uri, on_progress=self.heartbeat) as checkpoint:
            checkpoint.load_into(self._trained["model"])

    def _save(self, metrics: dict[str, float], *, best: bool, last: bool) -> None:
        self.run_state.elapsed_s = self._reporter.elapsed_s
        self.watch.mark("other")
        snapshot = Snapshot(
            state=self.run_state,
            metrics=metrics,
            fit=self.prepared.state,
            not_finite_at_start=self._not_finite_at_start,
            **self._trained | self._kept_in_its_place(),
        )
        self._saver.save(snapshot, best=best, last=last)
        self._agreement.saved()
        self.watch.mark("checkpoint")

    def _kept_in_its_place(self) -> dict[str, Any]:
        """Return the model that was reported in place of the trained one, which a resumed run needs beside it."""
        if self._reported is None:
            return {}
        return {"model": self._reported, "keep": {**self._trained["keep"], TRAINED: self._trained["model"]}}
