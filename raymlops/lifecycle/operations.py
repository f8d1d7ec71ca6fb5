"""Operate runs and sweeps: their status, their logs, and the removal of files that are no longer needed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError, UsageError
from raymlops.lifecycle.sources import Source, known_tracker, stores_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raymlops.training.runs.garbage import CollectRecord
    from raymlops.training.runs.status import RunStatus
    from raymlops.tuning.reporting.status import SweepStatus


def run_status(
    run_id: str, source: Source | None = None, *, overrides: Sequence[str] = (), env: str | None = None
) -> RunStatus | SweepStatus:
    """Return the status of a run, a trial or a sweep.

    ``source`` says where MLflow is; without one it is where ``MLFLOW_TRACKING_URI`` or ``RAYMLOPS_HOME`` say.

    Raises:
        NotFoundError: it does not exist; the message names similar ones.
        TrackingError: MLflow does not answer.
    """
    from raymlops.training.runs.lookup import look_up
    from raymlops.training.runs.status_reader import run_status as read
    from raymlops.tuning.reporting.status import sweep_status

    tracker = known_tracker(source, overrides=overrides, env=env)
    recorded = look_up(tracker, run_id)
    return sweep_status(tracker, recorded) if recorded.kind == "sweep" else read(tracker, recorded)


def run_log(
    run_id: str,
    source: Source | None = None,
    *,
    follow: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
) -> Iterator[str]:
    """Yield the lines of a run's log; with ``follow`` also new ones, until no process trains the run.

    Raises:
        NotFoundError: the run does not exist, or has no log.
        UsageError: a sweep or a trial, which has no log.
        TrackingError, StorageError: MLflow or the log cannot be read.
    """
    from raymlops.storage.filesystem import join
    from raymlops.training.runs.logfile import read
    from raymlops.training.runs.lookup import LOG, look_up, who_holds

    tracker = known_tracker(source, overrides=overrides, env=env)
    recorded = look_up(tracker, run_id)
    if recorded.kind in {"sweep", "trial"}:
        raise UsageError(
            f"{run_id} is a {recorded.kind}, which has no log of its own",
            hint="A run of `raymlops train` does. The output of workers is in `ray job logs` and Ray's dashboard.",
        )
    if recorded.files_uri is None:
        raise NotFoundError(f"the files of run {run_id} cannot be located: its configuration is missing or unreadable")

    def ended() -> bool:
        held, _ = who_holds(recorded)
        # Where the lease is unknown, MLflow decides.
        return held == "free" or (held == "unknown" and tracker.run(run_id).info.status != "RUNNING")

    yield from read(join(recorded.files_uri, LOG), follow=follow, ended=ended)


def collect(
    source: Source | None = None,
    *,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
    agree: Callable[[CollectRecord], None] = lambda _found: None,
) -> CollectRecord:
    """Remove files of runs and sweeps under ``storage.path`` that are no longer needed, and return which and why.

    ``agree`` is called with what was found before anything is removed; it raises to keep everything.

    Raises:
        StorageError, TrackingError: they do not answer; nothing was removed.
    """
    from raymlops.training.runs.garbage import look, remove

    spec = stores_of(source, overrides=overrides, env=env)
    tracker = known_tracker(source, overrides=overrides, env=env)
    found = look(tracker, spec)
    if dry_run or not found.waste:
        return found
    agree(found)
    return replace(found, removed=True, failed=tuple(remove(tracker, spec, found.waste)))
