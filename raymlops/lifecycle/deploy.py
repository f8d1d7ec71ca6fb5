"""``deploy``, ``promote``, ``rollback``, ``remove`` and ``restore``: which version is live, and who gets what traffic.

Owns the arguments of each verb and which version may become live. The pure functions of ``live.transitions`` say what a
verb makes of a model; ``live.change`` writes it and waits until Serve runs it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from raymlops.errors import RaymlopsError, RefusedError, UsageError
from raymlops.lifecycle.live import transitions
from raymlops.lifecycle.live.capacity import leaving_first
from raymlops.lifecycle.live.change import change, converged, followed, record_of
from raymlops.lifecycle.live.lineup import canaries_of, champion_of, opens, previous_champion
from raymlops.lifecycle.live.reconcile import is_up
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.restored_state import make_count, settle
from raymlops.lifecycle.live.transitions import BESIDE, ROLLBACK, ROUTE, Request
from raymlops.lifecycle.overview import doubts_of
from raymlops.lifecycle.registration.admission import MlflowAliases, admitted, check_callers
from raymlops.lifecycle.rollout.canary import lost_by, requested_traffic, traffic_record
from raymlops.lifecycle.sources import Source, opened, place_of, spec_of, state_of
from raymlops.records import DeploymentRecord
from raymlops.serving.control.address import is_local, listening
from raymlops.serving.control.ownership import divide
from raymlops.state.audit import now
from raymlops.state.database import state_url
from raymlops.state.engine import this_user
from raymlops.state.lease import holder_of
from raymlops.state.store import Change, Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.rollout.canary import TrafficRequest
    from raymlops.records import ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.serving.control.plan import Plan
    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.audit import AuditEvent
    from raymlops.state.store import Model, Role, State

OPENED = "serve.auth: open takes the API keys away, and the endpoint answers anybody from now on"

_log = logging.getLogger(__name__)


def deploy(
    source: Source,
    version: str = "@challenger",
    *,
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
    is live nevertheless and the record has a warning, as it has if the last rollout of the version was aborted.

    ``canary`` and ``shadow`` are percentages: it stays beside the champion and answers that share of the requests, or
    gets copies of them. ``canary`` alone is a fixed share, 0 removes it. With ``steps`` (percentages, rising) or
    ``bake_s`` a rollout begins, and this returns at once: the controller moves it, and promotes the version or removes
    its share. While it is running no other version is deployed, unless ``abort`` ends it first.

    Whether callers need an API key belongs to the model: without ``serve.auth`` it stays as with the champion.
    ``auth: open`` opens it, which is recorded in the audit record and in ``warnings``.

    A canary or a shadow must have the champion's signature. So must a new champion, since products call the route by
    it: a version with another one needs ``breaking=True``, and callers that have changed.

    A version that a rollback or an aborted rollout took back from traffic comes back only by its number and ``again``.

    A model that another state database has on the same Serve is refused.

    Raises:
        NotFoundError: there is no such version.
        BundleError: its files are no longer what its digest vouches for.
        RefusedError: the version has not passed its gate here or does not fit the champion's callers, MLflow says of it
            what this state did not record, a rollout runs, another change of what is live takes too long, or took the
            version away or made another one live meanwhile; the model is another state's (``TakenError``), or Serve
            runs what a newer copy of this state's database desired (``OutdatedStateError``).
        UsageError: percentages that cannot be.
        InsufficientResourcesError: the cluster can never hold it beside what is served; nothing was changed.
        DeployError: it did not come up; what was live still is, and the desired state is as before.
        ClusterError: there is no running cluster.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    settings = spec.serve.rollout
    traffic = requested_traffic(canary=canary, steps=steps, bake_s=bake_s, shadow=shadow, settings=settings)
    if traffic.changes and breaking:
        raise UsageError("a canary and a shadow answer the champion's callers, so they cannot break what it takes")
    registry, ref = admitted(spec, version, again=again)
    with _live(spec) as (state, api):
        doubts = doubts_of(state, ref)
        call = _Call(spec, ref, _why(version, ref), state, api, registry)
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
        InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    registry, ref = admitted(spec, version, again=again)
    with state_of(spec) as state:
        if not state.deployments(ref.name):
            return _name_champion(ref, state=state, registry=registry, why=_why(version, ref))
    with _live(spec) as (state, api):
        call = _Call(spec, ref, _why(version, ref), state, api, registry)
        return _bring(call, action="promote", breaking=breaking)


def rollback(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    on_live: Callable[[int], None] | None = None,
) -> DeploymentRecord:
    """Revert the last change: a canary's share of the traffic, or else the route of the champion.

    If a version is being rolled out or has a share, its share is removed, its rollout ends, and the champion stays.
    Otherwise, or if it has just become champion, the route goes back to the previous champion. That takes about a
    second while it is warm, and does not depend on the version that loses the route, which may hang.

    Needs the state database and Serve, but not MLflow: if its alias cannot be set, the record has a warning, and the
    controller sets it later. ``on_live`` is called with the version once it answers, before the alias is set, which
    takes longer.

    Raises:
        NotFoundError: the model is not served, or no version was champion before.
        RefusedError, InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    from raymlops.lifecycle.rollout.actor import ensure_controller

    spec = spec_of(source, overrides=overrides, env=env)
    name = spec.project.name
    with _live(spec) as (state, api):
        warnings = ensure_controller(spec, state, dashboard_url=api.dashboard_url)
        record = roll_back(spec, state, api)
        if record.role == "champion":
            if on_live is not None:
                on_live(record.version)
            import mlflow  # noqa: F401 - takes seconds, in which MLflow's server has nothing to answer

            warnings += followed(partial(MlflowAliases(spec).set_champion, name), record.version)
    return replace(record, warnings=(*record.warnings, *warnings))


