"""How a run is doing: what MLflow, its lease and its checkpoints say, as one record.

Owns the words for the state of a run and what resuming it would do. The summary is pure; asking is apart. Opens no
checkpoint's tensors, and imports no recipe.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from raymlops.errors import NotFoundError, StorageError
from raymlops.records import Record
from raymlops.storage import filesystem
from raymlops.tracking.tag_entries import entries
from raymlops.training.checkpoints.retention import STATE
from raymlops.training.runs.garbage import files_under, newest_whole, read_pointer
from raymlops.training.runs.lookup import CHECKPOINTS, LOG, Recorded, look_up, who_holds
from raymlops.training.runs.resume import RESUMED_WITH_CHANGES, is_evaluated
from raymlops.training.runs.writer import PROGRESS, REASON, RESTART_COUNT, RESTARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.tracking.client import Tracker
    from raymlops.training.checkpoints.retention import Kept

State = Literal["running", "interrupted", "finished", "failed", "killed", "unknown"]
_ENDED: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


@dataclass(frozen=True)
class CheckpointStatus(Record):
    """One checkpoint on the disk."""

    name: str
    step: int
    written_at: str | None
    age_s: float | None
    size_bytes: int


@dataclass(frozen=True)
class Found:
    """What lies in the folder of a run's checkpoints."""

    kept: Kept | None = None
    last: CheckpointStatus | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    """The last one's ``state.json``; empty where it cannot be read."""
    problem: str = ""
    """Why it could not be looked at."""
    unusable: str = ""
    """What is wrong with the newest one, and what resuming does with it, where it would pass it over."""


@dataclass(frozen=True)
class RunStatus(Record):
    """A run, a sweep or a trial, as it is now. Counts are of the whole run; None where nothing says."""

    run_id: str
    name: str
    kind: str
    project: str
    state: State
    detail: str
    """What the state means or why it is so, in a sentence; empty where the word says it all."""
    holder: str | None
    """Who trains it."""
    tracking_uri: str
    started_at: str
    ended_at: str | None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    percent: float | None = None
    eta_s: float | None = None
    """Seconds to go, of a run that runs."""
    rows_per_s: float | None = None
    seen_at: str | None = None
    """When it last said how far it is."""
    best_epoch: int | None = None
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
    resume: str = ""
    """What `raymlops train --resume` would do."""
    trials: dict[str, int] = field(default_factory=dict)
    """Of a sweep: how many trials are in each state."""


def run_status(tracker: Tracker, run_id: str, *, now: datetime | None = None) -> RunStatus:
    """Ask about a run and return how it is doing.

    Raises:
        NotFoundError: there is none; the message names near ones.
        TrackingError: MLflow does not answer.
    """
    recorded = look_up(tracker, run_id)
    now = now or datetime.now(UTC)
    if recorded.kind != "run":
        return summarize(recorded, tracking_uri=tracker.shown_uri, now=now, trials=_trials(tracker, recorded))
    return summarize(
        recorded,
        tracking_uri=tracker.shown_uri,
        now=now,
        lease=who_holds(recorded),
        found=_look(recorded, now=now),
        evaluated=recorded.status == "FINISHED" and is_evaluated(tracker, run_id),
    )


