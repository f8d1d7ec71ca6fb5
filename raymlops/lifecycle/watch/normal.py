"""What is normal for one side of a model's traffic, and the verdicts on its windows by that.

Owns against what a window is judged: training, where it is like what is served; else the first windows served, or those
from when on a person said that they are normal. Reads no more traffic than that takes. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from raymlops.lifecycle.watch.window_drift import FEW_ROWS, WindowDrift
from raymlops.lifecycle.watch.windows import place_of
from raymlops.monitor.baseline import baseline_windows, first_served, running, serving_baseline
from raymlops.monitor.drift import FEWEST_ROWS, DriftVerdict, judge
from raymlops.monitor.outcome import FEWEST_OWN
from raymlops.monitor.own_windows import DAY_S, by_rows, by_time, lag_of
from raymlops.monitor.profiled import column_counts, pair_counts, read_counts
from raymlops.profiles.profile import Blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymlops.lifecycle.watch.traffic import Traffic
    from raymlops.lifecycle.watch.windows import Windows
    from raymlops.monitor.baseline import Window
    from raymlops.monitor.own_windows import OwnWindows
    from raymlops.profiles.reference import Reference
    from raymlops.state.drift import Baseline, Kind, Side

    Judged = tuple[DriftVerdict, Mapping[str, str]]
    """And the columns that cannot be judged, with the reason."""

TRAINING, SERVING = "training", "the first windows served"


@dataclass(frozen=True, eq=False)
class Normal:
    """One side of a champion's traffic.

    Attributes:
        side: Inputs are judged over the versions of a model, outputs are the champion's.
        reference: Of the champion's bundle.
        version: The champion.
        window_s: The length of a window.
        traffic: What reads hours into ``windows`` and ``served``.
        windows: That are judged for drift.
        served: Of the champion alone.
        baselines: What a person said to be normal on this side, newest first.
        judged_since: The start of the first window with enough rows that is known to have been judged for this version.
        between: Whether the correlations of each two columns are judged as well.
    """

    side: Side
    reference: Reference
    version: int
    window_s: float
    traffic: Traffic
    windows: Windows
    served: Windows
    baselines: Sequence[Baseline] = ()
    judged_since: datetime | None = None
    between: bool = False

    def skew(self, last: int) -> WindowDrift | None:
        """Return the verdict on what the version served first, against training; None while it is too early for one.

        By two windows running, the newest of which is at ``last`` or before it; or by the first one alone, where that
        is an alarm: what was always so is no drift.

        Raises:
            StorageError: the log cannot be read.
        """
        first = self._first_served
        if first is None:
            return None
        for upto in self._portions(first, min(last, first + self.most)):
            if (pair := first_served(self.served.counted(first, upto))) is not None:
                return self._described(pair[1], self._against_training(self.served, pair), TRAINING, kind="skew")
        windows = self.served.counted(first, min(last, first + self.most))
        whole = [one for one in windows if one.rows >= FEWEST_ROWS and not _within(self._first_answer, one)]
        if whole:
            found = self._described(whole[0], self._against_training(self.served, whole[:1]), TRAINING, kind="skew")
            if found.outcome == "alarm":
                return found
        if windows and last >= first + self.most:
            few = f"of the first {self.most} windows served no two running have {FEWEST_ROWS} rows"
            return self._waiting(windows[-1], few, kind="skew")
        return None

    def drifts(self, first: int, last: int, *, skewed: bool) -> Iterator[WindowDrift]:
        """Yield the verdict on each window that has rows between two places, in order.

        Raises:
            StorageError: the log cannot be read.
        """
        self.traffic.read(first, last)
        for window in self.windows.within(first, last):
            yield self._drift(window, skewed=skewed)

    def uncounted(self, found: WindowDrift) -> bool:
        """Return whether a window that was judged just now has hours that are not counted."""
        windows = self.windows.within(*[place_of(found.start, self.window_s)] * 2) if found.start else ()
        return any(self.windows.uncounted(one) for one in windows)

    def newest(self, last: int, *, after: int | None = None) -> int | None:
        """Return the place of the newest window that has rows, not after ``last``; None where there is none.

        It is looked for ``after`` a place, or in the newest ``most`` windows.
        """
        first = last - self.most + 1 if after is None else max(after + 1, last - self.most + 1)
        for upto in range(last, first - 1, -self._step):
            start = max(first, upto - self._step + 1)
            self.traffic.read(start, upto)
            if found := self.windows.within(start, upto):
                return round(found[-1].start_s / self.window_s)
        return None

    def newest_first(self, last: int) -> int | None:
        """Return the place of the first window of a serving baseline that has ``last``; None before any answer."""
        served = self._first_served
        return None if served is None else max(served, last - self.most + 1)

    def usable(self, first: int, last: int) -> int:
        """Return how many windows between two places can be normal.

        Raises:
            StorageError: the log cannot be read.
        """
        self.traffic.read(first, last)
        return sum(one.rows >= FEWEST_ROWS for one in self.windows.counted(first, last))

    def _drift(self, window: Window, *, skewed: bool) -> WindowDrift:
        at = round(window.start_s / self.window_s)
        if hours := self.windows.uncounted(window):
            return self._waiting(window, _uncounted(hours, self.version))
        if window.rows < FEWEST_ROWS:
            return self._waiting(window, FEW_ROWS)
        if _within(self._first_hour, window):
            return self._waiting(window, "traffic began within it")
        if self.windows.interrupted(window):
            what = "no version was" if self.side == "inputs" else f"version {self.version} was not"
            return self._waiting(window, f"{what} live for a part of it")
        self.traffic.read(at - self._lag, at - self._lag)
        pair = running((*self.windows.counted(at - self._lag, at - 1), window))
        without: dict[str, str] = {}
        for baseline in self.baselines:
            first = place_of(baseline.start, self.window_s)
            own = self._since(first, pair)
            few = self._few("new baseline", own, first, at)
            if len(own) >= FEWEST_OWN:
                judged = self._against_serving(pair, own, without)
                if isinstance(judged, str) or judged[0].outcome != "insufficient":
                    since = f"the windows served since {baseline.start:%Y-%m-%d %H:%M}"
                    return self._described(window, judged, since)
                few = f"the new baseline has {judged[0].reason}"
            if baseline.columns is None:
                return self._waiting(window, few)
            without |= dict.fromkeys(baseline.columns, few)
        return self._by_default(window, pair, without, skewed=skewed)

    def _by_default(
        self, window: Window, pair: Sequence[Window], without: Mapping[str, str], *, skewed: bool
    ) -> WindowDrift:
        training = None if skewed else self._against_training(self.windows, pair, without)
        if training is not None and not isinstance(training, str) and training[0].outcome != "insufficient":
            return self._described(window, training, TRAINING)
        baseline = () if self._served_since is None else self._since(self._served_since, pair)
        if len(baseline) >= FEWEST_OWN:
            return self._described(window, self._against_serving(pair, baseline, without), SERVING)
        at = round(window.start_s / self.window_s)
        have = self._few("serving baseline", baseline, at if self._served_since is None else self._served_since, at)
        if training is None:
            return self._waiting(window, f"training differs from what is served, and {have}")
        if isinstance(training, str):
            return self._waiting(window, f"{training}; {have}")
        verdict, refused = training
        whose = "; the reference of outputs is the validation split" if self.side == "outputs" else ""
        reason = f"{verdict.reason}{whose}; the first windows served take over by themselves: {have}"
        return self._described(window, (replace(verdict, reason=reason), refused), TRAINING)

    def _since(self, first: int, pair: Sequence[Window]) -> tuple[Window, ...]:
        """Return the serving baseline that begins at a place, for the windows that are judged."""
        last = min(first + self.most, round(pair[0].start_s / self.window_s)) - 1
        if last < first:
            return ()
        self.traffic.read(first, last)
        return serving_baseline((*self.windows.counted(first, last), *pair), since_s=first * self.window_s)

    def _few(self, what: str, own: Sequence[Window], first: int, at: int) -> str:
        """Return how many windows a baseline that begins at a place has; those of a time that is over get no more."""
        few = f"the {what} has {len(own)} of {FEWEST_OWN} windows"
        over = at > first + self.most
        return f"{few}, and gets no more: --rebaseline takes the newest ones" if over else few

    @cached_property
    def _first_answer(self) -> datetime | None:
        return self.traffic.first_hour(self.version)

    @property
    def _first_served(self) -> int | None:
        return None if self._first_answer is None else place_of(self._first_answer, self.window_s)

    @cached_property
    def _served_since(self) -> int | None:
        """Return the place of the first window with enough rows: as judged, or where none was, of those in the log.

        The log's first hours are removed at some time; what came after them is not the first that was served.
        """
        known, first = self.judged_since, self._first_served
        until = None if known is None else place_of(known, self.window_s)
        if first is None or (until is not None and until <= first):
            return until
        last = first + 4 * self.most if until is None else until
        for upto in self._portions(first, last):
            self.traffic.read(first, upto)
            usable = (one for one in self.windows.counted(first, upto) if one.rows >= FEWEST_ROWS)
            if (found := next(usable, None)) is not None:
                return round(found.start_s / self.window_s)
        return until

    @cached_property
    def _first_hour(self) -> datetime | None:
        return self.traffic.first_hour() if self.side == "inputs" else self._first_answer

    @property
    def _lag(self) -> int:
        return lag_of(self.window_s)

    @property
    def _step(self) -> int:
        """Return of how many windows are read at once what is looked for: two days, or one window."""
        return max(1, round(2 * DAY_S / self.window_s))

    @property
    def most(self) -> int:
        """Return how many windows a serving baseline has at most, and how far back a window is looked for."""
        return baseline_windows(self.window_s)

    def _portions(self, first: int, last: int) -> Iterator[int]:
        """Read from one place to another, a portion at a time, and yield up to where."""
        for start in range(first, last + 1, self._step):
            upto = min(start + self._step - 1, last)
            self.traffic.read(start, upto)
            yield upto

    def _against_training(
        self, windows: Windows, pair: Sequence[Window], without: Mapping[str, str] | None = None
    ) -> Judged | str:
        reference, blocks, last = self.reference, self.reference.blocks, pair[-1]
        if blocks is None:
            return reference.note
        if blocks.times is None or reference.independent:
            own = by_rows(blocks.rows, rows=last.rows)
        else:
            own = by_time(blocks.rows, blocks.times[:-1], blocks.times[1:], window_s=(last.start_s, last.stop_s))
        return self._judge(windows, blocks, pair, own, without or {})

    def _against_serving(
        self, pair: Sequence[Window], baseline: Sequence[Window], without: Mapping[str, str]
    ) -> Judged | str:
        starts = np.array([one.start_s for one in baseline])
        stops = np.array([one.stop_s for one in baseline])
        counts = np.stack([read_counts(one) for one in self.windows.profiles(baseline)])
        blocks = Blocks(self.reference.layout, counts)
        own = by_time(blocks.rows, starts, stops, window_s=(pair[-1].start_s, pair[-1].stop_s))
        return self._judge(self.windows, blocks, pair, own, without)

    def _judge(
        self,
        windows: Windows,
        blocks: Blocks,
        pair: Sequence[Window],
        own: OwnWindows,
        without: Mapping[str, str],
    ) -> Judged | str:
        profiles, influence = windows.profiles(pair), self.reference.influence
        columns, refused = column_counts(blocks, profiles, influence=influence)
        refused |= {column.name: without[column.name] for column in columns if column.name in without}
        columns = [column for column in columns if column.name not in without]
        if not columns:
            some = list(refused.items())[:3]
            return "no column can be judged" + "".join(f"; {name}: {why}" for name, why in some)
        pairs = pair_counts(blocks, profiles, without=refused, influence=influence) if self.between else []
        return judge([*columns, *(one for one in pairs if one.name not in without)], own), refused

    def _described(self, window: Window, judged: Judged | str, against: str, *, kind: Kind = "drift") -> WindowDrift:
        if isinstance(judged, str):
            return self._waiting(window, judged, kind=kind)
        verdict, refused = judged
        return WindowDrift(
            self.side, kind, against, *_span(window), window.rows, verdict, refused=refused, stand_for=window.stand_for
        )

    def _waiting(self, window: Window, why: str, *, kind: Kind = "drift") -> WindowDrift:
        return WindowDrift(self.side, kind, None, *_span(window), window.rows, None, why, stand_for=window.stand_for)


def _uncounted(hours: int, version: int) -> str:
    return (
        f"{hours} of its hours are not counted on the columns of version {version}: the controller counts those of the "
        "last two days, and raymlops predictions NAME --compact counts them all now"
    )


def _within(first: datetime | None, window: Window) -> bool:
    """Return whether there was no traffic yet when a window began."""
    return first is not None and window.start_s < first.timestamp() < window.stop_s


def _span(window: Window) -> tuple[datetime, datetime]:
    return datetime.fromtimestamp(window.start_s, UTC), datetime.fromtimestamp(window.stop_s, UTC)
