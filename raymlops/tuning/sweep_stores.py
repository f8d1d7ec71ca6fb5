"""The stores of a sweep: its study, its trials' runs and its own run.

Owns how they are created for a new sweep and opened for a resumed one. Knows nothing of how trials run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from raymlops.errors import NotFoundError
from raymlops.records import SCHEMA_VERSION
from raymlops.storage.filesystem import join
from raymlops.training.runs.lookup import SWEEPS
from raymlops.tuning.mlflow.sweep_run import STUDY, study_name
from raymlops.tuning.mlflow.trial_runs import TrialRuns
from raymlops.tuning.study.fencing import CHECK_EVERY_S, Fence
from raymlops.tuning.study.records import history_of
from raymlops.tuning.study.reruns import retry_failed
from raymlops.tuning.study.storage import create_study, load_study, optuna_url
from raymlops.tuning.study.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import TrialRecord
    from raymlops.training.runs.lookup import Recorded
    from raymlops.tuning.mlflow.sweep_run import SweepRun


@dataclass(frozen=True)
class SweepStores:
    """A sweep's configuration, and where its state is stored."""

    project: Project
    study: Any
    trials: Trials
    trial_runs: TrialRuns
    parent: SweepRun
    retried: Sequence[int] = ()
    """Failed trials that are trained again."""

    @property
    def uri(self) -> str:
        """Return the folder of the sweep's files."""
        return join(self.project.spec.storage.path, SWEEPS, self.parent.sweep_id)

    @classmethod
    def open(cls, project: Project, parent: SweepRun, study: Any, *, retry: bool = False) -> Self:
        """Open the stores of a study, which has all carried trials already; ``retry`` trains failed trials again."""
        spec = project.spec
        trial_runs = TrialRuns(
            parent.tracker,
            experiment=spec.experiment,
            parent_run_id=parent.sweep_id,
            name=f"{spec.project.name}-trial",
            tags={**spec.project.tags, "raymlops.project": spec.project.name, "raymlops.recipe": project.reference},
        )
        # Of a file the operating system keeps the lease.
        every_s = CHECK_EVERY_S if optuna_url(spec).startswith("sqlite") else 0.0
        fence = Fence(study, every_s=every_s)
        retried = retry_failed(study) if retry else ()
        trials = Trials(study, section=spec.sweep, objectives=spec.objectives, check=fence.check)
        return cls(project, study, trials, trial_runs, parent, retried)

    def sync_runs(self) -> None:
        """Write to MLflow what the previous driver did not write about the trials that have ended.

        Raises:
            TrackingError: MLflow does not answer.
        """
        self.trial_runs.adopt()
        trials = self.study.get_trials(deepcopy=False)
        for record in self.trials.records:
            self.trial_runs.mirror(record, history_of(trials[record.number]))

    def write_trials(self) -> None:
        """Write all trials as JSON to the sweep's MLflow run.

        Raises:
            TrackingError: MLflow rejects it.
        """
        data = {
            "schema_version": SCHEMA_VERSION,
            **self.trials.objectives[0].to_dict(),
            "trials": [record.to_dict() for record in self.records()],
        }
        self.parent.tracker.log_text(self.parent.sweep_id, json.dumps(data, indent=1), "sweep/trials.json")

    def records(self) -> tuple[TrialRecord, ...]:
        """Return the trials that ended, each with the id of its child run.

        What MLflow has counts: where it rejected a run, that was created again with another id.
        """
        return tuple(
            record
            if record.carried_from
            else replace(record, run_id=self.trial_runs.run_id(record.number) or record.run_id)
            for record in self.trials.records
        )


def linked_study(storage: Any, parent: SweepRun, *, spec: ProjectSpec, recorded: Recorded | None = None) -> Any:
    """Return the study of a sweep; create it for a new one, and where the driver of a ``recorded`` one died before.

    Raises:
        NotFoundError: it was deleted.
    """
    linked = None if recorded is None else recorded.tags.get(STUDY)
    name, study = linked or study_name(spec, parent.sweep_id), None
    if recorded is not None:
        try:
            study = load_study(storage, name)
        except NotFoundError:
            if linked is not None:
                raise
    if study is None:
        study = create_study(storage, name, objectives=spec.objectives)
    if linked is None:
        study.set_user_attr("raymlops.sweep_id", parent.sweep_id)
        study.set_user_attr("raymlops.metric", spec.objectives[0].metric)
        parent.tag({STUDY: name})
    for tag, text in spec.project.tags.items():
        if not tag.startswith("raymlops") and study.user_attrs.get(tag) != text:
            study.set_user_attr(tag, text)
    return study
