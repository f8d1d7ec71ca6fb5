"""Prometheus gauges of what is watched, from the verdicts, incidents and messages that the state has.

Owns which figures of a verdict are shown. Skew, which is judged once a version, is seen by its incident. Columns are no
labels: a model may have thousands, and ``raymlops drift`` names them. Ray's agent of the controller's node exports
them, as it does those of replicas.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from raymlops.lifecycle.watch.status import newest_verdicts
from raymlops.serving.telemetry.metric_families import WATCH_FAMILIES
from raymlops.serving.telemetry.metrics import ray_instrument
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.messages import unsent_messages
from raymlops.state.watch.windows import newest_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raymlops.serving.telemetry.metric_families import Family
    from raymlops.serving.telemetry.metrics import Instrument
    from raymlops.state.store import State
    from raymlops.state.watch.windows import JudgedWindow

_OUTCOMES = {"ok": 0.0, "warn": 1.0, "alarm": 2.0}
_NOT_JUDGED = -1.0


class WatchGauges:
    """Publish the gauges of the models that are live. ``make`` creates the instrument of a family, by default Ray's."""

    def __init__(self, state: State, *, make: Callable[[Family], Instrument] = ray_instrument) -> None:
        self._state = state
        self._make = make
        self._instruments: dict[str, Instrument] = {}

    def __call__(self) -> None:
        """Publish what is known now. Ray 2.60 forgets a gauge that is not set again within 20 s.

        Raises:
            StorageError, UnreachableError: the state cannot be read.
        """
        for (name, *labels), value in self._figures():
            if name not in self._instruments:
                self._instruments[name] = self._make(WATCH_FAMILIES[name])
            self._instruments[name].set(value, dict(zip(WATCH_FAMILIES[name].labels, labels, strict=True)))

    def _figures(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Yield the value of each gauge by its name and labels."""
        deployments = self._state.deployments()
        live = {item.name for item in deployments}
        champions = {item.name: item.version for item in deployments if item.role == "champion"}
        for model, champion in champions.items():
            for side, window in newest_verdicts(self._state, model, champion).items():
                for name, windows, value in _figures(window):
                    yield (f"raymlops_drift_{name}", model, side, *windows), value
            newest = newest_window(self._state, model, side="outputs", version=champion, kind="skill")
            for name, labels, known in () if newest is None else _quality(newest):
                if known is not None:
                    yield (f"raymlops_quality_{name}", model, *labels), known
        incidents = Counter(
            one.name for one in incidents_of(self._state, open_only=True) if one.acknowledged_at is None
        )
        unsent = unsent_messages(self._state)
        for name in live:
            yield ("raymlops_incidents_open", name), float(incidents[name])
            yield ("raymlops_messages_waiting", name), float(sum(one.attempts > 0 for one in unsent.get(name, ())))


def _figures(window: JudgedWindow) -> Iterator[tuple[str, tuple[str, ...], float]]:
    yield "outcome", (), _OUTCOMES.get(window.outcome, _NOT_JUDGED)
    for number, p in (("1", window.p_one), ("2", window.p_two)):
        if p is not None:
            yield "p", (number,), p
    distances = [abs(one["distance"] or 0.0) for one in window.details.get("columns", ())]
    yield "distance", (), max(distances, default=0.0)
    yield "rows", (), float(window.rows)
    yield "window_seconds", (), (window.stop - window.start).total_seconds()
    yield "judged_until", (), window.stop.timestamp()


def _quality(window: JudgedWindow) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
    """Yield what is known of a window's labels, and of the skill that was lost since the promotion."""
    details = window.details
    verdict, coverage = details["verdict"], details["coverage"]
    yield "outcome", (), _OUTCOMES.get(window.outcome, _NOT_JUDGED)
    yield "skill", ("window",), details.get("skill")
    yield "skill", ("expected",), details.get("expected_skill")
    for bound, key in (("mean", "lost"), ("low", "low"), ("high", "high")):
        yield "lost", (bound,), verdict[key]
    yield "labelled", (), coverage["labelled"]
    yield "label_lag_seconds", (), coverage["half_lag_s"]
    yield "judged_until", (), window.stop.timestamp()
