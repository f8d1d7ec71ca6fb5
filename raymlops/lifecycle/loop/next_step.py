"""What a retraining does next. Pure: the retraining, what was found of it, and the time in; one action out.

Owns the order of the stages. Each effect is followed by a look: only what is found moves a retraining on, so that a
kill between an effect and its record repeats a look, and a kill before the effect repeats the effect, which is refused
or found where it is there already. ``act`` carries the action out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.retrain import RetrainSection
from raymlops.config.stored import read_stored
from raymlops.monitor.baked import PARTS, Compared
from raymlops.state.loop import COUNTED, WAITING

if TYPE_CHECKING:
    from raymlops.monitor.baked import Baked
    from raymlops.state.loop import Retraining, Stage
    from raymlops.state.rollouts import Rollout
    from raymlops.state.versions import VersionRecord

Task = Literal["train", "gate", "replay", "compare"]
"""What a retraining does in a Ray job of its own."""
TASKS: dict[Stage, Task] = {"checking": "train", "training": "train", "gating": "gate", "replaying": "replay"}
"""The job that is looked for at a stage; one that bakes is compared once for each new window of labels."""
COMPARING = "comparing"
"""Key of the newest comparison in ``Retraining.found``."""
TRAINED_ON = "training"
"""Key of what a retraining is trained on there, where that is the prediction log."""
PAUSES = (timedelta(minutes=2), timedelta(minutes=15), timedelta(hours=1))
"""Before another attempt, after the first, the second and each further failure: whatever the job needs may be away."""
_FAILED = "failed"
"""Key of the newest attempt that failed in ``Retraining.found``: when it did (``at``), and the ``note`` on it."""
_DOING: dict[Task, str] = {
    "train": "training",
    "gate": "the gate",
    "replay": "the replay",
    "compare": "the comparison with the version before",
}


@dataclass(frozen=True)
class JobFound:
    """A Ray job as it was found; ``reason`` says why one failed. Of one that was refused the next would be, too."""

    status: Literal["running", "succeeded", "failed", "refused"]
    reason: str = ""


@dataclass(frozen=True)
class Found:
    """What was found of a retraining, as far as its stage asks for it."""

    live: int | None = None
    """The champion's version now; None where the model was taken down."""
    hold: str = ""
    """Why nothing new is begun: a freeze, or an incident."""
    job: JobFound | None = None
    """Of this stage and attempt; None where Ray knows none."""
    run_id: str | None = None
    """The finished run with the retraining's tag."""
    version: VersionRecord | None = None
    """What was registered of the run."""
    gate: dict[str, Any] = field(default_factory=dict)
    """The gate's decision on it."""
    rollout: Rollout | None = None
    """The newest of the version."""
    coming: bool = False
    """Whether the version is on its way to its share or to the route."""
    lost: str = ""
    """Why the version did not come up, or was taken back from traffic."""
    others: str = ""
    """Another version that a person gives a share of the traffic now."""
    baked: Baked | None = None
    part: dict[str, Any] | None = None
    """What was counted by the end of a part of the bake, which has just ended."""
    counted: dict[str, Any] = field(default_factory=dict)
    """Each replica's totals since the promotion."""
    compare_until: datetime | None = None
    """End of the windows of labels by which it is to be compared with the version before; None where none is due."""


@dataclass(frozen=True)
class Submit:
    """Begin the job of a task."""

    task: Task
    submission_id: str


@dataclass(frozen=True)
class Advance:
    """Write the stage from now on, and what was found."""

    stage: Stage
    why: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Other fields of the retraining."""
    adds: dict[str, Any] = field(default_factory=dict)
    """What is added to ``Retraining.found``."""


@dataclass(frozen=True)
class StartRollout:
    """Give the version its first share of the traffic."""

    version: int


@dataclass(frozen=True)
class TakeBack:
    """Give the route back to the version before, or end the version's share of the traffic."""

    version: int
    why: str


@dataclass(frozen=True)
class Wait:
    """Do nothing now, but write why, and what was found."""

    why: str
    adds: dict[str, Any] = field(default_factory=dict)


Action = Submit | Advance | StartRollout | TakeBack | Wait


def next_step(one: Retraining, found: Found, *, now: datetime) -> Action:
    """Return what a retraining that has not ended does next."""
    settings = read_stored(RetrainSection, one.settings)
    action = _next(one, found, settings, now=now)
    return timed(one, action, shares=_shares(found), now=now) if isinstance(action, Wait) else action


