"""A sweep from start to end, over any number of resumes: checks, a parent run, the trials, the winner and a report.

Owns the order of the steps, and that a sweep leaves no open run, no process and no lost trial, however it ends. Assumes
a running Ray. How a trial is drawn, run and selected is in ``study``, ``trial`` and ``selection``.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.config.base import resolve
from raymlops.config.changes import refuse_sweep_changes, sweep_changes
from raymlops.errors import NotFoundError, UsageError
from raymlops.records import SpentRecord, SweepRecord, to_json
from raymlops.training.runs.lookup import resume_command
from raymlops.tuning.advice import warnings_of
from raymlops.tuning.budget import Tally, nothing_left
from raymlops.tuning.execution.search import search
from raymlops.tuning.mlflow.sweep_run import FORKED_FROM, SweepRun, before_of, study_of, sweep_of
from raymlops.tuning.reporting.progress import SweepEvent
from raymlops.tuning.results import conclude
from raymlops.tuning.study.fork import CARRIED, add_carried, carry_over
from raymlops.tuning.study.import_study import IMPORTED, end_outside, import_trials
from raymlops.tuning.study.reruns import repeats_left
from raymlops.tuning.study.storage import open_recorded, open_storage, optuna_url, without_credentials
from raymlops.tuning.study.trials import Trials
from raymlops.tuning.sweep_stores import SweepStores, linked_study

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.changes import Change
    from raymlops.config.schema import ProjectSpec
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded

    Carried = tuple[dict[str, Any], Counter[str]]


def sweep(
    project: Project,
    *,
    resume: str | None = None,
    fork: Recorded | None = None,
    retry_failed: bool = False,
    on_event: Callable[[SweepEvent], None] | None = None,
    tags: Mapping[str, str] | None = None,
) -> SweepRecord:
    """Search ``sweep.space`` and return every trial, the best one, and the path of its configuration.

    ``project`` has passed ``checks.check``. ``resume`` is the id of a sweep to resume: its finished trials stay, the
    others resume from their checkpoints; ``retry_failed`` trains the failed ones again. ``fork`` is a previous sweep
    whose trials the new one starts with, where they fit its space. ``tags`` are set on its MLflow run.

    Raises:
        UsageError: before anything starts: a metric that the recipe never reports, a recipe that fails on this
            configuration, or a sweep that cannot be resumed with this configuration or has nothing left to do.
        NotFoundError: there is no such sweep, or its study was deleted.
        RefusedError: another driver is running it, or ``data.checks`` refuse the data of a new one.
        StorageError: ``storage.path`` or Optuna's file cannot be written.
        TrackingError: MLflow is down before the first trial, or did not accept the last results.
        SweepError: no trial gave a usable value; says how each failed. The parent run is FAILED.
        KeyboardInterrupt: the sweep was interrupted; its processes are ended, its parent run is KILLED, and it can be
            resumed.
    """
    from raymlops.data.cache import DataCache
    from raymlops.state.database import state_url
    from raymlops.state.lease import lease
    from raymlops.storage.filesystem import check_writable
    from raymlops.tracking.client import tracker
    from raymlops.training.data_checks.gate import REPORT, blaming_data, check_data
    from raymlops.training.preflight import preflight_sweep
    from raymlops.training.runs.resume import recorded_versions

    def notify(text: str) -> None:
        if on_event is not None:
            on_event(SweepEvent("message", message=text))

    spec = project.spec
    url = optuna_url(spec)  # once: the secret that it refers to may have been replaced by the end
    check_writable(spec.storage.path)
    store = tracker(spec)
    store.check()
    with ExitStack() as held:
        renewals: list[Callable[[], bool]] = []

        def hold(sweep_id: str) -> None:
            renewals.append(held.enter_context(lease(state_url(spec), sweep_id, purpose="sweeping")))

        def renew() -> None:
            for each in renewals:
                each()

        recorded, changes = None, []
        if resume is not None:
            hold(resume)
            recorded = sweep_of(store, resume)
            assert recorded.spec is not None
            changes = sweep_changes(recorded.spec, spec)
            refuse_sweep_changes(changes, sweep_id=resume)
        notify("preparing the data and testing the recipe on its first rows")
        data = DataCache()
        prepared = data.get(project, versions=None if recorded is None else recorded_versions(recorded))
        unservable: list[str] = []
        with blaming_data(prepared, None if recorded else spec.data.checks):
            preflight_sweep(project, prepared, warn=None if recorded is None else unservable.append)
        checked = None if recorded else check_data(prepared, spec.data.checks, notice=notify)
        opener = _Opener(project, store, held.enter_context(open_storage(url)), notify)
        if recorded is None:
            for warning in warnings_of(spec.sweep):
                notify(warning)
            before = SpentRecord()
            stores = opener.start(prepared, fork=fork, tags=tags or {}, hold=hold)
        else:
            before = before_of(recorded)
            stores = opener.resume(
                recorded,
                prepared,
                changes=changes,
                unservable=unservable,
                spent=before,
                retry=retry_failed,
                tags=tags or {},
            )
        with stores.parent.closing_on_error():
            if checked is not None:
                store.log_text(stores.parent.sweep_id, to_json(checked.to_dict()), REPORT)
            controller = search(stores, data=data, before=before, renew=renew, on_event=on_event)
            return conclude(stores, controller, storage=without_credentials(url))


@dataclass(frozen=True)
class _Opener:
    """Opens the stores of a new or a resumed sweep."""

    project: Project
    tracker: Tracker
    storage: Any
    notify: Callable[[str], None]

    def start(
        self, prepared: Prepared, *, fork: Recorded | None, tags: Mapping[str, str], hold: Callable[[str], None]
    ) -> SweepStores:
        """Create the parent run and the study."""
        carried = None if fork is None else self._carried_from_fork(fork, prepared)
        imported = self._imported()
        parent = SweepRun.create(
            self.tracker,
            self.project,
            prepared.data,
            tags=tags,
            submission_id=_submission(),
            forked_from="" if fork is None else fork.run_id,
        )
        with parent.closing_on_error():
            hold(parent.sweep_id)
            study = linked_study(self.storage, parent, spec=self.project.spec)
            if carried is not None:
                self._add(study, carried, sweep_id=parent.forked_from)
            self._import(study, imported)
            stores = SweepStores.open(self.project, parent, study)
            for note in prepared.data.notes:
                self.notify(note)
            return stores

    def resume(
        self,
        recorded: Recorded,
        prepared: Prepared,
        *,
        changes: list[Change],
        unservable: Sequence[str],
        spent: SpentRecord,
        retry: bool,
        tags: Mapping[str, str],
    ) -> SweepStores:
        """Open the study and the parent run of a previous driver."""
        from raymlops.training.runs.resume import check_data, data_of, write_changes

        data = data_of(recorded, prepared)
        check_data(recorded, data)
        command = resume_command("sweep", recorded.run_id, spec=self.project.spec)
        parent = SweepRun(self.tracker, recorded.run_id, command, recorded.tags.get(FORKED_FROM, ""))
        study = linked_study(self.storage, parent, spec=self.project.spec, recorded=recorded)
        if parent.forked_from and not study.user_attrs.get(CARRIED):
            carried = self._carried(sweep_of(self.tracker, parent.forked_from))
            self._add(study, carried, sweep_id=parent.forked_from)
        if not study.user_attrs.get(IMPORTED):
            self._import(study, self._imported())
        if outside := end_outside(study, space=self.project.spec.sweep.space):
            self.notify(f"added by another program outside sweep.space, and not trained: {'; '.join(outside)}")
        if recorded.status == "FINISHED":
            _refuse_nothing_left(self.project.spec, study, sweep_id=recorded.run_id, spent=spent, retry=retry)
        stores = SweepStores.open(self.project, parent, study, retry=retry)
        changed = write_changes(self.tracker, recorded, project=self.project, changes=changes)
        parent.reopen(submission_id=_submission())
        with parent.closing_on_error():
            stores.sync_runs()
            if tags:
                parent.tag(tags)
            if stores.retried:
                self.notify(f"trains {len(stores.retried)} failed trials again")
            for text in (*(f"resumes with a change: {change}" for change in changed), *unservable, *data.notes):
                self.notify(text)
        return stores

    def _carried_from_fork(self, fork: Recorded, prepared: Prepared) -> Carried:
        """Return the trials that a new sweep takes over.

        Raises:
            UsageError: there are trials, and none fits; with the reasons.
        """
        from raymlops.training.runs.mlflow_run import FINGERPRINT
        from raymlops.training.runs.resume import data_of

        if fork.tags.get(FINGERPRINT) != data_of(fork, prepared).fingerprint:
            why = "it used other data"
        else:
            kept, left = self._carried(fork)
            if kept or not left:
                return kept, left
            why = "; ".join(f"{count} {reason}" for reason, count in left.items())
        raise UsageError(
            f"no trial of the sweep {fork.run_id} can be carried over: {why}",
            hint="Restore the previous configuration, or leave --fork out to start without known trials.",
        )

    def _carried(self, fork: Recorded) -> Carried:
        assert fork.spec is not None
        with open_recorded(optuna_url(fork.spec), study_of(fork)) as study:
            return carry_over(study, old_spec=fork.spec, new_spec=self.project.spec, sweep_id=fork.run_id)

    def _imported(self) -> Carried | None:
        """Return the trials of ``sweep.import_study``; None where it names none.

        Raises:
            UsageError: there is no such study, or its directions differ.
        """
        spec, section = self.project.spec, self.project.spec.sweep.import_study
        if not section.study:
            return None
        url = optuna_url(spec) if section.storage is None else resolve(section.storage, "sweep.import_study.storage")
        try:
            with open_recorded(url, section.study, read_only=True) as study:
                return import_trials(study, spec=spec)
        except NotFoundError as error:
            raise UsageError(
                f"sweep.import_study: {error.message}",
                hint="`optuna studies --storage URL` lists the studies of a database; set sweep.import_study.storage.",
            ) from error

    def _import(self, study: Any, imported: Carried | None) -> None:
        if imported is None:
            return
        kept, left = imported
        add_carried(study, kept, mark=IMPORTED)
        why = "".join(f"; {count} left out: {reason}" for reason, count in left.most_common())
        self.notify(f"imported {len(kept)} trials of the study {self.project.spec.sweep.import_study.study}{why}")

    def _add(self, study: Any, carried: Carried, *, sweep_id: str) -> None:
        kept, left = carried
        add_carried(study, kept)
        why = "".join(f"; {count} left out: {reason}" for reason, count in left.items())
        self.notify(f"carried over {len(kept)} trials of the sweep {sweep_id}{why}")


def _refuse_nothing_left(spec: ProjectSpec, study: Any, *, sweep_id: str, spent: SpentRecord, retry: bool) -> None:
    """Refuse to resume a finished sweep of which no trial is left, or whose budget is used up."""
    trials = Trials(study, section=spec.sweep, objectives=spec.objectives)
    ended = [record for record in trials.ended if not (retry and record.status == "failed")]
    tally = Tally.of(ended, mode=spec.objectives[0].mode)
    repeats = repeats_left(study.get_trials(deepcopy=False), spec=spec)
    repeats += sum(retry and record.status == "failed" and record.repeat_of is not None for record in trials.ended)
    why, command = nothing_left(sweep_id, spec.sweep, tally=tally, refused=trials.refused, spent=spent, repeats=repeats)
    if why:
        raise UsageError(f"the sweep {sweep_id} is finished: it {why}", hint=f"To continue: {command}")


def _submission() -> str:
    return os.environ.get("RAYMLOPS_SUBMISSION_ID", "")
