"""``deploy``, ``promote``, ``rollback``, ``remove`` and ``restore``: which version is live, and who gets what traffic.

Owns the arguments of each verb and which version may become live. ``live.change`` carries out a change, ``canary`` a
share of the traffic; the pure functions of ``lineup`` decide the roles.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raymlops.errors import RaymlopsError, RefusedError, UsageError
from raymlops.lifecycle.live.lineup import (
    as_asked,
    beside,
    champion_of,
    opens,
    previous_champion,
    spare_of,
    with_champion,
)
from raymlops.lifecycle.live.restored_state import make_count
from raymlops.lifecycle.overview import doubts_of
from raymlops.lifecycle.registration.admission import admitted, champion_alias, check_callers
from raymlops.lifecycle.sources import Source, opened, place_of, serve_of, spec_of, state_of
from raymlops.records import DeploymentRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.live.change import Change
    from raymlops.lifecycle.live.lineup import LineUp
    from raymlops.lifecycle.rollout.canary import TrafficRequest
    from raymlops.records import ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.audit import AuditEvent
    from raymlops.state.store import Deployment, State

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
    from raymlops.lifecycle.rollout.canary import requested_traffic

    spec = spec_of(source, overrides=overrides, env=env)
    settings = spec.serve.rollout
    traffic = requested_traffic(canary=canary, steps=steps, bake_s=bake_s, shadow=shadow, settings=settings)
    if traffic.changes and breaking:
        raise UsageError("a canary and a shadow answer the champion's callers, so they cannot break what it takes")
    registry, ref = admitted(spec, version)
    with opened(spec) as (state, api):
        doubts = doubts_of(state, ref)
        request = _Request(spec, ref, _why(version, ref), state, api, registry)
        if traffic.changes:
            record = _share(request, traffic, abort=abort)
        else:
            action = "deploy" if promote else "deploy.beside"
            record = _bring(request, action=action, breaking=breaking or not promote, abort=abort and promote)
    return replace(record, warnings=(*doubts, *record.warnings))


def promote(
    source: Source,
    version: str = "@challenger",
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    breaking: bool = False,
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
    registry, ref = admitted(spec, version)
    with state_of(spec) as state:
        with state.exclusive(f"promote {ref.name}", wait_s=spec.serve.ready_timeout_s):
            if not state.deployments(ref.name):
                return _name_champion(ref, state=state, registry=registry, why=_why(version, ref))
        with serve_of(spec) as api:
            request = _Request(spec, ref, _why(version, ref), state, api, registry)
            return _bring(request, action="promote", breaking=breaking)


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

    def live(version: int) -> None:
        if on_live is not None:
            on_live(version)
        import mlflow  # noqa: F401 - takes seconds, in which MLflow's server has nothing to answer

    spec = spec_of(source, overrides=overrides, env=env)
    with opened(spec) as (state, api):
        record = roll_back(spec, state, api, follow=champion_alias(spec, spec.project.name), on_live=live)
        warnings = ensure_controller(spec, state, dashboard_url=api.dashboard_url)
    return replace(record, warnings=(*record.warnings, *warnings))


def roll_back(
    spec: ProjectSpec,
    state: State,
    api: ServeApi,
    *,
    follow: Callable[[int], None] = lambda _: None,
    on_live: Callable[[int], None] = lambda _: None,
) -> DeploymentRecord:
    """Remove a canary's share, or give the route back; ``follow`` sets the alias of the version that then has it."""
    from raymlops.lifecycle.live.change import change, record_of
    from raymlops.lifecycle.live.lineup import LineUp
    from raymlops.lifecycle.rollout.canary import abort

    name, serve, now = spec.project.name, spec.serve, datetime.now(UTC)
    if aborted := abort(state, api, name, serve=serve, why="rolled back", now=now, action="rollback.canary"):
        return aborted

    def decide(before: Sequence[Deployment]) -> LineUp:
        target = previous_champion(before, state.changes(name))
        left = champion_of(before)
        why = f"from version {left.version if left else None} to version {target.version}"
        return LineUp(with_champion(before, target), target.version, why=why)

    done = change(
        state,
        api,
        name,
        decide=decide,
        serve=serve,
        action="rollback",
        why="requested",
        follow=follow,
        on_live=on_live,
        hurry=True,
    )
    return record_of(done)


