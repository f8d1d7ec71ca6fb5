"""``deploy`` and ``promote``: bring a version up, and give it the route or a share of the traffic.

Owns the arguments of both and which version may become live. The pure functions of ``live.transitions`` say what a
verb makes of a model; ``live.change`` writes it and waits until Serve runs it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from raymlops.config.base import absolute_references
from raymlops.errors import ClusterError, RefusedError, UsageError
from raymlops.lifecycle.live import transitions, withdrawals
from raymlops.lifecycle.live.capacity import leaving_first
from raymlops.lifecycle.live.change import Decide, change, followed, record_of
from raymlops.lifecycle.live.lineup import BESIDE, champion_of, opens
from raymlops.lifecycle.live.log_owner import claim_before_deploy
from raymlops.lifecycle.live.reconcile import is_up
from raymlops.lifecycle.live.rollouts import refuse_running
from raymlops.lifecycle.live.staging import Fetch, fetch_on_nodes, stage
from raymlops.lifecycle.live.transitions import ROUTE, Request
from raymlops.lifecycle.opening import live
from raymlops.lifecycle.overview import doubts_of
from raymlops.lifecycle.quality.model import unjudged
from raymlops.lifecycle.registration.admission import admitted, check_callers, endless
from raymlops.lifecycle.registration.aliases import MlflowAliases
from raymlops.lifecycle.rollout.canary import requested_traffic, traffic_record
from raymlops.lifecycle.running_serve import check_serve, running_serve
from raymlops.lifecycle.shared_storage import check_sharing_of_deployments
from raymlops.lifecycle.sources import Source, spec_of, state_of
from raymlops.lifecycle.watch.messaging.messengers import check_notify
from raymlops.lifecycle.watch.monitor_text import too_short_log
from raymlops.lifecycle.watch.registered_slices import as_registered
from raymlops.records import DeploymentRecord
from raymlops.state.engine import this_user
from raymlops.state.store import Change, Deployment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import MonitorSection, ProjectSpec
    from raymlops.lifecycle.rollout.canary import TrafficRequest
    from raymlops.records import ModelVersionRef
    from raymlops.serving.control.address import Listening
    from raymlops.serving.control.plan import Plan
    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.store import Model, Role, State

ALONE = "no version is live to compare with, so that there is no rollout: this one answers all requests"
OPENED = "serve.auth: open takes the API keys away, and the endpoint answers anybody from now on"


def deploy(
    source: Source,
    version: str = "@challenger",
    *,
    digest: str | None = None,
    overrides: Sequence[str] = (),
    env: str | None = None,
    promote: bool = True,
    canary: float | None = None,
    steps: Sequence[float] | None = None,
    bake_s: float | None = None,
    shadow: float | None = None,
    abort: bool = False,
    breaking: bool = False,
    again: bool = False,
) -> DeploymentRecord:
    """Bring a version up beside what is live, check that it answers, then give it the route and the alias ``champion``.

    With ``promote=False`` it stays beside the champion, without a route. The version that held the route is kept warm
    for ``serve.keep_warm_s``. Deploying what is live already changes nothing. If the alias cannot be set, the version
    is live nevertheless and the record has a warning, as it has if the last rollout of the version was aborted. With
    ``digest`` a version whose bundle has another one is refused: a number alone is of one MLflow.

    ``canary`` and ``shadow`` are percentages: it stays beside the champion and answers that share of the requests, or
    gets copies of them. ``canary`` alone is a fixed share, 0 removes it. With ``steps`` (percentages, rising) or
    ``bake_s`` a rollout begins, and this returns once the version has its first share: the controller moves it, and
    promotes the version or removes its share. The record's ``outlook`` says what it can show with the traffic of the
    last hour. While it is running no other version is deployed, unless ``abort`` ends it first. Where no version is
    live there is none to compare with: the version takes the route at once, with a warning. So it is left there where
    it has it already.

    The sections ``monitor`` and ``retrain``, ``serve.log``, ``serve.rollout``, ``serve.allowed_hosts`` and whether
    callers need an API key belong to the model: the newest deploy sets them for all versions once it is carried out,
    also one of a canary or a shadow, and a rollback keeps them. Without ``serve.auth`` that stays as with the champion.
    ``auth: open`` opens it, which is recorded in the audit record and in ``warnings``.

    With ``serve.update: replace`` the version that held the route ends before the new one starts, and comes back by
    itself if that does not come up. Nobody answers meanwhile: ``away_s`` says how long. Canaries, shadows and
    ``promote=False`` are refused.

    A canary or a shadow must have the champion's signature. So must a new champion, since products call the route by
    it: a version with another one needs ``breaking=True``, and callers that have changed.

    A version that a rollback or an aborted rollout took back from traffic comes back only by its number and ``again``.

    A model that another state database has on the same Serve is refused.

    Raises:
        NotFoundError: there is no such version.
        BundleError: its files are no longer what its digest vouches for.
        RefusedError: the version has another digest, has not passed its gate here or does not fit the champion's
            callers, MLflow says of it what this state did not record (``UnrecordedError``: nothing), a rollout runs,
            another change of what is live takes too long, or took the version away or made another one live meanwhile;
            the model is another state's (``TakenError``), or Serve runs what a newer copy of this state's database
            desired (``OutdatedStateError``).
        UsageError: percentages that cannot be; ``serve.proxy`` names HAProxy where another proxy runs, or
            ``serve.tls_cert`` a certificate with which nothing shows that Serve answers; a folder or a SQLite file on a
            cluster that has several machines, or may get them; ``monitor.notify`` has a URL that apprise does not know.
        StorageError: a node of the cluster cannot fetch its bundle; nothing was changed.
        InsufficientResourcesError: the cluster can never hold it beside what is served; nothing was changed.
        DeployError: it did not come up; what was live still is, and the desired state is as before.
        ClusterError: there is no running cluster.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    settings = spec.serve.rollout
    traffic = requested_traffic(canary=canary, steps=steps, bake_s=bake_s, shadow=shadow, settings=settings)
    if traffic.changes and breaking:
        raise UsageError("a canary and a shadow answer the champion's callers, so they cannot break what it takes")
    ref = admitted(spec, version, digest=digest, again=again)
    with live(spec) as (state, api):
        doubts = doubts_of(state, ref)
        call = _Call(spec, ref, _why(version, ref), state, api, MlflowAliases(spec, state.owner()))
        if traffic.changes:
            record = _share(call, traffic, abort=abort)
        else:
            action = "deploy" if promote else BESIDE
            record = _bring(call, action=action, breaking=breaking or not promote, abort=abort and promote)
    return replace(record, warnings=(*doubts, *record.warnings))


