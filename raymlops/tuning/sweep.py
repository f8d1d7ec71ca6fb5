"""A sweep from start to end, over any number of resumes: checks, a parent run, the trials, the winner and a report.

Owns the order of the steps, and that a sweep leaves no open run, no process and no lost trial, however it ends. Assumes
a running Ray. How a trial is drawn, run and selected is in ``study``, ``trial`` and ``selection``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from raymlops.config.changes import refuse_sweep_changes, sweep_changes
from raymlops.errors import SweepError, UsageError, describe
from raymlops.records import SpentRecord, SweepRecord
from raymlops.tuning import budget
from raymlops.tuning.budget import Tally
from raymlops.tuning.checks import check, refuse_sqlite
from raymlops.tuning.execution.search import search
from raymlops.tuning.mlflow.sweep_run import FORKED_FROM, REPORT, Parent, before_of, study_of, sweep_of
from raymlops.tuning.objectives import has_no_more, num_own_trials, objectives_of
from raymlops.tuning.reporting.progress import SweepEvent
from raymlops.tuning.reporting.results import tags_of, write_best, write_report
from raymlops.tuning.study.selection import pareto, select
from raymlops.tuning.study.storage import load_study, open_storage, optuna_url, without_credentials
from raymlops.tuning.sweep_stores import SweepStores, known_study, new_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.config.changes import Change
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded
    from raymlops.tuning.execution.controller import SweepController

CARRIED = "raymlops.carried"
"""Attribute of a fork's study: all trials of the previous sweep have been written."""


def sweep(
    project: Project,
    *,
    resume: str | None = None,
    fork: Recorded | None = None,
    on_event: Callable[[SweepEvent], None] | None = None,
    tags: Mapping[str, str] | None = None,
) -> SweepRecord:
    """Search ``sweep.space`` and return every trial, the best one, and the path of its configuration.

    ``resume`` is the id of a sweep to resume: its finished trials stay, the others resume from their checkpoints.
    ``fork`` is a previous sweep whose trials the new one starts with, where they fit its space.

    Raises:
        UsageError: before anything starts: nothing to search, a metric that the recipe never reports, a recipe that
            fails on this configuration, SQLite with more than one node, or a sweep that cannot be resumed with this
            configuration or has nothing left to do.
        NotFoundError: there is no such sweep, or its study was deleted.
        RefusedError: another driver is running it.
        StorageError: ``storage.path`` or Optuna's file cannot be written.
        TrackingError: MLflow is down before the first trial, or did not accept the last results.
        SweepError: no trial gave a usable value; says how each failed. The parent run is FAILED.
        KeyboardInterrupt: the sweep was interrupted; its processes are ended, its parent run is KILLED, and it can be
            resumed.
    """
    import ray

    from raymlops.data.cache import DataCache
    from raymlops.state.database import state_url
    from raymlops.state.lease import lease
    from raymlops.storage.filesystem import check_writable
    from raymlops.tracking.client import tracker
    from raymlops.training.preflight import preflight_sweep

    spec = project.spec
    check(project)
    url = optuna_url(spec)
    refuse_sqlite(url, nodes=sum(node["Alive"] for node in ray.nodes()))
    check_writable(spec.storage.path)
    store = tracker(spec)
    store.check()
    with ExitStack() as held:

        def hold(sweep_id: str) -> None:
            held.enter_context(lease(state_url(spec), sweep_id, purpose="sweeping"))

        recorded, changes = None, []
        if resume is not None:
            hold(resume)
            recorded = sweep_of(store, resume)
            assert recorded.spec is not None
            changes = sweep_changes(recorded.spec, spec)
            refuse_sweep_changes(changes, sweep_id=resume)
        if on_event is not None:
            on_event(SweepEvent("message", message="preparing the data and testing the recipe on its first rows"))
        data = DataCache()
        prepared = data.get(project)
        unservable: list[str] = []
        preflight_sweep(project, prepared, warn=None if recorded is None else unservable.append)
        storage = held.enter_context(open_storage(url))
        run = _Sweep(project, store, storage=storage, url=url, data=data, on_event=on_event)
        if recorded is None:
            run.start(prepared, fork=fork, tags=tags or {}, hold=hold)
        else:
            run.resume(recorded, prepared, changes=changes, unservable=unservable)
        return run.run()


