"""The events of a sweep, and what a display shows of them: trials by state, the best one, the time left.

Knows nothing of Ray, Optuna or MLflow, nor of how events are displayed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from raymlops.display import Progress, duration, shown_value
from raymlops.tuning.study.ranking import chosen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.space import Scalar
    from raymlops.records import RepeatRecord, TrialRecord
    from raymlops.tuning.budget import Tally
    from raymlops.tuning.study.open_trial import OpenTrial
    from raymlops.tuning.study.trials import Trials

EventKind = Literal["waiting", "started", "epoch", "ended", "message", "end"]
ROWS = 10
ENDED = ("complete", "pruned", "failed")
STATES = ("running", "waiting", *ENDED)
_STYLES = {"complete": "green", "pruned": "dim", "failed": "red", "waiting": "dim", "running": ""}


@dataclass(frozen=True, slots=True)
class TrialView:
    """The current state of one trial. ``value`` is the sweep's metric at its best epoch so far."""

    number: int
    params: Mapping[str, Scalar]
    state: str
    """One of ``STATES``."""
    epoch: int = 0
    value: float | None = None

    @classmethod
    def of(cls, trial: TrialRecord | OpenTrial, state: str) -> TrialView:
        """Return the view of a trial in a state."""
        return TrialView(trial.number, trial.params, state, trial.epochs, trial.value)

    def cells(self) -> tuple[str, ...]:
        """Return number, state, epoch, value and parameters as text."""
        params = "  ".join(f"{name.rpartition('.')[2]}={shown_value(value)}" for name, value in self.params.items())
        value = "" if self.value is None else f"{self.value:.5g}"
        return (str(self.number), self.state, str(self.epoch or ""), value, params)


@dataclass(frozen=True, slots=True)
class SweepEvent(Progress):
    """One event of trial ``number``, or of the whole sweep, with the state of the sweep after it."""

    kind: EventKind
    number: int | None = None
    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    """Number of trials in each state, without carried ones; zeros in a message."""
    rows: tuple[TrialView, ...] = ()
    """The trials to show, by number: the best, those that run and the latest others, at most ``ROWS``."""
    total: int = 0
    """Number of trials that the sweep is to run."""
    metric: str = ""
    best: TrialView | None = None
    """The best of the complete trials."""
    elapsed_s: float = 0.0
    eta_s: float | None = None
    """Seconds left at the rate so far; None before the first trial ended."""
    message: str = ""
    """The notice, of a ``message``."""
    cost: str = ""
    """Resources spent so far, in words."""

    @property
    def ended(self) -> int:
        """Return how many trials have ended."""
        return sum(self.counts.get(state, 0) for state in ENDED)

    def pairs(self) -> dict[str, str]:
        """Return the pairs of a log line."""
        if self.kind == "message":
            return {"event": "sweep", "msg": self.message}
        pairs = {"event": "sweep", "trials": f"{self.ended}/{self.total}"}
        pairs |= {name: str(count) for name, count in self.counts.items()}
        if self.best is not None and self.best.value is not None:
            pairs |= {"metric": self.metric, "best": f"{self.best.value:.5g}", "best_trial": str(self.best.number)}
            pairs |= {name: shown_value(value) for name, value in self.best.params.items()}
        pairs["elapsed_s"] = f"{self.elapsed_s:.1f}"
        if self.eta_s is not None and self.kind != "end":
            pairs["eta_s"] = f"{self.eta_s:.0f}"
        if self.cost:
            pairs["cost"] = self.cost
        return pairs

    def headline(self) -> str:
        """Return the number of trials in each state, the time and the cost."""
        parts = [f"{self.ended}/{self.total} trials", *(f"{n} {name}" for name, n in self.counts.items() if n)]
        parts.append(duration(self.elapsed_s))
        if self.eta_s is not None and self.kind != "end":
            parts.append(f"{duration(self.eta_s)} left")
        return "  ".join([*parts, self.cost] if self.cost else parts)

    def renderable(self) -> Any:
        """Return the table of trials under the headline."""
        from rich.table import Table
        from rich.text import Text

        title = Text(self.headline())
        table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False, expand=True)
        for name, justify in (("trial", "right"), ("state", "left"), ("epoch", "right"), (self.metric, "right")):
            table.add_column(Text(name), justify=justify, header_style="dim")  # type: ignore[arg-type]
        table.add_column("parameters", header_style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
        for view in self.rows:
            best = self.best is not None and view.number == self.best.number
            table.add_row(*map(Text, view.cells()), style="bold green" if best else _STYLES[view.state])
        return table


class Board:
    """Keeps what an event shows, at a cost that does not grow with the number of trials."""

    def __init__(self) -> None:
        self.best: TrialView | None = None
        self._counts = dict.fromkeys(STATES, 0)
        self._open: dict[int, TrialView] = {}
        self._latest: deque[TrialView] = deque(maxlen=ROWS)

    def put(self, view: TrialView, *, best: bool = False) -> None:
        """Update one trial; ``best`` of all that have ended."""
        before = self._open.pop(view.number, None)
        if before is not None:
            self._counts[before.state] -= 1
        self._counts[view.state] += 1
        if view.state in {"running", "waiting"}:
            self._open[view.number] = view
        else:
            self._latest.append(view)
        if best:
            self.best = view

    def drop(self, number: int) -> None:
        """Remove a trial that has not ended and never will."""
        if (before := self._open.pop(number, None)) is not None:
            self._counts[before.state] -= 1

    def restore(self, trials: Trials, *, tally: Tally) -> None:
        """Show the trials of a study that have ended, and count them."""
        for record in trials.ended:
            better = tally.take(record)
            if not record.carried_from:
                self.put(TrialView.of(record, record.status), best=better)
            elif better:
                self.best = TrialView.of(record, record.status)
        self.choose(trials.ranked, trials.records)

    def choose(self, ranked: Sequence[RepeatRecord], records: Sequence[TrialRecord]) -> None:
        """Show as the best one, with its mean, the configuration that repeats of several favour; do nothing without."""
        if (favoured := chosen(ranked)) is not None:
            (first,) = (record for record in records if record.number == favoured.number)
            self.best = replace(TrialView.of(first, first.status), value=favoured.mean)

    @property
    def counts(self) -> dict[str, int]:
        """Return how many trials are in each state."""
        return dict(self._counts)

    @property
    def ended(self) -> int:
        """Return how many trials have ended."""
        return sum(self._counts[state] for state in ENDED)

    def rows(self) -> tuple[TrialView, ...]:
        """Return the trials to show: the best, those that run and the latest others, at most ``ROWS``, by number."""
        chosen = {} if self.best is None else {self.best.number: self.best}
        for view in [*reversed(self._open.values()), *reversed(self._latest)]:
            if len(chosen) >= ROWS:
                break
            chosen.setdefault(view.number, view)
        return tuple(sorted(chosen.values(), key=lambda view: view.number))
