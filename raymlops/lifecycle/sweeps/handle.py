"""The handle of a sweep that runs in this process, as a job, or anywhere else.

Owns no state: each answer is read from MLflow, the study and the cluster, so that any kernel can attach to any sweep.
Jobs are submitted by ``submit``, sweeps run by ``run``.
"""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from raymlops.errors import ClusterError, NotFoundError, RaymlopsError, RefusedError, UsageError
from raymlops.lifecycle.sources import Source, known_tracker
from raymlops.lifecycle.train import recorded_project

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from raymlops.display import OnEvent
    from raymlops.records import ModelVersionRef, SweepRecord, TrialRecord
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded
    from raymlops.tuning.reporting.status import SweepStatus
    from raymlops.tuning.reporting.study_reader import OpenStudy


def sweep(
    source: Source | None = None,
    *,
    wait: bool = True,
    resume: str | None = None,
    extend: Sequence[str] = (),
    fork: str | None = None,
    retry_failed: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
    on_event: OnEvent | None = None,
    tags: dict[str, str] | None = None,
    working_dir: str | Path | None = None,
) -> Sweep:
    """Search ``sweep.space`` with Ray Tune and Optuna, and return the sweep's handle.

    With ``wait`` it runs in this process and has ended when this returns. Without, it is submitted as a Ray job to the
    cluster that ``raymlops up`` started, or that ``cluster.address`` or ``RAY_ADDRESS`` name, and this returns as soon
    as it has its id: it keeps running when the kernel exits, and ``attach`` finds it again. A job does not see the
    folder of the notebook: the code of the recipe is uploaded, files that it reads by a relative path are not, unless
    ``working_dir`` names their folder. What ``{env: NAME}`` refers to has to be set where the cluster runs: no
    credential is uploaded.

    ``resume`` is the id of a sweep to resume, ``extend`` raises its limits (``["num_trials=+20"]``), ``retry_failed``
    trains its failed trials again; ``fork`` is the id of a sweep whose trials a new one starts from.

    Raises:
        ConfigError, RecipeError, UsageError: before any trial starts; of a job too.
        NotFoundError, RefusedError: the sweep to resume does not exist, or another process runs it.
        ClusterError, TrackingError: Ray or MLflow do not answer; without ``wait``, no cluster outlives this process.
        SweepError: no trial finished (with ``wait``), or the job ended without a sweep.
    """
    from raymlops.lifecycle.sweeps.run import run_sweep, sweep_request
    from raymlops.lifecycle.sweeps.submit import submit
    from raymlops.tracking.client import tracker as tracker_of

    if wait and working_dir is not None:
        raise UsageError("working_dir is for a job", hint="Add wait=False, or change the working directory itself.")
    if not wait and on_event is not None:
        raise UsageError("on_event cannot see a job's events", hint="Remove on_event; the handle's wait() shows them.")
    request = sweep_request(
        source,
        resume=resume,
        extend=extend,
        fork=fork,
        retry_failed=retry_failed,
        overrides=overrides,
        env=env,
        recipe=recipe,
    )
    if wait:
        sweep_id = run_sweep(request, tags=tags, on_event=on_event).sweep_id
    else:
        sweep_id = submit(request, tags=tags, working_dir=working_dir)
    return Sweep(tracker_of(request.project.spec), sweep_id, recipe=recipe)


def attach(
    sweep_id: str,
    source: Source | None = None,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
) -> Sweep:
    """Return the handle of any sweep, running or ended, by its id.

    ``source`` says where MLflow is; without one it is where ``MLFLOW_TRACKING_URI`` or ``RAYMLOPS_HOME`` say.
    ``recipe`` is needed where the sweep's own cannot be imported here and its winner is to be registered.

    Raises:
        NotFoundError: it does not exist; the message names similar ones.
        UsageError: it is a run or a trial.
        TrackingError: MLflow does not answer.
    """
    from raymlops.tuning.mlflow.sweep_run import sweep_of

    tracker = known_tracker(source, overrides=overrides, env=env)
    return Sweep(tracker, sweep_of(tracker, sweep_id).run_id, recipe=recipe)


