"""The sections of a configuration file, as strict and frozen pydantic models.

Owns every field with its range, default and one-line description. Knows nothing of files (see
``load``), and imports no ray, torch or mlflow, so that a file is checked in well under a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from raymlops.config.base import Name, SecretRef, Spec, Uri, UriOrRef
from raymlops.config.serve import ServeSection
from raymlops.config.space import Distribution, parse_distribution
from raymlops.config.sweep import broken

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


class ProjectSection(Spec):
    """Who this is."""

    name: Name = Field(description="registered model, MLflow experiment and route: /models/NAME")
    description: str = Field("", description="one line for the model registry")
    tags: dict[str, str] = Field(default_factory=dict, description="tags put on every run and version")


class RecipeSection(Spec):
    """The user's plug-in and its own configuration."""

    import_: str = Field(alias="import", description="package.module:Class")
    config: dict[str, Any] = Field(default_factory=dict, description="fields of the recipe's own Config")


MAX_WORKERS = 4096


def _workers(value: Any) -> Any:
    """Take YAML's list as the pair it means; one sentence says what is allowed, whichever of the two was meant."""
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
            msg = f"got {match!r}, which is no regular expression: {error}"
            raise ValueError(msg) from error
        return match


class TrainSection(Spec):
    """One training."""

    seed: int = Field(0, ge=0, lt=2**32, description="seeds weights, shuffling and dropout")
    num_workers: Workers = Field(
        0, description="Ray Train workers; 0 trains in this process; [min, max] goes on with what the cluster has"
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs a worker reserves; fractions allowed")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs a worker reserves; fractions allowed")
    threads_per_worker: int | None = Field(
        None, ge=1, description="torch threads; default: the CPUs reserved, at least 1; in this process torch's own"
    )
    epochs: int = Field(5, ge=1, description="passes over the training split, at most")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, at most")
    batch_size: int = Field(256, ge=1, description="rows per optimizer step, over all workers")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="fsdp shards parameters and optimizer over the workers")
    shard_min_params: int = Field(
        100_000,
        ge=1,
        description="submodules of at least this many parameters are units: of sharding with fsdp, and of "
        "activation_checkpointing",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the forward pass; fp16 scales the loss")
    compile: bool = Field(False, description="torch.compile the model")
    activation_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    eval_batch_size: int = Field(4096, ge=1, description="rows per evaluation batch on one worker")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="torch.optim class")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; beta1 of adam and adamw")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="decay after the warm-up, to zero")
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="share of all steps in which lr rises linearly")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm")
    metric: str = Field("validation/loss", description="decides the best checkpoint and early stopping")
    mode: Literal["min", "max"] = Field("min", description="whether the metric is to fall or to rise")
    patience: int | None = Field(None, ge=1, description="epochs without improvement before stopping")
    checkpoint_every_epochs: int = Field(1, ge=1, description="epochs between checkpoints; the best is always kept")
    checkpoint_every_steps: int | None = Field(None, ge=1, description="optimizer steps between checkpoints")
    checkpoint_every_minutes: float | None = Field(10.0, gt=0, description="minutes between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="latest checkpoints kept")
    keep_best: int = Field(1, ge=1, description="best checkpoints kept")
    on_checkpoint_error: Literal["continue", "stop"] = Field(
        "continue", description="when one cannot be written; without a last and a best one a run fails in any case"
    )
    on_non_finite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="NaN or infinity in loss or gradient: end; leave the batch out; or put back the last checkpoint "
        "and go on without the batch. skip and rollback look at each step: a wait for the device, and over several "
        "workers 0.3 ms",
    )
    on_failure: list[FailureRule] = Field(
        default_factory=list, description="first match decides; default: errors of the recipe stop, lost workers retry"
    )
    max_restarts: int = Field(3, ge=0, description="restarts in a row without a new checkpoint in between")
    hang_timeout_s: float = Field(
        600.0,
        gt=0,
        description="how long one worker may be silent, or none of them move, before they are replaced; steps and "
        "evaluation batches count; before the first step none need move for at least 60 s, with compile 600 s",
    )
    stop_grace_s: float = Field(20.0, ge=0, description="time for a last checkpoint after SIGTERM or Ctrl-C")
    grow_after_s: float = Field(10.0, ge=0, description="how long there must be room before an elastic run grows")
    peak_tflops: float | None = Field(None, gt=0, description="of one worker's device; with flops_per_row gives mfu")
    log_every_steps: int = Field(20, ge=1, description="optimizer steps between logged training losses")

    @property
    def workers(self) -> tuple[int, int]:
        """Return the fewest and the most workers; equal where the number is fixed."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.strategy == "fsdp" and self.workers[1] == 0:
            msg = "strategy fsdp shards over workers, but num_workers is 0: set num_workers to at least 1"
            raise ValueError(msg)
        return self


def _space_key(key: str) -> str:
    """Check the name of a searched field; the recipe's own fields are known to ``project`` alone."""
    section, _, field = key.partition(".")
    if section == "train":
        if field not in TrainSection.model_fields:
            near = get_close_matches(field, TrainSection.model_fields, n=1)
            advice = f"did you mean 'train.{near[0]}'?" if near else f"known: {', '.join(TrainSection.model_fields)}"
            msg = f"{field!r} is not a field of train; {advice}"
            raise ValueError(msg)
    elif not re.fullmatch(r"recipe\.config\.\w+", key):
        msg = f"{key!r} cannot be searched; a key is train.FIELD or recipe.config.FIELD"
        raise ValueError(msg)
    return key