def promote(
    source: Source,
    version: str = "@challenger",
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    breaking: bool = False,
    again: bool = False,
) -> DeploymentRecord:
    """Make a version champion; a rollout of it ends with that, one of another version is stopped.

    Where the model is served, the version takes the route as by ``deploy``, and must have the champion's signature
    unless it is ``breaking``; otherwise only the alias moves.

    Raises:
        NotFoundError: there is no such version.
        BundleError: its files are no longer what its digest vouches for.
        RefusedError: the version has not passed its gate here or does not fit the champion's callers, MLflow says of it
            what this state did not record, or another change of what is live takes too long.
        UsageError, InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    ref = admitted(spec, version, again=again)
    with state_of(spec) as state:
        if not state.deployments(ref.name):
            return _name_champion(ref, state, MlflowAliases(spec, state.owner()), why=_why(version, ref))
    with live(spec) as (state, api):
        call = _Call(spec, ref, _why(version, ref), state, api, MlflowAliases(spec, state.owner()))
        return _bring(call, action="promote", breaking=breaking)


def rollout_outlook(
    source: Source,
    *,
    canary: float | None = None,
    steps: Sequence[float] | None = None,
    bake_s: float | None = None,
) -> tuple[str, ...]:
    """Return what ``deploy`` with these steps could show with the traffic of the last hour, in sentences.

    There are none for a fixed share.

    Raises:
        UsageError: percentages that cannot be.
    """
    from raymlops.lifecycle.rollout.recent_traffic import outlook

    spec = spec_of(source)
    asked = requested_traffic(canary=canary, steps=steps, bake_s=bake_s, shadow=None, settings=spec.serve.rollout)
    with state_of(spec) as state:
        champion = champion_of(state.deployments(spec.project.name))
        if asked.rollout is None:
            return ()
        if champion is None:
            return (ALONE,)
        return outlook(champion, asked.rollout, now=state.now(), state_id=state.owner().id)


@dataclass(frozen=True)
class _Call:
    """A version to bring up, and where."""

    spec: ProjectSpec
    ref: ModelVersionRef
    why: str
    state: State
    api: ServeApi
    aliases: MlflowAliases
    fetch: Fetch = fetch_on_nodes

    def new(self, role: Role) -> Deployment:
        """Return the deployment of the version."""
        ref, serve = self.ref, self.spec.serve.model_dump(mode="json")
        monitor = absolute_references(self.watched[0].model_dump(mode="json"))
        retrain = self.spec.retrain.model_dump(mode="json")
        return Deployment(ref.name, ref.version, ref.bundle, ref.run_id, role, serve, monitor=monitor, retrain=retrain)

    @cached_property
    def watched(self) -> tuple[MonitorSection, tuple[str, ...]]:
        """Return how it is watched, and how that differs from what is configured."""
        return as_registered(self.spec.monitor, self.ref.bundle)

    def request(self, action: str, why: str | None = None) -> Request:
        """Return who asks for it, and for how long."""
        timeout_s = self.spec.serve.ready_timeout_s
        replaces = self.spec.serve.update == "replace"
        return Request(action, why or self.why, this_user(), self.state.now(), timeout_s, replaces=replaces)


def _checked(call: _Call) -> tuple[Listening | None, tuple[str, ...]]:
    """Return where Serve listens and what is lacking of the configuration, unless that rules it out."""
    with suppress(ClusterError):  # one that cannot be asked is reported by the next request
        check_sharing_of_deployments(call.spec, call.api.room())
    listens, warnings = check_serve(call.api, call.spec)
    monitor, short = call.spec.monitor, too_short_log(call.spec.monitor, call.spec.serve.log)
    lacking: tuple[str, ...] = () if short is None else (short,)
    if call.spec.serve.log.enabled:
        lacking += claim_before_deploy(call.state, call.ref.name, call.ref.bundle.uri)
    lacking += (*unjudged(call.new("champion")), *endless(call.ref.bundle))
    return listens, (*warnings, *check_notify(monitor.notify), *call.watched[1], *lacking)


def _bring(call: _Call, *, action: str, breaking: bool, abort: bool = False, alone: bool = False) -> DeploymentRecord:
    """Bring a version up: beside the champion, or as the champion; ``alone`` in no other one's place."""
    from raymlops.lifecycle.rollout.actor import ensure_controller

    ref, state, api = call.ref, call.state, call.api
    listens, warnings = _checked(call)
    if not breaking:
        check_callers(ref, state)
    new = call.new("warm" if action == BESIDE else "champion")
    goal = {} if action == BESIDE else {**ROUTE, "configured": True}
    if action == BESIDE:
        transitions.refuse_beside(state.model(ref.name), ref.version, request=call.request(action))
    standing = state.deployments(ref.name)
    leaving = leaving_first(api, state.desired(), new, replaces=new.replaces)
    is_opened = False

    def decide(model: Model, plan: Plan | None) -> Change:
        nonlocal is_opened
        before, why = model.deployments, call.why
        champion = champion_of(before)
        if action == "promote" and not before:
            raise RefusedError(f"{ref.name} was taken off Serve just now", hint="Run the same command again.")
        if action == "deploy" and (champion is None or champion.version != ref.version):
            refuse_running(model)
            if alone and champion is not None:
                raise RefusedError(
                    f"version {champion.version} of {ref.name} became live just now", hint="Run the same command again."
                )
        wanted = transitions.wanted(before, new, goal)
        if is_opened := opens(before, wanted, listens.reach if listens else None):
            why = f"{why}: {OPENED}"
        up = is_up(plan, new, goal=goal)
        request = call.request(action, why)
        return transitions.bring(model, new, goal=goal, request=request, up=up, leaving=leaving, standing=standing)

    warnings += ensure_controller(call.spec, state, dashboard_url=api.dashboard_url)
    warnings += stage(call.spec, standing, new, fetch=call.fetch)
    done = change(
        state,
        api,
        ref.name,
        decide=_aborting(call, decide) if abort else decide,
        serve=call.spec.serve,
        action=action,
        subject=ref.version,
        champion=action != BESIDE,
    )
    if listens is None and (found := running_serve(api, call.spec)) is not None:  # this version started Serve
        warnings += found.lacks
    warnings += (OPENED,) if is_opened else ()
    if action != BESIDE:
        warnings += followed(partial(call.aliases.set_champion, ref.name), ref.version)
    record = record_of(done, ref.version)
    return replace(record, warnings=(*record.warnings, *warnings))


