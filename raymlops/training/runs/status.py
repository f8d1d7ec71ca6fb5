"""The status of a run as a record, and as lines for a person.

Owns the states that runs and sweeps share. Reads nothing: that is ``status_reader``'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from raymlops.display import duration, file_size, some_of, utc_time
from raymlops.records import Record
from raymlops.training.runs.writer import REASON

if TYPE_CHECKING:
    from raymlops.training.runs.lookup import Lease, Recorded

State = Literal["running", "interrupted", "finished", "failed", "killed", "unknown"]
_ENDED: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
_SHOWN_RESTARTS = 5
_SHOWN_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Status(Record):
    """The status of a run or a sweep."""

    name: str
    project: str
    state: State
    detail: str
    """What the state means or its reason, in a sentence; empty where the word says it all."""
    holder: str | None
    """The process that runs it."""
    tracking_uri: str
    started_at: str
    ended_at: str | None
    resume: str = ""
    """What resuming it would do, with the command."""

    @property
    def state_line(self) -> str:
        """Return the state with its detail."""
        return f"{self.state}: {self.detail}" if self.detail else self.state


@dataclass(frozen=True)
class CheckpointStatus(Record):
    """One checkpoint on the disk."""

    name: str
    step: int
    written_at: str | None
    age_s: float | None
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class RunStatus(Status):
    """The status of a run or a trial. Counts are of the whole run; None where unknown."""

    run_id: str
    kind: str
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    percent: float | None = None
    eta_s: float | None = None
    """Seconds left, of a running run."""
    rows_per_s: float | None = None
    seen_at: str | None = None
    """When its progress was last reported."""
    best_epoch: int | None = None
    best_step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the best epoch; before the first one, the newest values."""
    workers: int | None = None
    restart_count: int = 0
    restarts: tuple[dict[str, Any], ...] = ()
    """The newest, oldest first: ``at``, ``step``, ``workers``, ``reason``."""
    resumed_with_changes: tuple[dict[str, Any], ...] = ()
    skipped_steps: tuple[int, ...] = ()
    """Steps whose batch was left out."""
    checkpoint: CheckpointStatus | None = None
    """The last one."""
    best_checkpoint: str | None = None
    weights_uri: str | None = None
    files_uri: str | None = None
    log_uri: str | None = None
    trials: dict[str, int] = field(default_factory=dict)
    """Always empty: ``SweepStatus`` has them."""

    def summary(self) -> dict[str, str | None]:
        """Return the status as named texts."""
        is_run = self.kind == "run"
        return {
            self.kind or "run": f"{self.run_id} ({self.name})" if self.name else self.run_id,
            "state": self.state_line,
            "progress": self._progress(),
            "metrics": self._metrics(),
            "workers": None if self.workers is None else str(self.workers or "this process"),
            "restarts": self._restarts(),
            "changed": "\n".join(
                f"{utc_time(entry.get('at'))} {'; '.join(map(str, entry.get('changes') or []))}"
                for entry in self.resumed_with_changes
            ),
            "skipped": self._skipped(),
            "checkpoint": self._checkpoint(),
            "weights": self.weights_uri,
            "files": self.files_uri if is_run else None,
            "log": self.log_uri and f"{self.log_uri}, or raymlops logs {self.run_id}",
            "resume": self.resume if is_run else None,
        }

    def _progress(self) -> str | None:
        if self.step is None:
            return None
        counts = {"epoch": (self.epoch, self.epochs), "step": (self.step, self.steps)}
        parts = [f"{name} {done}" + (f" of {all_}" if all_ else "") for name, (done, all_) in counts.items() if done]
        parts += [f"{self.percent:g}%"] if self.percent is not None else []
        parts += [f"{duration(self.eta_s)} left"] if self.eta_s is not None else []
        parts += [f"{self.rows_per_s:,.0f} rows/s"] if self.rows_per_s and self.state == "running" else []
        return ", ".join(parts) + (f" (at {utc_time(self.seen_at)})" if self.seen_at else "")

    def _metrics(self) -> str | None:
        if not self.metrics:
            return None
        best = f"step {self.best_step}" if self.best_step else f"epoch {self.best_epoch}"
        of = f"{best}, the best: " if self.best_epoch else "newest: "
        return of + ", ".join(f"{name} {value:.5g}" for name, value in sorted(self.metrics.items()))

    def _restarts(self) -> str | None:
        if not self.restart_count:
            return None
        newest = self.restarts[-_SHOWN_RESTARTS:]
        lines = [str(self.restart_count)]
        if newest:
            lines[0] += f", the newest {len(newest)}:" if len(newest) < self.restart_count else ":"
        for entry in newest:
            workers = entry.get("workers")
            on = f" with {workers} worker{'s' if workers != 1 else ''}" if workers else ""
            lines.append(f"{utc_time(entry.get('at'))} from step {entry.get('step')}{on}: {entry.get('reason')}")
        return "\n".join(lines)

    def _skipped(self) -> str | None:
        steps = self.skipped_steps
        if not steps:
            return None
        return f"{len(steps)} steps with a non-finite loss or gradient: {some_of([*map(str, steps)], _SHOWN_STEPS)}"

    def _checkpoint(self) -> str | None:
        last = self.checkpoint
        if last is None:
            return None
        age = f", {duration(last.age_s)} old" if last.age_s is not None else ""
        best = f"; best {self.best_checkpoint}" if self.best_checkpoint not in {None, last.name} else ""
        return f"{last.name} of step {last.step}{age}, {file_size(last.size_bytes)}{best}"


def shared_fields(recorded: Recorded, *, tracking_uri: str, lease: Lease) -> dict[str, Any]:
    """Return the fields of ``Status`` but ``resume``."""
    held, who = lease
    state = _state(recorded.status, held)
    if state == "running":
        detail = f"by {who}" if recorded.status == "RUNNING" else f"by {who}; MLflow still says {recorded.status}"
    elif state == "interrupted":
        detail = "MLflow says RUNNING, but no process holds its lease"
    elif state == "unknown":
        detail = f"MLflow says {recorded.status}; {who}" if held == "unknown" else f"MLflow says {recorded.status}"
    else:
        detail = why_ended(recorded)
    return {
        "name": recorded.name,
        "project": recorded.tags.get("raymlops.project", ""),
        "state": state,
        "detail": detail,
        "holder": who if held == "held" else None,
        "tracking_uri": tracking_uri,
        "started_at": _iso(recorded.started_ms),
        # MLflow keeps the previous end of a run that was reopened.
        "ended_at": None if recorded.ended_ms is None or recorded.status == "RUNNING" else _iso(recorded.ended_ms),
    }


def _state(status: str, held: str) -> State:
    if held == "held":
        return "running"
    if status in _ENDED:
        return _ENDED[status]
    return "interrupted" if held == "free" and status == "RUNNING" else "unknown"


def why_ended(recorded: Recorded) -> str:
    """Return why a run or a sweep stopped early; empty where no reason is recorded."""
    reason = recorded.tags.get(REASON, "").strip().removesuffix(":")
    return "stopped by a signal" if reason == "KeyboardInterrupt" else reason


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
