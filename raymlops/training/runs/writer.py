"""The writer of a run: events in, its MLflow run and its log out.

The only writer of a run's MLflow record while it trains, in the driver's process. Knows nothing of workers: events are
events.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.display import Throttle, logfmt, logfmt_line
from raymlops.errors import TrackingError
from raymlops.tracking.client import latest_of, now_ms
from raymlops.tracking.pending import DROPPED, PendingRun
from raymlops.tracking.sender import Sender
from raymlops.tracking.tag_entries import appended, entries
from raymlops.training.events import Event
from raymlops.training.runs.logfile import RunLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import MetricPoint
    from raymlops.tracking.client import Tracker
    from raymlops.tracking.pending import RunStatus

CLOSE_WAIT_S = 60.0
KILLED_WAIT_S = 10.0
"""How long the end of a run waits for MLflow, and that of an interrupted one, whose user is waiting."""
PROGRESS_EVERY_S = 10.0
LOG_EVERY_S = 10.0
MAX_REASON_CHARS = 1000
MAX_RESTART_REASON_CHARS = 150
CHECKPOINT_FAILURES = "raymlops.checkpoint_failures"
"""Tag: how many checkpoints could not be written in this attempt."""
REASON = "raymlops.reason"
PROGRESS = "raymlops.progress"
RESTARTS = "raymlops.restarts"
RESTART_COUNT = "raymlops.restart_count"
"""Tags: why a run ended, its progress, its newest restarts (``at``, ``step``, ``workers``, ``reason``), their count."""


class RunWriter:
    """Writes one run, over all of its attempts. ``on_event`` gets every event too: it feeds the display.

    A display that fails gets no more events, and does not stop the training: ``display_error`` is for its end.

    Taking in an event never waits for MLflow: data is buffered, up to a bound, until MLflow accepts it, at the latest
    when the run ends. ``previous`` is MLflow's ``Run`` of a run that resumes; ``log_uri`` is where its log is kept.
    """

    def __init__(
        self,
        tracker: Tracker,
        run_id: str,
        *,
        on_event: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        previous: Any = None,
        log_uri: str | None = None,
    ) -> None:
        self.run_id = run_id
        self.display_error: Exception | None = None
        self._on_event = on_event
        tags: Mapping[str, str] = {} if previous is None else previous.data.tags
        self._sender = Sender(tracker, clock=clock)
        self._run = PendingRun(
            f"run {run_id}",
            run_id,
            latest={} if previous is None else latest_of(previous),
            dropped=_count(tags, DROPPED) or 0,
        )
        self._log = None if log_uri is None else RunLog(log_uri, clock=clock)
        self._restarts = tags.get(RESTARTS, "")
        count = _count(tags, RESTART_COUNT)
        self._restart_count = len(entries(tags, RESTARTS)) if count is None else count
        self._progress_due = Throttle(PROGRESS_EVERY_S, clock=clock)
        self._log_due = Throttle(LOG_EVERY_S, clock=clock)
        self._latest = Event("start")

    def __call__(self, event: Event) -> None:
        """Take in an event: send its metrics, log it and show it. A restart is counted."""
        if event.kind == "restart":
            event = self._count_restart(event)
        if event.artifact is not None:
            self._sender.attach(self._run, event.artifact)
        else:
            self._send(event)
            self._write_line(event)
            self._show(event)
        for text in self._notices():
            self._tell(text)

    def catch_up(self, points: Sequence[MetricPoint]) -> int:
        """Log those points of a checkpoint that a killed driver did not get to send; return how many."""
        return self._sender.put(self._run, points)

    def close(
        self,
        status: RunStatus,
        *,
        tags: Mapping[str, str],
        kept: Mapping[str, float] | None = None,
        wait_s: float = CLOSE_WAIT_S,
    ) -> None:
        """Flush everything and end the run; tell the user when MLflow has to be waited for.

        ``kept`` are the metrics of the model that is kept, which become the run's latest ones.

        Raises:
            TrackingError: MLflow does not accept it.
        """
        progress = {PROGRESS: self._progress()} if self._latest.step else {}
        try:
            self._sender.end(self._run, status, tags={**progress, **tags}, kept=kept)
            self._sender.finish(wait_s=wait_s, patient=True, tell=self._tell)
        finally:
            for text in self._notices():
                self._tell(text)
            if self._log is not None:
                why = {"reason": tags[REASON]} if REASON in tags else {}
                self._log.append(logfmt_line({"event": "closed", "status": status, **why}))
                self._log.close()

    def close_failed(self, error: BaseException) -> None:
        """Flush everything and end the run with its error; an MLflow that is unavailable becomes a note on it."""
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        reason = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]
        try:
            self.close(
                "KILLED" if interrupted else "FAILED",
                tags={REASON: reason},
                wait_s=KILLED_WAIT_S if interrupted else CLOSE_WAIT_S,
            )
        except TrackingError as lost:
            error.add_note(f"Its MLflow run {self.run_id} may still be marked RUNNING: {lost.message}")

    def _count_restart(self, event: Event) -> Event:
        """Record that a new attempt starts from the checkpoint of the event's step; return it with the run's counts."""
        reason = event.message
        text = reason if len(reason) <= MAX_RESTART_REASON_CHARS else reason[: MAX_RESTART_REASON_CHARS - 3] + "..."
        entry = {"at": _now(), "step": event.step, "workers": event.workers, "reason": text}
        self._restarts = appended({RESTARTS: self._restarts}, RESTARTS, entry)
        self._restart_count += 1
        self._sender.put(self._run, tags={RESTARTS: self._restarts, RESTART_COUNT: str(self._restart_count)})
        self._latest = replace(self._latest, workers=event.workers)
        return replace(self._words(reason), kind="restart", step=event.step)

    def _send(self, event: Event) -> None:
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
        self._sender.put(self._run, [(name, value, event.step, ms) for name, value in metrics.items()], tags)

    def _progress(self) -> str:
        event = self._latest
        eta_s = event.eta_s
        return json.dumps(
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
        if self._on_event is None or self.display_error is not None:
            return
        try:
            self._on_event(event)
        except Exception as error:
            self.display_error = error
            self._write_line(self._words(f"the display failed: {type(error).__name__}: {error}"))

    def _notices(self) -> list[str]:
        return [*self._sender.notices(), *(self._log.notices() if self._log is not None else [])]

    def _tell(self, text: str) -> None:
        event = self._words(text)
        self._write_line(event)
        self._show(event)

    def _words(self, text: str) -> Event:
        return replace(self._latest, kind="message", metrics={}, message=text, timestamp_ms=now_ms())


def _count(tags: Mapping[str, str], key: str) -> int | None:
    text = tags.get(key, "")
    return int(text) if text.isdecimal() else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
