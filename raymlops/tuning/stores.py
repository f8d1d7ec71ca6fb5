"""What a sweep writes into: its study, its trials' child runs and its own run, opened together.

Owns how they are made for a new sweep and found again for one that goes on. Knows nothing of how trials run.
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
class Books:
    """A sweep's study and runs."""

    study: Any
    trials: Trials
    children: Children
    parent: Parent

    @classmethod
    def of(cls, study: Any, parent: Parent, *, project: Project, store: Tracker) -> Self:
        """Open the books of a study."""
        from raymlops.tuning.mlflow.trial_runs import Children

        spec = project.spec
        trials = Trials(
            study, section=spec.sweep, objectives=objectives_of(spec), point=lambda index: point(spec.sweep, index)
        )
        children = Children(
            store,
            experiment=spec.experiment,
            parent_run_id=parent.sweep_id,
            name=f"{spec.project.name}-trial",
            tags={**spec.project.tags, "raymlops.project": spec.project.name, "raymlops.recipe": project.reference},
        )
        return cls(study, trials, children, parent)

    def bring_up_to_date(self) -> None:
        """Let MLflow know of every trial that has ended what the last driver did not get to write.

        Raises:
            TrackingError: it cannot be asked what it has.
        """
        self.children.adopt()
        trials = self.study.get_trials(deepcopy=False)
        for record in self.trials.records:
            if not record.carried_from:
                self.children.mirror(record, without_steps(history_of(trials[record.number])))

    def records(self) -> tuple[TrialRecord, ...]:
        """Return the trials that ended, each with its child run."""
        return tuple(
            record if record.run_id or record.carried_from else replace(record, run_id=self._run_id(record.number))
            for record in self.trials.records
        )

    def _run_id(self, number: int) -> str | None:
        return self.children.run_id(number)


def new_study(storage: Any, parent: Parent, *, project: Project) -> Any:
    """Make the study of a new sweep; its run says its name."""
    objectives = objectives_of(project.spec)
    study = create_study(storage, parent.study_name(project.spec), objectives=objectives)
    _introduce(study, parent, project=project)
    return study


def known_study(storage: Any, recorded: Recorded, *, parent: Parent, project: Project) -> Any:
    """Return the study of a sweep that goes on; a new one where its driver died before it made it.

    Raises:
        NotFoundError: it had one, which is gone.
    """
    named = recorded.tags.get(STUDY)
    try:
        study = load_study(storage, named or parent.study_name(project.spec))
    except NotFoundError:
        if named is not None:
            raise
        return new_study(storage, parent, project=project)
    if named is None:
        _introduce(study, parent, project=project)  # the driver died just after it made it
    return study


def _introduce(study: Any, parent: Parent, *, project: Project) -> None:
    """Let study and run name each other."""
    study.set_user_attr("raymlops.sweep_id", parent.sweep_id)
    study.set_user_attr("raymlops.metric", objectives_of(project.spec)[0].metric)
    parent.tag({STUDY: study.study_name})