def rollback_target(source: Source) -> str:
    """Return what ``rollback`` would do now, as text, according to the state.

    Raises:
        NotFoundError: as ``rollback``.
    """
    from raymlops.lifecycle.rollout.canary import shared_now

    spec = spec_of(source)
    name = spec.project.name
    with state_of(spec) as state:
        before = state.deployments(name)
        if lost := shared_now(state, name):
            return f"takes the share of the traffic away from version {lost} of {name}"
        target = previous_champion(before, state.changes(name))
        champion = champion_of(before)
        left = f" back from version {champion.version}" if champion else ""
        return f"gives the route of {name}{left} to version {target.version}"


def running_rollout(source: Source, version: str | None = None) -> str:
    """Return the id of the running rollout, of this version if one is named.

    Raises:
        UsageError: no rollout is running.
    """
    from raymlops.state.rollouts import running

    spec = spec_of(source)
    with state_of(spec) as state, state.reading() as connection:
        for found in running(connection, spec.project.name):
            if version is None or not version.isdigit() or int(version) == found.version:
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
    from raymlops.lifecycle.live.change import change
    from raymlops.lifecycle.live.lineup import LineUp
    from raymlops.lifecycle.rollout.canary import settle

    spec = spec_of(source)
    with opened(spec) as (state, api):
        done = change(
            state,
            api,
            spec.project.name,
            decide=lambda _before: LineUp([], None),
            serve=spec.serve,
            action="remove",
            why="requested",
        )
        settle(state, spec.project.name, now=datetime.now(UTC))
    return [deployment.version for deployment in done.before]


def restore(
    source: Source, *, takeover: bool = False, on_warning: Callable[[str], None] = _log.warning
) -> list[Deployment]:
    """Bring Serve to the desired state of every model, as after a restart of the cluster; return that state.

    A running rollout resumes. With ``takeover`` this database counts although it is older than what Serve runs: for
    when the newer one is lost.

    Raises:
        DeployError: a champion did not come up; the others are sent all the same.
        TakenError: another state has a model of such a name; the others are brought back all the same.
        RefusedError, ClusterError: as ``deploy``.
    """
    from raymlops.lifecycle.live.bring_up import restored
    from raymlops.lifecycle.rollout.actor import ensure_controller

    spec = spec_of(source)
    with opened(spec) as (state, api):
        notes = make_count(state, api) if takeover else ()
        back = restored(state, api, serve=spec.serve)
        for warning in (*notes, *back.notes, *ensure_controller(spec, state, dashboard_url=api.dashboard_url)):
            on_warning(warning)
        if back.held is not None:
            raise back.held
    return list(back.desired.deployments)


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


@dataclass(frozen=True)
class _Request:
    """A version to bring up, and where."""

    spec: ProjectSpec
    ref: ModelVersionRef
    why: str
    state: State
    api: ServeApi
    registry: Registry


def _bring(request: _Request, *, action: str, breaking: bool, abort: bool = False) -> DeploymentRecord:
    """Bring a version up: beside the champion, or as the champion."""
    from raymlops.lifecycle.live.change import record_of
    from raymlops.lifecycle.rollout.actor import ensure_controller
    from raymlops.lifecycle.rollout.canary import settle

    state, api = request.state, request.api
    if not breaking:
        check_callers(request.ref, state)
    if abort:
        _abort(request)
    done, opened = _up(request, action=action)
    if action != "deploy.beside":
        settle(state, request.ref.name, now=datetime.now(UTC))
    record = record_of(done)
    warnings = [OPENED] if opened else []
    warnings += ensure_controller(request.spec, state, dashboard_url=api.dashboard_url)
    return replace(record, warnings=(*record.warnings, *warnings))


def _abort(request: _Request) -> None:
    """End the rollout that is in the way of a version."""
    from raymlops.lifecycle.rollout.canary import abort

    why, now = f"for version {request.ref.version}", datetime.now(UTC)
    serve = request.spec.serve
    abort(request.state, request.api, request.ref.name, serve=serve, why=why, now=now, action="abort")