def timed(one: Retraining, wait: Wait, *, now: datetime, shares: bool = False) -> Action:
    """Return what follows from a wait: a message once at half of ``retrain.max_stage_h``, and the end after all of it.

    A version that ``shares`` the traffic loses its share. A bake ends by itself.
    """
    hours = read_stored(RetrainSection, one.settings).max_stage_h
    limit, waited = timedelta(hours=hours), now - one.stage_at
    if one.stage == "baking" or waited < limit / 2:
        return wait
    if waited < limit:
        if one.found.get(WAITING) == one.stage:
            return wait
        until = f"{wait.why}; retrain.max_stage_h ends it at {one.stage_at + limit:%Y-%m-%d %H:%M} UTC"
        return Advance(one.stage, until, adds={**wait.adds, WAITING: one.stage})
    why = f"{one.stage.replace('_', ' ')} for {hours:g} h, the most that retrain.max_stage_h allows: {wait.why}"
    if shares:
        assert one.version is not None
        return TakeBack(one.version, why)
    return _stop(why)


def _next(one: Retraining, found: Found, settings: RetrainSection, *, now: datetime) -> Action:
    if one.stage == "decided":  # by itself, or by a person: what is observed has ended, what is proposed waits
        return Advance("checking", f"version {one.champion} is to be replaced")
    if one.stage == "proposed":
        return Wait(f"for a person: raymlops proposals accept {one.id} --why TEXT, or reject")
    if one.stage == "rolling_out":
        return _rolling_out(one, found)
    if one.stage == "baking":
        return _counted(_baking(one, found, settings, now=now), found)
    if found.live != one.champion:
        return _stop(_gone(one, found))
    return _after_task(one, found, settings) or _task(one, found, settings, TASKS[one.stage], now=now)


def submission_id(one: Retraining, task: Task, *, until: datetime | None = None) -> str:
    """Return the id of the Ray job of a task and attempt: the same whoever submits it, so that Ray refuses a second.

    Of comparisons there are several, ``until`` several times.
    """
    of = "" if until is None else f"-{until:%Y%m%dT%H%M%S}"
    attempt = f"-{one.failures + 1}" if one.failures else ""
    return f"raymlops-retrain-{one.id}-{task}{of}{attempt}"


def uncompared(until: datetime, why: str) -> Advance:
    """Return that a version that bakes was not compared with the one before, so that its own answers are judged."""
    found = Compared("not compared", why, until.isoformat())
    return Advance("baking", why, changes={"failures": 0}, adds={COMPARING: found.to_dict()})


def _shares(found: Found) -> bool:
    return found.coming or (found.rollout is not None and found.rollout.status == "running")


def _gone(one: Retraining, found: Found) -> str:
    if found.live is None:
        return f"{one.name} was taken down"
    return f"version {found.live} is live now, and it was to replace version {one.champion}"


def _after_task(one: Retraining, found: Found, settings: RetrainSection) -> Action | None:
    """Return what follows from the result of a stage's job; None while there is none."""
    if one.stage == "checking" and found.job is not None:
        submitted = submission_id(one, "train")
        return Advance("training", f"job {submitted} trains it", changes={"submission_id": submitted})
    if one.stage == "training" and found.run_id is not None:
        return Advance("gating", f"run {found.run_id} is trained", changes={"run_id": found.run_id})
    if one.stage == "gating":
        return _gated(found)
    return _replayed(one, settings) if one.stage == "replaying" else None


def _task(one: Retraining, found: Found, settings: RetrainSection, task: Task, *, now: datetime) -> Action:
    """Submit, wait for, or repeat a job, with a pause before each repetition."""
    until = found.compare_until
    submitted = submission_id(one, task, until=until)
    if found.job is None:
        if found.hold:
            return Wait(found.hold)
        return Wait(one.found[_FAILED]["note"]) if now < _again_at(one, now) else Submit(task, submitted)
    if found.job.status == "running":
        return Wait(f"job {submitted} runs")
    ended = found.job.reason or "it ended without a result"
    refused = found.job.status == "refused"
    return failed(one, task, ended, settings=settings, until=until, refused=refused, now=now)


def failed(
    one: Retraining,
    task: Task,
    ended: str,
    *,
    settings: RetrainSection,
    until: datetime | None,
    now: datetime,
    refused: bool = False,
) -> Advance:
    """Return what follows an attempt that failed: another one, after a pause, or none where it would be refused too.

    ``until`` is that of a comparison.
    """
    failures, why = one.failures + 1, ""
    if refused:
        why = f"{_DOING[task]} was refused: {ended}"
    elif failures >= settings.max_failures:
        times = f"{failures} times" if failures > 1 else "once"
        why = f"{_DOING[task]} failed {times}, as retrain.max_failures allows; the last time: {ended}"
    if why:
        return _stop(why) if until is None else uncompared(until, why)
    begins = now + _pause(failures)
    again = f"attempt {failures} of {_DOING[task]} failed, the next one begins at {begins:%H:%M:%S} UTC: {ended}"
    changes = {"failures": failures, "submission_id": submission_id(one, task, until=until)}
    return Advance(one.stage, again, changes=changes, adds={_FAILED: {"at": now.isoformat(), "note": again}})