def summarize(
    recorded: Recorded,
    *,
    tracking_uri: str,
    now: datetime,
    lease: tuple[Literal["held", "free", "unknown"], str] = ("unknown", "only a run of its own has a lease"),
    found: Found | None = None,
    evaluated: bool = False,
    trials: Mapping[str, int] | None = None,
) -> RunStatus:
    """Put together what was found out about a run; ``evaluated`` says whether its test metrics are on record."""
    tags, found = recorded.tags, found or Found()
    held, who = lease
    state = _state(recorded.status, held)
    progress = _progress(tags, found)
    at = _time(progress.get("at"))
    step, steps = _whole(progress.get("step")), _whole(progress.get("steps"))
    eta_s = progress.get("eta_s")
    if state != "running" or not isinstance(eta_s, int | float):
        eta_s = None
    elif at is not None:
        eta_s = max(0.0, eta_s - max(0.0, (now - at).total_seconds()))
    best_epoch, metrics = _best(recorded, found.state)
    return RunStatus(
        run_id=recorded.run_id,
        name=recorded.name,
        kind=recorded.kind,
        project=tags.get("raymlops.project", ""),
        state=state,
        detail=_detail(recorded, state, held=held, who=who),
        holder=who if held == "held" else None,
        tracking_uri=tracking_uri,
        started_at=_iso(recorded.started_ms),
        # Of a run that was opened again MLflow keeps the end of before.
        ended_at=None if recorded.ended_ms is None or recorded.status == "RUNNING" else _iso(recorded.ended_ms),
        epoch=_whole(progress.get("epoch")),
        epochs=_whole(progress.get("epochs")),
        step=step,
        steps=steps,
        percent=None if step is None or not steps else round(100 * min(step / steps, 1.0), 1),
        eta_s=eta_s,
        rows_per_s=progress.get("rows_per_s") or None,
        seen_at=at.isoformat() if at else None,
        best_epoch=best_epoch,
        metrics=metrics,
        workers=_whole(progress.get("workers")),
        restart_count=_whole(tags.get(RESTART_COUNT)) or 0,
        restarts=tuple(entries(tags, RESTARTS)),
        resumed_with_changes=tuple(entries(tags, RESUMED_WITH_CHANGES)),
        skipped_steps=tuple(found.state.get("run", {}).get("skipped", ())),
        checkpoint=found.last,
        best_checkpoint=found.kept.best if found.kept else None,
        weights_uri=tags.get("raymlops.weights_uri"),
        files_uri=recorded.files_uri,
        log_uri=filesystem.join(recorded.files_uri, LOG) if recorded.files_uri and recorded.kind == "run" else None,
        resume=_resume(recorded, state, found, who=who, evaluated=evaluated),
        trials=dict(trials or {}),
    )


def _state(status: str, held: str) -> State:
    if held == "held":
        return "running"
    if status in _ENDED:
        return _ENDED[status]
    return "interrupted" if held == "free" and status == "RUNNING" else "unknown"


def _detail(recorded: Recorded, state: State, *, held: str, who: str) -> str:
    if recorded.kind == "sweep":
        shown = "" if state != "unknown" else ": MLflow says RUNNING, and nobody can tell whether its driver lives"
        return f"a sweep, not a run{shown}"
    if recorded.kind == "trial":
        return _of_trial(recorded.tags)
    if not recorded.kind:
        return f"no run of raymlops; MLflow says {recorded.status}"
    if state == "running":
        return f"by {who}" if recorded.status == "RUNNING" else f"by {who}; MLflow still says {recorded.status}"
    if state == "interrupted":
        return "MLflow says RUNNING, but nobody trains it"
    if state == "unknown":
        return f"MLflow says {recorded.status}; {who}" if held == "unknown" else f"MLflow says {recorded.status}"
    return why_ended(recorded)


def why_ended(recorded: Recorded) -> str:
    """Return why a run or a sweep ended without getting to its end; empty where nothing says so."""
    reason = recorded.tags.get(REASON, "").strip().removesuffix(":")
    return "a signal stopped it" if reason == "KeyboardInterrupt" else reason


def _of_trial(tags: Mapping[str, str]) -> str:
    """Return which trial it is, and how its sweep says that it ended: a pruned one is KILLED to MLflow."""
    number = tags.get("raymlops.trial", "")
    which = f"trial {number}" if number else "a trial"
    ended = tags.get("raymlops.trial_status", "")
    reason = tags.get(REASON, "").strip()
    return "".join(
        [
            f"{ended}: " if ended else "",
            f"{which} of the sweep {tags.get('mlflow.parentRunId', '?')}",
            f"; {reason}" if reason else "",
        ]
    )


