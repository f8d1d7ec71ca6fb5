"""What is found of a retraining before its next step: in the state, on Ray, in MLflow, and by the replicas' counts."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from raymlops.config.retrain import RetrainSection
from raymlops.config.serve import RolloutSection
from raymlops.config.stored import read_stored
from raymlops.lifecycle.live.held import hold_of
from raymlops.lifecycle.live.lineup import canaries_of, champion_of
from raymlops.lifecycle.live.transitions import ROLLBACK
from raymlops.lifecycle.loop.comparison import compared_of, due_until
from raymlops.lifecycle.loop.next_step import TASKS, Found, submission_id
from raymlops.monitor.baked import PARTS, Baked, bake
from raymlops.predictions.counts import Counts
from raymlops.serving.control.render import settings_of
from raymlops.state.rollouts import newest_rollout
from raymlops.state.transitions import newest_transition
from raymlops.state.versions import decision_of, recorded, registered_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.lifecycle.loop.stage_jobs import StageJobs
    from raymlops.lifecycle.quality.facts import QualityFacts
    from raymlops.state.loop import Retraining
    from raymlops.state.store import Model, State

    Quality = Callable[[State, str], QualityFacts]
    """Returns what is known now of the quality of a model's champion."""
    Counted = Callable[[Retraining], dict[str, dict[str, Any]]]
    """Returns the counts of a version since its promotion as data, by replica."""


def found_of(
    state: State, one: Retraining, *, now: datetime, jobs: StageJobs, counted: Counted, quality: Quality
) -> Found:
    """Return what the next step of a retraining depends on, as far as its stage asks for it.

    Raises:
        ClusterError, TrackingError, StorageError, UnreachableError: something of it cannot be found out now.
        NotFoundError: the champion's run is gone from MLflow.
    """
    model = state.model(one.name)
    champion = champion_of(model.deployments)
    live = None if champion is None else champion.version
    if one.stage in {"decided", "proposed"}:
        return Found(live)
    if one.stage == "rolling_out":
        return Found(
            live,
            hold=hold_of(model, now=now),
            rollout=newest_rollout(state, one.name, one.version),
            coming=any(each.version == one.version for each in model.coming),
            lost=_lost(state, model, one.version),
            others=_others(model, one.version),
        )
    if one.stage == "baking":
        lost, others = _lost(state, model, one.version), _others(model, one.version)
        if live != one.version:
            return Found(live, lost=lost, others=others)
        known, totals = quality(state, one.name), counted(one)
        since = sum(map(Counts.from_dict, totals.values()), Counts())
        until = due_until(one, known)
        return Found(
            live,
            lost=lost,
            others=others,
            job=None if until is None else jobs.find(submission_id(one, "compare", until=until)),
            baked=_baked(state, one, model, now=now, since=since, known=known, is_due=until is not None),
            part=_part(one, since, now=now),
            counted=totals,
            compare_until=until,
        )
    job = jobs.find(submission_id(one, TASKS[one.stage]))
    hold = hold_of(model, now=now) if job is None else ""
    run_id = None
    if one.stage == "training" and (job is None or job.status != "running"):
        run_id = jobs.finished_run(one)
    version = registered_of(state, one.name, one.run_id) if one.stage == "gating" and one.run_id is not None else None
    gate = {} if version is None else decision_of(state, one.name, version.version)
    return Found(live, hold=hold, job=job, run_id=run_id, version=version, gate=gate)


def _lost(state: State, model: Model, version: int | None) -> str:
    """Return why a version was taken back, or did not come up; empty if neither."""
    assert version is not None
    record = recorded(state, model.name, version)
    if record is not None and record.withdrawn is not None:
        return record.withdrawn
    ended = newest_transition(state, model.name, version)
    return ended.reason if ended is not None and ended.status in {"failed", "superseded"} else ""


def _others(model: Model, version: int | None) -> str:
    """Return which other version gets a share of the traffic, or is on its way to one; empty if none."""
    shares = [item.version for item in canaries_of(model.deployments)]
    shares += [each.version for each in model.coming if each.action != ROLLBACK]
    shares += [] if model.rollout is None else [model.rollout.version]
    other = next((each for each in shares if each != version), None)
    return "" if other is None else f"version {other} of {model.name}, which a person rolls out"


def _baked(
    state: State,
    one: Retraining,
    model: Model,
    *,
    now: datetime,
    since: Counts,
    known: QualityFacts,
    is_due: bool,
) -> Baked:
    champion = champion_of(model.deployments)
    assert champion is not None
    rollout = newest_rollout(state, one.name, one.version)
    steps = [] if rollout is None else rollout.evidence.get("steps", ())
    stored = settings_of(champion).rollout.model_dump() if rollout is None else rollout.settings
    settings = read_stored(RolloutSection, stored)
    compared = compared_of(one)
    if is_due and compared is not None and not compared.is_known:
        compared = None  # it is tried again before its own answers are all that there is
    return bake(
        sum((Counts.from_dict(step.get("champion", {})) for step in steps), Counts()),
        since,
        parts=[Counts.from_dict(part["counts"]) for part in one.found.get("parts", ())],
        quality=known.verdict if known.version == one.version else None,
        compared=compared,
        hours=_hours(one, now=now),
        bake_h=read_stored(RetrainSection, one.settings).bake_h,
        error_margin=settings.error_margin,
        slow_margin=settings.slow_margin,
    )


def _hours(one: Retraining, *, now: datetime) -> float:
    """Return how long it has baked, without what a clock that was set back would take away."""
    ends = [datetime.fromisoformat(part["at"]) for part in one.found.get("parts", ())]
    spans = (end - start for start, end in pairwise([one.stage_at, *ends, now]))
    return sum(max(0.0, span.total_seconds()) for span in spans) / 3600


def _part(one: Retraining, since: Counts, *, now: datetime) -> dict[str, Any] | None:
    """Return what was counted by now, if that is the end of a part of the bake."""
    parts = one.found.get("parts", ())
    begun = datetime.fromisoformat(parts[-1]["at"]) if parts else one.stage_at
    hours = read_stored(RetrainSection, one.settings).bake_h / PARTS
    if len(parts) == PARTS or abs(now - begun) < timedelta(hours=hours):
        return None
    return {"at": now.isoformat(), "counts": since.to_dict()}