def roll_back(spec: ProjectSpec, state: State, api: ServeApi) -> DeploymentRecord:
    """Take back a version on its way or a canary's share, or give the route back."""
    name, serve = spec.project.name, spec.serve
    request = Request(ROLLBACK, "requested", this_user(), now(), serve.ready_timeout_s, hurry=True)
    seen = transitions.in_question(state.model(name))

    def decide(model: Model, plan: Plan | None) -> Change:
        def up(item: Deployment) -> bool:
            return plan is not None and is_up(plan, item, goal=ROUTE, hurry=True)

        return transitions.roll_back(model, state.changes(name), request=request, up=up, seen=seen)

    done = change(state, api, name, decide=decide, serve=serve, action=request.action, hurry=True, blind=True)
    old, new = champion_of(done.before.deployments), champion_of(done.after.deployments)
    lost = transitions.in_question(done.before) or seen
    if lost and (new is None or (old is not None and old.version == new.version)):
        return traffic_record(done, lost[0])
    if new is None:
        raise RefusedError(f"{name} was taken off Serve just now", hint="Run the same command again.")
    return record_of(done, new.version)


def rollback_target(source: Source) -> str:
    """Return what ``rollback`` would do now, as text, according to the state.

    Raises:
        NotFoundError: as ``rollback``.
    """
    spec = spec_of(source)
    name = spec.project.name
    with state_of(spec) as state:
        model = state.model(name)
        if coming := [one.version for one in model.coming if one.goal == ROUTE and one.action != ROLLBACK]:
            return f"takes back version {coming[0]} of {name}, which is on its way to the route"
        if canaries_of(model.deployments) or model.rollout is not None:
            return f"takes the share of the traffic away from version {lost_by(model)} of {name}"
        target = previous_champion(model.deployments, state.changes(name))
        champion = champion_of(model.deployments)
        left = f" back from version {champion.version}" if champion else ""
        return f"gives the route of {name}{left} to version {target.version}"


def running_rollout(source: Source, version: str | None = None) -> str:
    """Return the id of the running rollout, of this version if one is named.

    Raises:
        UsageError: no rollout is running.
    """
    spec = spec_of(source)
    with state_of(spec) as state:
        found = state.model(spec.project.name).rollout
    if found is not None and (version is None or not version.isdigit() or int(version) == found.version):
        return found.id
    of = f" of version {version}" if version else ""
    raise UsageError(
        f"--wait follows a rollout, and none{of} runs for {spec.project.name}",
        hint="Begin one with --steps or --bake; without them a deploy waits until the version is live anyway.",
    )


def remove(source: Source) -> list[int]:
    """Remove every version of the model from Serve and return their numbers; the registry is unchanged.

    Raises:
        RefusedError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source)

    def decide(model: Model, _plan: Plan | None) -> Change:
        return transitions.removed(model, now=now(), why="requested")

    with _live(spec) as (state, api):
        done = change(state, api, spec.project.name, decide=decide, serve=spec.serve, action="remove", blind=True)
    return [deployment.version for deployment in done.before.deployments]


def number_of(version: str) -> int:
    """Return a version's number as it was given.

    Raises:
        UsageError: it is an alias, which may point to another version by the time of the removal.
    """
    if not version.isdigit():
        raise UsageError(
            f"--remove takes a version by its number, not {version!r}", hint="raymlops status shows which are up."
        )
    return int(version)


def remove_version(source: Source, version: int) -> None:
    """Remove one version from Serve that is not the champion: warm, a shadow, or a canary without a rollout.

    It stops once it gets no more requests. The registry is unchanged, so that it can be deployed again.

    Raises:
        NotFoundError: it is not up.
        RefusedError: it is the champion or is being rolled out.
        DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source)

    def decide(model: Model, _plan: Plan | None) -> Change:
        return transitions.version_removed(model, version, why=f"version {version} requested")

    with _live(spec) as (state, api):
        change(state, api, spec.project.name, decide=decide, serve=spec.serve, action="remove.version", champion=False)


