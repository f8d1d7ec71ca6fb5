"""Values that cross stages: what happened, as frozen dataclasses of plain JSON data.

Each record holds the id of the one before it, so that the chain from an answer back to a line of
configuration can be walked. Pure: knows nothing of Ray, MLflow, Optuna or files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from html import escape
from typing import Any, Literal, Self

SCHEMA_VERSION = 1
"""Version of the JSON that commands print and jobs return."""


def to_json(data: Mapping[str, Any]) -> str:
    """Return one line of JSON with its schema version; NaN and infinity, which JSON has not, become null."""
    return json.dumps(_finite({"schema_version": SCHEMA_VERSION, **data}), default=str, allow_nan=False)


class Record:
    """Base of all records: plain data out, lenient reading back in, and a few lines for a person.

    ``repr`` is whole, as of any dataclass; ``str`` and a notebook show ``text()``.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; times as ISO 8601."""
        return asdict(self, dict_factory=_plain)  # type: ignore[call-overload, no-any-return]

    def summary(self) -> dict[str, str | None]:
        """Return what a person reads, by name; a text of several lines is shown as such, an empty one left out."""
        return {name: _short(value) for name, value in _shown(self)}

    def text(self) -> str:
        """Return the summary as aligned lines."""
        return aligned(self.summary())

    def __str__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """Return both forms for IPython, which would print the ``repr`` of a dataclass."""
        return {"text/plain": self.text(), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        cells = {name: "<br>".join(escape(text).splitlines()) for name, text in self.summary().items() if text}
        rows = (f'<tr><th>{name}</th><td style="text-align:left">{cell}</td></tr>' for name, cell in cells.items())
        return f"<table>{''.join(rows)}</table>"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a flat record; keys that a newer version wrote are ignored."""
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})  # type: ignore[attr-defined]


def aligned(rows: Mapping[str, str | None], *, width: int = 11) -> str:
    """Return named texts as lines, the names in a column of at least ``width``; empty texts are left out."""
    width = max([width, *(len(name) + 1 for name, text in rows.items() if text)])
    return "\n".join(
        f"{name if index == 0 else '':<{width}}{line}"
        for name, text in rows.items()
        for index, line in enumerate((text or "").splitlines())
    )


@dataclass(frozen=True)
class DataRecord(Record):
    """What a run was trained on.

    ``fingerprint`` is a SHA-256 over what identifies each split, after the version of how that is computed: ``v3:``.
    """

    fingerprint: str
    rows: dict[str, int]
    """Rows of ``train``, ``validation`` and ``test``."""
    notes: tuple[str, ...] = ()
    """Which splits are not identified by their rows, and why."""
    identified_by: dict[str, str] = field(default_factory=dict)
    """What identifies each split: all rows, a sample of its items, the files' footers, ..."""
    tables: dict[str, str] = field(default_factory=dict)
    """Splits that are Delta tables, each with the name and version that reads it again: ``s3://bucket/table@v3``."""


@dataclass(frozen=True)
class RunRecord(Record):
    """One finished training, which is one MLflow run."""

    run_id: str
    project: str
    metrics: dict[str, float]
    """Of the best epoch: ``train/loss``, ``validation/...``."""
    best_epoch: int
    """Which report was the best, counted from 1: one an epoch, unless ``best_step`` is set."""
    epochs: int
    steps: int
    duration_s: float
    weights_uri: str
    """Folder of the best checkpoint: ``model.safetensors`` and ``state.json`` (what ``fit`` learnt)."""
    config_sha: str
    data: DataRecord
    tracking_uri: str
    num_workers: int
    best_step: int | None = None
    """The step of the best validation, where ``train.eval_every_steps`` is set: ``best_epoch`` is its number then."""

    @property
    def best_at(self) -> str:
        """Return which epoch or step the best one was."""
        return f"epoch {self.best_epoch}" if self.best_step is None else f"step {self.best_step}"


@dataclass(frozen=True)
class Objective(Record):
    """A metric that a sweep optimises, and whether it is to fall or to rise."""

    metric: str
    mode: Literal["min", "max"]