def _again_at(one: Retraining, now: datetime) -> datetime:
    """Return when the next attempt may begin; a clock that was set back does not put it off for longer."""
    last = one.found.get(_FAILED)
    if not one.failures or last is None:
        return now
    pause = _pause(one.failures)
    begins = datetime.fromisoformat(last["at"]) + pause
    return begins if begins <= now + pause else now


def _pause(failures: int) -> timedelta:
    return PAUSES[min(failures, len(PAUSES)) - 1]


def _gated(found: Found) -> Action | None:
    """Return what follows from the gate's verdict; None before it, and while its job still mirrors it to MLflow."""
    version = found.version
    if version is None or version.verdict is None or (found.job is not None and found.job.status == "running"):
        return None
    changes, adds = {"version": version.version}, {"gating": found.gate}
    if version.verdict == "passed":
        return Advance("replaying", f"version {version.version} passed the gate", changes=changes, adds=adds)
    why = f"the gate refused version {version.version}: {_failed_checks(found.gate)}"
    return Advance("stopped", why, changes=changes, adds=adds)


def _replayed(one: Retraining, settings: RetrainSection) -> Action | None:
    if settings.replay_h == 0:
        return Advance("rolling_out", "retrain.replay_h is 0, so that nothing is replayed")
    decision = one.found.get("replaying")
    if decision is None:
        return None
    if decision["passed"]:
        return Advance("rolling_out", f"version {one.version} passed the replay of {settings.replay_h:g} h")
    return Advance("stopped", f"the replay refused version {one.version}: {_failed_checks(decision)}")


def _rolling_out(one: Retraining, found: Found) -> Action:
    assert one.version is not None
    rollout = found.rollout
    if found.live == one.version:
        changes = {"rollout_id": rollout.id} if rollout is not None else {}
        return Advance("baking", f"version {one.version} is live", changes=changes)
    if found.coming:
        return Wait(f"version {one.version} comes up")
    if rollout is not None and rollout.status == "running":
        return Wait(f"rollout {rollout.id} of version {one.version} runs")
    if rollout is not None:
        changes = {"rollout_id": rollout.id}
        why = f"rollout {rollout.id} of version {one.version} was {rollout.status}: {found.lost or rollout.reason}"
        return Advance("taken_back", why, changes=changes)
    if found.lost:
        return _stop(found.lost)
    if found.live != one.champion:
        return _stop(_gone(one, found))
    if why := found.hold or found.others:
        return Wait(why)
    return StartRollout(one.version)


def _baking(one: Retraining, found: Found, settings: RetrainSection, *, now: datetime) -> Action:
    assert one.version is not None
    decided = one.found.get("baking")
    if found.live != one.version:
        if found.lost:
            why = f"version {one.version} was taken back: {decided['reason'] if decided else found.lost}"
            return Advance("taken_back", why)
        if found.live is None:
            return _stop(f"{one.name} was taken down")
        return Advance("done", f"version {found.live} was made live in place of version {one.version}")
    if decided is not None:
        if not found.others:
            return TakeBack(one.version, decided["reason"])
        return Wait(f"{found.others}; version {one.version} is to be taken back: {decided['reason']}")
    baked = found.baked
    if baked is not None and baked.outcome == "worse":  # written first, so that the reason outlives a kill
        why = f"version {one.version} is to be taken back: {baked.reason}"
        return Advance("baking", why, adds={"baking": baked.to_dict()})
    if found.part is not None:
        parts = [*one.found.get("parts", ()), found.part]
        return Advance("baking", f"part {len(parts)} of {PARTS} of the bake is over", adds={"parts": parts})
    if found.compare_until is not None:
        return _task(one, found, settings, "compare", now=now)
    if baked is not None and baked.outcome == "passed":
        return Advance("done", f"version {one.version} stays: {baked.reason}")
    until = one.stage_at + timedelta(hours=settings.bake_h)
    late = "" if now < until else ", and then for what it is judged by"
    return Wait(f"version {one.version} bakes until {until:%Y-%m-%d %H:%M} UTC{late}")


def _counted(action: Action, found: Found) -> Action:
    """Return an action that writes the counts too: replicas and controllers end, and nothing decided rests on less."""
    if found.counted and isinstance(action, Advance | Wait):
        return replace(action, adds={**action.adds, COUNTED: found.counted})
    return action


def _stop(why: str) -> Advance:
    return Advance("stopped", why)


def _failed_checks(decision: dict[str, Any]) -> str:
    """Return which checks of a decision failed, in a line."""
    failed = [check for check in decision.get("checks", ()) if not check["passed"]]
    said = [f"{check['name']}: got {check['got']}, allowed {check['allowed']} ({check['detail']})" for check in failed]
    return "; ".join(said) or "no check says why"
