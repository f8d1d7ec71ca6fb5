"""The ``train`` section of a configuration."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from raymlops.config.base import Fixed, Free, FreeInRun, Length, Resume, Rounds, Spec, Uri
from raymlops.config.moments import Moment, read_moment

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WORKERS = 4096


def _workers(value: Any) -> Any:
    """Read YAML's list as a pair; one message says what is allowed for both forms."""
    counts = value if isinstance(value, list | tuple) else [value, value]
    fewest = 1 if isinstance(value, list | tuple) else 0
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    if len(counts) != 2 or not whole or not fewest <= counts[0] <= counts[1] <= MAX_WORKERS:
        shown = {str: f"{value!r} (text)", type(None): "nothing", dict: "a mapping", bool: str(value).lower()}
        got = shown.get(type(value), str(list(value) if isinstance(value, tuple) else value))
        got = got if len(got) <= 60 else f"{got[:57]}..."
        msg = f"got {got}; a whole number from 0 to {MAX_WORKERS}, or [min, max] with 1 <= min <= max <= {MAX_WORKERS}"
        raise ValueError(msg)
    return counts[0] if counts[0] == counts[1] else tuple(counts)


DEFAULT_EPOCHS = 5
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "linear", "cosine")
TORCH_SCHEDULES = (
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
)
"""Known without importing torch, for suggestions; torch may have more."""


