"""A sweep from start to end: checks, a parent run, the trials on Ray Tune, the winner and its configuration.

Owns the order of the steps and what is left behind however it ends: no open trial, no open run, no process. Assumes a
running Ray. Knows nothing of how a trial is drawn (``trials``), run (``trial``) or judged (``select``).
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raymlops.config.load import dump
from raymlops.errors import RaymlopsError, SweepError, TrackingError
from raymlops.records import SCHEMA_VERSION, SweepRecord
from raymlops.signals import undisturbed
from raymlops.tuning.checks import check, concurrency, metric_of, mode_of, refuse_sqlite
from raymlops.tuning.conductor import Conductor
from raymlops.tuning.quiet import quiet_tune, stop_on_signal
from raymlops.tuning.reasons import describe
from raymlops.tuning.select import select
from raymlops.tuning.storage import create_study, open_storage, optuna_url, without_credentials
from raymlops.tuning.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import DataRecord, TrialRecord
    from raymlops.tracking.client import Tracker
    from raymlops.tuning.children import Children
    from raymlops.tuning.progress import SweepEvent


def sweep(
    project: Project,
    *,
    on_event: Callable[[SweepEvent], None] | None = None,
    tags: Mapping[str, str] | None = None,
) -> SweepRecord:
    """Search ``sweep.space`` and return every trial, the best one, and where its configuration was written.

    Raises:
        UsageError: nothing to search, a metric that the recipe never reports, a recipe that fails on the
            configuration as it stands, SQLite with more than one node; before anything starts.
        StorageError: ``storage.path`` or Optuna's file cannot be written.
        TrackingError: MLflow is down before the first trial, or did not take what was left at the end.
        SweepError: no trial gave a usable value; says how each failed. The parent run is FAILED.
        KeyboardInterrupt: it was interrupted; trials are ended, the parent run is KILLED and holds what finished.
    """
    import ray

    from raymlops.tracking.client import tracker
    from raymlops.training.run import preflight
    from raymlops.training.storage import check_writable
    from raymlops.tuning.datacache import DataCache

    started = time.monotonic()
    spec = project.spec
    check(project)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    url = optuna_url(spec)
    refuse_sqlite(url, nodes=len(nodes))
    check_writable(spec.storage.path)
    store = tracker(spec)
    store.check()
    data = DataCache()
    prepared = data.get(project)
    preflight(project, prepared)

    with (
        open_storage(url) as storage,
        _parent_run(project, store, prepared.data, tags=tags or {}) as sweep_id,
    ):
        study = create_study(storage, f"{spec.project.name}-{sweep_id}", sweep=spec.sweep, mode=mode_of(spec))
        store.set_tags(sweep_id, {"raymlops.study": study.study_name})
        study.set_user_attr("raymlops.sweep_id", sweep_id)
        study.set_user_attr("raymlops.metric", metric_of(spec))
        trials = Trials(study, space=spec.sweep.space)
        _search(
            project,
            store,
            trials,
            sweep_id=sweep_id,
            max_concurrent=concurrency(spec, nodes),
            shared=data.share(),
            on_event=on_event,
        )
        best = select(trials.records, mode=mode_of(spec))
        return SweepRecord(
            sweep_id=sweep_id,
            project=spec.project.name,
            study=study.study_name,
            storage=without_credentials(url),
            metric=metric_of(spec),
            mode=mode_of(spec),
            trials=trials.records,
            best=best,
            best_config=_write_best(project, store, best, sweep_id=sweep_id),
            duration_s=time.monotonic() - started,
        )


@contextmanager
def _parent_run(project: Project, store: Tracker, data: DataRecord, *, tags: Mapping[str, str]) -> Iterator[str]:
    """Open the sweep's own run and close it with how the sweep ended."""
    from raymlops.training.record import open_run, reason

    run_id = open_run(store, project, data, tags={**tags, "raymlops.metric": metric_of(project.spec)}, kind="sweep")
    try:
        yield run_id
        store.end_run(run_id, "FINISHED")
    except BaseException as error:
        try:
            with undisturbed():
                store.set_tags(run_id, {"raymlops.reason": reason(error)})
                store.end_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        except TrackingError as lost:
            error.add_note(f"Its MLflow run {run_id} is still marked RUNNING: {lost.message}")
        raise