def restore(
    source: Source, *, takeover: bool = False, on_warning: Callable[[str], None] = _log.warning
) -> list[Deployment]:
    """Bring Serve to the desired state of every model, as after a restart of the cluster; return that state.

    A running rollout resumes. With ``takeover`` this database counts although it is older than what Serve runs, for
    when the newer one is lost; and it moves here although another cluster's controller moves it.

    Raises:
        DeployError: a champion did not come up; the others are sent all the same.
        TakenError: another state has a model of such a name; the others are brought back all the same.
        RefusedError: another cluster's controller moves this database; with ``takeover`` it moves here.
        ClusterError: as ``deploy``.
    """
    from raymlops.lifecycle.rollout.actor import ensure_controller

    spec = spec_of(source)
    with _live(spec, restore=True, takeover=takeover) as (state, api):
        notes = make_count(state, api) if takeover else ()
        desired = state.desired()
        division = divide(api.get(), desired)
        champions = [item for item in desired.deployments if item.role == "champion"]
        for note in (*notes, *ensure_controller(spec, state, dashboard_url=api.dashboard_url)):
            on_warning(note)
        back = [item for item in champions if item.name not in division.holders()]
        reconciler = Reconciler(state, api, serve=spec.serve)
        plan, _ = converged(reconciler, lambda: back, wait_s=spec.serve.ready_timeout_s)
        for note in plan.notes:
            on_warning(note)
        division.refuse_held({item.name for item in champions})
    return list(desired.deployments)


def events(source: Source | None = None) -> list[AuditEvent]:
    """Return the whole audit record of the project's model, without a source of every model; oldest first."""
    spec = place_of(source)
    with state_of(spec) as state:
        return state.events(None if source is None else spec.project.name)[::-1]


def champion_line(source: Source) -> str:
    """Return a line that names the live version according to the state, for an interrupted command."""
    spec = spec_of(source)
    name = spec.project.name
    try:
        with state_of(spec) as state:
            champion = champion_of(state.deployments(name))
    except RaymlopsError as error:
        return f"what is live of {name} is unknown: {error.message}"
    live = f"version {champion.version} is live" if champion else "no version is live"
    return f"{live} of {name}; raymlops status shows the rest, and the same command again completes the change"


@contextmanager
def _live(spec: ProjectSpec, *, restore: bool = False, takeover: bool = False) -> Iterator[tuple[State, ServeApi]]:
    """Open the state and Serve's API of the cluster on which the state is live."""
    from raymlops.lifecycle.rollout.actor import LEASE

    with opened(spec) as (state, api):
        settle(state, api, holder=lambda: holder_of(state_url(spec), LEASE), restore=restore, takeover=takeover)
        yield state, api


@dataclass(frozen=True)
class _Call:
    """A version to bring up, and where."""

    spec: ProjectSpec
    ref: ModelVersionRef
    why: str
    state: State
    api: ServeApi
    registry: Registry

    def new(self, role: Role) -> Deployment:
        """Return the deployment of the version."""
        ref, serve = self.ref, self.spec.serve.model_dump(mode="json")
        return Deployment(ref.name, ref.version, ref.bundle, ref.run_id, role, serve)

    def request(self, action: str, why: str | None = None) -> Request:
        """Return who asks for it, and for how long."""
        timeout_s = self.spec.serve.ready_timeout_s
        return Request(action, why or self.why, this_user(), now(), timeout_s)