SpaceKey = Annotated[str, AfterValidator(_space_key)]


class Threshold(Spec):
    """A bound that a test metric must keep."""

    min: float | None = Field(None, description="smallest value that passes")
    max: float | None = Field(None, description="largest value that passes")

    @model_validator(mode="after")
    def _some(self) -> Threshold:
        if self.min is None and self.max is None:
            msg = "write min, max or both"
            raise ValueError(msg)
        if self.min is not None and self.max is not None and self.min > self.max:
            msg = f"min {self.min} is above max {self.max}"
            raise ValueError(msg)
        return self


class PriceSection(Spec):
    """What an hour of what a sweep reserves costs."""

    cpu_hour: float = Field(0.0, ge=0, description="price of one CPU for an hour")
    gpu_hour: float = Field(0.0, ge=0, description="price of one GPU for an hour")
    currency: str = Field("USD", min_length=1, max_length=8, description="shown beside amounts")


Mode = Literal["min", "max"]


class SweepSection(Spec):
    """A search for a better configuration."""

    metric: str | None = Field(None, description="to optimise; default: train.metric")
    mode: Mode | None = Field(None, description="default: train.mode; needed where metric is not train.metric")
    objectives: dict[str, Mode] = Field(
        default_factory=dict, description="metric: min or max, of several at once, instead of metric and mode"
    )
    constraints: dict[str, Threshold] = Field(
        default_factory=dict, description="metric: {min, max} that a winner must keep; samplers learn from them"
    )
    num_trials: int = Field(16, ge=1, description="configurations to try")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; default: what the cluster holds")
    workers_per_trial: int = Field(
        1, ge=1, le=MAX_WORKERS, description="1: a trial trains in a process that is kept warm; more: on Ray Train"
    )
    max_restarts: int = Field(1, ge=0, description="of a trial whose process died; lost nodes do not count")
    checkpoint_every_s: float = Field(30.0, ge=0, description="seconds of training between checkpoints of a trial")
    sampler: Literal["tpe", "gp", "random", "grid", "qmc", "nsga2"] = Field("tpe", description="how trials are drawn")
    startup_trials: int = Field(8, ge=1, description="random trials before tpe or gp model anything")
    seed: int = Field(0, ge=0, lt=2**32, description="seeds the sampler")
    enqueue: list[dict[SpaceKey, Any]] = Field(
        default_factory=list, description="start points, tried first; keys that a point leaves out are drawn"
    )
    scheduler: Literal["asha", "hyperband", "median", "none"] = Field(
        "asha",
        description="stops poor trials early; hyperband is the asynchronous one; default with objectives: none",
    )
    resource: str = Field("epoch", min_length=1, description="what schedulers count: epoch, step or a reported metric")
    grace_period: float = Field(1.0, gt=0, description="of the resource, that every trial gets before it is stopped")
    max_resource: float | None = Field(
        None, gt=0, description="of the resource, that a whole trial takes; default: train.epochs, train.max_steps"
    )
    reduction_factor: int = Field(3, ge=2, description="asha and hyperband keep one in this many at each rung")
    timeout_s: float | None = Field(None, gt=0, description="seconds of sweeping, over all resumes, at most")
    max_cpu_hours: float | None = Field(None, gt=0, description="CPU-hours reserved by trials, at most")
    max_gpu_hours: float | None = Field(None, gt=0, description="GPU-hours reserved by trials, at most")
    max_cost: float | None = Field(None, gt=0, description="money, by price, at most")
    price: PriceSection = Field(PriceSection(), description="{cpu_hour, gpu_hour, currency}, for max_cost")
    target: float | None = Field(None, description="stop once a trial reaches this value of the metric")
    patience: int | None = Field(None, ge=1, description="stop after this many ended trials without a better one")
    space: Annotated[
        dict[SpaceKey, Annotated[Distribution, BeforeValidator(parse_distribution)]],
        Field(description="key.path: {float|int|categorical: ...}; keys are fields of train or recipe.config"),
    ] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _unscheduled(cls, data: Any) -> Any:
        """Schedule nothing where there are several objectives, unless a scheduler was asked for, which is refused."""
        if isinstance(data, dict) and data.get("objectives") and "scheduler" not in data:
            return {**data, "scheduler": "none"}
        return data

    @model_validator(mode="after")
    def _together(self) -> SweepSection:
        errors = [
            InitErrorDetails(
                # With an input the sentence says what was got, as for any other field.
                type=PydanticCustomError(
                    "value_error" if rule.got is ... else "wrong_type", "{error}", {"error": rule.message}
                ),
                loc=rule.path,
                input=rule.got,
            )
            for rule in broken(self)
        ]
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors, hide_input=True)
        return self