def _share(call: _Call, traffic: TrafficRequest, *, abort: bool) -> DeploymentRecord:
    """Bring a version up beside the champion and give it a share of the traffic; a rollout needs another champion."""
    from raymlops.lifecycle.rollout.actor import ensure_controller
    from raymlops.lifecycle.rollout.loss_rule import unasked
    from raymlops.lifecycle.rollout.recent_traffic import outlook
    from raymlops.serving.control.render import settings_of

    ref, state, api = call.ref, call.state, call.api
    name, version = ref.name, ref.version
    champion = champion_of(state.deployments(name))
    if traffic.rollout is not None and (champion is None or champion.version == version):  # where it would end
        record = _bring(call, action="deploy", breaking=False, abort=abort, alone=True)
        return record if champion else replace(record, warnings=(ALONE, *record.warnings))
    warnings: tuple[str, ...] = () if traffic.removes else _checked(call)[1]
    if champion is None:
        raise RefusedError(
            f"no version of {name} is live, so none can be a canary or a shadow",
            hint="Deploy without them, or with --steps or --bake: all of the traffic.",
        )
    if champion.version == version:
        raise RefusedError(
            f"version {version} of {name} is champion already: it answers all that no canary does",
            hint="Name another one with --version.",
        )
    if not traffic.removes:
        transitions.refuse_beside(state.model(name), version, request=call.request(traffic.action))
        check_callers(ref, state, share=True)
    new = call.new("warm")
    standing = state.deployments(name)
    leaving = () if traffic.removes else leaving_first(api, state.desired(), new)
    goal = traffic.goal(champion.version)

    def decide(model: Model, plan: Plan | None) -> Change:
        why = f"{call.why}: {traffic.words()}"
        if traffic.removes:
            return transitions.unshared(model, version, goal, action=traffic.action, why=why)
        if traffic.weight is not None:
            refuse_running(model)
        up = not abort and is_up(plan, new, goal=goal)  # one change ends a rollout, or begins one
        request = call.request(traffic.action, why)
        return transitions.bring(model, new, goal=goal, request=request, up=up, leaving=leaving, standing=standing)

    shows = (
        ()
        if traffic.rollout is None
        else outlook(champion, traffic.rollout, now=state.now(), state_id=state.owner().id)
    )
    warnings += ensure_controller(call.spec, state, dashboard_url=api.dashboard_url)
    warnings += () if traffic.removes else stage(call.spec, standing, new, fetch=call.fetch)
    done = change(
        state,
        api,
        name,
        decide=_aborting(call, decide) if abort else decide,
        serve=call.spec.serve,
        action=traffic.action,
        subject=None if traffic.removes else version,
    )
    record = replace(traffic_record(done, version, digest=ref.bundle.digest), outlook=shows)
    if traffic.rollout is not None and record.rollout_id is not None:
        if (sticky := settings_of(champion).traffic.sticky) != "request":
            differ = "an equally good version is aborted more often than serve.rollout.alpha says if callers differ"
            warnings += (f"callers keep to one version (serve.traffic.sticky: {sticky}), so that {differ}",)
        if traffic.rollout.quality_margin is not None and (reason := unasked(champion)):
            warnings += (f"quality is not judged in this rollout, whatever labels arrive: {reason}",)
    return replace(record, warnings=(*record.warnings, *warnings))