def _torch_name(field: str, ours: tuple[str, ...]) -> Callable[[str], str]:
    """Return a check that a name is one of ours, or may be a class of torch: whether it is, takes importing torch."""

    def check(value: str) -> str:
        if value not in ours and not re.fullmatch(r"[A-Z]\w*", value):
            near = get_close_matches(value, ours, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            msg = f"got {value!r}; {', '.join(ours)}, or the name of a torch class for the {field}{meant}"
            raise ValueError(msg)
        return value

    return check


def _not_ours(schedule: str) -> str:
    """Say why a schedule with a warm-up or a floor is rejected; a name that torch may lack comes first."""
    known = (*SCHEDULES, *TORCH_SCHEDULES)
    near = (
        []
        if schedule in known
        else get_close_matches(schedule, known, n=1) or get_close_matches(schedule.lower(), SCHEDULES, n=1)
    )
    if near:
        return f"schedule is {schedule!r}; did you mean {near[0]}?"
    return (
        f"warmup_fraction, warmup_steps and lr_floor belong to {', '.join(SCHEDULES)}; {schedule} has arguments of its "
        "own: set schedule_args"
    )


WorkerCount = Annotated[int, Field(ge=0, le=MAX_WORKERS)]

Workers = Annotated[WorkerCount | tuple[WorkerCount, WorkerCount], BeforeValidator(_workers)]


class FailureRule(Spec):
    """What to do when a training fails in a certain way."""

    match: str = Field(
        description="regular expression, searched in TYPE: MESSAGE of what was raised and in the last lines of the "
        "worker's stderr"
    )
    action: Literal["retry", "exclude_node", "stop"] = Field(description="exclude_node retries without that node")

    @field_validator("match")
    @classmethod
    def _compiles(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            msg = f"got {match!r}, which is not a regular expression: {error}"
            raise ValueError(msg) from error
        return match


class TrainWindow(Spec):
    """A span of time whose rows are trained on, by the recipe's ``datasets(window)``."""

    start: Moment = Field(description="first moment, as '2026-01-31'; without a zone in UTC")
    stop: Moment = Field(description="moment before which rows arose, and their labels were known")

    @model_validator(mode="after")
    def _in_order(self) -> TrainWindow:
        if read_moment(self.start) >= read_moment(self.stop):
            msg = f"it stops at {self.stop}, before it starts at {self.start}"
            raise ValueError(msg)
        return self


class TrainSection(Spec):
    """A training run."""

    seed: Fixed[int] = Field(0, ge=0, lt=2**32, description="seeds weights, shuffling and dropout")
    num_workers: Annotated[
        Workers,
        # A batch is the same however many workers share it. A trial has sweep.workers_per_trial, which is fixed.
        Resume(run=True, sweep=True, run_effect="dropout and batch normalisation depend on the number of workers"),
    ] = Field(
        0,
        description="Ray Train workers; 0 trains in this process; [min, max] is elastic: as many as fit",
    )
    cpus_per_worker: Rounds[float] = Field(1.0, gt=0, description="CPUs a worker reserves; fractions allowed")
    gpus_per_worker: Rounds[float] = Field(0.0, ge=0, description="GPUs a worker reserves; fractions allowed")
    threads_per_worker: Rounds[int | None] = Field(
        None, ge=1, description="torch threads; default: the CPUs reserved, at least 1; in this process torch's own"
    )
    data_workers: Free[int] = Field(
        0,
        ge=0,
        le=256,
        description="processes of each worker that read batches ahead; 0 reads them between steps. They read items of "
        "torch datasets, streamed Parquet files, and tables of which each batch is encoded; with the same result. They "
        "use CPUs of their own, so count them in cpus_per_worker",
    )
    prefetch: Free[int] = Field(2, ge=1, le=64, description="batches that each of the data_workers reads ahead")
    init_from: FreeInRun[str | None] = Field(
        None,
        min_length=1,
        description="first weights of a new run: RUN_ID, NAME@VERSION, NAME@ALIAS or the URI of a checkpoint",
    )
    window: Fixed[TrainWindow | None] = Field(
        None, description="rows that the recipe's datasets(window) returns; default: what it returns without one"
    )
    tables: Fixed[Uri | None] = Field(
        None,
        min_length=1,
        description="folder with train.parquet, validation.parquet and test.parquet in place of the recipe's "
        "datasets(): labelled rows of the prediction log, as a retraining writes them",
    )
    epochs: Length[int | None] = Field(
        None,
        ge=1,
        description="passes over the training split, at most; default: with max_steps as many as that takes, else 5",
    )
    max_steps: Length[int | None] = Field(None, ge=1, description="optimizer steps, at most")
    batch_size: Fixed[int] = Field(256, ge=1, description="rows per optimizer step, over all workers")
    drop_last: Fixed[bool] = Field(False, description="leave out an epoch's last batch where it is not full")
    shuffle_window_mb: Fixed[int] = Field(
        128,
        ge=1,
        description="megabytes of encoded rows of streamed Parquet files that are shuffled together; a process keeps "
        "at most twice as much of a split, and reads at most as much again ahead",
    )
    accumulate: Fixed[int] = Field(1, ge=1, description="micro-batches per optimizer step")
    strategy: Fixed[Literal["ddp", "fsdp"]] = Field(
        "ddp", description="fsdp shards parameters and optimizer over the workers"
    )
    shard_min_params: Free[int] = Field(
        100_000,
        ge=1,
        description="submodules of at least this many parameters are units: of sharding with fsdp, and of "
        "activation_checkpointing",
    )
    shard_over: Rounds[Literal["all", "node"]] = Field(
        "all",
        description="fsdp only: shard over all workers, or over those of each node and replicate over the nodes "
        "(HSDP), where all nodes have as many",
    )
    cpu_offload: Rounds[bool] = Field(
        False,
        description="fsdp only: shards and the optimizer's state stay in host memory, and layers travel to the GPU",
    )
    find_unused_parameters: Free[Literal["auto"] | bool] = Field(
        "auto",
        description="ddp only: whether parameters may have no part in a step's loss, which each step then looks for; "
        "auto finds out in several forward passes before the first step: set true where layers are skipped rarely",
    )
    precision: Fixed[Literal["fp32", "bf16", "fp16"]] = Field(
        "fp32", description="of the forward pass; fp16 scales the loss"
    )
    compile: Rounds[bool] = Field(False, description="torch.compile the model")
    activation_checkpointing: Rounds[bool] = Field(False, description="recompute activations instead of keeping them")
    sync_batch_norm: Fixed[bool] = Field(
        False, description="batch normalisation takes its statistics over all workers; on GPUs only"
    )
    eval_batch_size: Free[int | None] = Field(
        None, ge=1, description="rows per evaluation batch on one worker; default: batch_size"
    )
    eval_every_steps: Fixed[int | None] = Field(
        None, ge=1, description="optimizer steps between validations; default: at the end of each epoch"
    )
    eval_max_rows: Fixed[int | None] = Field(
        None, ge=1, description="validation rows of each validation, evenly spread; default: all"
    )
    optimizer: Fixed[Annotated[str, AfterValidator(_torch_name("optimizer", OPTIMIZERS))]] = Field(
        "adamw", description="adamw, adam, sgd, or another class of torch.optim, such as RMSprop"
    )
    optimizer_args: Fixed[dict[str, Any]] = Field(
        default_factory=dict, description="further arguments of the optimizer, such as {eps: 1.0e-6}"
    )
    lr: Fixed[float] = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: Fixed[float] = Field(0.0, ge=0, description="weight decay")
    weight_decay_on: Fixed[Literal["all", "matrices"]] = Field(
        "all", description="matrices: no weight decay on parameters of one dimension, such as biases and norms"
    )
    momentum: Fixed[float] = Field(0.9, ge=0, lt=1, description="momentum of sgd; beta1 of adam and adamw")
    schedule: Fixed[Annotated[str, AfterValidator(_torch_name("schedule", SCHEDULES))]] = Field(
        "cosine",
        description="constant; decay after the warm-up, linear or cosine; or a class of torch.optim.lr_scheduler, "
        "such as OneCycleLR, stepped once an optimizer step, ReduceLROnPlateau once a validation",
    )
    schedule_args: Fixed[dict[str, Any]] = Field(
        default_factory=dict, description="arguments of a torch.optim.lr_scheduler class, such as {pct_start: 0.2}"
    )
    warmup_fraction: Fixed[float] = Field(0.0, ge=0, lt=1, description="share of all steps in which lr rises linearly")
    warmup_steps: Fixed[int] = Field(0, ge=0, description="the same as a number of steps, instead of warmup_fraction")
    lr_floor: Fixed[float] = Field(0.0, ge=0, le=1, description="share of lr at which linear and cosine decay end")
    ema: Fixed[float | None] = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is what is evaluated and registered",
    )
    clip_norm: Fixed[float | None] = Field(None, gt=0, description="largest gradient norm")
    metric: Fixed[str] = Field("validation/loss", description="decides the best checkpoint and early stopping")
    mode: Fixed[Literal["min", "max"]] = Field("min", description="whether the metric is to fall or to rise")
    patience: FreeInRun[int | None] = Field(
        None, ge=1, description="validations without improvement before stopping; one an epoch by default"
    )
    min_delta: FreeInRun[float] = Field(0.0, ge=0, description="smallest change that patience counts as improvement")
    checkpoint_every_epochs: Free[int] = Field(
        1, ge=1, description="epochs between checkpoints; the best is always kept"
    )
    checkpoint_every_steps: Free[int | None] = Field(None, ge=1, description="optimizer steps between checkpoints")
    checkpoint_every_minutes: Free[float | None] = Field(10.0, gt=0, description="minutes between checkpoints")
    keep_checkpoints: Free[int] = Field(2, ge=1, description="latest checkpoints kept")
    keep_best: Free[int] = Field(1, ge=1, description="best checkpoints kept")
    on_checkpoint_error: Free[Literal["continue", "stop"]] = Field(
        "continue",
        description="when a checkpoint cannot be written; a run without its last and best one fails in any case",
    )
    on_non_finite: FreeInRun[Literal["stop", "skip", "rollback"]] = Field(
        "stop",
        description="NaN or infinity in loss or gradient: end the run; skip the batch; or roll back to the last "
        "checkpoint and skip the batches since. skip and rollback check each step, which waits for the device and "
        "over several workers takes 0.3 ms",
    )
    on_failure: Free[list[FailureRule]] = Field(
        default_factory=list, description="first match decides; default: errors of the recipe stop, lost workers retry"
    )
    max_restarts: Free[int] = Field(3, ge=0, description="restarts in a row without a new checkpoint in between")
    hang_timeout_s: Free[float] = Field(
        600.0,
        gt=0,
        description="time without a heartbeat of one worker, or without progress of any, before they are replaced; "
        "steps and evaluation batches are progress; the first step may take at least 60 s, with compile 600 s; each "
        "file of a checkpoint may take 1 s more for each 5 MB to be written",
    )
    stop_grace_s: Free[float] = Field(20.0, ge=0, description="time for a last checkpoint after SIGTERM or Ctrl-C")
    grow_after_s: Free[float] = Field(10.0, ge=0, description="how long there must be room before an elastic run grows")
    peak_tflops: Free[float | None] = Field(
        None, gt=0, description="of one worker's device; with flops_per_row gives mfu"
    )
    log_every_steps: Free[int] = Field(20, ge=1, description="optimizer steps between logged training losses")

    @property
    def workers(self) -> tuple[int, int]:
        """Return the minimum and maximum number of workers; equal where it is fixed."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @property
    def micro_batch_rows(self) -> int:
        """Return the rows of a micro-batch of a full global batch: the most that a rank holds at a time."""
        return -(-self.batch_size // (max(1, self.workers[0]) * self.accumulate))

    @property
    def eval_rows(self) -> int:
        """Return the rows of an evaluation batch."""
        return self.eval_batch_size or self.batch_size

    @property
    def last_epoch(self) -> float:
        """Return the epoch that ends the run at the latest; infinity where ``max_steps`` alone does."""
        return math.inf if self.epochs is None else self.epochs

    def without_effect(self) -> list[str]:
        """Return a notice for each setting that ``strategy`` does not use."""
        others = ("shard_over", "cpu_offload") if self.strategy == "ddp" else ("find_unused_parameters",)
        fields = type(self).model_fields
        given = [name for name in others if getattr(self, name) != fields[name].default]
        return [f"train.{name} has no effect with train.strategy {self.strategy}" for name in given]

    @model_validator(mode="before")
    @classmethod
    def _ends(cls, data: Any) -> Any:
        """Set ``epochs`` where nothing else says how long the run is."""
        if isinstance(data, dict) and data.get("epochs") is None and data.get("max_steps") is None:
            return {**data, "epochs": DEFAULT_EPOCHS}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.window is not None and self.tables is not None:
            msg = "window and tables each say what is trained on: leave one of them out"
            raise ValueError(msg)
        if self.warmup_fraction and self.warmup_steps:
            msg = "warmup_fraction and warmup_steps say the same in two ways: leave one of them out"
            raise ValueError(msg)
        if self.schedule not in SCHEDULES and (self.warmup_fraction or self.warmup_steps or self.lr_floor):
            raise ValueError(_not_ours(self.schedule))
        if self.schedule in SCHEDULES and self.schedule_args:
            msg = f"schedule_args are for a torch.optim.lr_scheduler class, and schedule is {self.schedule}"
            raise ValueError(msg)
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            msg = f"gpus_per_worker is {self.gpus_per_worker:g}: a worker reserves a share of one GPU or whole GPUs"
            raise ValueError(msg)
        if self.sync_batch_norm and self.workers[1] and not self.gpus_per_worker:
            msg = "sync_batch_norm needs GPUs, torch has none for CPUs: set gpus_per_worker, or leave it out"
            raise ValueError(msg)
        if self.strategy == "fsdp" and self.workers[1] == 0:
            msg = "strategy fsdp shards over workers, but num_workers is 0: set num_workers to at least 1"
            raise ValueError(msg)
        return self