class GateSection(Spec):
    """When a version may become challenger."""

    thresholds: dict[str, Threshold] = Field(default_factory=dict, description="test metric: {min, max}")
    metric: str | None = Field(None, description="compared with the champion; default: train.metric on test")
    mode: Mode | None = Field(None, description="default: train.mode")
    margin: float = Field(0.0, ge=0, description="how much worse than the champion is still accepted")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the one-sided paired bootstrap bound")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples")
    blocks: int = Field(200, ge=20, description="contiguous blocks of test rows that are resampled")


class TrackingSection(Spec):
    """Where MLflow is."""

    uri: UriOrRef | None = Field(
        None, description="MLflow tracking URI; default: MLFLOW_TRACKING_URI, then SQLite under storage.path"
    )
    experiment: str | None = Field(None, min_length=1, description="default: project.name")
    username: SecretRef | None = Field(None, description="basic auth user of the MLflow server")
    password: SecretRef | None = Field(None, description="basic auth password of the MLflow server")

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | SecretRef | None) -> str | SecretRef | None:
        scheme = uri.partition("://")[0].partition("+")[0] if isinstance(uri, str) else TRACKING_SCHEMES[0]
        if scheme not in TRACKING_SCHEMES:
            msg = f"got {uri!r}; a URI that starts with {', '.join(f'{name}://' for name in TRACKING_SCHEMES)}"
            raise ValueError(msg)
        return uri


class StorageSection(Spec):
    """Where files and tables are."""

    path: Uri = Field(
        default_factory=lambda: os.environ.get("RAYMLOPS_HOME") or "~/.raymlops",
        min_length=1,
        description="folder or URI of checkpoints and bundles; default: RAYMLOPS_HOME, then ~/.raymlops",
    )
    shared: bool = Field(False, description="path is the same folder on every node, such as an NFS mount")
    optuna: UriOrRef | None = Field(None, description="SQL URL of Optuna; default: SQLite under path")
    state: UriOrRef | None = Field(None, description="SQL URL of raymlops' own tables; default: SQLite under path")


class ClusterSection(Spec):
    """Which Ray cluster runs it."""

    address: str | None = Field(
        None,
        description="host:port; local starts one of our own; auto is RAY_ADDRESS, else what `raymlops up` started, "
        "never a local one; default: as auto, then local",
    )
    dashboard: Uri | None = Field(None, description="URL of the Ray dashboard; default: asked of the cluster")
    num_cpus: float | None = Field(None, gt=0, description="CPUs of a cluster that raymlops starts; default: all")
    wait_s: float = Field(60.0, ge=0, description="how long to wait for busy resources")


class ProjectSpec(Spec):
    """A whole configuration."""

    project: ProjectSection
    recipe: RecipeSection
    train: TrainSection = TrainSection()
    sweep: SweepSection = SweepSection()
    gate: GateSection = GateSection()
    serve: ServeSection = ServeSection()
    tracking: TrackingSection = TrackingSection()
    storage: StorageSection = Field(default_factory=StorageSection)  # its path may come from the environment
    cluster: ClusterSection = ClusterSection()

    @property
    def experiment(self) -> str:
        """Return the name of the MLflow experiment."""
        return self.tracking.experiment or self.project.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain YAML data that loads back to an equal spec."""
        return self.model_dump(mode="json", by_alias=True)

    def sha(self) -> str:
        """Return the SHA-256 of what decides a result: everything but where it runs and what serves it."""
        data = {key: value for key, value in self.to_dict().items() if key in {"project", "recipe", "train", "sweep"}}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
