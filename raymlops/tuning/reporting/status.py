"""How a sweep is doing: what MLflow, its lease and its study say, as one record.

Owns what resuming it would do, in words. The summary is pure; asking is apart. Imports no recipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from raymlops.config.changes import EXTENDABLE
from raymlops.errors import RaymlopsError
from raymlops.records import Record, SpentRecord, TrialRecord
from raymlops.training.runs.lookup import who_holds
from raymlops.training.runs.status import State, why_ended
from raymlops.training.runs.status import summarize as summarize_run
from raymlops.tuning import budget
from raymlops.tuning.mlflow.sweep_run import BEST_CONFIG, FORKED_FROM, REPORT, STOPPED, SUBMISSION, before_of
from raymlops.tuning.objectives import has_no_more, objectives_of
from raymlops.tuning.reporting.progress import shown
from raymlops.tuning.reporting.watch import Standing, reading, total_of
from raymlops.tuning.study.selection import failures

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded

Lease = tuple[Literal["held", "free", "unknown"], str]


@dataclass(frozen=True)
class SweepStatus(Record):
    """A sweep as it is now."""

    sweep_id: str
    name: str
    project: str
    state: State
    detail: str
    """What the state means or why it is so, in a sentence; empty where the word says it all."""
    holder: str | None
    """Who runs it."""
    tracking_uri: str
    started_at: str
    ended_at: str | None
    metric: str = ""
    """Of several the first."""
    trials: dict[str, int] = field(default_factory=dict)
    """How many of its own are in each state: complete, pruned, failed, running, waiting."""
    num_trials: int = 0
    """How many it is to run."""
    carried: int = 0
    """How many it knows from the sweep that it was forked from."""
    best: TrialRecord | None = None
    """Of those that have ended."""
    failures: tuple[str, ...] = ()
    """Why its own trials failed, a line a reason."""
    spent: SpentRecord = field(default_factory=SpentRecord)
    stopped: str = ""
    """Which budget ended it, in words; empty where every trial ran."""
    resume: str = ""
    """What `raymlops sweep --resume` would do."""
    report: str = ""
    best_config: str = ""
    forked_from: str = ""
    submission_id: str = ""
    """The Ray job that runs it; empty where none does."""

    @property
    def ended(self) -> int:
        """Return how many of its own trials have ended."""
        return sum(self.trials.get(state, 0) for state in ("complete", "pruned", "failed"))


def sweep_status(tracker: Tracker, recorded: Recorded, *, now: datetime | None = None) -> SweepStatus:
    """Ask about a sweep that was looked up and return how it is doing.

    A study that cannot be read is told in ``detail``: what MLflow says of the sweep counts for itself.
    """
    standing, problem = Standing(), ""
    if recorded.spec is not None:
        try:
            with reading(recorded) as study:
                standing = study.look()
        except RaymlopsError as error:
            problem = error.message
    return summarize(
        recorded,
        tracking_uri=tracker.shown_uri,
        now=now or datetime.now(UTC),
        lease=who_holds(recorded),
        standing=standing,
        problem=problem,
    )


def summarize(
    recorded: Recorded, *, tracking_uri: str, now: datetime, lease: Lease, standing: Standing, problem: str = ""
) -> SweepStatus:
    """Put together what was found out about a sweep; ``problem`` is why its trials could not be read."""
    spec, tags = recorded.spec, recorded.tags
    run = summarize_run(recorded, tracking_uri=tracking_uri, now=now, lease=lease)
    status = SweepStatus(
        sweep_id=recorded.run_id,
        name=recorded.name,
        project=run.project,
        state=run.state,
        detail=_detail(recorded, run.state, lease=lease, problem=problem),
        holder=run.holder,
        tracking_uri=tracking_uri,
        started_at=run.started_at,
        ended_at=run.ended_at,
        metric=objectives_of(spec)[0].metric if spec else tags.get("raymlops.metric", ""),
        trials=standing.counts,
        num_trials=total_of(spec) if spec else 0,
        carried=standing.carried,
        best=standing.best,
        failures=tuple(failures(standing.ended)),
        spent=before_of(recorded),
        # Of a sweep that goes on MLflow keeps what ended it before.
        stopped=tags.get(STOPPED, "") if run.state == "finished" else "",
        report=tags.get(REPORT, ""),
        best_config=tags.get(BEST_CONFIG, ""),
        forked_from=tags.get(FORKED_FROM, ""),
        submission_id=tags.get(SUBMISSION, ""),
    )
    return replace(status, resume=_resume(recorded, status, who=lease[1], problem=problem))


def rows(status: SweepStatus) -> dict[str, str]:
    """Return a sweep's status as named lines for a person; what is not known is left out."""
    best, spent = status.best, status.spent
    counts = ", ".join(f"{count} {state}" for state, count in status.trials.items() if count)
    carried = f"; knows {status.carried} of {status.forked_from}" if status.carried else ""
    found = {
        "sweep": " ".join(filter(None, [status.sweep_id, f"({status.name})" if status.name else ""])),
        "state": f"{status.state}: {status.detail}" if status.detail else status.state,
        "trials": f"{status.ended} of {status.num_trials} ended{f': {counts}' if counts else ''}{carried}",
        "failures": "\n".join(status.failures),
        "best": "" if best is None else _best(best, status.metric),
        "spent": budget.words(spent) if spent.wall_s else "",
        "stopped": status.stopped,
        "job": status.submission_id,
        "config": status.best_config,
        "report": status.report,
        "resume": status.resume,
    }
    return {name: text for name, text in found.items() if text}