TrialStatus = Literal["complete", "pruned", "failed"]
IMPORTED_FROM = "optuna:"
"""How ``carried_from`` begins for a trial of ``sweep.import_study``."""


@dataclass(frozen=True)
class TrialRecord(Record):
    """One configuration of a sweep. ``value`` is the sweep's metric, of several the first, None where it failed."""

    number: int
    params: dict[str, Any]
    status: TrialStatus
    value: float | None
    epochs: int = 0
    duration_s: float = 0.0
    reason: str = ""
    """Why it failed, or what stopped it where that was not the scheduler; empty otherwise."""
    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Of its best epoch by ``train.metric``."""
    values: tuple[float, ...] = ()
    """Of each objective, where there are several."""
    feasible: bool = True
    """Whether it keeps ``sweep.constraints``."""
    carried_from: str = ""
    """``SWEEP_ID/NUMBER`` of a trial that a fork knows from the sweep before it, ``optuna:STUDY/NUMBER`` of one that
    was imported, ``optuna:NUMBER`` of one that another program added to the sweep's study; empty for one of its own."""
    repeat_of: int | None = None
    """The trial whose configuration it trains with another seed (``sweep.repeats``)."""
    seed: int | None = None
    """That seed; None for ``train.seed``."""
    fingerprint: str = ""
    """Of its data, in a sweep with repeats; empty in others."""

    @property
    def imported(self) -> bool:
        """Return whether another program ran it: there is no run of it, so that it cannot win."""
        return self.carried_from.startswith(IMPORTED_FROM)

    @property
    def settings(self) -> dict[str, Any]:
        """Return its parameters, with its own seed."""
        return self.params if self.seed is None else {**self.params, "train.seed": self.seed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a record; JSON knows lists alone."""
        return super().from_dict({**data, "values": tuple(data.get("values", ()))})


@dataclass(frozen=True)
class RepeatRecord(Record):
    """What one configuration of a sweep reached with several seeds. Only runs that ended whole count."""

    number: int
    """Of the trial of the search; its run counts too."""
    trials: tuple[int, ...]
    """The runs, the search's first."""
    mean: float
    """Of the sweep's metric."""
    std: float | None = None
    """Standard deviation of a run, from n - 1; None for one run."""
    error: float | None = None
    """Standard error of the mean, ``std / sqrt(n)``."""
    expected: float | None = None
    """Mean of the repeats alone: the search chose the configuration for its own run, which is so optimistic."""
    failed: int = 0
    """Repeats that gave no value."""
    feasible: bool = True
    """Whether its means keep ``sweep.constraints``."""
    metrics: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Mean and standard deviation of each metric that all runs reported."""
    probability: float | None = None
    """That the first configuration is better than this one; None for the first, and where it is not known."""
    same_data: bool = True
    """Whether all runs had the same rows, as far as that is known."""

    def words(self) -> str:
        """Return the mean with its error: ``0.912 ± 0.003 (4 seeds, 0.909 without the search's)``."""
        error = "" if self.error is None else f" ± {self.error:.2g}"
        seeds = f"{len(self.trials)} seed{'s' if len(self.trials) > 1 else ''}"
        expected = "" if self.expected is None else f", {self.expected:.5g} without the search's"
        return f"{self.mean:.5g}{error} ({seeds}{expected}{f', {self.failed} failed' if self.failed else ''})"


@dataclass(frozen=True)
class SpentRecord(Record):
    """What a sweep took so far, over all its resumes."""

    wall_s: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    cost: float = 0.0
    currency: str = "USD"


@dataclass(frozen=True)
class SweepRecord(Record):
    """One finished sweep. ``sweep_id`` is its parent MLflow run."""

    sweep_id: str
    project: str
    study: str
    """Name of the Optuna study."""
    storage: str
    """Where the study is, without credentials."""
    metric: str
    mode: str
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    best_config: str
    """Path or URI of the YAML file that ``train`` takes."""
    duration_s: float
    stopped: str = ""
    """Which budget ended it, in words; empty where every trial ran."""
    spent: SpentRecord = SpentRecord()
    pareto: tuple[int, ...] = ()
    """Of several objectives: the numbers of the trials that none other beats in all of them."""
    forked_from: str = ""
    report: str = ""
    """Path or URI of the HTML report."""
    objectives: tuple[Objective, ...] = ()
    """All that it optimises, the first being ``metric`` and ``mode``."""
    repeats: tuple[RepeatRecord, ...] = ()
    """The configurations that were trained with several seeds, best mean first; ``best`` is a run of the first one."""


@dataclass(frozen=True)
class BundleRef(Record):
    """Where a bundle is, and the SHA-256 of its manifest, which vouches for all its files."""

    uri: str
    digest: str


@dataclass(frozen=True)
class ModelVersionRef(Record):
    """A registered bundle."""

    name: str
    version: int
    run_id: str
    bundle: BundleRef
    aliases: tuple[str, ...] = ()
    code_sha: str = ""
    """Of the code in its bundle, where that is not the code of its training."""


@dataclass(frozen=True)
class GateCheck(Record):
    """One question of the gate, with its numbers."""

    name: str
    passed: bool
    got: float | None
    allowed: str
    detail: str = ""


@dataclass(frozen=True)
class GateDecision(Record):
    """Whether a version may become challenger."""

    passed: bool
    checks: tuple[GateCheck, ...]
    champion_version: int | None = None
    notes: tuple[str, ...] = ()
    rows_until: str | None = None
    """When the newest row arose that the version was trained on or chosen by, ISO 8601; None where nobody looked."""
    labels_until: str | None = None
    """When the last label of these rows was known."""

    @property
    def reason(self) -> str:
        """Return what failed, in one line unless an error has several, or how many checks passed."""
        failed = [
            f"{check.name}: got {check.got if check.got is None else f'{check.got:.5g}'}, allowed {check.allowed}"
            + (f": {check.detail}" if check.got is None and check.detail else "")
            for check in self.checks
            if not check.passed
        ]
        return "; ".join(failed) or f"{len(self.checks)} checks passed"

    def summary(self) -> dict[str, str | None]:
        """Return the decision with its reason."""
        return {
            "gate": f"{'passed' if self.passed else 'refused'}: {self.reason}",
            "champion": "none" if self.champion_version is None else f"version {self.champion_version}",
            "notes": "\n".join(self.notes),
        }


@dataclass(frozen=True)
class DeploymentRecord(Record):
    """A version after a change, as Serve runs it."""

    name: str
    version: int
    digest: str
    role: str
    """``champion`` holds the route; ``warm`` runs beside it without one."""
    url: str | None
    """Of ``POST .../predict``; None where the version holds no route, or is not served."""
    previous_version: int | None = None
    changed: bool = True
    warnings: tuple[str, ...] = ()
    """What did not follow, although the version is live."""
    away_s: float | None = None
    """How long nobody answered, where the version replaced the previous one; None where that answered meanwhile."""


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in items}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _shown(record: Record) -> list[tuple[str, Any]]:
    """Return the fields of a record without those that its ``repr`` hides, such as secrets."""
    return [(item.name, getattr(record, item.name)) for item in fields(record) if item.repr]  # type: ignore[arg-type]


def _short(value: Any, *, limit: int = 120) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Record):
        text = ", ".join(f"{name} {short}" for name, item in _shown(value) if (short := _short(item)))
    elif isinstance(value, Mapping):
        text = ", ".join(f"{name} {_short(item)}" for name, item in value.items())
    elif isinstance(value, list | tuple):
        if any(isinstance(item, Record | Mapping) for item in value):
            return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
        text = ", ".join(map(_short, value))
    else:
        text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


MetricPoint = tuple[str, float, int, int]
"""Name, value, step, milliseconds since the epoch."""

STEP = "step"
"""The column of a logged table that holds the step of its rows."""


@dataclass(frozen=True)
class Artifact:
    """An image, a table's rows or a figure that a callback logs at a step."""

    kind: Literal["image", "table", "figure"]
    name: str
    """The key of an image; the file of a table or a figure."""
    step: int
    data: bytes
    """A PNG; rows as JSON, with ``columns`` and ``data``; the figure's file."""
    timestamp_ms: int
