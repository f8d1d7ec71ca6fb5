"""The comparison of runs as a record: what differs between them, as values and as tables.

Pure: reads nothing. ``compare`` reads the runs, ``curves`` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Self

from raymlops.display import table
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CELL_CHARS = 40


@dataclass(frozen=True)
class ComparedRun(Record):
    """One of the runs."""

    label: str
    """How it was named: a run, a trial as ``SWEEP_ID/NUMBER``, a version as ``NAME@NUMBER``."""
    run_id: str
    state: str
    """MLflow's status in lower case; of a trial its own: ``complete``, ``pruned``, ``failed``, ``waiting``."""
    settings: dict[str, str] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)
    """Of the model that is kept."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict, repr=False)
    """Points of each metric, over reports where a trial is compared, else over steps."""


@dataclass(frozen=True)
class Comparison(Record):
    """What differs between runs: each setting and metric with one value a run, None where a run has none."""

    runs: tuple[ComparedRun, ...]
    settings: dict[str, list[str | None]]
    metrics: dict[str, list[float | None]]
    axis: str = "step"
    """What the curves are over: ``step``, or where a trial is compared ``epoch``, or ``report`` if one validates by
    steps."""

    @classmethod
    def of(cls, runs: Sequence[ComparedRun], *, axis: str = "step") -> Self:
        """Compare runs."""
        settings = _differing([run.settings for run in runs])
        return cls(tuple(runs), settings, _differing([run.metrics for run in runs]), axis)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; runs without the settings and metrics that are equal, and with curves if read."""
        runs = [
            {"label": run.label, "run_id": run.run_id, "state": run.state}
            | ({"curves": run.curves} if run.curves else {})
            for run in self.runs
        ]
        return {"runs": runs, "settings": self.settings, "metrics": self.metrics, "axis": self.axis}

    def text(self) -> str:
        """Return the tables as text."""
        heads = [f"run {position}" for position in range(1, len(self.runs) + 1)]
        runs = [
            {
                "": head,
                "named": run.label if run.label == run.run_id else f"{run.label}, run {run.run_id}",
                "state": run.state,
            }
            for head, run in zip(heads, self.runs, strict=True)
        ]
        parts = [table(runs, dict.fromkeys(("", "named", "state")))]
        for title, rows in self._tables():
            lines = [{title: name} | dict(zip(heads, cells, strict=True)) for name, *cells in rows]
            parts.append(table(lines, dict.fromkeys((title, *heads))) if rows else f"{title}: none differs")
        return "\n\n".join(parts)

    def plot(self, metric: str | None = None) -> Any:
        """Return the curves as one plotly ``Figure``: of one metric, or a panel for each.

        Raises:
            UsageError: no run has points of the metric.
        """
        from raymlops.lifecycle.comparison.curves import figure

        return figure([(run.label, run.curves) for run in self.runs], metric, axis=self.axis)

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{escape(run.label)}<br>{escape(run.state)}</th>" for run in self.runs)
        body = "".join(
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
            for _, rows in self._tables()
            for name, *cells in rows
        )
        return f"<table><tr><th></th>{heads}</tr>{body}</table>"

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        settings = [[name, *map(_setting, values)] for name, values in self.settings.items()]
        metrics = [[name, *map(_number, values)] for name, values in self.metrics.items()]
        return [("settings", settings), ("metrics", metrics)]


def _differing(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of each name that is not the same in all columns; NaN equals NaN."""
    names = sorted({name for column in columns for name in column})
    found = {name: [column.get(name) for column in columns] for name in names}
    return {name: values for name, values in found.items() if len({repr(value) for value in values}) > 1}


def _setting(value: str | None) -> str:
    text = "-" if value is None else value
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 3]}..."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
