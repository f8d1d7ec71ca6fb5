"""``deploy``, ``promote``, ``rollback``, ``remove`` and ``restore``: which version is live.

Owns what each verb asks for and who may become live. How a change is carried out is ``changing``'s; who becomes what
is decided by the pure functions of ``lineup``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from raymlops.errors import RefusedError
from raymlops.lifecycle.gating import GATE_TAG
from raymlops.lifecycle.lineup import beside, champion_of, previous_champion, with_champion
from raymlops.lifecycle.source import Source, spec_of
from raymlops.records import DeploymentRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.changing import LineUp
    from raymlops.records import ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.serving.api import ServeApi
    from raymlops.state.store import AuditEvent, Deployment, State


def deploy(
    source: Source,
    version: str = "@challenger",
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    promote: bool = True,
) -> DeploymentRecord:
    """Bring a version up beside what is live, check that it answers, then give it the route and the alias ``champion``.

    With ``promote=False`` it stays beside, without a route. The version that held the route is kept warm. Deploying
    what is live already changes nothing. Where the alias does not follow, the version is live all the same and the
    record's ``warnings`` say so.

    Raises:
        NotFoundError: there is no such version.
        BundleError: its files are no longer what its digest vouches for.
        RefusedError: the version has not passed its gate, or another change of what is live takes too long.
        InsufficientResourcesError: the cluster can never hold it beside what is served; nothing was changed.
        DeployError: it did not come up; what was live still is, and the desired state is as before.
        ClusterError: there is no running cluster.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    registry, ref = _admitted(spec, version)
    action = "deploy" if promote else "deploy.beside"
    with _open(spec) as (state, api):
        return _bring(spec, ref, state=state, api=api, registry=registry, action=action, why=_why(version, ref))


def promote(
    source: Source, version: str = "@challenger", *, overrides: Sequence[str] = (), env: str | None = None
) -> DeploymentRecord:
    """Make a version champion.

    Where the model is served, the version takes the route as by ``deploy``; otherwise only the alias moves.

    Raises:
        NotFoundError: there is no such version.
        BundleError: its files are no longer what its digest vouches for.
        RefusedError: the version has not passed its gate, or another change of what is live takes too long.
        InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    registry, ref = _admitted(spec, version)
    with _state(spec) as state:
        with state.exclusive(f"promote {ref.name}", wait_s=spec.serve.ready_timeout_s):
            if not state.deployments(ref.name):
                return _name_champion(ref, state=state, registry=registry, why=_why(version, ref))
        with _serve(spec) as api:
            return _bring(spec, ref, state=state, api=api, registry=registry, action="promote", why=_why(version, ref))


def rollback(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> DeploymentRecord:
    """Give the route back to the version that was champion before the one that is.

    Needs the state database and Serve, but not MLflow: where its alias does not follow, the record's ``warnings`` say
    so.

    Raises:
        NotFoundError: the model is not served, or no version was champion before.
        RefusedError, InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    from raymlops.lifecycle.changing import LineUp, change, record_of
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    spec = spec_of(source, overrides=overrides, env=env)
    name = spec.project.name
    with _open(spec) as (state, api):

        def decide(before: Sequence[Deployment]) -> LineUp:
            target = previous_champion(before, state.changes(name))
            return LineUp(with_champion(before, target), target.version)

        def follow(version: int) -> None:
            Registry(tracker(spec)).set_alias(name, "champion", version)

        done = change(
            state, api, name, decide=decide, serve=spec.serve, action="rollback", why="asked for", follow=follow
        )
    return record_of(done)


def remove(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> list[int]:
    """Take every version of the model off Serve and return their numbers; the registry stays as it is.

    Raises:
        RefusedError, ClusterError: as ``deploy``.
    """
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
    return [deployment.version for deployment in done.before]


def restore(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> list[Deployment]:
    """Bring Serve to the desired state of every model, as after a cluster that was started anew; return that state.

    Raises:
        DeployError: a champion did not come up; the others are sent all the same.
        RefusedError, ClusterError: as ``deploy``.
    """
    from raymlops.serving.apply import apply

    spec = spec_of(source, overrides=overrides, env=env)
    wait_s = spec.serve.ready_timeout_s
    with _open(spec) as (state, api), state.exclusive("restore", wait_s=wait_s):
        desired = state.deployments()
        applied = apply(desired, api=api, wait_s=wait_s, host=spec.serve.host, port=spec.serve.port)
        if applied.changed:
            for champion in (item for item in desired if item.role == "champion"):
                subject = f"{champion.name}/{champion.version}"
                state.record(action="restore", subject=subject, why="Serve did not run what it should")
    return desired


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
) -> DeploymentRecord:
    """Bring a version up: beside the champion, or as the champion."""
    from raymlops.lifecycle.changing import LineUp, change, record_of
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
        return LineUp(beside(before, new) if stays_beside else with_champion(before, new), new.version)

    done = change(
        state,
        api,
        ref.name,
        decide=decide,
        serve=spec.serve,
        action=action,
        why=why,
        follow=None if stays_beside else lambda version: registry.set_alias(ref.name, "champion", version),
    )
    return record_of(done)


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
