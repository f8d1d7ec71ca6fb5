"""``deploy``, ``promote``, ``rollback``, ``remove`` and ``restore``: which version is live, and who gets what traffic.

Owns what each verb asks for and who may become live. How a change is carried out is ``changing``'s, a share of the
traffic ``canary``'s; who becomes what is decided by the pure functions of ``lineup``.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raymlops.errors import BundleError, RefusedError, StorageError, UsageError
from raymlops.lifecycle.gating import GATE_TAG
from raymlops.lifecycle.lineup import beside, champion_of, idle_of, previous_champion, spare_of, with_champion
from raymlops.lifecycle.source import Source, spec_of
from raymlops.records import DeploymentRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.canary import Asked
    from raymlops.lifecycle.changing import Change, LineUp
    from raymlops.records import ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.serving.api import ServeApi
    from raymlops.state.store import AuditEvent, Deployment, State

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

    With ``promote=False`` it stays beside, without a route. The version that held the route is kept warm for
    ``serve.keep_warm_s``. Deploying what is live already changes nothing. Where the alias does not follow, the version
    is live all the same and the record's ``warnings`` say so.

    ``canary`` and ``shadow`` are percentages: it stays beside and answers that many of the requests, or gets copies of
    them. ``canary`` alone is held until told otherwise, 0 takes it away. With ``steps`` (percentages, rising) or
    ``bake_s`` a rollout begins, and this returns at once: from then on the controller moves it, promotes the version or
    takes its share away. ``abort`` first ends a rollout that runs.

    A canary or a shadow must take and give what the champion does. So must a new champion, since products call the
    route by what it takes and gives: a version that breaks that needs ``breaking=True``, as it needs their changing.

    Raises:
        NotFoundError: there is no such version.
        BundleError: its files are no longer what its digest vouches for.
        RefusedError: the version has not passed its gate or does not fit the champion's callers, a rollout runs,
            another change of what is live takes too long, or took the version away or made another one live meanwhile.
        UsageError: percentages that cannot be.
        InsufficientResourcesError: the cluster can never hold it beside what is served; nothing was changed.
        DeployError: it did not come up; what was live still is, and the desired state is as before.
        ClusterError: there is no running cluster.
    """
    from raymlops.lifecycle.canary import asked_for

    spec = spec_of(source, overrides=overrides, env=env)
    settings = spec.serve.rollout
    asked = asked_for(canary=canary, steps=steps, bake_s=bake_s, shadow=shadow, settings=settings)
    if asked.anything and breaking:
        raise UsageError("a canary and a shadow answer the champion's callers, so they cannot break what it takes")
    registry, ref = _admitted(spec, version)
    with _open(spec) as (state, api):
        if asked.anything:
            return _share(
                spec, ref, asked, state=state, api=api, registry=registry, abort=abort, why=_why(version, ref)
            )
        action = "deploy" if promote else "deploy.beside"
        return _bring(
            spec,
            ref,
            state=state,
            api=api,
            registry=registry,
            action=action,
            why=_why(version, ref),
            breaking=breaking or not promote,
        )


def promote(
    source: Source,
    version: str = "@challenger",
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    breaking: bool = False,
) -> DeploymentRecord:
    """Make a version champion; a rollout of it ends with that, one of another version is stopped.

    Where the model is served, the version takes the route as by ``deploy``, and must take and give what the champion
    does unless it is ``breaking``; otherwise only the alias moves.

    Raises:
        NotFoundError: there is no such version.
        BundleError: its files are no longer what its digest vouches for.
        RefusedError: the version has not passed its gate or does not fit the champion's callers, or another change of
            what is live takes too long.
        InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    registry, ref = _admitted(spec, version)
    with _state(spec) as state:
        with state.exclusive(f"promote {ref.name}", wait_s=spec.serve.ready_timeout_s):
            if not state.deployments(ref.name):
                return _name_champion(ref, state=state, registry=registry, why=_why(version, ref))
        with _serve(spec) as api:
            return _bring(
                spec,
                ref,
                state=state,
                api=api,
                registry=registry,
                action="promote",
                why=_why(version, ref),
                breaking=breaking,
            )


def rollback(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    on_live: Callable[[int], None] | None = None,
) -> DeploymentRecord:
    """Take back what was done last: a canary's share of the traffic, or else the route of the champion.

    Where a version is rolled out or has a share, its share is taken away, its rollout ends, and the champion stays.
    Where none has, the route goes back to the version that was champion before. That takes about a second while it is
    warm, and asks nothing of the version that loses the route, which may hang.

    Needs the state database and Serve, but not MLflow: where its alias does not follow, the record's ``warnings`` say
    so, and the controller lets it follow later. ``on_live`` is called with the version once it answers, before the
    alias, which takes longer.

    Raises:
        NotFoundError: the model is not served, or no version was champion before.
        RefusedError, InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    from raymlops.lifecycle.canary import abort
    from raymlops.lifecycle.changing import LineUp, change, record_of

    spec = spec_of(source, overrides=overrides, env=env)
    name = spec.project.name
    with _open(spec) as (state, api):
        now = datetime.now(UTC)
        if taken := abort(state, api, name, serve=spec.serve, why="rolled back", now=now, action="rollback.canary"):
            return taken

        def decide(before: Sequence[Deployment]) -> LineUp:
            target = previous_champion(before, state.changes(name))
            return LineUp(with_champion(before, target), target.version)

        def follow(version: int) -> None:
            if on_live is not None:
                on_live(version)
            from raymlops.registry.versions import Registry
            from raymlops.tracking.client import tracker

            Registry(tracker(spec)).set_alias(name, "champion", version)

        done = change(
            state,
            api,
            name,
            decide=decide,
            serve=spec.serve,
            action="rollback",
            why="asked for",
            follow=follow,
            hurry=True,
        )
    return record_of(done)