class Sweep:
    """A sweep, running or ended. ``sweep`` and ``attach`` return one."""

    def __init__(self, tracker: Tracker, sweep_id: str, *, recipe: type | str | None = None) -> None:
        self.sweep_id = sweep_id
        self._tracker = tracker
        self._recipe = recipe

    def status(self) -> SweepStatus:
        """Return the current status."""
        from raymlops.tuning.reporting.status import sweep_status

        return sweep_status(self._tracker, self._recorded())

    def wait(self, timeout_s: float | None = None, *, on_event: OnEvent | None = None) -> SweepRecord:
        """Wait until the sweep has ended, with one live display, and return its record.

        Interrupting the cell ends the wait, not the sweep.

        Raises:
            SweepError: it failed, was stopped, or its driver died; the message says why, and how to resume it.
            TimeoutError: it is still running after ``timeout_s``.
        """
        from raymlops.lifecycle.sweeps.wait import wait_for

        return wait_for(self._tracker, self.sweep_id, timeout_s=timeout_s, on_event=on_event)

    def trials(self) -> Any:
        """Return all trials as a pandas ``DataFrame``, one row each, also those that are running.

        Its columns are number, status, value (with several objectives one column for each), the parameters, epochs,
        duration_s, reason and run_id. Running trials have their values so far. A repeat has the trial whose
        configuration it trains with another seed in ``repeat_of``; ``sweep.user_attrs`` have a column each.
        """
        from raymlops.tuning.reporting.study_reader import frame

        with self._study() as study:
            now = datetime.now()  # noqa: DTZ005 - as Optuna's
            return frame(study.snapshot(), objectives=study.objectives, now=now, user_attrs=study.user_attrs)

    @property
    def best(self) -> TrialRecord:
        """The best trial of those that have ended.

        Raises:
            SweepError: no trial has ended with a value yet.
        """
        with self._study() as study:
            return study.best()

    @property
    def report(self) -> str:
        """Path or URI of the HTML report, which is written when the sweep ends.

        Raises:
            NotFoundError: no report was written yet.
        """
        from raymlops.tuning.mlflow.sweep_run import REPORT

        uri = self._recorded().tags.get(REPORT, "")
        if not uri:
            raise NotFoundError(f"the sweep {self.sweep_id} has no report yet", hint="It is written when it ends.")
        return uri

    def plot(self, kind: str = "history") -> Any:
        """Return a plotly ``Figure``: history, importances, parallel, slice or pareto.

        Raises:
            UsageError: the kind is unknown, or there is nothing to show yet.
        """
        from raymlops.tuning.reporting.plots import figure

        with self._study() as study:
            return figure(kind, study.study, objectives=study.objectives)

    def stop(self) -> SweepStatus:
        """Stop the job that runs the sweep, and return the status once it has ended.

        Nothing is lost: ``rm.sweep(resume=ID, wait=False)`` resumes it.

        Raises:
            RefusedError: a process that is not a job runs it; the message names it.
            ClusterError: the cluster does not answer.
        """
        from raymlops.cluster.jobs import Jobs

        status, spec = self.status(), self._recorded().spec
        job = status.submission_id
        if job and spec is not None and status.state in {"running", "interrupted", "unknown"}:
            try:
                Jobs.of(spec).stop(job)
            except (ClusterError, NotFoundError):
                if status.state == "running":
                    raise  # otherwise the job ended with its cluster
            status = self.status()
        if status.state == "running":
            raise RefusedError(
                f"the sweep {self.sweep_id} is run by {status.holder}, not by "
                + (f"its job {job}, which has ended" if job else "a job"),
                hint="Interrupt that process with Ctrl-C or kill -INT: the sweep can be resumed afterwards.",
            )
        return status

    def register(self) -> ModelVersionRef:
        """Train the best trial's configuration as a run, and register that run with the alias ``candidate``.

        Where ``sweep.repeats`` trained it with several seeds, the run has the seed of the best one by validation. A
        finished run of the same trial is reused.

        Raises:
            RefusedError: the sweep is still running, or the data or code is no longer what the run was trained on.
            SweepError: no trial gave a usable value.
            TrainingError, RecipeError, ClusterError: as ``train``.
        """
        from raymlops.lifecycle.registration.register import register
        from raymlops.lifecycle.train import train
        from raymlops.training.runs.lookup import runs_tagged

        recorded = self._recorded()
        if self.status().state == "running":
            raise RefusedError(
                f"the sweep {self.sweep_id} is still running, so its best trial is not final",
                hint="wait() first, or stop().",
            )
        best = self.best
        project = recorded_project(recorded, recipe=self._recipe)
        tags = {"raymlops.sweep_id": self.sweep_id, "raymlops.trial": str(best.number)}
        known = runs_tagged(self._tracker, project.spec.experiment, {**tags, "raymlops.kind": "run"})
        done = [str(run.info.run_id) for run in known if run.info.status == "FINISHED"]
        run_id = done[0] if done else train(project.with_params(best.settings), tags=tags).run_id
        return register(project, run_id)

    def __repr__(self) -> str:
        from raymlops.tuning.study.ranking import chosen

        try:
            status = self.status()
        except RaymlopsError as error:
            return f"Sweep({self.sweep_id!r}: {error.message})"
        best = status.best
        value = "" if best is None or best.value is None else f", best {best.value:.5g} in trial {best.number}"
        if (favoured := chosen(status.repeats)) is not None:
            value = f", best {favoured.words()} in trial {favoured.number}"
        return f"Sweep({self.sweep_id!r}: {status.state}, {status.ended} of {status.num_trials} trials{value})"

    def _repr_html_(self) -> str:
        try:
            return self.status()._repr_html_()
        except RaymlopsError:
            return f"<pre>{escape(repr(self))}</pre>"

    def _recorded(self) -> Recorded:
        from raymlops.tuning.mlflow.sweep_run import sweep_of

        return sweep_of(self._tracker, self.sweep_id)

    def _study(self) -> AbstractContextManager[OpenStudy]:
        from raymlops.tuning.reporting.study_reader import open_study

        return open_study(self._recorded())
