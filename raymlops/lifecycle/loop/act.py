"""The loop: each retraining that has not ended takes its next step, whoever died before.

Owns the order of a look: what is found, the step that follows (``next_step``), and that one effect or one write.
Effects are refused or found where they are there already: a job by its id, a version by its run, a rollout by its
version, a rollback by the route. Writes are compare-and-set of what was read, with their audit event and message in one
transaction (``state.loop``). The controller calls it under its lease, on the one cluster that the state is live on.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, assert_never

from raymlops.config.retrain import RetrainSection
from raymlops.config.stored import read_stored
from raymlops.errors import (
    BundleError,
    ClusterError,
    ConfigError,
    InsufficientResourcesError,
    NotFoundError,
    RefusedError,
    TrackingError,
    UsageError,
)
from raymlops.lifecycle.live import withdrawals
from raymlops.lifecycle.live.capacity import leaving_first
from raymlops.lifecycle.live.held import hold_of, why_begun
from raymlops.lifecycle.live.lineup import ROUTE_ACTIONS, champion_of
from raymlops.lifecycle.live.reconcile import is_up, seen_by
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.staging import gone
from raymlops.lifecycle.live.transitions import ROLLBACK, ROUTE, Request, bring
from raymlops.lifecycle.loop.found import found_of
from raymlops.lifecycle.loop.messages import message_about
from raymlops.lifecycle.loop.next_step import (
    Advance,
    StartRollout,
    Submit,
    TakeBack,
    Wait,
    failed,
    next_step,
    timed,
    uncompared,
)
from raymlops.lifecycle.registration.admission import check_verdict, check_withdrawn
from raymlops.lifecycle.registration.compatibility import check_compatible, signature_of
from raymlops.serving.control.render import settings_of
from raymlops.state.audit import changes_of
from raymlops.state.engine import this_user
from raymlops.state.loop import WAITING, advance, retrainings_of, still_at
from raymlops.state.rollouts import STARTED
from raymlops.state.store import Change, Deployment
from raymlops.state.versions import recorded

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.config.serve import ServeSection
    from raymlops.errors import RaymlopsError
    from raymlops.lifecycle.live.reconciler import Cluster
    from raymlops.lifecycle.loop.found import Counted, Quality
    from raymlops.lifecycle.loop.next_step import Action, Found
    from raymlops.lifecycle.loop.stage_jobs import StageJobs
    from raymlops.serving.control.plan import Plan
    from raymlops.state.loop import Retraining
    from raymlops.state.store import Model, State

MOST_STEPS = 8
"""Of one call."""

_RULED_OUT = (RefusedError, NotFoundError, InsufficientResourcesError, BundleError, ConfigError, UsageError)
"""What no repetition ends, in place of a cluster, a state or an MLflow that is away."""

_log = logging.getLogger(__name__)


class Loop:
    """Move the retrainings of a state."""

    def __init__(
        self,
        state: State,
        cluster: Cluster,
        *,
        serve: ServeSection,
        jobs: StageJobs,
        counted: Counted,
        quality: Quality,
    ) -> None:
        """Take the state, Serve, the jobs, the counts since a promotion, and what is known of quality."""
        self._state = state
        self._cluster = cluster
        self._jobs = jobs
        self._counted = counted
        self._quality = quality
        self._actor = f"controller of {this_user()}"
        self._reconciler = Reconciler(state, cluster, serve=serve, actor=self._actor)

    def open(self) -> list[Retraining]:
        """Return the retrainings that have not ended."""
        return retrainings_of(self._state, open_only=True)

    def step(self, one: Retraining, now: datetime) -> Retraining:
        """Take the steps of a retraining that are due, and return it as it is then.

        Raises:
            ClusterError, TrackingError, StorageError, UnreachableError: something of it cannot be found out, or done,
                now; the next call goes on.
            RefusedError, NotFoundError, InsufficientResourcesError, BundleError, ConfigError, UsageError: what it
                depends on is gone or unusable, such as a run that was removed; it is stopped, or goes on baking.
        """
        last: Action | None = None
        for _ in range(MOST_STEPS):
            if not one.is_open:
                break
            try:
                found = self._found(one, now)
            except (*_RULED_OUT, ClusterError, TrackingError) as error:
                self._act(one, _unfound(one, error, now=now), now)
                raise
            action = next_step(one, found, now=now)
            if action == last:
                break  # its effect takes longer than a look
            last = action
            try:
                after = self._act(one, action, now)
            except _RULED_OUT as error:
                # What rules an effect out is written: a person removes it, or the retraining ends.
                after = self._advance(one, _ruled_out(one, action, error, found, now=now), now)
            one = after or one
            if after is None or isinstance(action, Wait):
                break
        return one

    def _found(self, one: Retraining, now: datetime) -> Found:
        return found_of(self._state, one, now=now, jobs=self._jobs, counted=self._counted, quality=self._quality)

    def _act(self, one: Retraining, action: Action, now: datetime) -> Retraining | None:
        """Do one thing, and return the retraining as it is from now on; None where another one changed it."""
        if isinstance(action, Advance):
            return self._advance(one, action, now)
        if isinstance(action, Wait):
            written = (action.why, {**one.found, **action.adds}) == (one.note, one.found)
            return one if written else self._advance(one, Advance(one.stage, action.why, adds=action.adds), now)
        if isinstance(action, Submit):
            _log.info("retraining %s of %s: %s", one.id, one.name, action.submission_id)
            self._jobs.submit(action.task, action.submission_id, one, self._champion(one))
        elif isinstance(action, StartRollout):
            self._start_rollout(one, now)
        elif isinstance(action, TakeBack):
            self._take_back(one, action, now)
        else:
            assert_never(action)
        return one  # and look again: what was done is found

    def _advance(self, one: Retraining, action: Advance, now: datetime) -> Retraining | None:
        adds = {**one.found, **action.adds}
        after = one.at(action.stage, now=now, note=action.why, found=adds, **action.changes)
        message = None
        if after.stage != one.stage or not action.adds.keys().isdisjoint({"baking", WAITING}):
            message = message_about(after, now=now)
            _log.info("retraining %s of %s is %s: %s", one.id, one.name, after.stage, action.why)
        return advance(self._state, one, after, why=action.why, message=message, actor=self._actor)

    def _champion(self, one: Retraining) -> Deployment:
        champion = champion_of(self._state.deployments(one.name))
        if champion is None:
            raise RefusedError(f"{one.name} was taken down just now")
        return champion

    def _start_rollout(self, one: Retraining, now: datetime) -> None:
        """Desire the version beside the champion, and its rollout once it is up."""
        state, version = self._state, one.version
        assert version is not None
        champion, record = self._champion(one), recorded(state, one.name, version)
        if record is None:
            raise RefusedError(f"version {version} of {one.name} is not recorded here any more")
        check_verdict(record, record.verdict)
        check_withdrawn(record, again=False)
        check_compatible(
            signature_of(champion.bundle),
            signature_of(record.bundle),
            versions=(champion.version, version),
            hint=f"raymlops deploy {one.name} --version {version} --breaking makes it live all the same.",
        )
        settings = settings_of(champion)
        new = replace(
            champion, version=version, bundle=record.bundle, run_id=record.run_id, role="warm", weight=0.0, shadow=0.0
        )
        standing = state.deployments(one.name)
        leaving = leaving_first(self._cluster, state.desired(), new)
        rollout = settings.rollout.model_dump(mode="json")
        goal = {"champion": champion.version, "weight": settings.rollout.steps[0] / 100, "rollout": rollout}
        why = why_begun(one)
        request = Request(STARTED, why, self._actor, now, settings.ready_timeout_s, replaces=new.replaces)

        def decide(model: Model) -> Change:
            is_coming = any(each.version == version for each in model.coming)
            if model.rollout is not None or is_coming or hold_of(model, now=now):
                return Change(model, STARTED, why)  # it is on its way, or another one is, or it waits
            return bring(model, new, goal=goal, request=request, up=False, leaving=leaving, standing=standing)

        state.change(one.name, decide, actor=self._actor, given=still_at(one))  # nobody rejected it meanwhile

    def _take_back(self, one: Retraining, action: TakeBack, now: datetime) -> None:
        """Desire the version before again, if this one has the route; or this one without its share."""
        state, name = self._state, one.name
        plan = self._reconciler.look()
        timeout_s = settings_of(self._champion(one)).ready_timeout_s
        request = Request(ROLLBACK, action.why, self._actor, now, timeout_s, hurry=True)
        read = partial(changes_of, state, name, ROUTE_ACTIONS)
        passed = gone(state.model(name), read)

        def decide(model: Model) -> Change:
            champion = champion_of(model.deployments)
            if champion is None or champion.version != action.version:
                mine = action.version in withdrawals.in_question(model)
                ended = (
                    withdrawals.aborted(model, why=action.why, now=now, action=f"{ROLLBACK}.canary") if mine else None
                )
                return ended or Change(model, ROLLBACK, action.why)  # it was taken back already
            up = partial(_runs, seen_by(plan, model))
            change = withdrawals.roll_back(model, read(), request=request, up=up, champion=action.version, gone=passed)
            return replace(change, why=f"{change.why}: {action.why}")

        state.change(name, decide, actor=self._actor)


def _runs(plan: Plan | None, item: Deployment) -> bool:
    return is_up(plan, item, goal=ROUTE, hurry=True)


def _ruled_out(one: Retraining, action: Action, error: Exception, found: Found, *, now: datetime) -> Advance:
    """Return what becomes of a retraining whose effect is ruled out.

    A job is tried again where the bundle cannot be read: its storage may be away, and a folder that is not mounted is
    empty. So is taking back; one that bakes is judged without a comparison; all else stops it.
    """
    why, until = getattr(error, "message", str(error)), found.compare_until
    if isinstance(action, Submit) and isinstance(error, BundleError):
        settings = read_stored(RetrainSection, one.settings)
        return failed(one, action.task, why, settings=settings, until=until, now=now)
    if isinstance(action, Submit) and until is not None:
        return uncompared(until, why)
    if isinstance(action, TakeBack):
        return Advance("baking", f"version {action.version} is to be taken back, and cannot be: {why}")
    return Advance("stopped", why)


def _unfound(one: Retraining, error: RaymlopsError, *, now: datetime) -> Action:
    """Return what becomes of a retraining of which nothing can be found out: it waits and says why, or is stopped.

    What no repetition ends stops it, such as a run that was removed from MLflow; one that bakes is watched on.
    """
    if isinstance(error, _RULED_OUT) and one.stage != "baking":
        return Advance("stopped", error.message)
    return timed(one, Wait(f"cannot determine the next step: {error.message}"), now=now)
