"""The sections of a configuration file, as strict and frozen pydantic models.

Owns every field with its range, default and one-line description. Knows nothing of files (see
``load``), and imports no ray, torch or mlflow, so that a file is checked in well under a second.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from raymlops.config.base import Fixed, Free, Name, SecretRef, Spec, Uri, UriOrRef, frozen
from raymlops.config.data import DataSection, QualitySection, SkillSection
from raymlops.config.platforms.databricks import SCHEME, unfit
from raymlops.config.platforms.kubernetes import KubernetesSection
from raymlops.config.retrain import RetrainSection
from raymlops.config.serve import ServeSection
from raymlops.config.sweep import Mode, SweepSection, Threshold
from raymlops.config.train import TrainSection
from raymlops.records import Objective

MAX_SLICES = 16
Values = Annotated[tuple[str | int | float | bool, ...], BeforeValidator(frozen)]
_LATER = {"window": {"start": None, "stop": None}, "tables": None}
"""Fields of ``train`` that are no part of the digest where they are unset, and how that is written."""
TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", SCHEME)


class ProjectSection(Spec):
    """The project."""

    name: Fixed[Name] = Field(description="registered model, MLflow experiment and route: /models/NAME")
    description: Free[str] = Field("", description="one line for the model registry")
    tags: Free[dict[str, str]] = Field(default_factory=dict, description="tags put on every run and version")


class RecipeSection(Spec):
    """The user's plug-in and its own configuration."""

    import_: Fixed[str] = Field(alias="import", description="package.module:Class")
    config: Fixed[dict[str, Any]] = Field(default_factory=dict, description="fields of the recipe's own Config")


class GateSection(Spec):
    """The gate that a version passes to become challenger."""

    thresholds: dict[str, Threshold] = Field(default_factory=dict, description="test metric: {min, max}")
    metric: str | None = Field(None, description="compared with the champion; default: train.metric on test")
    mode: Mode | None = Field(None, description="default: train.mode")
    margin: float = Field(0.0, ge=0, description="how much worse than the champion is still accepted")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the one-sided paired bootstrap bound")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples")
    blocks: int | None = Field(
        None,
        ge=20,
        description="contiguous blocks of test rows that are resampled; default: whole days by row_times, weeks where "
        "there are at least 8, and 200 blocks of rows without times",
    )
    compare_answers: bool = Field(
        default=True, description="reject a version whose answers do not follow the labels that its metrics follow"
    )
    later_rows: bool | None = Field(
        None,
        description="reject a version whose test rows are not later than its training rows, by row_times or "
        "label_times, nor on days of their own; default: of those that are retrained",
    )
    max_same_rows: float = Field(
        0.01, ge=0, le=1, description="later_rows: largest share of test rows that are training rows too"
    )


class MonitorSection(Spec):
    """What is watched of a model's traffic."""

    window_h: Literal[1, 6, 12, 24, 168] = Field(24, description="hours of traffic that are judged for drift at a time")
    slices: dict[str, Values] = Field(
        default_factory=dict,
        description="input: [values]; rows with one of them are judged for drift on their own too, at most 16 values",
    )
    between_columns: bool = Field(
        default=False, description="judge the correlation of each two inputs as well, besides each input by itself"
    )
    quality: QualitySection = Field(
        default_factory=QualitySection, description="bounds of a window's missing values, volume and the like"
    )
    skill: SkillSection = Field(
        default_factory=SkillSection, description="how the quality of answers is judged once their labels are known"
    )
    notify: SecretRef | None = Field(
        None, description="who is told of incidents: one apprise URL a line (mail, Slack, Teams, PagerDuty, webhooks)"
    )

    @field_validator("slices")
    @classmethod
    def _few(cls, slices: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        number = sum(map(len, slices.values()))
        if number > MAX_SLICES:
            msg = f"got {number} values; at most {MAX_SLICES}, since each one has counts of its own"
            raise ValueError(msg)
        for column, values in slices.items():
            if len(set(values)) < len(values):
                msg = f"{column} has a value twice, got {list(values)}"
                raise ValueError(msg)
        return slices


class TrackingSection(Spec):
    """The MLflow server."""

    uri: UriOrRef | None = Field(
        None, description="MLflow tracking URI; default: MLFLOW_TRACKING_URI, then SQLite under storage.path"
    )
    database: UriOrRef | None = Field(
        None, description="SQL URL of the database behind uri, for backup and restore where that is a server"
    )
    experiment: str | None = Field(
        None, min_length=1, description="default: project.name; of Databricks a path of the workspace, /Shared/NAME"
    )
    uc_schema: str | None = Field(
        None, description="CATALOG.SCHEMA of Unity Catalog that holds the models, where uri is databricks"
    )
    username: SecretRef | None = Field(None, description="basic auth user of the MLflow server")
    password: SecretRef | None = Field(None, description="basic auth password of the MLflow server")
    git_diff: bool = Field(
        default=True, description="log uncommitted changes of the recipe's code as an artifact of the run"
    )

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | SecretRef | None) -> str | SecretRef | None:
        scheme = uri.partition("://")[0].partition("+")[0] if isinstance(uri, str) else TRACKING_SCHEMES[0]
        if scheme not in TRACKING_SCHEMES:
            msg = f"got {uri!r}; {SCHEME}, or a URI that starts with {', '.join(f'{s}://' for s in TRACKING_SCHEMES)}"
            raise ValueError(msg)
        return uri

    @model_validator(mode="after")
    def _fits_its_uri(self) -> Self:
        # A reference, or MLflow's own variable, is read where MLflow is used.
        found = (
            unfit(self.uri, uc_schema=self.uc_schema, experiment=self.experiment) if isinstance(self.uri, str) else ()
        )
        for field, message in found:
            msg = f"{field} {message}"
            raise ValueError(msg)
        return self


