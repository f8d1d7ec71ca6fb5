"""A sweep from start to end, over any number of resumes: checks, a parent run, the trials, the winner and a report.

Owns the order of the steps and what is left behind however it ends: no open run, no process, and no trial that is
lost. Assumes a running Ray. Knows nothing of how a trial is drawn (``trials``), run (``trial``) or judged (``select``).
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
from raymlops.tuning.reporting.progress import said
from raymlops.tuning.reporting.results import tags_of, write_best, write_report
from raymlops.tuning.stores import Books, known_study, new_study
from raymlops.tuning.study.selection import pareto, select
from raymlops.tuning.study.storage import load_study, open_storage, optuna_url, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.config.changes import Change
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded
    from raymlops.tuning.execution.controller import Conductor
    from raymlops.tuning.reporting.progress import SweepEvent

CARRIED = "raymlops.carried"
"""Attribute of a fork's study: that all it knows from the sweep before it has been written."""


def sweep(
    project: Project,
    *,
    resume: str | None = None,
    fork: Recorded | None = None,
    on_event: Callable[[SweepEvent], None] | None = None,
    tags: Mapping[str, str] | None = None,
) -> SweepRecord:
    """Search ``sweep.space`` and return every trial, the best one, and where its configuration was written.

    ``resume`` is the id of a sweep that goes on: its finished trials stay, the others go on from their checkpoints.
    ``fork`` is a sweep whose trials the new one knows from the start, where they fit.

    Raises:
        UsageError: nothing to search, a metric that the recipe never reports, a recipe that fails on the
            configuration as it stands, SQLite with more than one node, a sweep that cannot go on with this
            configuration or has nothing left to do; before anything starts.
        NotFoundError: there is no such sweep, or its study is gone.
        RefusedError: another driver runs it now.
        StorageError: ``storage.path`` or Optuna's file cannot be written.
        TrackingError: MLflow is down before the first trial, or did not take what was left at the end.
        SweepError: no trial gave a usable value; says how each failed. The parent run is FAILED.
        KeyboardInterrupt: it was interrupted; processes are ended, the parent run is KILLED, the sweep can go on.
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

        before, changes = None, []
        if resume is not None:
            hold(resume)
            before = sweep_of(store, resume)
            assert before.spec is not None
            changes = sweep_changes(before.spec, spec)
            refuse_sweep_changes(changes, sweep_id=resume)
        if on_event is not None:
            on_event(said("preparing the data and trying the recipe on its first rows", total=spec.sweep.num_trials))
        data = DataCache()
        prepared = data.get(project)
        unservable: list[str] = []
        preflight_sweep(project, prepared, warn=None if before is None else unservable.append)
        storage = held.enter_context(open_storage(url))
        run = _Sweep(project, store, storage=storage, url=url, data=data, on_event=on_event)
        if before is None:
            run.begins(prepared, fork=fork, tags=tags or {}, hold=hold)
        else:
            run.goes_on(before, prepared, changes=changes, unservable=unservable)
        return run.to_the_end()


class _Sweep:
    """One driver's part of a sweep."""

    def __init__(
        self,
        project: Project,
        store: Tracker,
        *,
        storage: Any,
        url: str,
        data: Any,
        on_event: Callable[[SweepEvent], None] | None,
    ) -> None:
        self._project = project
        self._store = store
        self._storage = storage
        self._url = url
        self._data = data
        self._on_event = on_event
        self._objectives = objectives_of(project.spec)
        self._before = SpentRecord()
        self._started = time.monotonic()
        self._forked_from = ""
        self._books: Books

    def begins(
        self,
        prepared: Prepared,
        *,
        fork: Recorded | None,
        tags: Mapping[str, str],
        hold: Callable[[str], None],
    ) -> None:
        """Open the parent run and the study."""
        if fork is not None:
            self._forked_from = fork.run_id
            self._refuse_useless(fork, prepared)
        parent = Parent.opened(
            self._store, self._project, prepared.data, tags=tags, submission_id=_submission(), forked_from=fork
        )
        with parent.closing_on_error():
            hold(parent.sweep_id)
            study = new_study(self._storage, parent, project=self._project)
            if fork is not None:
                self._carry(study, fork)
            self._books = Books.of(study, parent, project=self._project, store=self._store)
            for note in prepared.data.notes:
                self._tell(note)

    def goes_on(
        self, recorded: Recorded, prepared: Prepared, *, changes: list[Change], unservable: Sequence[str]
    ) -> None:
        """Take up the study and the parent run where the last driver left them."""
        from raymlops.training.runs.resume import check_data, data_of, write_changes

        data = data_of(recorded, prepared)
        check_data(recorded, data)
        self._before = before_of(recorded)
        self._forked_from = recorded.tags.get(FORKED_FROM, "")
        parent = Parent(self._store, recorded.run_id)
        study = known_study(self._storage, recorded, parent=parent, project=self._project)
        if self._forked_from and not study.user_attrs.get(CARRIED):
            fork = sweep_of(self._store, self._forked_from)
            self._carry(study, fork)
        self._books = Books.of(study, parent, project=self._project, store=self._store)
        self._refuse_nothing_left(recorded)
        changed = write_changes(self._store, recorded, project=self._project, changes=changes)
        parent.reopen(submission_id=_submission())
        with parent.closing_on_error():
            self._books.bring_up_to_date()
            for text in (*(f"goes on with a change: {change}" for change in changed), *unservable, *data.notes):
                self._tell(text)

    def to_the_end(self) -> SweepRecord:
        """Run the trials, choose the winner and end the parent run."""
        parent = self._books.parent
        with parent.closing_on_error():
            conductor = search(
                self._project,
                self._books,
                store=self._store,
                data=self._data,
                before=self._before,
                on_event=self._on_event,
            )
            record = self._result(conductor)
            parent.end("FINISHED", tags_of(record))
            return record

    def _carry(self, study: Any, fork: Recorded) -> None:
        """Write into the study what the sweep before it knows and still holds."""
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
        why = "".join(f"; {count} not: {reason}" for reason, count in left.items())
        self._tell(f"knows {kept} trials of the sweep {fork.run_id}{why}")

    def _refuse_useless(self, fork: Recorded, prepared: Prepared) -> None:
        """Refuse to fork a sweep of which nothing fits.

        Raises:
            UsageError: saying why not, trial by trial.
        """
        from raymlops.training.runs.mlflow_run import FINGERPRINT
        from raymlops.training.runs.resume import data_of
        from raymlops.tuning.study.fork import carried
        from raymlops.tuning.study.records import record_of

        advice = "Put these back, or start a sweep that knows nothing: leave --fork out."
        if fork.tags.get(FINGERPRINT) != data_of(fork, prepared).fingerprint:
            raise UsageError(f"nothing of the sweep {fork.run_id} can be carried: its data were others", hint=advice)
        assert fork.spec is not None
        before = objectives_of(fork.spec)
        with self._study_of(fork) as old:
            ended = [trial for trial in old.get_trials(deepcopy=False) if trial.state.is_finished()]
        found = [carried(fork.spec, self._project.spec, record=record_of(trial, objectives=before)) for trial in ended]
        if found and all(isinstance(params, str) for params in found):
            why = "; ".join(f"{count} {reason}" for reason, count in Counter(map(str, found)).items())
            raise UsageError(f"no trial of the sweep {fork.run_id} can be carried: {why}", hint=advice)

    @contextmanager
    def _study_of(self, fork: Recorded) -> Iterator[Any]:
        assert fork.spec is not None
        with ExitStack() as opened:
            url = optuna_url(fork.spec)
            storage = self._storage if url == self._url else opened.enter_context(open_storage(url))
            yield load_study(storage, study_of(fork))

    def _refuse_nothing_left(self, recorded: Recorded) -> None:
        """Refuse to go on with what is over.

        Raises:
            UsageError: the sweep is FINISHED, and no trial is left or a budget is used up.
        """
        if recorded.status != "FINISHED":
            return
        spec, records = self._project.spec, self._books.trials.records
        section, first = spec.sweep, self._objectives[0]
        ended = sum(not record.carried_from for record in records)
        why, advice = "", ""
        if why := budget.used_up(section, self._before):
            advice = "--extend timeout_s=+3600 (or max_cpu_hours, max_gpu_hours, max_cost) gives it more of that."
        elif ended >= num_own_trials(spec) and has_no_more(spec):
            why, advice = (
                f"has tried all {ended} points of its grid",
                "goes on with none: a finer grid is another space, for --fork.",
            )
        elif ended >= section.num_trials:
            why = f"has ended all {ended} trials"
            advice = f"--extend num_trials=+{section.num_trials} gives it more."
        elif why := budget.good_enough(section, Tally.of(records, mode=first.mode)):
            advice = "sweep.target=VALUE (or sweep.patience=N) lets it go on."
        if why:
            raise UsageError(
                f"the sweep {recorded.run_id} is finished: it {why}",
                hint=f"raymlops sweep --resume {recorded.run_id} {advice}",
            )

    def _result(self, conductor: Conductor) -> SweepRecord:
        spec, books, first = self._project.spec, self._books, self._objectives[0]
        sweep_id, records = books.parent.sweep_id, books.records()
        best, none = None, None
        try:
            best = select(records, objectives=self._objectives, constraints=spec.sweep.constraints)
        except SweepError as error:
            none = error
            if conductor.stopped and not records:
                none = SweepError(
                    f"the sweep {conductor.stopped} before a first trial had ended",
                    hint=f"raymlops sweep --resume {sweep_id} --extend with more of that goes on with its trials.",
                )
        report = ""
        try:
            report = write_report(
                books.study,
                self._project,
                records=records,
                objectives=self._objectives,
                spent=conductor.spent,
                sweep_id=sweep_id,
                stopped=conductor.stopped,
                best=best,
            )
        except Exception as error:  # it costs no sweep
            conductor.tell(f"no report was written: {describe(error)}")
        if best is None:
            assert none is not None
            if report:
                none.add_note(f"Report: {report}")
                books.parent.tag({REPORT: report})
            raise none
        return SweepRecord(
            sweep_id=sweep_id,
            project=spec.project.name,
            study=books.trials.study_name,
            storage=without_credentials(self._url),
            metric=first.metric,
            mode=first.mode,
            trials=records,
            best=best,
            best_config=write_best(self._project, self._store, best, sweep_id=sweep_id, objective=first),
            duration_s=time.monotonic() - self._started,
            stopped=conductor.stopped,
            objectives=self._objectives if len(self._objectives) > 1 else (),
            spent=conductor.spent,
            pareto=pareto(records, objectives=self._objectives) if len(self._objectives) > 1 else (),
            forked_from=self._forked_from,
            report=report,
        )

    def _tell(self, text: str) -> None:
        if self._on_event is not None:
            self._on_event(said(text, total=self._project.spec.sweep.num_trials))


def _submission() -> str:
    return os.environ.get("RAYMLOPS_SUBMISSION_ID", "")