def _bring(call: _Call, *, action: str, breaking: bool, abort: bool = False) -> DeploymentRecord:
    """Bring a version up: beside the champion, or as the champion."""
    from raymlops.lifecycle.rollout.actor import ensure_controller

    ref, state, api = call.ref, call.state, call.api
    if not breaking:
        check_callers(ref, state)
    new = call.new("warm" if action == BESIDE else "champion")
    goal = {} if action == BESIDE else {**ROUTE, "configured": True}
    leaving = leaving_first(api, state.deployments(ref.name), new)
    listens = listening(api.get(), local=is_local(api.dashboard_url))
    is_opened = False

    def decide(model: Model, plan: Plan | None) -> Change:
        nonlocal is_opened
        before, why = model.deployments, call.why
        champion = champion_of(before)
        if action == "promote" and not before:
            raise RefusedError(f"{ref.name} was taken off Serve just now", hint="Run the same command again.")
        if action == "deploy" and (champion is None or champion.version != ref.version):
            transitions.refuse_running(model)
        wanted = transitions.wanted(before, new, goal)
        if is_opened := opens(before, wanted, listens.reach if listens else None):
            why = f"{why}: {OPENED}"
        up = plan is not None and is_up(plan, new, goal=goal)
        return transitions.bring(model, new, goal=goal, request=call.request(action, why), up=up, leaving=leaving)

    warnings = ensure_controller(call.spec, state, dashboard_url=api.dashboard_url)
    if abort:
        _abort(call)
    done = change(
        state,
        api,
        ref.name,
        decide=decide,
        serve=call.spec.serve,
        action=action,
        subject=ref.version,
        champion=action != BESIDE,
    )
    warnings += (OPENED,) if is_opened else ()
    if action != BESIDE:
        warnings += followed(lambda version: call.registry.set_alias(ref.name, "champion", version), ref.version)
    record = record_of(done, ref.version)
    return replace(record, warnings=(*record.warnings, *warnings))


def _share(call: _Call, traffic: TrafficRequest, *, abort: bool) -> DeploymentRecord:
    """Bring a version up beside the champion and give it a share of the traffic."""
    from raymlops.lifecycle.rollout.actor import ensure_controller
    from raymlops.lifecycle.rollout.loss_rule import unasked
    from raymlops.serving.control.render import settings_of

    ref, state, api = call.ref, call.state, call.api
    name, version = ref.name, ref.version
    champion = champion_of(state.deployments(name))
    if champion is None:
        raise RefusedError(
            f"no version of {name} is live, so none can be a canary or a shadow",
            hint="Deploy without them: all of the traffic.",
        )
    if champion.version == version:
        raise RefusedError(
            f"version {version} of {name} is champion already: it answers all that no canary does",
            hint="Name another one with --version.",
        )
    if traffic.weight or traffic.shadow:
        check_callers(ref, state, share=True)
    new = call.new("warm")
    leaving = () if traffic.removes else leaving_first(api, state.deployments(name), new)
    goal = traffic.goal(champion.version)

    def decide(model: Model, plan: Plan | None) -> Change:
        why = f"{call.why}: {traffic.words()}"
        if traffic.removes:
            return transitions.unshared(model, version, goal, action=traffic.action, why=why)
        if traffic.weight is not None:
            transitions.refuse_running(model)
        up = plan is not None and is_up(plan, new, goal=goal)
        request = call.request(traffic.action, why)
        return transitions.bring(model, new, goal=goal, request=request, up=up, leaving=leaving)

    warnings = ensure_controller(call.spec, state, dashboard_url=api.dashboard_url)
    if abort:
        _abort(call)
    subject = None if traffic.removes else version
    done = change(state, api, name, decide=decide, serve=call.spec.serve, action=traffic.action, subject=subject)
    record = traffic_record(done, version, digest=ref.bundle.digest)
    if traffic.rollout is not None and record.rollout_id is not None:
        if (sticky := settings_of(champion).traffic.sticky) != "request":
            differ = "an equally good version is aborted more often than serve.rollout.alpha says if callers differ"
            warnings += (f"callers keep to one version (serve.traffic.sticky: {sticky}), so that {differ}",)
        if reason := unasked(champion):
            warnings += (f"quality is not judged in this rollout, whatever labels arrive: {reason}",)
    return replace(record, warnings=(*record.warnings, *warnings))


def _abort(call: _Call) -> None:
    """End what has a share of the traffic by a change of its own, so that what follows is decided without it."""

    def decide(model: Model) -> Change:
        ended = transitions.aborted(model, why=f"for version {call.ref.version}", now=now(), action="abort")
        return ended or Change(model, "abort", "")

    call.state.change(call.ref.name, decide)


def _name_champion(ref: ModelVersionRef, *, state: State, registry: Registry, why: str) -> DeploymentRecord:
    """Set the alias of a model that is not served."""
    old = registry.by_alias(ref.name, "champion")
    state.record(
        action="promote",
        subject=f"{ref.name}/{ref.version}",
        before=old.to_dict() if old else None,
        after=ref.to_dict(),
        why=why,
    )
    registry.set_alias(ref.name, "champion", ref.version)
    return DeploymentRecord(
        name=ref.name,
        version=ref.version,
        digest=ref.bundle.digest,
        role="champion",
        url=None,
        previous_version=old.version if old and old.version != ref.version else None,
        changed=old is None or old.version != ref.version,
    )


def _why(version: str, ref: ModelVersionRef) -> str:
    return f"version {ref.version} requested" + (f" as {version}" if version != str(ref.version) else "")
