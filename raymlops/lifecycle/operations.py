"""Looking after runs and sweeps: how one is doing, what its log says, and which files nobody needs any more.

Knows how MLflow is found without a configuration. What is looked at is training's and tuning's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError, UsageError
from raymlops.lifecycle.sources import Source, known_tracker, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raymlops.training.runs.garbage import CollectRecord
    from raymlops.training.runs.status import RunStatus
    from raymlops.tuning.reporting.status import SweepStatus


def run_status(
    run_id: str, source: Source | None = None, *, overrides: Sequence[str] = (), env: str | None = None
) -> RunStatus | SweepStatus:
    """Return how a run, a trial or a sweep is doing.

    ``source`` says where MLflow is; without one it is where ``MLFLOW_TRACKING_URI`` or ``RAYMLOPS_HOME`` say.

    Raises:
        NotFoundError: there is no such run; the message names near ones.
        TrackingError: MLflow does not answer.
    """
    from raymlops.training.runs.lookup import look_up
    from raymlops.training.runs.status import run_status as ask

    tracker = known_tracker(source, overrides=overrides, env=env)
    recorded = look_up(tracker, run_id)
    if recorded.kind == "sweep":
        from raymlops.tuning.reporting.status import sweep_status

        return sweep_status(tracker, recorded)
    return ask(tracker, run_id)


def run_log(
    run_id: str,
    source: Source | None = None,
    *,
    follow: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
) -> Iterator[str]:
    """Yield the lines of a run's log; with ``follow`` also those to come, until nobody trains the run any more.

    Raises:
        NotFoundError: there is no such run, or it has no log.
        UsageError: a sweep or a trial, which has none.
        TrackingError, StorageError: MLflow or the log cannot be read.
    """
    from raymlops.storage.filesystem import join
    from raymlops.training.runs.logfile import read
    from raymlops.training.runs.lookup import LOG, look_up, who_holds

    tracker = known_tracker(source, overrides=overrides, env=env)
    recorded = look_up(tracker, run_id)
    if recorded.kind in {"sweep", "trial"}:
        raise UsageError(
            f"{run_id} is a {recorded.kind}, which keeps no log of its own",
            hint="A run of `raymlops train` does. Ray keeps what its workers print: ray job logs, or its dashboard.",
        )
    if recorded.files_uri is None:
        raise NotFoundError(f"nothing says where the files of run {run_id} are, for want of a configuration")

    def ended() -> bool:
        held, _ = who_holds(recorded)
        # Where nobody can tell who holds it, MLflow has the last word.
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
    """Remove files of runs and sweeps under ``storage.path`` that nothing needs any more, and return what and why.

    ``agree`` is called with what was found before anything is removed; it raises to keep it all.

    Raises:
        StorageError, TrackingError: they cannot be asked; nothing was removed.
    """
    from raymlops.training.runs import garbage as runs
    from raymlops.training.runs import garbage_of_sweeps as sweeps

    spec = place_of(source, overrides=overrides, env=env)
    tracker = known_tracker(source, overrides=overrides, env=env)
    found = sweeps.look(tracker, spec, runs=runs.look(tracker, spec))
    if dry_run or not found.waste:
        return found
    agree(found)
    of_sweeps = [item for item in found.waste if sweeps.is_of_sweep(item, spec)]
    of_runs = [item for item in found.waste if item not in of_sweeps]
    failed = [*runs.remove(tracker, spec, of_runs), *sweeps.remove(tracker, spec, of_sweeps)]
    return replace(found, removed=True, failed=tuple(failed))