class StorageSection(Spec):
    """The storage of files and tables."""

    path: Fixed[Uri] = Field(
        default_factory=lambda: os.environ.get("RAYMLOPS_HOME") or "~/.raymlops",
        min_length=1,
        description="folder or URI of checkpoints and bundles; default: RAYMLOPS_HOME, then ~/.raymlops",
    )
    shared: Free[bool] = Field(False, description="path is the same folder on every node, such as an NFS mount")
    optuna: Free[UriOrRef | None] = Field(None, description="SQL URL of Optuna; default: SQLite under path")
    state: Free[UriOrRef | None] = Field(
        None, description="SQL URL of raymlops' own tables; default: SQLite under path"
    )


class ClusterSection(Spec):
    """The Ray cluster."""

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
    data: Free[DataSection] = DataSection()
    train: TrainSection = TrainSection()
    sweep: SweepSection = SweepSection()
    gate: Free[GateSection] = GateSection()
    serve: Free[ServeSection] = ServeSection()
    monitor: Free[MonitorSection] = MonitorSection()
    retrain: Free[RetrainSection] = RetrainSection()
    tracking: Free[TrackingSection] = TrackingSection()
    storage: StorageSection = Field(default_factory=StorageSection)  # its path may come from the environment
    cluster: Free[ClusterSection] = ClusterSection()
    kubernetes: Free[KubernetesSection] = KubernetesSection()

    @property
    def experiment(self) -> str:
        """Return the name of the MLflow experiment."""
        return self.tracking.experiment or self.project.name

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Return the objectives of a sweep: one metric, or those of ``sweep.objectives``."""
        sweep = self.sweep
        if sweep.objectives:
            return tuple(Objective(metric, mode) for metric, mode in sweep.objectives.items())
        # train.mode belongs to train.metric; a sweep rejects another metric without its own mode.
        return (Objective(sweep.metric or self.train.metric, sweep.mode or self.train.mode),)

    @property
    def trial_length(self) -> float:
        """Return the length of a whole trial in ``sweep.resource``, the longest of several; infinity if unset."""
        sweep = self.sweep
        if sweep.max_resource is not None:
            return sweep.max_resource
        lengths = {"epoch": ("train.epochs", self.train.epochs), "step": ("train.max_steps", self.train.max_steps)}
        key, length = lengths.get(sweep.resource, ("", None))
        found: tuple[Any, ...] = sweep.space[key].ends() if key in sweep.space else (length,)
        return math.inf if None in found else float(max(found))

    def to_dict(self) -> dict[str, Any]:
        """Return plain YAML data that loads back to an equal spec."""
        return self.model_dump(mode="json", by_alias=True)

    def sha(self) -> str:
        """Return the SHA-256 of the sections that decide a result: not where it runs or how it is served."""
        data = {key: value for key, value in self.to_dict().items() if key in {"project", "recipe", "train", "sweep"}}
        # Unset, they are left out: a run from before there were any has the digest that it had.
        data["train"] = {key: value for key, value in data["train"].items() if value != _LATER.get(key, ...)}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
