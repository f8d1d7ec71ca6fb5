"""``deploy``, ``promote``, ``rollback`` and ``remove``: which version is live.

The desired state is written first, with its audit event, then Serve is brought to it and read back, then MLflow's
alias follows. A kill in between loses nothing: what is live goes on, and the same verb again completes it.
Who becomes what is decided by the pure functions of ``lineup``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raymlops.errors import RaymlopsError, RefusedError, TrackingError
from raymlops.lifecycle.gating import GATE_TAG
from raymlops.lifecycle.lineup import beside, previous_champion, with_champion
from raymlops.lifecycle.source import Source, spec_of
from raymlops.records import DeploymentRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.serving.api import ServeApi
    from raymlops.serving.apply import Applied
    from raymlops.state.store import AuditEvent, Deployment, State

ADMITTED = {"challenger", "champion"}


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
    what is live already changes nothing.

    Raises:
        NotFoundError: there is no such version.
        RefusedError: the version has not passed its gate.
        DeployError: it did not come up; what was live still is, and the desired state is as before.
        ClusterError: there is no running cluster.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    registry, ref = _admitted(spec, version)
    with _open(spec) as (state, api):
        before = state.deployments(ref.name)
        new = _deployment(ref, spec, role="champion" if promote else "warm")
        wanted = with_champion(before, new) if promote else beside(before, new)
        action = "deploy" if promote else "deploy.beside"
        applied = _change(state, api, ref.name, wanted, spec=spec, action=action, why=f"version {version} asked for")
    if promote:
        registry.set_alias(ref.name, "champion", ref.version)
    return _record(wanted, before, applied, version=ref.version)


def promote(
    source: Source, version: str = "@challenger", *, overrides: Sequence[str] = (), env: str | None = None
) -> DeploymentRecord:
    """Make a version champion.

    Where the model is served, the version takes the route as by ``deploy``; otherwise only the alias moves.

    Raises:
        NotFoundError: there is no such version.
        RefusedError: the version has not passed its gate.
        DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    with _state(spec) as state:
        served = state.deployments(spec.project.name)
        if served:
            return deploy(spec, version)
        registry, ref = _admitted(spec, version)
        old = registry.by_alias(ref.name, "champion")
        state.record(
            action="promote",
            subject=f"{ref.name}/{ref.version}",
            before=old.to_dict() if old else None,
            after=ref.to_dict(),
            why=f"version {version} asked for",
        )
    registry.set_alias(ref.name, "champion", ref.version)
    return DeploymentRecord(
        name=ref.name,
        version=ref.version,
        digest=ref.bundle.digest,
        role="champion",
        url=None,
        previous_version=old.version if old else None,
        changed=old is None or old.version != ref.version,
    )


def rollback(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> DeploymentRecord:
    """Give the route back to the version that was champion before the one that is.

    Needs the state database and Serve, but not MLflow: its alias follows when it answers.

    Raises:
        NotFoundError: the model is not served, or no version was champion before.
        DeployError, ClusterError: as ``deploy``.
    """
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    spec = spec_of(source, overrides=overrides, env=env)
    name = spec.project.name
    with _open(spec) as (state, api):
        before = state.deployments(name)
        target = previous_champion(before, state.events(name))
        wanted = with_champion(before, target)
        applied = _change(state, api, name, wanted, spec=spec, action="rollback", why="asked for")
        try:
            Registry(tracker(spec)).set_alias(name, "champion", target.version)
        except TrackingError as error:
            state.record(
                action="rollback.alias",
                subject=f"{name}/{target.version}",
                why=f"the route moved, the alias champion did not: {error.message}",
            )
    return _record(wanted, before, applied, version=target.version)


def remove(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> list[int]:
    """Take every version of the model off Serve and return their numbers; the registry stays as it is."""
    spec = spec_of(source, overrides=overrides, env=env)
    with _open(spec) as (state, api):
        before = state.deployments(spec.project.name)
        if before:
            _change(state, api, spec.project.name, [], spec=spec, action="remove", why="asked for")
    return [deployment.version for deployment in before]


def events(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> list[AuditEvent]:
    """Return the audit record of the project's model, oldest first."""
    spec = spec_of(source, overrides=overrides, env=env)
    with _state(spec) as state:
        return state.events(spec.project.name)[::-1]


def _admitted(spec: ProjectSpec, version: str) -> tuple[Registry, ModelVersionRef]:
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    registry = Registry(tracker(spec))
    ref = registry.get(spec.project.name, version)
    if not ADMITTED & set(ref.aliases) and registry.tags(ref.name, ref.version).get(GATE_TAG) != "passed":
        raise RefusedError(
            f"{ref.name} version {ref.version} has not passed its gate",
            hint=f"raymlops models gate --config FILE --version {ref.version}",
        )
    return registry, ref


def _change(
    state: State, api: ServeApi, name: str, wanted: list[Deployment], *, spec: ProjectSpec, action: str, why: str
) -> Applied:
    """Write the desired state, bring Serve to it, and take both back where a version does not come up."""
    from raymlops.serving.apply import apply

    where = {"host": spec.serve.host, "port": spec.serve.port}
    before = state.deployments(name)
    if before != wanted:
        state.put_deployments({name: wanted}, action=action, why=why)
    try:
        return apply(state.deployments(), api=api, wait_s=spec.serve.ready_timeout_s, **where)  # type: ignore[arg-type]
    except BaseException as error:
        if before != wanted:
            reason = f"{action} failed: {type(error).__name__}: {error}"[:2000]
            state.put_deployments({name: before}, action=f"{action}.undone", why=reason)
            _undo(state, api, spec=spec)
        raise


def _undo(state: State, api: ServeApi, *, spec: ProjectSpec) -> None:
    """Send the state of before, which deletes what did not come up; do not wait for it."""
    from raymlops.serving.apply import apply

    try:
        apply(state.deployments(), api=api, wait_s=10, host=spec.serve.host, port=spec.serve.port, probe=False)
    except RaymlopsError:
        # Serve does not answer: the desired state is right again, and the next verb brings Serve to it.
        return


def _deployment(ref: ModelVersionRef, spec: ProjectSpec, *, role: Any) -> Deployment:
    from raymlops.state.store import Deployment

    serve = spec.serve.model_dump(mode="json")
    return Deployment(name=ref.name, version=ref.version, bundle=ref.bundle, run_id=ref.run_id, role=role, serve=serve)


def _record(wanted: list[Deployment], before: list[Deployment], applied: Applied, *, version: int) -> DeploymentRecord:
    new = next(item for item in wanted if item.version == version)
    old = next((item for item in before if item.role == "champion"), None)
    return DeploymentRecord(
        name=new.name,
        version=version,
        digest=new.bundle.digest,
        role=new.role,
        url=f"{applied.base_url}/models/{new.name}/predict" if new.role == "champion" else None,
        previous_version=old.version if old and old.version != version else None,
        changed=applied.changed,
    )


@contextmanager
def _state(spec: ProjectSpec) -> Iterator[State]:
    from raymlops.state.store import State, state_url

    with State.open(state_url(spec)) as state:
        yield state


@contextmanager
def _open(spec: ProjectSpec) -> Iterator[tuple[State, ServeApi]]:
    """Open the desired state and Serve's API of the running cluster."""
    from raymlops.cluster.dashboard import dashboard
    from raymlops.serving.api import ServeApi

    with dashboard(spec) as found, _state(spec) as state:
        yield state, ServeApi(found.url, found.token())
