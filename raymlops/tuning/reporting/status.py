"""The status of a sweep: what MLflow, its lease and its study say, as one record.

Owns what resuming it would do. Summarizing is pure, reading is apart. Imports no recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raymlops.display import shown_value
from raymlops.errors import RaymlopsError
from raymlops.records import RepeatRecord, SpentRecord, TrialRecord
from raymlops.training.runs.lookup import who_holds
from raymlops.training.runs.status import Status, shared_fields
from raymlops.tuning import budget
from raymlops.tuning.budget import Tally
from raymlops.tuning.mlflow.sweep_run import BEST_CONFIG, FORKED_FROM, REPORT, STOPPED, SUBMISSION, before_of
from raymlops.tuning.reporting.study_reader import Snapshot, open_study
from raymlops.tuning.search_space import num_trials
from raymlops.tuning.study.ranking import verdict
from raymlops.tuning.study.selection import failures

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Lease, Recorded


@dataclass(frozen=True, kw_only=True)
class SweepStatus(Status):
    """The status of a sweep."""

    sweep_id: str
    metric: str = ""
    """The first of several."""
    trials: dict[str, int] = field(default_factory=dict)
    """Number of its own trials in each state: complete, pruned, failed, running, waiting."""
    num_trials: int = 0
    """Number of trials to run."""
    repeats_ended: int = 0
    """Number of trials that have trained one of the best configurations again with another seed."""
    num_repeats: int = 0
    """Number of such trials to run, once the first one has been added."""
    carried: int = 0
    """Number of trials carried over from the forked sweep."""
    imported: int = 0
    """Number of trials imported from ``sweep.import_study``."""
    best: TrialRecord | None = None
    """Of those that have ended."""
    repeats: tuple[RepeatRecord, ...] = ()
    """The configurations that were trained with several seeds, best mean first; ``best`` is a run of the first one."""
    failures: tuple[str, ...] = ()
    """Why its own trials failed, a line a reason."""
    spent: SpentRecord = field(default_factory=SpentRecord)
    stopped: str = ""
    """Which budget ended it, in words; empty where every trial ran."""
    report: str = ""
    best_config: str = ""
    forked_from: str = ""
    submission_id: str = ""
    """The Ray job that runs it; empty without one."""

    @property
    def ended(self) -> int:
        """Return how many of its own trials have ended."""
        return sum(self.trials.get(state, 0) for state in ("complete", "pruned", "failed"))

    def summary(self) -> dict[str, str | None]:
        """Return the status as named texts."""
        counts = ", ".join(f"{count} {state}" for state, count in self.trials.items() if count)
        repeats = f"; {self.repeats_ended} of {self.num_repeats} repeats ended" if self.num_repeats else ""
        carried = f"; {self.carried} carried over from {self.forked_from}" if self.carried else ""
        carried += f"; {self.imported} imported" if self.imported else ""
        return {
            "sweep": f"{self.sweep_id} ({self.name})" if self.name else self.sweep_id,
            "state": self.state_line,
            "trials": f"{self.ended} of {self.num_trials} ended{f': {counts}' if counts else ''}{repeats}{carried}",
            "failures": "\n".join(self.failures),
            "best": self._best(),
            "repeats": verdict(self.repeats, metric=self.metric),
            "spent": budget.words(self.spent) if self.spent.wall_s else None,
            "stopped": self.stopped,
            "job": self.submission_id,
            "config": self.best_config,
            "report": self.report,
            "resume": self.resume,
        }

    def _best(self) -> str | None:
        best = self.best
        if best is None:
            return None
        value = "no value" if best.value is None else f"{best.value:.5g}"
        params = ", ".join(f"{name}={shown_value(setting)}" for name, setting in best.params.items())
        return f"trial {best.number}: {self.metric} {value} after {best.epochs} epochs with {params}"


def sweep_status(tracker: Tracker, recorded: Recorded) -> SweepStatus:
    """Return the status of a sweep that was looked up; ``detail`` says where its study cannot be read."""
    snapshot, problem = Snapshot(), ""
    if recorded.spec is not None:
        try:
            with open_study(recorded) as study:
                snapshot = study.snapshot()
        except RaymlopsError as error:
            problem = error.message
    lease = who_holds(recorded)
    return summarize(recorded, tracking_uri=tracker.shown_uri, lease=lease, snapshot=snapshot, problem=problem)


def summarize(
    recorded: Recorded, *, tracking_uri: str, lease: Lease, snapshot: Snapshot, problem: str = ""
) -> SweepStatus:
    """Return the status from what was read of a sweep; ``problem`` is why its trials could not be read."""
    spec, tags = recorded.spec, recorded.tags
    shared = shared_fields(recorded, tracking_uri=tracking_uri, lease=lease)
    if problem:
        shared["detail"] = "; ".join(filter(None, [shared["detail"], f"its trials cannot be read: {problem}"]))
    status = SweepStatus(
        **shared,
        sweep_id=recorded.run_id,
        metric=spec.objectives[0].metric if spec else tags.get("raymlops.metric", ""),
        trials=snapshot.counts,
        num_trials=num_trials(spec.sweep, refused=snapshot.refused) if spec else 0,
        repeats_ended=snapshot.repeats_ended,
        num_repeats=snapshot.num_repeats,
        carried=snapshot.carried,
        imported=snapshot.imported,
        best=snapshot.best,
        repeats=snapshot.repeats,
        failures=tuple(failures(snapshot.ended)),
        spent=before_of(recorded),
        # MLflow keeps the previous reason of a sweep that was resumed.
        stopped=tags.get(STOPPED, "") if shared["state"] == "finished" else "",
        report=tags.get(REPORT, ""),
        best_config=tags.get(BEST_CONFIG, ""),
        forked_from=tags.get(FORKED_FROM, ""),
        submission_id=tags.get(SUBMISSION, ""),
    )
    return replace(status, resume=_resume(spec, status, snapshot=snapshot, problem=problem))


def _resume(spec: ProjectSpec | None, status: SweepStatus, *, snapshot: Snapshot, problem: str) -> str:
    if status.state == "running":
        return f"refused while {status.holder} runs it"
    if spec is None:
        return "refused: its configuration is missing or unreadable"
    if problem:
        return f"unknown: {problem}"
    left = max(0, status.num_trials - status.ended)
    command = f"raymlops sweep --resume {status.sweep_id}"
    searched = [view for view in snapshot.open if view.repeat_of is None]
    enqueued = sum(view.enqueued for view in searched)
    own = len(searched) - enqueued
    started = own + min(enqueued, max(0, left - own))
    counts = {"started": started, "new": max(0, left - started)}
    trials = " and ".join(f"{count} {which}" for which, count in counts.items() if count)
    # A failed sweep whose budget is used up would end again at once.
    repeats = snapshot.repeats_left
    if status.state == "finished" or (status.state == "failed" and (left or repeats)):
        tally = Tally.of(snapshot.by_end, mode=spec.objectives[0].mode)
        why, further = budget.nothing_left(
            status.sweep_id, spec.sweep, tally=tally, refused=snapshot.refused, spent=status.spent, repeats=repeats
        )
        if why:
            on = f" with {trials} trials" if trials else ""
            return f"nothing left to do: it {why}; to continue{on}: {further}"
    if repeats and (not left or status.state == "finished"):
        return f"resumes {repeats} repeats: {command}"
    return f"resumes {trials} trials: {command}" if trials else f"records its result: {command}"
