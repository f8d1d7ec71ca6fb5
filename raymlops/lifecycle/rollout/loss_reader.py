"""When the prediction log is read for losses, in threads, and what is known of them meanwhile.

Owns the intervals, the threads and the message about a log that cannot be read. Knows nothing of what a loss is
(``loss_rule``) or of its consequences (``policy``). A reading may take minutes, raise, or never end: ``report`` returns
at once, with what the last one found. At most one reading of a model is in progress.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from raymlops.errors import RaymlopsError, StorageError
from raymlops.predictions.counts import Losses
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    LossesIn = Mapping["Window", Mapping[int | None, Losses]]
    """Those of each version in each window; under None those of every other version."""

READ_EVERY_S = 30.0
"""Labels arrive minutes to days late, so that reading the log more often would find little more."""
BUSY = 0.2
"""Share of the time in which the log is read at most: of a step that is held for days, a reading may take minutes."""
RETRY_S = 5.0
"""After a reading that failed."""
LONG_S = 60.0
"""A reading that takes longer is reported."""
WRITE_S = 2.0
"""Beyond the log's own ``flush_s``: how long a request may take from its answer to the storage."""

_log = logging.getLogger(__name__)


class Window(NamedTuple):
    """Requests that arrived from ``since`` on, before ``until``; None: until now."""

    since: datetime
    until: datetime | None


@dataclass(frozen=True)
class LogLosses:
    """What one reading found."""

    losses: LossesIn = field(default_factory=dict)
    left_out: str = ""
    """What was not read, and why; empty if all was."""


class ReadLosses(Protocol):
    """Reads how wrong the labelled answers of versions were."""

    def __call__(self, name: str, windows: Sequence[Window], *, labelled: Callable[[], None]) -> LogLosses:
        """Return those of every version in each window.

        ``labelled`` is called once it is known that labels arrive, or did in the days before.

        Raises:
            Exception: they cannot be read now.
        """


@dataclass(frozen=True)
class LossReport(Record):
    """What is known of the losses of a rollout, and how old that is."""

    losses: LossesIn = field(default_factory=dict)
    labelled: bool = False
    """Whether labels arrive for this model, as far as is known."""
    covers: datetime | None = None
    """All that was answered before this is in them; None: nothing was read yet."""
    tried: datetime | None = None
    """As ``covers``, of the newest reading that has ended, whether or not it failed."""
    unknown: str = ""
    """Why newer ones are not known, and since when; empty where the last reading succeeded."""
    off: str = ""
    """Why they are not read at all."""
    left_out: str = ""

    def of(self, version: int, window: Window, *, before: Losses) -> Losses:
        """Return those of a version in a window; ``before`` where it was not read yet, or not as it ends now."""
        found = self.losses.get(window)
        return before if found is None else found.get(version, found.get(None, Losses()))

    def check(self) -> None:
        """Raise what keeps newer ones from being known.

        Raises:
            StorageError: the log cannot be read.
        """
        if self.unknown:
            raise StorageError(self.unknown)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, without the losses themselves: the steps have them."""
        times = {"covers": self.covers, "tried": self.tried}
        known = {key: getattr(self, key) for key in ("labelled", "unknown", "off", "left_out")}
        return {**{key: time and time.isoformat() for key, time in times.items()}, **known}


Start = Callable[[Callable[[], None], str], None]
"""Calls a function without waiting for it; the text names its purpose."""


def in_thread(work: Callable[[], None], what: str) -> None:
    """Call a function in a daemon thread of its own."""
    threading.Thread(target=work, name=f"raymlops-losses-{what}", daemon=True).start()


@dataclass
class _Reading:
    """One reading of the log: its thread writes the results, the caller's thread reads them."""

    rollout_id: str
    began: datetime
    covers: datetime
    labelled: bool = False
    found: LogLosses | None = None
    took_s: float = 0.0
    error: BaseException | None = None

    def run(self, read: ReadLosses, name: str, windows: Sequence[Window], *, clock: Callable[[], float]) -> None:
        start = clock()
        try:
            found = read(name, windows, labelled=self._note_labels)
            self.took_s = clock() - start
            self.found = found  # last: whoever sees it sees the rest
        except BaseException as error:  # whatever it is, the log is read again later
            if not isinstance(error, RaymlopsError):
                _log.warning("the losses of %s cannot be read", name, exc_info=error)
            self.error = error

    def _note_labels(self) -> None:
        self.labelled = True