def _resume(recorded: Recorded, state: State, found: Found, *, who: str, evaluated: bool) -> str:
    if recorded.kind != "run":
        return "only a run can be resumed"
    command = f"raymlops train --resume {recorded.run_id}"
    if state == "running":
        return f"refused while {who} trains it"
    if state == "finished" and evaluated:
        return "refused: it is finished and was registered; what its version says would no longer be true"
    if state == "finished":
        epochs = recorded.spec.train.epochs if recorded.spec else 0
        return f"nothing is left to train; {command} train.epochs={2 * epochs or 'N'} would train it for longer"
    if recorded.spec is None:
        return "refused: it was never written down whole"
    if found.problem:
        return f"nobody can tell: {found.problem}"
    if found.unusable:
        return f"the newest checkpoint {found.unusable} goes on from the one before, or from the start: {command}"
    if found.last is None:
        return f"begins again, for want of a checkpoint: {command}"
    return f"goes on from step {found.last.step}: {command}"


def _best(recorded: Recorded, checkpoint: Mapping[str, Any]) -> tuple[int | None, dict[str, float]]:
    """Return the best epoch and its metrics: as the run's end has them, else as its last checkpoint does."""
    prefix = "raymlops.best."
    final = {name.removeprefix(prefix): float(text) for name, text in recorded.tags.items() if name.startswith(prefix)}
    if final:
        return _whole(recorded.tags.get("raymlops.best_epoch")), final
    run = checkpoint.get("run", {})
    best, history = run.get("best_epoch") or 0, run.get("history") or []
    if 0 < best <= len(history):
        return best, dict(history[best - 1])
    shown = {name: value for name, value in recorded.metrics.items() if not name.startswith(("system/", "time/"))}
    return None, shown


def _look(recorded: Recorded, *, now: datetime) -> Found:
    if recorded.files_uri is None:
        return Found(problem="its configuration cannot be read")
    uri = filesystem.join(recorded.files_uri, CHECKPOINTS)
    try:
        kept = read_pointer(uri)
        name = kept.last if kept is not None else newest_whole(uri)
        if name is None:
            return Found(kept)
        folder = filesystem.join(uri, name)
        files = files_under(folder)
        state = _read_state(folder)
    except StorageError as error:
        return Found(problem=f"its last checkpoint cannot be read: {error.message}")
    if state is None:
        return Found(kept, unusable=f"{name} is {'damaged; resuming sets it aside and' if files else 'gone; resuming'}")
    times = [file.written_at for file in files if file.written_at is not None]
    last = CheckpointStatus(
        name=name,
        step=_whole(state.get("step")) or 0,
        written_at=max(times).isoformat() if times else None,
        age_s=round((now - max(times)).total_seconds(), 1) if times else None,
        size_bytes=sum(file.size_bytes for file in files),
    )
    return Found(kept, last, state)


def _read_state(folder: str) -> dict[str, Any] | None:
    """Return a checkpoint's ``state.json``; None where there is none, or none that can be read."""
    try:
        state = json.loads(filesystem.read_bytes(filesystem.join(folder, STATE)))
    except (NotFoundError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _trials(tracker: Tracker, recorded: Recorded) -> dict[str, int]:
    if recorded.kind != "sweep":
        return {}
    run = tracker.run(recorded.run_id)
    found = tracker.client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{recorded.run_id}'", max_results=5000
    )
    return dict(Counter(str(child.info.status).lower() for child in found))


def _progress(tags: Mapping[str, str], found: Found) -> dict[str, Any]:
    """Return how far the run says it is, or its last checkpoint where that is further: what it says is seconds old."""
    try:
        said = json.loads(tags.get(PROGRESS) or "{}")
    except ValueError:
        said = {}
    if not isinstance(said, dict) or not said.get("steps"):
        said = {}
    last = found.last
    if last is not None and last.step > (_whole(said.get("step")) or 0):
        said |= {"step": last.step, "epoch": found.state.get("epoch"), "at": last.written_at}
    return said


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else None


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (TypeError, ValueError):
        return None


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
