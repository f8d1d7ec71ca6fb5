"""The writer of a run: events in, MLflow and the run's log out, whatever MLflow does meanwhile.

The one place that writes a run's MLflow record while it trains, in the driver's process. Knows nothing of workers:
events are events.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.display import Throttle, logfmt, logfmt_line
from raymlops.errors import TrackingError
from raymlops.tracking.client import MAX_TAG_CHARS, now_ms
from raymlops.tracking.outbox import DROPPED, Outbox
from raymlops.training.events import Event
from raymlops.training.runs.logfile import RunLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import MetricPoint
    from raymlops.tracking.client import Tracker
    from raymlops.tracking.outbox import Status

CLOSE_WAIT_S = 60.0
KILLED_WAIT_S = 10.0
"""How long the end of a run waits for MLflow: of one that was interrupted, somebody waits already."""
PROGRESS_EVERY_S = 10.0
LOG_EVERY_S = 10.0
MAX_REASON_CHARS = 1000
MAX_RESTARTS = 20
MAX_RESTART_REASON_CHARS = 150
CHECKPOINT_FAILURES = "raymlops.checkpoint_failures"
"""Tag: how many checkpoints could not be written in this attempt."""
REASON = "raymlops.reason"
PROGRESS = "raymlops.progress"
RESTARTS = "raymlops.restarts"
RESTART_COUNT = "raymlops.restart_count"
"""Tags: why a run ended, how far it is, its newest restarts, and how many there were."""


class RunWriter:
    """Writes one run, over any number of its attempts. ``on_event`` gets every event too; it is the display's door.

    Taking in an event never waits for MLflow. One that stops answering costs no training: what could not be written is
    kept, up to a bound, and written when it answers again, at the latest when the run ends. ``last_steps`` and ``tags``
    are those of a run that was reopened; ``log_uri`` is where its log is kept.
    """

    def __init__(
        self,
        tracker: Tracker,
        run_id: str,
        *,
        on_event: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        last_steps: Mapping[str, int] | None = None,
        tags: Mapping[str, str] | None = None,
        log_uri: str | None = None,
    ) -> None:
        self.run_id = run_id
        self._on_event = on_event
        tags = tags or {}
        dropped = tags.get(DROPPED, "")
        self._outbox = Outbox(
            tracker, run_id, last_steps=last_steps, dropped=int(dropped) if dropped.isdecimal() else 0, clock=clock
        )
        self._log = None if log_uri is None else RunLog(log_uri, clock=clock)
        self._restarts = restarts(tags)
        count = tags.get(RESTART_COUNT, "")
        self._restart_count = int(count) if count.isdecimal() else len(self._restarts)
        self._progress_due = Throttle(PROGRESS_EVERY_S, clock=clock)
        self._log_due = Throttle(LOG_EVERY_S, clock=clock)
        self._latest = Event("start")

    def __call__(self, event: Event) -> None:
        """Take in an event: note its metrics, log it and show it."""
        # Noted first: a display that fails costs no metrics.
        self._note(event)
        self._write_line(event)
        self._show(event)
        for text in self._news():
            self._tell(text)

    def catch_up(self, points: Sequence[MetricPoint]) -> int:
        """Note those points of a checkpoint that the run lacks, because a driver died with them; return how many."""
        return self._outbox.put(points)

    def note(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run with the next batch."""
        self._outbox.put((), tags)

    def note_restart(self, reason: str, *, step: int, workers: int) -> None:
        """Note that a new attempt starts: from the checkpoint of ``step``, with so many workers."""
        text = reason if len(reason) <= MAX_RESTART_REASON_CHARS else reason[: MAX_RESTART_REASON_CHARS - 3] + "..."
        self._restarts.append({"at": _now(), "step": step, "workers": workers, "reason": text})
        self._restart_count += 1
        del self._restarts[:-MAX_RESTARTS]
        while len(_json(self._restarts)) > MAX_TAG_CHARS:
            del self._restarts[0]
        self.note({RESTARTS: _json(self._restarts), RESTART_COUNT: str(self._restart_count)})
        self._latest = replace(self._latest, workers=workers)
        self(replace(self._words(reason), kind="restart", step=step))

    def close(self, status: Status, *, tags: Mapping[str, str], wait_s: float = CLOSE_WAIT_S) -> None:
        """Write the rest and how the run ended; an MLflow that is away is waited for, and that is said.

        Raises:
            TrackingError: MLflow does not take it.
        """
        progress = {PROGRESS: self._progress()} if self._latest.step else {}
        try:
            self._outbox.finish(status, tags={**progress, **tags}, wait_s=wait_s, tell=self._tell_quietly)
        finally:
            for text in self._news():
                self._tell_quietly(text)
            if self._log is not None:
                why = {"reason": tags[REASON]} if REASON in tags else {}
                self._log.append(logfmt_line({"event": "closed", "status": status, **why}))
                self._log.close()

    def close_failed(self, error: BaseException) -> None:
        """Write the rest and why the run ended; an MLflow that is gone too becomes a note on the error."""
        status = status_of(error)
        wait_s = KILLED_WAIT_S if status == "KILLED" else CLOSE_WAIT_S
        try:
            self.close(status, tags={REASON: reason(error)}, wait_s=wait_s)
        except TrackingError as lost:
            error.add_note(f"Its MLflow run {self.run_id} is still marked RUNNING: {lost.message}")

    def _note(self, event: Event) -> None:
        if event.kind == "end":
            return  # it repeats the best epoch's metrics
        if event.kind in {"step", "epoch"}:
            self._latest = replace(event, workers=event.workers or self._latest.workers)
        metrics = {**event.metrics, **({"epoch": float(event.epoch)} if event.kind == "epoch" else {})}
        ms = event.timestamp_ms or now_ms()
        tags = dict(event.tags)
        if self._latest.step and self._progress_due.due():
            tags[PROGRESS] = self._progress()
        # The epoch's mean of train/loss comes after that of its last steps, at the same step: the first one counts.
        self._outbox.put([(name, value, event.step, ms) for name, value in metrics.items()], tags)

    def _progress(self) -> str:
        event = self._latest
        eta_s = event.eta_s
        return _json(
            {
                "epoch": event.epoch,
                "epochs": event.epochs,
                "step": event.step,
                "steps": event.steps,
                "eta_s": None if eta_s is None else round(eta_s),
                "rows_per_s": round(event.rows_per_s, 1),
                "workers": event.workers,
                "at": _now(),
            }
        )

    def _write_line(self, event: Event) -> None:
        if self._log is not None and (event.kind != "step" or self._log_due.due()):
            self._log.append(logfmt(event))

    def _show(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _news(self) -> list[str]:
        lost = self._log.news() if self._log is not None else []
        return [*self._outbox.news(), *lost]

    def _tell(self, text: str) -> None:
        event = self._words(text)
        self._write_line(event)
        self._show(event)

    def _words(self, text: str) -> Event:
        return replace(self._latest, kind="message", metrics={}, message=text, timestamp_ms=now_ms())

    def _tell_quietly(self, text: str) -> None:
        # Whoever closes a run has something better to do than to fail because of a display.
        with contextlib.suppress(Exception):
            self._tell(text)


def restarts(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the newest restarts that a run's tags tell of, oldest first: ``at``, ``step``, ``workers``, ``reason``."""
    try:
        found = json.loads(tags.get(RESTARTS, "[]"))
    except ValueError:
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def status_of(error: BaseException) -> Status:
    """Return MLflow's word for a run that ended with an error."""
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def reason(error: BaseException) -> str:
    """Return why a run ended, as a tag holds it."""
    return f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
