"""Read the status of a run from MLflow, its lease and its checkpoints.

Owns what resuming it would do. Summarizing is pure, reading is apart. Opens no checkpoint's tensors, and imports no
recipe.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.errors import NotFoundError, StorageError
from raymlops.storage import filesystem
from raymlops.tracking.tag_entries import entries
from raymlops.training.checkpoints.format import read_pointer
from raymlops.training.checkpoints.retention import STATE
from raymlops.training.runs.garbage import newest_whole
from raymlops.training.runs.lookup import CHECKPOINTS, LOG, Recorded, who_holds
from raymlops.training.runs.resume import RESUMED_WITH_CHANGES, is_evaluated, twice_as_long
from raymlops.training.runs.status import CheckpointStatus, RunStatus, shared_fields
from raymlops.training.runs.writer import PROGRESS, REASON, RESTART_COUNT, RESTARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.tracking.client import Tracker
    from raymlops.training.checkpoints.retention import Kept
    from raymlops.training.runs.lookup import Lease
    from raymlops.training.runs.status import State


@dataclass(frozen=True)
class Found:
    """The content of the folder of a run's checkpoints."""

    kept: Kept | None = None
    last: CheckpointStatus | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    """The last one's ``state.json``; empty where it cannot be read."""
    problem: str = ""
    """Why the folder cannot be read."""
    unusable: str = ""
    """What is wrong with the newest one, and what resuming does with it, where it would skip it."""


def run_status(tracker: Tracker, recorded: Recorded, *, now: datetime | None = None) -> RunStatus:
    """Return the status of a run or a trial that was looked up.

    Raises:
        TrackingError: MLflow does not answer.
    """
    now = now or datetime.now(UTC)
    if recorded.kind != "run":
        return summarize(recorded, tracking_uri=tracker.shown_uri, now=now)
    evaluated = recorded.status == "FINISHED" and is_evaluated(tracker, recorded.run_id)
    lease, found = who_holds(recorded), _look(recorded, now=now)
    return summarize(recorded, tracking_uri=tracker.shown_uri, now=now, lease=lease, found=found, evaluated=evaluated)


def summarize(
    recorded: Recorded,
    *,
    tracking_uri: str,
    now: datetime,
    lease: Lease = ("unknown", "only runs and sweeps have a lease"),
    found: Found | None = None,
    evaluated: bool = False,
) -> RunStatus:
    """Return the status from what was read of a run; ``evaluated`` says whether its test metrics are on record."""
    tags, found = recorded.tags, found or Found()
    shared = shared_fields(recorded, tracking_uri=tracking_uri, lease=lease)
    if recorded.kind == "trial":
        shared["detail"] = _of_trial(tags)
    elif not recorded.kind:
        shared["detail"] = f"not a run of raymlops; MLflow says {recorded.status}"
    progress = _progress(tags, found)
    at = _time(progress.get("at"))
    step, steps = _whole(progress.get("step")), _whole(progress.get("steps"))
    eta_s = progress.get("eta_s")
    if shared["state"] != "running" or not isinstance(eta_s, int | float):
        eta_s = None
    elif at is not None:
        eta_s = max(0.0, eta_s - max(0.0, (now - at).total_seconds()))
    best_epoch, metrics = _best(recorded, found.state)
    return RunStatus(
        **shared,
        run_id=recorded.run_id,
        kind=recorded.kind,
        epoch=_whole(progress.get("epoch")),
        epochs=_whole(progress.get("epochs")),
        step=step,
        steps=steps,
        percent=None if step is None or not steps else round(100 * min(step / steps, 1.0), 1),
        eta_s=eta_s,
        rows_per_s=progress.get("rows_per_s") or None,
        seen_at=at.isoformat() if at else None,
        best_epoch=best_epoch,
        best_step=_whole(tags.get("raymlops.best_step")),
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
        resume=_resume(recorded, shared["state"], found, who=lease[1], evaluated=evaluated),
    )


def _of_trial(tags: Mapping[str, str]) -> str:
    """Return which trial it is, and how its sweep ended it: MLflow says KILLED of a pruned one."""
    number = tags.get("raymlops.trial", "")
    ended = tags.get("raymlops.trial_status", "")
    reason = tags.get(REASON, "").strip()
    which = f"{f'trial {number}' if number else 'a trial'} of the sweep {tags.get('mlflow.parentRunId', '?')}"
    return f"{f'{ended}: ' if ended else ''}{which}{f'; {reason}' if reason else ''}"


def _resume(recorded: Recorded, state: State, found: Found, *, who: str, evaluated: bool) -> str:
    if recorded.kind != "run":
        return "only a run can be resumed"
    command = f"raymlops train --resume {recorded.run_id}"
    if state == "running":
        return f"refused while {who} trains it"
    if state == "finished" and evaluated:
        return "refused: it is finished and registered, and more training would invalidate its recorded evaluation"
    if state == "finished":
        longer = twice_as_long(recorded.spec.train) if recorded.spec else "train.epochs=N"
        return f"nothing left to train; to train longer: {command} {longer}"
    if recorded.spec is None:
        return "refused: its configuration is missing or unreadable"
    if found.problem:
        return f"unknown: {found.problem}"
    if found.unusable:
        return f"the newest checkpoint {found.unusable} continues from the previous one, or from scratch: {command}"
    if found.last is None:
        return f"restarts from scratch, as there is no checkpoint: {command}"
    return f"resumes from step {found.last.step}: {command}"


def _best(recorded: Recorded, checkpoint: Mapping[str, Any]) -> tuple[int | None, dict[str, float]]:
    """Return the best epoch and its metrics, from the run's end or else from its last checkpoint."""
    if final := recorded.best_metrics:
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
        files = filesystem.entries(folder, recursive=True)
        state = _read_state(folder)
    except StorageError as error:
        return Found(problem=f"its last checkpoint cannot be read: {error.message}")
    if state is None:
        problem = "damaged; resuming sets it aside and" if files else "missing; resuming"
        return Found(kept, unusable=f"{name} is {problem}")
    times = [info.mtime.astimezone(UTC) for info in files.values() if info.mtime is not None]
    last = CheckpointStatus(
        name=name,
        step=_whole(state.get("step")) or 0,
        written_at=max(times).isoformat() if times else None,
        age_s=round((now - max(times)).total_seconds(), 1) if times else None,
        size_bytes=sum(info.size or 0 for info in files.values()),
    )
    return Found(kept, last, state)


def _read_state(folder: str) -> dict[str, Any] | None:
    """Return a checkpoint's ``state.json``; None where it is missing or cannot be read."""
    try:
        state = json.loads(filesystem.read_bytes(filesystem.join(folder, STATE)))
    except (NotFoundError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _progress(tags: Mapping[str, str], found: Found) -> dict[str, Any]:
    """Return the reported progress, or that of its last checkpoint where it is further: reports are seconds old."""
    try:
        reported = json.loads(tags.get(PROGRESS) or "{}")
    except ValueError:
        reported = {}
    if not isinstance(reported, dict) or not reported.get("steps"):
        reported = {}
    last = found.last
    if last is not None and last.step > (_whole(reported.get("step")) or 0):
        reported |= {"step": last.step, "epoch": found.state.get("epoch"), "at": last.written_at}
    return reported


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else None


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (TypeError, ValueError):
        return None
