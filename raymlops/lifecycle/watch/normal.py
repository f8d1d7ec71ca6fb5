"""What is normal for one side of a model's traffic, and the verdicts on its windows by that.

Owns against what a window is judged: training, but for columns that were served otherwise from the beginning, and
where training has too few windows; else the first windows served, or those from when on a person said that they are
normal. Reads no more traffic than that takes. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from raymlops.display import some_of
from raymlops.lifecycle.watch.parts import ColumnNames, Part, parts
from raymlops.lifecycle.watch.window_drift import FEW_ROWS, WindowDrift, of_parts
from raymlops.lifecycle.watch.windows import place_of, span_of
from raymlops.monitor.baseline import baseline_windows, running, served_pairs, serving_baseline, wanted_windows
from raymlops.monitor.chosen_categories import chosen_by_chance
from raymlops.monitor.drift import DriftVerdict, judge
from raymlops.monitor.outcome import FEWEST_OWN, FEWEST_ROWS, fewest_own
from raymlops.monitor.own_windows import DAY_S, by_rows, by_time, lag_of, most_own
from raymlops.monitor.profiled import column_counts, pair_counts, read_counts, slice_counts
from raymlops.profiles.profile import Blocks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from raymlops.lifecycle.watch.traffic import Traffic
    from raymlops.lifecycle.watch.windows import Windows
    from raymlops.monitor.baseline import Window
    from raymlops.monitor.drift import ColumnCounts
    from raymlops.monitor.own_windows import OwnWindows
    from raymlops.monitor.pairs import PairCounts
    from raymlops.profiles.reference import Reference
    from raymlops.profiles.slices import Slice
    from raymlops.state.watch.incidents import Baseline
    from raymlops.state.watch.windows import Kind, Side

    Judged = tuple[DriftVerdict | None, Mapping[str, str]]
    """None where no column can be judged; and those that cannot, with the reason."""

TRAINING = "training"
_FEW = "training has too few rows of it: register a run that has more, or name another value"
_OLDER = {"slices": "registered before slices were kept by block: register its run again"}


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
        is an alarm: what was always so is no drift. They are looked for from the first window with enough rows on: a
        request to try it, or weeks as a shadow, are no traffic. Hours of the week that training lacks are left out, as
        long as it has others.

        Raises:
            StorageError: the log cannot be read.
        """
        served = self._first_served
        first = None if served is None else self._first_usable(self.served, served, last)
        if first is None:
            return None
        lacking: WindowDrift | None = None
        tried = 0
        for upto in self._portions(first, min(last, first + self.most)):
            pairs = served_pairs(self.served.counted(first, upto))
            for pair in pairs[tried:]:
                found = self._skewed(pair)
                if found.outcome != "insufficient" or not self._judges_other_hours:
                    return found
                lacking = lacking or found
            tried = len(pairs)
        windows = self.served.counted(first, min(last, first + self.most))
        whole = (one for one in windows if one.rows >= FEWEST_ROWS and not _within(self._first_answer, one))
        alone = (self._skewed([one]) for one in whole)
        by_one = next((one for one in alone if one.outcome != "insufficient"), None)
        if by_one is not None and by_one.outcome == "alarm":
            return by_one
        if windows and last >= first + self.most:
            if lacking is not None:
                return lacking
            few = f"of the first {self.most} windows served no two running have {FEWEST_ROWS} rows"
            return self._waiting(windows[-1], few, kind="skew")
        return None

    def _skewed(self, pair: Sequence[Window]) -> WindowDrift:
        return self._described(pair[-1], self._against_training(self.served, pair), TRAINING, kind="skew")

    def drifts(self, first: int, last: int, *, skewed: Collection[str]) -> Iterator[WindowDrift]:
        """Yield the verdict on each window that has rows between two places, in order.

        Columns that are ``skewed`` are judged against what was served first, the others against training.

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

    def _drift(self, window: Window, *, skewed: Collection[str]) -> WindowDrift:
        at = round(window.start_s / self.window_s)
        if hours := self.windows.uncounted(window):
            return self._waiting(window, _uncounted(hours, self.version))
        if window.rows < FEWEST_ROWS:
            return self._waiting(window, FEW_ROWS)
        if _within(self._first_hour, window):
            return self._waiting(window, "traffic began within it")
        if self.windows.interrupted(window):
            what = "no version was live" if self.side == "inputs" else _unlike(self.version)
            return self._waiting(window, f"{what} for a part of it")
        pair = self._pair(window, at)
        served = (skewed, self._served_since) if skewed and self._served_since is not None else None
        split = parts(self.columns, self.baselines, served, window_s=self.window_s)
        known = sum(part.first is None or len(self._since(part.first, pair)) >= FEWEST_OWN for part in split)
        found = [self._part(window, pair, part, share=1 / max(1, known)) for part in split]
        return of_parts([one for one, _ in found], spared=[spared for _, spared in found])

    def _pair(self, window: Window, at: int) -> tuple[Window, ...]:
        """Return the newest window before this one with enough rows, at the same hours of an earlier day, and this."""
        for before in range(at - self._lag, at - self.most - 1, -self._lag):
            self.traffic.read(before, before)
            if len(pair := running((*self.windows.counted(before, before), window))) == 2:
                return pair
        return (window,)

    def _part(self, window: Window, pair: Sequence[Window], part: Part, *, share: float) -> tuple[WindowDrift, bool]:
        """Return the verdict on a part of the columns, and whether the window can be ``ok`` without one.

        Where training has too few own windows, what was served first takes over.
        """
        at, first, training = round(window.start_s / self.window_s), part.first, None
        if first is None:
            training = self._against_training(self.windows, pair, part, share=share)
            if isinstance(training, tuple) and training[0] is not None and training[0].outcome != "insufficient":
                return self._described(window, training, TRAINING), False
            first = at if self._served_since is None else self._served_since
        own, wanted, over = self._since(first, pair), wanted_windows(self.window_s), at > first + self.most
        names = "" if part.told is None else f"of {some_of(part.told, 3)} "
        since = f"the windows served since {datetime.fromtimestamp(first * self.window_s, UTC):%Y-%m-%d %H:%M}"
        few = f"its baseline has {len(own)} of {wanted} windows"
        if len(own) >= FEWEST_OWN:
            judged = self._against_serving(pair, part, own, share=share)
            if judged[0] is None or judged[0].outcome != "insufficient":
                return self._described(window, judged, names + since), judged[0] is None
            few = few if len(own) < wanted else f"its baseline has {judged[0].reason}"
        few += ", and gets no more: --rebaseline takes the newest ones" if over else ""
        if training is None:
            told = f"{some_of(part.told, 3)}: {few}" if part.told is not None and over else few
            found = self._waiting(window, told)
            return replace(found, refused=dict.fromkeys(part.told or (), few)), part.told is not None and not over
        if isinstance(training, str) or training[0] is None:
            found = self._described(window, training, TRAINING)
            return replace(found, waiting=f"{found.waiting}; {few}"), not isinstance(training, str)
        reason = f"{training[0].reason}; {since} take over by themselves: {few}"
        return self._described(window, (replace(training[0], reason=reason), training[1]), TRAINING), False

    def _since(self, first: int, pair: Sequence[Window]) -> tuple[Window, ...]:
        """Return the serving baseline that begins at a place, for the windows that are judged."""
        last = min(first + self.most, round(pair[0].start_s / self.window_s)) - 1
        if last < first:
            return ()
        self.traffic.read(first, last)
        return serving_baseline((*self.windows.counted(first, last), *pair), since_s=first * self.window_s)

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
        found = self._first_usable(self.windows, first, last)
        return until if found is None else found

    def _first_usable(self, windows: Windows, first: int, last: int) -> int | None:
        """Return the place of the first window with enough rows between two places."""
        for upto in self._portions(first, last):
            usable = (one for one in windows.counted(first, upto) if one.rows >= FEWEST_ROWS)
            if (found := next(usable, None)) is not None:
                return round(found.start_s / self.window_s)
        return None

    @cached_property
    def columns(self) -> ColumnNames:
        """Return the names of what is judged."""
        return ColumnNames(self.reference.layout, self.reference.slices, between=self.between)

    @cached_property
    def _first_hour(self) -> datetime | None:
        return self.traffic.first_hour() if self.side == "inputs" else self._first_answer

    @cached_property
    def _judges_other_hours(self) -> bool:
        """Return whether training has enough windows of some hours of the week."""
        blocks = self.reference.blocks
        if blocks is None or blocks.times is None or self.reference.independent:
            return False
        own = most_own(blocks.rows, blocks.times[:-1], blocks.times[1:], length_s=self.window_s)
        return len(own.ranges) >= fewest_own(len(set(own.phases)))

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
        self, windows: Windows, pair: Sequence[Window], part: Part | None = None, *, share: float = 1.0
    ) -> Judged | str:
        reference, blocks, last = self.reference, self.reference.blocks, pair[-1]
        if blocks is None:
            return reference.note
        if blocks.times is None or reference.independent:
            own = by_rows(blocks.rows, rows=last.rows)
        else:
            span, times = (last.start_s, last.stop_s), blocks.times
            own = by_time(blocks.rows, times[:-1], times[1:], window_s=span, before_s=pair[0].start_s)
        part = part or Part(None, self.columns.every)
        by_chance, sliced = chosen_by_chance(blocks, own), reference.slice_blocks
        verdict, refused = self._judge(
            windows, pair, own, part, share=share, whole=blocks, sliced=sliced, by_chance=by_chance
        )
        if self.side == "outputs" and verdict is not None and verdict.outcome == "insufficient":
            reason = f"{verdict.reason}; the reference of outputs is the validation split"
            return replace(verdict, reason=reason), refused
        return verdict, refused

    def _against_serving(self, pair: Sequence[Window], part: Part, served: Sequence[Window], *, share: float) -> Judged:
        starts, stops = (np.array([getattr(one, key) for one in served]) for key in ("start_s", "stop_s"))

        def blocks(chosen: Slice | None) -> Blocks:
            profiles = self.windows.profiles(served, chosen)
            drawn = min((one.drawn for one in profiles if one.read), default=0.0)
            return Blocks(self.reference.layout, np.stack([read_counts(one) for one in profiles]), drawn=drawn)

        whole, last = blocks(None), pair[-1]
        span = last.start_s, last.stop_s
        own = by_time(whole.rows, starts, stops, window_s=span, before_s=pair[0].start_s)
        sliced = {each: blocks(each) for each in self.reference.slices if self._is_in(each, part)}
        return self._judge(self.windows, pair, own, part, share=share, whole=whole, sliced=sliced)

    def _is_in(self, each: Slice, part: Part) -> bool:
        return not part.only.isdisjoint(self.columns.of(each))

    def _judge(
        self,
        windows: Windows,
        pair: Sequence[Window],
        own: OwnWindows,
        part: Part,
        *,
        share: float,
        whole: Blocks,
        sliced: Mapping[Slice, Blocks],
        by_chance: Collection[str] = (),
    ) -> Judged:
        profiles, influence = windows.profiles(pair), self.reference.influence
        columns, lacking = column_counts(whole, profiles, influence=influence, by_chance=by_chance)
        refused = {name: why for name, why in lacking.items() if name in part.only}
        refused |= {each.name: _FEW for each in self.reference.few}
        for each in (one for one in self.reference.slices if self._is_in(one, part)):
            if each not in sliced:
                refused |= _OLDER
            elif each.column in lacking:
                refused[each.name] = f"{each.column}: {lacking[each.column]}"
            else:
                of_slice = windows.profiles(pair, each)
                found, why = slice_counts(each, sliced[each], of_slice, own, influence=influence, by_chance=by_chance)
                columns += found
                known = {each.qualify(name) for name in lacking}
                refused |= {name: few for name, few in why.items() if name not in known}
        judged: list[ColumnCounts | PairCounts] = [column for column in columns if column.name in part.only]
        if self.between:
            without = part.without | {*lacking}
            judged += pair_counts(whole, profiles, without=without, only=part.only, influence=influence)
        return judge(judged, own, share=share) if judged else None, refused

    def _described(self, window: Window, judged: Judged | str, against: str, *, kind: Kind = "drift") -> WindowDrift:
        if isinstance(judged, str):
            return self._waiting(window, judged, kind=kind)
        verdict, refused = judged
        if verdict is None:
            nothing = "no column can be judged" + "".join(f"; {one}: {why}" for one, why in list(refused.items())[:3])
            return replace(self._waiting(window, nothing, kind=kind), refused=refused)
        start, stop = span_of(window)
        return WindowDrift(
            self.side, kind, against, start, stop, window.rows, verdict, refused=refused, stand_for=window.stand_for
        )

    def _waiting(self, window: Window, why: str, *, kind: Kind = "drift") -> WindowDrift:
        return WindowDrift(self.side, kind, None, *span_of(window), window.rows, None, why, stand_for=window.stand_for)


def _uncounted(hours: int, version: int) -> str:
    return (
        f"{hours} of its hours are not counted on the columns of version {version}: the controller counts those of the "
        "last two days, and raymlops predictions NAME --compact counts them all now"
    )


def _unlike(version: int) -> str:
    return f"version {version} was not live, or got another share of the traffic,"


def _within(first: datetime | None, window: Window) -> bool:
    """Return whether there was no traffic yet when a window began."""
    return first is not None and window.start_s < first.timestamp() < window.stop_s