def _search(
    project: Project,
    store: Tracker,
    trials: Trials,
    *,
    sweep_id: str,
    max_concurrent: int,
    shared: Mapping[str, Any],
    on_event: Callable[[SweepEvent], None] | None,
) -> None:
    """Run the trials; whatever happens, each of them has ended when this returns or raises."""
    from raymlops.tuning.children import Children
    from raymlops.tuning.fit import fit

    spec = project.spec
    children = Children(
        store,
        experiment=spec.experiment,
        parent_run_id=sweep_id,
        name=f"{spec.project.name}-trial",
        tags={**spec.project.tags, "raymlops.project": spec.project.name, "raymlops.recipe": project.reference},
    )
    conductor = Conductor(
        project,
        trials=trials,
        children=children,
        metric=metric_of(spec),
        mode=mode_of(spec),
        max_concurrent=max_concurrent,
        shared=shared,
        on_event=on_event,
    )
    try:
        with stop_on_signal(conductor), quiet_tune(max_pending=max_concurrent):
            fit(conductor, spec=spec, name=sweep_id)
    except Exception as error:
        conductor.failed(error)
    finally:
        lost = _close(conductor, children, lambda: _summary(trials.records, spec), store=store, sweep_id=sweep_id)
    if isinstance(conductor.error, RaymlopsError):
        raise conductor.error
    if conductor.error is not None:
        raise SweepError(f"the sweep broke off: {describe(conductor.error)}") from conductor.error
    if conductor.halt == "interrupted":
        raise KeyboardInterrupt
    if lost is not None:
        raise TrackingError(
            f"the trials are done, but MLflow did not take all they gave: {lost.message}",
            hint=f"The Optuna study {trials.study_name} holds every trial with its parameters and values.",
        ) from lost


def _close(
    conductor: Conductor, children: Children, summary: Callable[[], str], *, store: Tracker, sweep_id: str
) -> TrackingError | None:
    """End whatever is open, in the study first: it does not depend on MLflow. Return what MLflow refused."""
    with undisturbed():
        try:
            conductor.close()
        except Exception as error:
            conductor.failed(error)
            try:
                conductor.close()  # what failed may have been the display, which is asked no more
            except Exception as again:
                error.add_note(f"Trials are left open: {describe(again)}")
        try:
            children.close()
            store.log_text(sweep_id, summary(), "sweep/trials.json")
        except TrackingError as error:
            return error
    return None


def _summary(records: Sequence[TrialRecord], spec: ProjectSpec) -> str:
    data = {
        "schema_version": SCHEMA_VERSION,
        "metric": metric_of(spec),
        "mode": mode_of(spec),
        "trials": [asdict(record) for record in records],
    }
    return json.dumps(data, indent=1)


def _write_best(project: Project, store: Tracker, best: TrialRecord, *, sweep_id: str) -> str:
    """Write the winner's whole configuration, which ``train`` takes, beside the sweep and into its run."""
    from raymlops.training.storage import join, write_bytes

    spec = project.spec
    if best.value is None:
        raise SweepError(f"trial {best.number} has no value")
    header = (
        f"# Trial {best.number} of sweep {sweep_id}: {metric_of(spec)} = {best.value:.6g} "
        f"after {best.epochs} epochs ({best.status}).\n"
    )
    text = header + dump(project.with_params(best.params).spec)
    uri = join(spec.storage.path, "sweeps", sweep_id, "best.yaml")
    write_bytes(uri, text.encode())
    store.log_text(sweep_id, text, "config/best.yaml")
    store.log_metrics(sweep_id, [(metric_of(spec), best.value, 0, int(time.time() * 1000))])
    found = {"raymlops.best_trial": str(best.number)}
    store.set_tags(sweep_id, found if best.run_id is None else {**found, "raymlops.best_run_id": best.run_id})
    return uri