class _Sweep:
    """One driver's session of a sweep."""

    def __init__(
        self,
        project: Project,
        tracker: Tracker,
        *,
        storage: Any,
        url: str,
        data: Any,
        on_event: Callable[[SweepEvent], None] | None,
    ) -> None:
        self._project = project
        self._tracker = tracker
        self._storage = storage
        self._url = url
        self._data = data
        self._on_event = on_event
        self._objectives = objectives_of(project.spec)
        self._before = SpentRecord()
        self._started = time.monotonic()
        self._forked_from = ""
        self._stores: SweepStores

    def start(
        self,
        prepared: Prepared,
        *,
        fork: Recorded | None,
        tags: Mapping[str, str],
        hold: Callable[[str], None],
    ) -> None:
        """Create the parent run and the study."""
        if fork is not None:
            self._forked_from = fork.run_id
            self._refuse_fork_without_trials(fork, prepared)
        parent = Parent.opened(
            self._tracker, self._project, prepared.data, tags=tags, submission_id=_submission(), forked_from=fork
        )
        with parent.closing_on_error():
            hold(parent.sweep_id)
            study = new_study(self._storage, parent, project=self._project)
            if fork is not None:
                self._carry(study, fork)
            self._stores = SweepStores.of(study, parent, project=self._project, tracker=self._tracker)
            for note in prepared.data.notes:
                self._notify(note)

    def resume(
        self, recorded: Recorded, prepared: Prepared, *, changes: list[Change], unservable: Sequence[str]
    ) -> None:
        """Open the study and the parent run of a previous driver."""
        from raymlops.training.runs.resume import check_data, data_of, write_changes

        data = data_of(recorded, prepared)
        check_data(recorded, data)
        self._before = before_of(recorded)
        self._forked_from = recorded.tags.get(FORKED_FROM, "")
        parent = Parent(self._tracker, recorded.run_id)
        study = known_study(self._storage, recorded, parent=parent, project=self._project)
        if self._forked_from and not study.user_attrs.get(CARRIED):
            fork = sweep_of(self._tracker, self._forked_from)
            self._carry(study, fork)
        self._stores = SweepStores.of(study, parent, project=self._project, tracker=self._tracker)
        self._refuse_nothing_left(recorded)
        changed = write_changes(self._tracker, recorded, project=self._project, changes=changes)
        parent.reopen(submission_id=_submission())
        with parent.closing_on_error():
            self._stores.sync_runs()
            for text in (*(f"resumes with a change: {change}" for change in changed), *unservable, *data.notes):
                self._notify(text)

    def run(self) -> SweepRecord:
        """Run the trials, choose the winner and end the parent run."""
        parent = self._stores.parent
        with parent.closing_on_error():
            controller = search(
                self._project,
                self._stores,
                tracker=self._tracker,
                data=self._data,
                before=self._before,
                on_event=self._on_event,
            )
            record = self._result(controller)
            parent.end("FINISHED", tags_of(record))
            return record

    def _carry(self, study: Any, fork: Recorded) -> None:
        """Copy the trials of the previous sweep that still hold into the study."""
        from raymlops.tuning.study.fork import add_carried

        assert fork.spec is not None
        with self._study_of(fork) as old:
            kept, left = add_carried(
                study,
                old,
                old_spec=fork.spec,
                new_spec=self._project.spec,
                sweep_id=fork.run_id,
                objectives=self._objectives,
            )
        study.set_user_attr(CARRIED, True)
        why = "".join(f"; {count} left out: {reason}" for reason, count in left.items())
        self._notify(f"carried over {kept} trials of the sweep {fork.run_id}{why}")

    def _refuse_fork_without_trials(self, fork: Recorded, prepared: Prepared) -> None:
        """Refuse to fork a sweep none of whose trials fits.

        Raises:
            UsageError: with the reasons of the trials.
        """
        from raymlops.training.runs.mlflow_run import FINGERPRINT
        from raymlops.training.runs.resume import data_of
        from raymlops.tuning.study.fork import carried
        from raymlops.tuning.study.records import record_of

        advice = "Restore the previous configuration, or leave --fork out to start without known trials."
        if fork.tags.get(FINGERPRINT) != data_of(fork, prepared).fingerprint:
            raise UsageError(
                f"no trial of the sweep {fork.run_id} can be carried over: it used other data", hint=advice
            )
        assert fork.spec is not None
        before = objectives_of(fork.spec)
        with self._study_of(fork) as old:
            ended = [trial for trial in old.get_trials(deepcopy=False) if trial.state.is_finished()]
        found = [carried(fork.spec, self._project.spec, record=record_of(trial, objectives=before)) for trial in ended]
        if found and all(isinstance(params, str) for params in found):
            why = "; ".join(f"{count} {reason}" for reason, count in Counter(map(str, found)).items())
            raise UsageError(f"no trial of the sweep {fork.run_id} can be carried over: {why}", hint=advice)

    @contextmanager
    def _study_of(self, fork: Recorded) -> Iterator[Any]:
        assert fork.spec is not None
        with ExitStack() as opened:
            url = optuna_url(fork.spec)
            storage = self._storage if url == self._url else opened.enter_context(open_storage(url))
            yield load_study(storage, study_of(fork))

    def _refuse_nothing_left(self, recorded: Recorded) -> None:
        """Refuse to resume a sweep that is finished.

        Raises:
            UsageError: the sweep is FINISHED, and no trial is left or a budget is used up.
        """
        if recorded.status != "FINISHED":
            return
        spec, records = self._project.spec, self._stores.trials.records
        section, first = spec.sweep, self._objectives[0]
        ended = sum(not record.carried_from for record in records)
        why, advice = "", ""
        if why := budget.used_up(section, self._before):
            advice = "--extend timeout_s=+3600 (or max_cpu_hours, max_gpu_hours, max_cost) gives it more of that."
        elif ended >= num_own_trials(spec) and has_no_more(spec):
            why, advice = (
                f"has tried all {ended} points of its grid",
                "has no trial left: a finer grid is another space, for --fork.",
            )
        elif ended >= section.num_trials:
            why = f"has ended all {ended} trials"
            advice = f"--extend num_trials=+{section.num_trials} gives it more."
        elif why := budget.good_enough(section, Tally.of(records, mode=first.mode)):
            advice = "sweep.target=VALUE (or sweep.patience=N) continues it."
        if why:
            raise UsageError(
                f"the sweep {recorded.run_id} is finished: it {why}",
                hint=f"raymlops sweep --resume {recorded.run_id} {advice}",
            )

    def _result(self, controller: SweepController) -> SweepRecord:
        spec, stores, first = self._project.spec, self._stores, self._objectives[0]
        sweep_id, records = stores.parent.sweep_id, stores.records()
        best, none = None, None
        try:
            best = select(records, objectives=self._objectives, constraints=spec.sweep.constraints)
        except SweepError as error:
            none = error
            if controller.stopped and not records:
                none = SweepError(
                    f"the sweep {controller.stopped} before its first trial ended",
                    hint=f"raymlops sweep --resume {sweep_id} --extend with more of that resumes its trials.",
                )
        report = ""
        try:
            report = write_report(
                stores.study,
                self._project,
                records=records,
                objectives=self._objectives,
                spent=controller.spent,
                sweep_id=sweep_id,
                stopped=controller.stopped,
                best=best,
            )
        except Exception as error:  # a sweep does not fail for its report
            controller.notify(f"no report was written: {describe(error)}")
        if best is None:
            assert none is not None
            if report:
                none.add_note(f"Report: {report}")
                stores.parent.tag({REPORT: report})
            raise none
        return SweepRecord(
            sweep_id=sweep_id,
            project=spec.project.name,
            study=stores.trials.study_name,
            storage=without_credentials(self._url),
            metric=first.metric,
            mode=first.mode,
            trials=records,
            best=best,
            best_config=write_best(self._project, self._tracker, best, sweep_id=sweep_id, objective=first),
            duration_s=time.monotonic() - self._started,
            stopped=controller.stopped,
            objectives=self._objectives if len(self._objectives) > 1 else (),
            spent=controller.spent,
            pareto=pareto(records, objectives=self._objectives) if len(self._objectives) > 1 else (),
            forked_from=self._forked_from,
            report=report,
        )

    def _notify(self, text: str) -> None:
        if self._on_event is not None:
            self._on_event(SweepEvent("message", message=text))


def _submission() -> str:
    return os.environ.get("RAYMLOPS_SUBMISSION_ID", "")