@dataclass
class _Model:
    """What is known of one model's rollout."""

    rollout_id: str
    reading: _Reading | None
    report: LossReport = field(default_factory=LossReport)
    failing: datetime | None = None
    """When the first reading of an unbroken series of failures began."""
    pause_s: float = READ_EVERY_S
    """From the beginning of the last reading to that of the next one."""

    def collect(self) -> None:
        """Update the report from the reading in progress; drop what it found for an earlier rollout."""
        reading = self.reading
        if reading is None:
            return
        found, error = reading.found, reading.error
        if found is not None or error is not None:
            self.reading = None
        if reading.rollout_id != self.rollout_id:
            return
        self.report = replace(self.report, labelled=self.report.labelled or reading.labelled)
        if found is not None:
            self.failing = None
            self.pause_s = max(READ_EVERY_S, reading.took_s / BUSY)
            known: dict[str, Any] = {"losses": found.losses, "left_out": found.left_out, "covers": reading.covers}
            self.report = replace(self.report, **known, tried=reading.covers, unknown="")
        elif error is not None:
            self.failing, self.pause_s = self.failing or reading.began, RETRY_S
            message = error.message if isinstance(error, RaymlopsError) else str(error)
            why = _unknown(self.failing, f"{type(error).__name__}: {message}"[:1000])
            self.report = replace(self.report, tried=reading.covers, unknown=why)


class LossReader:
    """Know the losses of rollouts. Called by one thread."""

    def __init__(
        self, read: ReadLosses, *, start: Start = in_thread, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._start = start
        self._clock = clock
        self._models: dict[str, _Model] = {}

    def report(
        self,
        name: str,
        rollout_id: str,
        windows: Sequence[Window],
        *,
        now: datetime,
        needed: datetime,
        flush_s: float,
    ) -> LossReport:
        """Return what is known of a model's rollout, and start a reading when one is due.

        That is every 30 seconds, less often where a reading takes long, and once after ``needed``, to cover everything
        before it. The log holds an answer ``flush_s`` and a moment after it was given.
        """
        model = self._models.get(name)
        if model is None or model.rollout_id != rollout_id:
            model = self._models[name] = _Model(rollout_id, None if model is None else model.reading)
        model.collect()
        covers = now - timedelta(seconds=flush_s + WRITE_S)
        if model.reading is None and _is_due(model, covers, needed=needed):
            model.reading = _Reading(rollout_id, now, covers)
            try:
                self._start(partial(model.reading.run, self._read, name, list(windows), clock=self._clock), name)
            except RuntimeError as error:  # no thread can be started now
                model.reading.error = error
            model.collect()
        report, reading = model.report, model.reading
        if reading is not None and not report.unknown and (now - reading.began).total_seconds() > LONG_S:
            return replace(report, unknown=_unknown(reading.began, "the prediction log is still being read"))
        return report


def _is_due(model: _Model, at: datetime, *, needed: datetime) -> bool:
    """Return whether losses that cover all until ``at`` are to be read."""
    tried = model.report.tried
    if tried is None or at < tried:  # never, or the clock was set back
        return True
    return tried < needed <= at or (at - tried).total_seconds() >= model.pause_s


def _unknown(since: datetime, why: str) -> str:
    return f"losses unknown since {since.isoformat(timespec='seconds')}: {why}"
