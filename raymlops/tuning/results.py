"""The results of a sweep as it ends: the winner and its configuration, the report, the tags.

Owns these files and their places. Knows nothing of how trials ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.config.load import dump
from raymlops.errors import SweepError, describe
from raymlops.records import SweepRecord
from raymlops.storage.filesystem import join, write_bytes
from raymlops.tuning.mlflow.sweep_run import BEST_CONFIG, BEST_RUN, BEST_TRIAL, REPEATS, REPORT, STOPPED
from raymlops.tuning.study.ranking import chosen, ranking, verdict
from raymlops.tuning.study.selection import pareto, select

if TYPE_CHECKING:
    from raymlops.tuning.execution.controller import SweepController
    from raymlops.tuning.sweep_stores import SweepStores

TOLERANCE = 0.02
"""The relative difference between a trial and a run of its configuration that is not worth a word."""


def conclude(stores: SweepStores, controller: SweepController, *, storage: str) -> SweepRecord:
    """Choose the winner, write the report and the winner's configuration, end the sweep's run, and return its record.

    ``storage`` is the URL of its database without credentials.

    Raises:
        SweepError: no trial gave a usable value.
        StorageError, TrackingError: the configuration, or the run's end, cannot be written.
    """
    from raymlops.tuning.reporting.report import html

    spent, stopped = controller.spent, controller.stopped
    spec, parent, objectives = stores.project.spec, stores.parent, stores.trials.objectives
    records = stores.records()
    front = pareto(records, objectives=objectives)
    repeats = ranking(records, objectives=objectives, constraints=spec.sweep.constraints)
    best, failure, config = None, None, ""
    try:
        best = select(records, objectives=objectives, constraints=spec.sweep.constraints)
        config = dump(stores.project.with_params(best.settings).spec)
    except SweepError as error:
        failure = error
        if stopped and not records:
            failure = SweepError(
                f"the sweep {stopped} before its first trial ended",
                hint=f"raymlops sweep --resume {parent.sweep_id} --extend with more of that resumes its trials.",
            )
    report = ""
    try:
        page = html(
            stores,
            records,
            best=best,
            front=front,
            repeats=repeats,
            spent=spent,
            stopped=stopped,
            best_config_text=config,
        )
        uri = join(stores.uri, "report.html")
        write_bytes(uri, page.encode())
        report = uri
    except Exception as error:  # a sweep does not fail for its report
        controller.notify(f"no report was written: {describe(error)}")
    if best is None:
        assert failure is not None
        if report:
            failure.add_note(f"Report: {report}")
            parent.tag({REPORT: report})
        raise failure

    header = (
        f"# Trial {best.number} of sweep {parent.sweep_id}: {objectives[0].metric} = {best.value:.6g} "
        f"after {best.epochs} epochs ({best.status}).\n"
    )
    if chosen(repeats) is not None:
        header += f"# Chosen by the mean over seeds: {verdict(repeats, metric=objectives[0].metric)}.\n"
    best_config = join(stores.uri, "best.yaml")
    write_bytes(best_config, (header + config).encode())
    parent.tracker.log_text(parent.sweep_id, header + config, "config/best.yaml")
    tags = {
        BEST_TRIAL: str(best.number),
        BEST_RUN: best.run_id or "",
        BEST_CONFIG: best_config,
        REPORT: report,
        STOPPED: stopped,
        REPEATS: verdict(repeats, metric=objectives[0].metric),
        f"raymlops.best.{objectives[0].metric}": repr(best.value),
    }
    parent.end("FINISHED", {name: text for name, text in tags.items() if text})
    return SweepRecord(
        sweep_id=parent.sweep_id,
        project=spec.project.name,
        study=stores.study.study_name,
        storage=storage,
        metric=objectives[0].metric,
        mode=objectives[0].mode,
        trials=records,
        best=best,
        best_config=best_config,
        duration_s=spent.wall_s,
        stopped=stopped,
        objectives=objectives if len(objectives) > 1 else (),
        spent=spent,
        pareto=front,
        forked_from=parent.forked_from,
        report=report,
        repeats=repeats,
    )


def difference(metric: str, *, trial: float | None, run: float | None) -> str:
    """Return how a run differs from the trial whose configuration it trained; empty within ``TOLERANCE`` of its value.

    Another number of workers, FSDP or bfloat16 may give another value, and so may a metric that is not deterministic.
    """
    if trial is None or run is None or abs(run - trial) <= TOLERANCE * abs(trial):
        return ""
    return f"its trial had {metric} {trial:.5g}, the run has {run:.5g}: are workers, strategy and precision the same?"