def _aborting(call: _Call, decide: Decide) -> Decide:
    """Return a decision that also ends what has a share of the traffic, so that a refused one ends nothing."""

    def decided(model: Model, plan: Plan | None) -> Change:
        ended = withdrawals.aborted(model, why=f"for version {call.ref.version}", now=call.state.now(), action="abort")
        if ended is None:
            return decide(model, plan)
        found = decide(ended.model, plan)
        return replace(found, why=f"{found.why}; {ended.why}", withdraws={**ended.withdraws, **found.withdraws})

    return decided


def _name_champion(ref: ModelVersionRef, state: State, aliases: MlflowAliases, *, why: str) -> DeploymentRecord:
    """Set the alias of a model that is not served."""
    old = aliases.champion(ref.name)
    aliases.check(ref.name, ref.version)
    subject = f"{ref.name}/{ref.version}"
    state.record(
        action="promote", subject=subject, before={"version": old} if old else None, after=ref.to_dict(), why=why
    )
    aliases.set_champion(ref.name, ref.version)
    return DeploymentRecord(
        name=ref.name,
        version=ref.version,
        digest=ref.bundle.digest,
        role="champion",
        url=None,
        previous_version=old if old != ref.version else None,
        changed=old != ref.version,
    )


def _why(version: str, ref: ModelVersionRef) -> str:
    return f"version {ref.version} requested" + (f" as {version}" if version != str(ref.version) else "")