def _best(best: TrialRecord, metric: str) -> str:
    value = "no value" if best.value is None else f"{best.value:.5g}"
    params = ", ".join(f"{name}={shown(setting)}" for name, setting in best.params.items())
    return f"trial {best.number}: {metric} {value} after {best.epochs} epochs with {params}"


def _detail(recorded: Recorded, state: State, *, lease: Lease, problem: str) -> str:
    held, who = lease
    if state == "running":
        said = f"by {who}" if recorded.status == "RUNNING" else f"by {who}; MLflow still says {recorded.status}"
    elif state == "interrupted":
        said = "MLflow says RUNNING, but nobody runs it"
    elif state == "unknown":
        said = f"MLflow says {recorded.status}" + (f"; {who}" if held == "unknown" else "")
    else:
        said = why_ended(recorded)
    return "; ".join(filter(None, [said, f"its trials cannot be read: {problem}" if problem else ""]))


def _resume(recorded: Recorded, status: SweepStatus, *, who: str, problem: str) -> str:
    command = f"raymlops sweep --resume {status.sweep_id}"
    if status.state == "running":
        return f"refused while {who} runs it"
    spec = recorded.spec
    if spec is None:
        return "refused: it was never written down whole"
    if problem:
        return f"nobody can tell: {problem}"
    left = max(0, status.num_trials - status.ended)
    begun = status.trials.get("running", 0) + status.trials.get("waiting", 0)
    new = max(0, left - begun)
    parts = [f"{begun} begun" if begun else "", f"{new} new" if new else ""]
    trials = " and ".join(filter(None, parts))
    # One that failed with a used-up budget would end again at once.
    ended = status.state == "finished" or (status.state == "failed" and left)
    if ended and (over := _over(spec, status, left=left, command=command)):
        return f"{over} with {trials} trials" if trials and over.endswith("goes on") else over
    return f"goes on with {trials} trials: {command}" if trials else f"writes down how it ended: {command}"


def _over(spec: ProjectSpec, status: SweepStatus, *, left: int, command: str) -> str:
    """Return why a sweep that has ended has nothing to do, and what gives it something; empty where it has."""
    section = spec.sweep
    stopped = status.stopped or budget.used_up(section, status.spent)
    named = _field_in(stopped)
    if not left and has_no_more(spec):
        return (
            "nothing: all points of its grid were tried; --fork with a finer one: "
            f"raymlops sweep --fork {status.sweep_id} --config FILE"
        )
    why, more = [], []
    if not left:
        why.append("all trials have ended")
        more.append(f"--extend num_trials=+{section.num_trials}")
    if named:
        why.append(f"it {stopped}")
        limit = getattr(section, named)
        more.append(
            f"--extend {named}=+{limit:.15g}" if named in EXTENDABLE and limit is not None else f"sweep.{named}=VALUE"
        )
    return f"nothing: {' and '.join(why)}; {command} {' '.join(more)} goes on" if why else ""


def _field_in(stopped: str) -> str:
    """Return which field of ``sweep`` ended it, of the words that ``budget`` has for that; empty where none did."""
    if found := re.match(r"reached its (\w+) of ", stopped):
        return found[1]
    return "patience" if stopped.endswith(")") and "(patience " in stopped else ""
