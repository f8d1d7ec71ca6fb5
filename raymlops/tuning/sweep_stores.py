"""The stores of a sweep: its study, its trials' child runs and its own run.

Owns how they are created for a new sweep and opened for a resumed one. Knows nothing of how trials run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from raymlops.errors import NotFoundError
from raymlops.tuning.mlflow.sweep_run import STUDY, Parent
from raymlops.tuning.objectives import objectives_of
from raymlops.tuning.search_space import point
from raymlops.tuning.study.records import without_steps
from raymlops.tuning.study.storage import create_study, load_study
from raymlops.tuning.study.trials import Trials, history_of

if TYPE_CHECKING:
    from raymlops.project import Project
    from raymlops.records import TrialRecord
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded
    from raymlops.tuning.mlflow.trial_runs import Children


@dataclass(frozen=True)
class SweepStores:
    """A sweep's study and runs."""

    study: Any
    trials: Trials
    children: Children
    parent: Parent

    @classmethod
    def of(cls, study: Any, parent: Parent, *, project: Project, tracker: Tracker) -> Self:
        """Open the stores of a study."""
        from raymlops.tuning.mlflow.trial_runs import Children

        spec = project.spec
        trials = Trials(
            study, section=spec.sweep, objectives=objectives_of(spec), point=lambda index: point(spec.sweep, index)
        )
        children = Children(
            tracker,
            experiment=spec.experiment,
            parent_run_id=parent.sweep_id,
            name=f"{spec.project.name}-trial",
            tags={**spec.project.tags, "raymlops.project": spec.project.name, "raymlops.recipe": project.reference},
        )
        return cls(study, trials, children, parent)

    def sync_runs(self) -> None:
        """Write to MLflow what the previous driver did not write about the trials that have ended.

        Raises:
            TrackingError: MLflow does not answer.
        """
        self.children.adopt()
        trials = self.study.get_trials(deepcopy=False)
        for record in self.trials.records:
            if not record.carried_from:
                self.children.mirror(record, without_steps(history_of(trials[record.number])))

    def records(self) -> tuple[TrialRecord, ...]:
        """Return the trials that ended, each with the id of its child run."""
        return tuple(
            record
            if record.run_id or record.carried_from
            else replace(record, run_id=self.children.run_id(record.number))
            for record in self.trials.records
        )


def new_study(storage: Any, parent: Parent, *, project: Project) -> Any:
    """Create the study of a new sweep, and tag its run with the name."""
    objectives = objectives_of(project.spec)
    study = create_study(storage, parent.study_name(project.spec), objectives=objectives)
    _link(study, parent, project=project)
    return study


def known_study(storage: Any, recorded: Recorded, *, parent: Parent, project: Project) -> Any:
    """Return the study of a resumed sweep; a new one where its driver died before it created one.

    Raises:
        NotFoundError: its study was deleted.
    """
    named = recorded.tags.get(STUDY)
    try:
        study = load_study(storage, named or parent.study_name(project.spec))
    except NotFoundError:
        if named is not None:
            raise
        return new_study(storage, parent, project=project)
    if named is None:
        _link(study, parent, project=project)  # the driver died just after it created the study
    return study


def _link(study: Any, parent: Parent, *, project: Project) -> None:
    """Write the run's id into the study, and the study's name into the run."""
    study.set_user_attr("raymlops.sweep_id", parent.sweep_id)
    study.set_user_attr("raymlops.metric", objectives_of(project.spec)[0].metric)
    parent.tag({STUDY: study.study_name})
