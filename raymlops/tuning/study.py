"""A sweep from start to end: checks, a parent run, the trials on Ray Tune, the winner and its configuration.

Owns the order of the steps and what is left behind however it ends: no open trial, no open run, no process. Assumes a
running Ray. Knows nothing of how a trial is drawn (``trials``), run (``trial``) or judged (``select``).
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raymlops.config.load import dump
from raymlops.errors import SweepError, TrackingError, UsageError
from raymlops.records import SCHEMA_VERSION, SweepRecord
from raymlops.tuning.conductor import Conductor
from raymlops.tuning.quiet import hold_signals, quiet_tune, stop_on_signal
from raymlops.tuning.select import select
from raymlops.tuning.space import draw_order
from raymlops.tuning.storage import create_study, open_storage, optuna_url, without_credentials
from raymlops.tuning.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import DataRecord, TrialRecord
    from raymlops.tracking.client import Tracker
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
    from raymlops.training.data import prepare
    from raymlops.training.run import preflight
    from raymlops.training.storage import check_writable

    started = time.monotonic()
    spec = project.spec
    check(project)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    url = optuna_url(spec)
    refuse_sqlite(url, nodes=len(nodes))
    check_writable(spec.storage.path)
    store = tracker(spec)
    store.check()
    prepared = prepare(project)
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
        _search(project, store, trials, sweep_id=sweep_id, max_concurrent=_concurrency(spec, nodes), on_event=on_event)
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


def metric_of(spec: ProjectSpec) -> str:
    """Return the name of the metric that the sweep optimises."""
    return spec.sweep.metric or spec.train.metric


def mode_of(spec: ProjectSpec) -> str:
    """Return whether the sweep's metric is to fall or to rise: ``train.mode`` holds for ``train.metric`` alone."""
    return spec.sweep.mode or spec.train.mode


def check(project: Project) -> None:
    """Refuse a sweep that cannot be: needs no cluster, so that it can be asked before one is started.

    Raises:
        UsageError: the space is empty, its conditions form a circle, or the metric changes without its mode.
    """
    section = project.spec.sweep
    if not section.space:
        raise UsageError(
            "sweep.space is empty: there is nothing to search",
            hint="Write for example sweep: {space: {train.lr: {float: [1e-4, 1e-1], log: true}}}.",
        )
    draw_order(section.space)
    if section.metric not in {None, project.spec.train.metric} and section.mode is None:
        raise UsageError(
            f"sweep.metric is {section.metric!r}, not train.metric ({project.spec.train.metric!r}), "
            "and sweep.mode does not say whether it is to fall or to rise",
            hint="Write sweep.mode: min or max.",
        )


def slots(nodes: Sequence[Mapping[str, Any]], *, cpus: float, gpus: float) -> int:
    """Return how many trials fit on living nodes (as ``ray.nodes()`` gives them) at once, each on one node."""
    total = 0
    for node in nodes:
        resources = node["Resources"]
        # 1.2 CPUs hold six trials of 0.2, which floating point says is 5.999...
        fits = [
            math.floor(resources.get(name, 0.0) / share + 1e-9)
            for name, share in (("CPU", cpus), ("GPU", gpus))
            if share
        ]
        total += min(fits, default=0)
    return total


def refuse_sqlite(url: str, *, nodes: int) -> None:
    """Refuse a SQLite file where the cluster has several nodes.

    Raises:
        UsageError: saying what to set instead.
    """
    if nodes > 1 and url.startswith("sqlite"):
        raise UsageError(
            f"storage.optuna is {without_credentials(url)}, and the cluster has {nodes} nodes: "
            "a SQLite file lives on one",
            hint="Set storage.optuna to a PostgreSQL URL, as {env: NAME} where it holds a password.",
        )


def _concurrency(spec: ProjectSpec, nodes: Sequence[Mapping[str, Any]]) -> int:
    section = spec.train
    fits = slots(nodes, cpus=section.cpus_per_worker, gpus=section.gpus_per_worker)
    # At least one: an autoscaler may add the node that holds it.
    return max(1, min(fits, spec.sweep.max_concurrent or fits, spec.sweep.num_trials))


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
            with hold_signals():
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
    on_event: Callable[[SweepEvent], None] | None,
) -> None:
    """Run the trials; whatever happens, each of them has ended when this returns or raises."""
    from raymlops.tuning.children import Children

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
        on_event=on_event,
    )
    try:
        with stop_on_signal(conductor), quiet_tune(max_pending=max_concurrent):
            _fit(conductor, spec=spec, name=sweep_id)
    except Exception as error:
        conductor.failed(error)
    finally:
        with hold_signals():
            conductor.close()
            children.close()
            store.log_text(sweep_id, _summary(trials.records, spec), "sweep/trials.json")
    if conductor.error is not None:
        raise conductor.error
    if conductor.halt == "interrupted":
        raise KeyboardInterrupt


def _fit(conductor: Conductor, *, spec: ProjectSpec, name: str) -> None:
    from ray import tune

    from raymlops.tuning.hooks import SweepCallback, SweepSearcher, SweepStopper
    from raymlops.tuning.trial import TrialActor

    callback = SweepCallback(conductor)
    # What Tune writes serves its own restore, which we never make: the study and MLflow hold what counts.
    with tempfile.TemporaryDirectory(prefix="raymlops-sweep-") as folder:
        tuner = tune.Tuner(
            TrialActor,
            param_space={},
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(conductor),
                scheduler=_scheduler(spec),
                num_samples=spec.sweep.num_trials,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                callbacks=[callback],
                stop=SweepStopper(conductor, callback=callback),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()


def _scheduler(spec: ProjectSpec) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if spec.sweep.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode=mode_of(spec),
        max_t=spec.train.epochs,
        grace_period=min(spec.sweep.grace_epochs, spec.train.epochs),
        reduction_factor=spec.sweep.reduction_factor,
    )


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


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
