"""When the prediction log is read for losses, in threads of their own, and what is known of them meanwhile.

Owns the pauses, the threads and what is said of a log that cannot be read. Knows nothing of what a loss is (``losses``)
nor of what follows from it (``rollout``). A reading may take minutes, raise, or never end: whoever asks gets what the
last one found, at once. Of each model one reading is under way at most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
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
"""Labels come minutes to days late; reading the log for them all the time would be for nothing."""
RETRY_S = 5.0
"""After a reading that failed."""
LONG_S = 60.0
"""A reading that takes longer is told of."""
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
    """What was not looked at, and why; empty where all was."""


class ReadLosses(Protocol):
    """Reads how wrong the labelled answers of versions were."""

    def __call__(self, name: str, windows: Sequence[Window], *, labelled: Callable[[], None]) -> LogLosses:
        """Return those of every version in each window. ``labelled`` is called once it is known that there are labels.

        Raises:
            Exception: they cannot be read now.
        """


@dataclass(frozen=True)
class LossReport(Record):
    """What is known of the losses of a rollout, and how old that is."""

    losses: LossesIn = field(default_factory=dict)
    labelled: bool = False
    """Whether there are labels, as far as is known."""
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
"""Calls a function without waiting for it; the text names what it is for."""


def in_thread(work: Callable[[], None], what: str) -> None:
    """Call a function in a thread of its own, which keeps no process from ending."""
    threading.Thread(target=work, name=f"raymlops-losses-{what}", daemon=True).start()


@dataclass
class _Model:
    """What is known of one model's rollout."""

    rollout_id: str
    report: LossReport = field(default_factory=LossReport)
    failing: datetime | None = None
    """When the first reading began that failed since the last one that did not."""


class LossReader:
    """Know the losses of rollouts. Ask from one thread."""

    def __init__(self, read: ReadLosses, *, start: Start = in_thread) -> None:
        self._read = read
        self._start = start
        self._lock = threading.Lock()
        self._models: dict[str, _Model] = {}
        self._under_way: dict[str, datetime] = {}
        """Model to when its reading began."""

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
        """Return what is known of a model's rollout, and begin to read where it is time to.

        That is every half a minute, and once ``needed`` is over: then losses are wanted that cover all before it. A
        log takes ``flush_s`` and a moment to hold what was answered.
        """
        lag = timedelta(seconds=flush_s + WRITE_S)
        with self._lock:
            model = self._models.get(name)
            if model is None or model.rollout_id != rollout_id:
                model = self._models[name] = _Model(rollout_id)
            began = self._under_way.get(name)
            due = began is None and _is_due(model.report, now - lag, needed=needed)
            if due:
                self._under_way[name] = now
        if due:
            self._begin(name, rollout_id, list(windows), began=now, covers=now - lag)
        with self._lock:
            report = model.report
        if not report.unknown and began is not None and (now - began).total_seconds() > LONG_S:
            return replace(report, unknown=_unknown(began, "the prediction log is still being read"))
        return report

    def _begin(
        self, name: str, rollout_id: str, windows: Sequence[Window], *, began: datetime, covers: datetime
    ) -> None:
        def work() -> None:
            try:
                found = self._read(name, windows, labelled=lambda: self._note(name, rollout_id, labelled=True))
            except Exception as error:  # whatever it is, there is another reading
                if not isinstance(error, RaymlopsError):
                    _log.warning("the losses of %s cannot be read", name, exc_info=error)
                self._failed(name, rollout_id, error, began=began, covers=covers)
            else:
                known: dict[str, Any] = {"losses": found.losses, "left_out": found.left_out}
                self._note(name, rollout_id, **known, covers=covers, tried=covers, unknown="")
            finally:
                with self._lock:
                    self._under_way.pop(name, None)

        try:
            self._start(work, name)
        except RuntimeError as error:  # no thread can be started now
            with self._lock:
                self._under_way.pop(name, None)
            self._failed(name, rollout_id, error, began=began, covers=covers)

    def _failed(self, name: str, rollout_id: str, error: Exception, *, began: datetime, covers: datetime) -> None:
        with self._lock:
            model = self._models.get(name)
            since = began if model is None or model.failing is None else model.failing
        message = error.message if isinstance(error, RaymlopsError) else str(error)
        why = _unknown(since, f"{type(error).__name__}: {message}"[:1000])
        self._note(name, rollout_id, tried=covers, unknown=why, failing=since)

    def _note(self, name: str, rollout_id: str, *, failing: datetime | None = None, **known: Any) -> None:
        with self._lock:
            model = self._models.get(name)
            if model is not None and model.rollout_id == rollout_id:  # else it was read for one that has ended
                model.report = replace(model.report, **known)
                if "tried" in known:
                    model.failing = failing


def _is_due(report: LossReport, at: datetime, *, needed: datetime) -> bool:
    """Return whether losses that cover all until ``at`` are to be read."""
    if report.tried is None or at < report.tried:  # never, or the clock was set back
        return True
    pause_s = RETRY_S if report.unknown else READ_EVERY_S
    return report.tried < needed <= at or (at - report.tried).total_seconds() >= pause_s


def _unknown(since: datetime, why: str) -> str:
    return f"losses unknown since {since.isoformat(timespec='seconds')}: {why}"
