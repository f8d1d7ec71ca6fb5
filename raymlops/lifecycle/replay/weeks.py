"""What each week of a replay came to: a table, and the values of the policy that are not the defaults. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raymlops.monitor.quality import log_loss
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec

POLICY = ("gate", "monitor", "retrain", "serve", "train")
"""Sections that decide what becomes of a model."""
NAMES = ("live", "frozen", "blind")
_HEAD = f"{'week':>4}  {'until':10}  {'late':>5}  {'live':>7} {'frozen':>7} {'blind':>7}  version  what happened"


@dataclass(frozen=True)
class WeekRecord(Record):
    """One week: log losses of the same rows by who answered, and what happened."""

    number: int
    """From 1."""
    until: str
    rows: int
    late: float
    """Share of the labels."""
    losses: dict[str, float]
    """Mean log loss in nats of ``live``, ``frozen`` and ``blind``."""
    versions: dict[str, int]
    """Requests by the version that answered."""
    events: tuple[str, ...] = ()

    def text(self) -> str:
        """Return it as a line of the table."""
        losses = " ".join(f"{self.losses[name]:7.4f}" for name in NAMES)
        versions = "+".join(sorted(self.versions))
        return f"{self.number:4}  {self.until}  {self.late:5.3f}  {losses}  {versions:7}  {'; '.join(self.events)}"

    def short(self) -> str:
        """Return it as the outcome of a step."""
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in self.losses.items())
        answered = " and ".join(f"version {version}" for version in sorted(self.versions))
        return "; ".join([f"{answered}, log loss {losses}", *self.events])


@dataclass
class Tally:
    """The sums of a week, while it runs."""

    labels: list[int] = field(default_factory=list)
    answers: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def add(self, labels: Sequence[int], version: str, answers: Mapping[str, Sequence[float]]) -> None:
        """Add a request that ``version`` answered, with the answers of all to it."""
        self.labels += labels
        self.versions[version] = self.versions.get(version, 0) + 1
        for name, values in answers.items():
            self.answers.setdefault(name, []).extend(values)

    def closed(self, number: int, *, until: str, events: Sequence[str]) -> WeekRecord:
        """Return the week."""
        losses = {
            name: log_loss(values, self.labels) if self.labels else math.nan for name, values in self.answers.items()
        }
        late = sum(self.labels) / max(len(self.labels), 1)
        return WeekRecord(number, until, len(self.labels), late, losses, dict(self.versions), tuple(events))


def means(weeks: Sequence[WeekRecord]) -> dict[str, float]:
    """Return the log losses of all rows."""
    rows = sum(week.rows for week in weeks)
    return {name: sum(week.losses[name] * week.rows for week in weeks) / rows for name in NAMES}


def table(weeks: Sequence[WeekRecord]) -> str:
    """Return the weeks, and the mean of all rows."""
    last = " ".join(f"{value:7.4f}" for value in means(weeks).values())
    return "\n".join([_HEAD, *(week.text() for week in weeks), f"{'all':>4}  {'':10}  {'':5}  {last}"])


def policy_lines(spec: ProjectSpec) -> list[str]:
    """Return each value of the policy that is not the default, with the default."""
    plain = {"project": {"name": spec.project.name}, "recipe": {"import": spec.recipe.import_}}
    ours, theirs = spec.to_dict(), type(spec).model_validate(plain).to_dict()
    return [line for section in POLICY for line in _differing(section, ours[section], theirs[section])]


def _differing(path: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours and theirs:
        return [line for key in ours for line in _differing(f"{path}.{key}", ours[key], theirs.get(key))]
    return [] if ours == theirs else [f"{path}: {_shown(ours)} (default {_shown(theirs)})"]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