def _up(request: _Request, *, action: str) -> tuple[Change, bool]:
    """Bring a version up, and return also whether the model no longer requires keys."""
    from raymlops.lifecycle.live.change import change
    from raymlops.lifecycle.live.lineup import LineUp
    from raymlops.lifecycle.rollout.canary import refuse_running
    from raymlops.serving.control.address import is_local, listening
    from raymlops.state.store import Deployment

    ref, state, api = request.ref, request.state, request.api
    stays_beside = action == "deploy.beside"
    new = Deployment(
        name=ref.name,
        version=ref.version,
        bundle=ref.bundle,
        run_id=ref.run_id,
        role="warm" if stays_beside else "champion",
        serve=request.spec.serve.model_dump(mode="json"),
    )

    opened = False
    listens = listening(api.get(), local=is_local(api.dashboard_url))

    def decide(before: Sequence[Deployment]) -> LineUp:
        nonlocal opened
        champion = champion_of(before)
        live = champion is not None and champion.version == new.version
        if action == "deploy" and not live:
            refuse_running(state, ref.name)
        if action == "promote" and not before:
            raise RefusedError(f"{ref.name} was taken off Serve just now", hint="Run the same command again.")
        wanted = (
            beside(before, as_asked(before, new))
            if stays_beside and not live
            else with_champion(before, new, configured=True)
        )
        # Once it has come up with that, it is so before as well.
        opened = opened or opens(before, wanted, listens.reach if listens else None)
        why = f"{request.why}: {OPENED}" if opened else request.why
        return LineUp(wanted, new.version, spare=spare_of(before, new), why=why)

    def follow(version: int) -> None:
        request.registry.set_alias(ref.name, "champion", version)

    done = change(
        state,
        api,
        ref.name,
        decide=decide,
        serve=request.spec.serve,
        action=action,
        why=request.why,
        follow=None if stays_beside else follow,
    )
    return done, opened


def _share(request: _Request, traffic: TrafficRequest, *, abort: bool) -> DeploymentRecord:
    """Bring a version up beside the champion and give it a share of the traffic."""
    from raymlops.lifecycle.rollout import canary
    from raymlops.lifecycle.rollout.actor import ensure_controller
    from raymlops.lifecycle.rollout.loss_rule import unasked
    from raymlops.serving.control.render import settings_of

    ref, state, api = request.ref, request.state, request.api
    name = ref.name
    champion = champion_of(state.deployments(name))
    if champion is None:
        raise RefusedError(
            f"no version of {name} is live, so none can be a canary or a shadow",
            hint="Deploy without them: all of the traffic.",
        )
    if champion.version == ref.version:
        raise RefusedError(
            f"version {ref.version} of {name} is champion already: it answers all that no canary does",
            hint="Name another one with --version.",
        )
    if traffic.weight or traffic.shadow:
        check_callers(ref, state, share=True)
    if traffic.weight is not None:
        if abort:
            _abort(request)
        canary.refuse_running(state, name)
    if traffic.removes:
        nothing = canary.untouched(state.deployments(name), name, ref.version, digest=ref.bundle.digest)
        if nothing is not None:
            return nothing
    else:
        _up(request, action="deploy.beside")
    record = canary.share(
        state,
        api,
        name,
        version=ref.version,
        champion=champion.version,
        asked=traffic,
        serve=request.spec.serve,
        why=request.why,
        now=datetime.now(UTC),
    )
    warnings = [*record.warnings, *ensure_controller(request.spec, state, dashboard_url=api.dashboard_url)]
    if record.rollout_id is not None:
        if (sticky := settings_of(champion).traffic.sticky) != "request":
            warnings.append(
                f"callers keep to one version (serve.traffic.sticky: {sticky}), so that an equally good version is "
                "aborted more often than serve.rollout.alpha says if callers differ"
            )
        if reason := unasked(champion):
            warnings.append(f"quality is not judged in this rollout, whatever labels arrive: {reason}")
    return replace(record, warnings=tuple(warnings))


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