def remove(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> list[int]:
    """Take every version of the model off Serve and return their numbers; the registry stays as it is.

    Raises:
        RefusedError, ClusterError: as ``deploy``.
    """
    from raymlops.lifecycle.canary import settle
    from raymlops.lifecycle.changing import LineUp, change

    spec = spec_of(source, overrides=overrides, env=env)
    with _open(spec) as (state, api):
        done = change(
            state,
            api,
            spec.project.name,
            decide=lambda _before: LineUp([], None),
            serve=spec.serve,
            action="remove",
            why="asked for",
        )
        settle(state, spec.project.name, now=datetime.now(UTC))
    return [deployment.version for deployment in done.before]


def restore(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> list[Deployment]:
    """Bring Serve to the desired state of every model, as after a cluster that was started anew; return that state.

    Raises:
        DeployError: a champion did not come up; the others are sent all the same.
        RefusedError, ClusterError: as ``deploy``.
    """
    from raymlops.lifecycle.bringing import restored

    spec = spec_of(source, overrides=overrides, env=env)
    with _open(spec) as (state, api):
        desired = restored(state, api, serve=spec.serve)
        if warning := _steered(spec, state, api):
            _log.warning(warning)
    return list(desired.deployments)


def events(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> list[AuditEvent]:
    """Return the whole audit record of the project's model, oldest first."""
    spec = spec_of(source, overrides=overrides, env=env)
    with _state(spec) as state:
        return state.events(spec.project.name)[::-1]


def _admitted(spec: ProjectSpec, version: str) -> tuple[Registry, ModelVersionRef]:
    """Return a version that has passed its gate and whose files are whole.

    Its tag says whether it passed: an alias can be moved by anybody, by hand.
    """
    from raymlops.bundle.verify import verify
    from raymlops.lifecycle.compatible import check_redacted, signature_of
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    registry = Registry(tracker(spec))
    ref = registry.get(spec.project.name, version)
    verdict = registry.tags(ref.name, ref.version).get(GATE_TAG)
    if verdict != "passed":
        asked = "was refused by its gate" if verdict == "refused" else "has not passed its gate"
        raise RefusedError(
            f"{ref.name} version {ref.version} {asked}",
            hint=f"raymlops models gate --config FILE --version {ref.version}",
        )
    verify(ref.bundle.uri, ref.bundle.digest)
    check_redacted(spec.serve.log.redact, signature_of(ref.bundle), name=ref.name)
    return registry, ref


def _bring(
    spec: ProjectSpec,
    ref: ModelVersionRef,
    *,
    state: State,
    api: ServeApi,
    registry: Registry,
    action: str,
    why: str,
    breaking: bool,
) -> DeploymentRecord:
    """Bring a version up: beside the champion, or as the champion."""
    from raymlops.lifecycle.canary import settle
    from raymlops.lifecycle.changing import record_of

    if not breaking:
        _check_callers(ref, state)
    done = _up(spec, ref, state=state, api=api, registry=registry, action=action, why=why)
    if action != "deploy.beside":
        settle(state, ref.name, now=datetime.now(UTC))
    record = record_of(done)
    warning = _steered(spec, state, api)
    return replace(record, warnings=(*record.warnings, warning)) if warning else record


def _up(
    spec: ProjectSpec,
    ref: ModelVersionRef,
    *,
    state: State,
    api: ServeApi,
    registry: Registry,
    action: str,
    why: str,
) -> Change:
    from raymlops.lifecycle.changing import LineUp, change
    from raymlops.state.store import Deployment

    stays_beside = action == "deploy.beside"
    new = Deployment(
        name=ref.name,
        version=ref.version,
        bundle=ref.bundle,
        run_id=ref.run_id,
        role="warm" if stays_beside else "champion",
        serve=spec.serve.model_dump(mode="json"),
    )

    def decide(before: Sequence[Deployment]) -> LineUp:
        if action == "promote" and champion_of(before) is None and not before:
            raise RefusedError(f"{ref.name} was taken off Serve just now", hint="Run the same command again.")
        wanted = beside(before, new) if stays_beside else with_champion(before, new)
        return LineUp(wanted, new.version, spare=spare_of(before, new))

    return change(
        state,
        api,
        ref.name,
        decide=decide,
        serve=spec.serve,
        action=action,
        why=why,
        follow=None if stays_beside else lambda version: registry.set_alias(ref.name, "champion", version),
    )


def _share(
    spec: ProjectSpec,
    ref: ModelVersionRef,
    asked: Asked,
    *,
    state: State,
    api: ServeApi,
    registry: Registry,
    abort: bool,
    why: str,
) -> DeploymentRecord:
    """Bring a version up beside the champion and give it a share of the traffic."""
    from raymlops.lifecycle import canary
    from raymlops.lifecycle.steering import ensure_controller
    from raymlops.serving.render import settings_of

    now = datetime.now(UTC)
    name = ref.name
    champion = champion_of(state.deployments(name))
    if champion is None:
        raise RefusedError(
            f"no version of {name} is live, so none can be a canary or a shadow",
            hint="Deploy without them: all of the traffic.",
        )
    if champion.version == ref.version:
        raise RefusedError(
            f"version {ref.version} of {name} is live already, so it has all of the traffic",
            hint="Name another one with --version.",
        )
    if asked.weight or asked.shadow:
        _check_callers(ref, state, share=True)
    if asked.weight is not None:
        if abort:
            canary.abort(state, api, name, serve=spec.serve, why=f"for version {ref.version}", now=now, action="abort")
        canary.refuse_running(state, name)
    if asked.nothing:
        nothing = canary.untouched(state.deployments(name), name, ref.version, digest=ref.bundle.digest)
        if nothing is not None:
            return nothing
    else:
        _up(spec, ref, state=state, api=api, registry=registry, action="deploy.beside", why=why)
    record = canary.share(
        state,
        api,
        name,
        version=ref.version,
        champion=champion.version,
        asked=asked,
        serve=spec.serve,
        why=why,
        now=datetime.now(UTC),
    )
    rolls = record.rollout_id is not None
    warning = ensure_controller(spec, dashboard_url=api.dashboard_url, needed=rolls)
    sticky = settings_of(champion).traffic.sticky
    kept = (
        f"callers keep to one version (serve.traffic.sticky: {sticky}), so that an equally good version is aborted "
        "more often than serve.rollout.alpha says where callers differ"
        if rolls and sticky != "request"
        else None
    )
    return replace(record, warnings=(*record.warnings, *filter(None, (warning, kept))))


def _check_callers(ref: ModelVersionRef, state: State, *, share: bool = False) -> None:
    """Refuse a version that the champion's callers cannot call.

    A champion whose bundle cannot be read any more keeps no successor away, but lends nobody its traffic.
    """
    from raymlops.lifecycle.compatible import check_compatible, signature_of

    champion = champion_of(state.deployments(ref.name))
    if champion is None or champion.version == ref.version:
        return
    try:
        live = signature_of(champion.bundle)
    except (BundleError, StorageError) as error:
        if share:
            raise
        _log.warning("version %d cannot be compared with what is live: %s", ref.version, error.message)
        return
    hint = (
        "Bring it up with --beside, or make it live with --breaking once its callers have changed."
        if share
        else "--breaking makes it live all the same: whoever calls the route must have changed by then."
    )
    check_compatible(live, signature_of(ref.bundle), versions=(champion.version, ref.version), hint=hint)


def _steered(spec: ProjectSpec, state: State, api: ServeApi) -> str | None:
    """See to it that a controller ends what is kept warm; return why there is none."""
    from raymlops.lifecycle.steering import ensure_controller

    if not idle_of(state.deployments()):
        return None
    return ensure_controller(spec, dashboard_url=api.dashboard_url, needed=False)


def _name_champion(ref: ModelVersionRef, *, state: State, registry: Registry, why: str) -> DeploymentRecord:
    """Move the alias alone, of a model that is not served."""
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
    return f"version {ref.version} asked for" + (f" as {version}" if version != str(ref.version) else "")


@contextmanager
def _state(spec: ProjectSpec) -> Iterator[State]:
    from raymlops.state.store import State, state_url

    with State.open(state_url(spec)) as state:
        yield state


@contextmanager
def _serve(spec: ProjectSpec) -> Iterator[ServeApi]:
    from raymlops.cluster.dashboard import dashboard
    from raymlops.serving.api import ServeApi

    with dashboard(spec) as found:
        yield ServeApi(found.url, found.token())


@contextmanager
def _open(spec: ProjectSpec) -> Iterator[tuple[State, ServeApi]]:
    """Open the desired state and Serve's API of the running cluster."""
    with _serve(spec) as api, _state(spec) as state:
        yield state, api
