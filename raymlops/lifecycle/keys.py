"""API keys as verbs: the state changes first, then Serve is brought to it at once.

Owns what a caller is told of both. What a key is belongs to ``state``, what a replica does with one to ``serving``.

The state changes in a transaction of its own and waits for nobody: a revoked key is revoked from then on, whatever
happens to the cluster. Sending it takes the lock that every change of what is live takes, so that neither undoes the
other. After a kill between the two the controller reconciles Serve with the state.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from raymlops.errors import ClusterError, OutdatedStateError, RaymlopsError, TakenError
from raymlops.lifecycle.sources import Source, spec_of
from raymlops.records import Record
from raymlops.serving.control.render import settings_of
from raymlops.state.audit import changes_of
from raymlops.state.database import state_url
from raymlops.state.keys import EVERY_MODEL, KeyRecord, create_key, list_keys, revoke_key, rotate_key
from raymlops.state.store import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.serve import ServeSection
    from raymlops.serving.control.apply import Api, Applied

WAIT_S = 20.0
"""How long the replicas of the key's models may take to say that they have it."""
LOCK_WAIT_S = 90.0
"""How long a change of what is live is waited for: each has the lock for seconds, the slowest for half a minute."""
SENT_LATER = "the controller sends it as soon as it can"
NO_CLUSTER = "there is no running cluster; what is deployed next will know"


@dataclass(frozen=True)
class KeyChange(Record):
    """One change of a key, and whether replicas know it."""

    key: KeyRecord
    secret: str | None = field(default=None, repr=False)
    """Of a new key: here and nowhere else."""
    old: KeyRecord | None = None
    """Of a rotation: the key before, with its end."""
    live: bool = False
    """Whether every replica of every model that the key opens has taken the change."""
    note: str = ""
    """Why it is not live."""
    failed: bool = False
    """Whether a cluster is there that should have taken it by now."""
    warnings: tuple[str, ...] = ()
    """Of a new key: why it may not do what it was made for. Of any: what is to be said of the cluster's Serve."""
    open_models: tuple[str, ...] = ()
    """Of a new key: models that it opens and that ask nobody for one."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, the secret among it: for the answer of a command alone."""
        data: dict[str, Any] = {"key": self.key.to_dict(), "live": self.live, "note": self.note}
        if self.secret is not None:
            data["secret"] = self.secret
        if self.old is not None:
            data["old"] = self.old.to_dict()
        data |= {"warnings": list(self.warnings), "open_models": list(self.open_models)}
        return data


def create(
    source: Source,
    name: str,
    *,
    models: Sequence[str] = (),
    scopes: Sequence[str] = ("predict", "feedback"),
    rate_per_s: float | None = None,
    expires_in_s: float | None = None,
) -> KeyChange:
    """Create a key held by ``name``; without models it opens the project's own.

    Raises:
        UsageError: a name, model, scope, rate or time that cannot be, or a good key has the name.
        StorageError, UnreachableError: the state database cannot be written; nothing was changed.
    """
    spec = spec_of(source)
    now, opened = datetime.now(UTC), tuple(models) or (spec.project.name,)
    with State.open(state_url(spec)) as state:
        # Before there is a secret, which an error would take with it.
        doubts = _doubts(opened, scopes, spec=spec, state=state)
        key, secret = create_key(
            state,
            name=name,
            models=opened,
            scopes=tuple(scopes),
            rate_per_s=rate_per_s,
            expires_at=None if expires_in_s is None else now + timedelta(seconds=expires_in_s),
            now=now,
        )
        sent = _bring(spec, state, key, purpose=f"key of {name}")
        unguarded = _open_models(opened, spec=spec, state=state, reach=sent.reach)
    return _change(key, sent, secret=secret, doubts=doubts, open_models=unguarded)


def revoke(source: Source, id_or_name: str) -> KeyChange:
    """End a key for good; replicas refuse it within seconds.

    One that was revoked before is sent again, in case that the cluster did not hear of it then.

    Raises:
        NotFoundError: there is no such key.
        UsageError: the name has several good keys.
        StorageError, UnreachableError: the state database cannot be written; nothing was changed.
    """
    spec = spec_of(source)
    with State.open(state_url(spec)) as state:
        key = revoke_key(state, id_or_name, now=datetime.now(UTC))
        sent = _bring(spec, state, key, purpose=f"revoke key {key.id}")
    return _change(key, sent)


def rotate(source: Source, id_or_name: str, *, grace_s: float) -> KeyChange:
    """Make a key in the place of another, which ends after ``grace_s``.

    Raises:
        NotFoundError: there is no such key.
        UsageError: the name has several good keys.
        RefusedError: the key is revoked or has expired.
        StorageError, UnreachableError: the state database cannot be written; nothing was changed.
    """
    spec = spec_of(source)
    with State.open(state_url(spec)) as state:
        key, secret, old = rotate_key(state, id_or_name, grace_s=grace_s, now=datetime.now(UTC))
        sent = _bring(spec, state, key, purpose=f"rotate key {old.id}")
    return _change(key, sent, secret=secret, old=old)


def keys(source: Source) -> list[KeyRecord]:
    """Return every key there ever was, oldest first."""
    with State.open(state_url(spec_of(source))) as state:
        return list_keys(state)


def bring(
    state: State, api: Api, key: KeyRecord, *, serve: ServeSection, purpose: str, lock_wait_s: float = LOCK_WAIT_S
) -> Applied:
    """Send the desired state, and wait until every model that the key opens has taken it.

    Raises:
        TakenError, OutdatedStateError: such a model on Serve is another state's, or a newer copy's of this one.
        RefusedError: another change of what is live takes too long.
        DeployError: a model did not take it in time.
        ClusterError: Serve does not answer.
    """
    from raymlops.serving.control.apply import apply

    with state.exclusive(purpose, wait_s=lock_wait_s):
        desired = state.desired()
        champions = (item for item in desired.deployments if item.role == "champion")
        concerned = {(item.name, item.version) for item in champions if key.opens(item.name)}
        return apply(
            desired,
            api=api,
            wait_s=WAIT_S,
            concerned=concerned,
            host=serve.host,
            port=serve.port,
            grpc_port=serve.grpc_port,
            probe=False,  # no route moves
        )


@dataclass(frozen=True)
class _Sent:
    """What became of sending a change, which the state holds in any case."""

    live: bool
    note: str = ""
    failed: bool = False
    warnings: tuple[str, ...] = ()
    reach: str | None = None


def _change(
    key: KeyRecord,
    sent: _Sent,
    *,
    secret: str | None = None,
    old: KeyRecord | None = None,
    doubts: tuple[str, ...] = (),
    open_models: tuple[str, ...] = (),
) -> KeyChange:
    warnings = (*doubts, *sent.warnings)
    return KeyChange(key, secret, old, sent.live, sent.note, sent.failed, warnings, open_models)


def _doubts(models: Sequence[str], scopes: Sequence[str], *, spec: ProjectSpec, state: State) -> tuple[str, ...]:
    """Return why a new key may not do what it was made for."""
    served = {item.name: settings_of(item) for item in state.deployments() if item.role == "champion"}
    own = spec.project.name
    warnings = []
    if "pin" in scopes and "predict" not in scopes:
        warnings.append("the key cannot predict: pin chooses who answers, and asking needs the scope predict")
    for name in models:
        # The project's own may get its key before its first version.
        if name not in {own, EVERY_MODEL, *served} and next(changes_of(state, name), None) is None:
            known = ", ".join(sorted(served)) or "none"
            warnings.append(f"no model {name} was ever deployed, as far as the state here knows; live are: {known}")
    return tuple(warnings)


def _open_models(models: Sequence[str], *, spec: ProjectSpec, state: State, reach: str | None) -> tuple[str, ...]:
    """Return which models that a key opens ask nobody for one, where Serve is reached at ``reach``."""
    served = {item.name: settings_of(item) for item in state.deployments() if item.role == "champion"}
    settings = {spec.project.name: spec.serve, **served}
    opened = [name for name in settings if EVERY_MODEL in models or name in models]
    return tuple(sorted(name for name in opened if not settings[name].key_required_at(reach)))


def _bring(spec: ProjectSpec, state: State, key: KeyRecord, *, purpose: str) -> _Sent:
    """Send a change that the state holds already."""
    from raymlops.cluster.dashboard import dashboard
    from raymlops.lifecycle.rollout.actor import ensure_controller
    from raymlops.serving.control.rest_api import ServeApi

    with ExitStack() as stack:
        try:
            found = stack.enter_context(dashboard(spec))
        except ClusterError:
            return _Sent(False, NO_CLUSTER)
        try:
            applied = bring(state, ServeApi(found.url, found.token()), key, serve=spec.serve, purpose=purpose)
        except (TakenError, OutdatedStateError) as error:
            return _Sent(False, f"the cluster has not taken it: {error}", failed=True)
        except RaymlopsError as error:
            without = ensure_controller(spec, dashboard_url=found.url, needed=False)
            return _Sent(False, f"the cluster has not taken it: {error}\n{without or SENT_LATER}", failed=True)
        without = ensure_controller(spec, dashboard_url=found.url, needed=False) if state.deployments() else None
        return _Sent(True, without or "", warnings=applied.notes, reach=applied.reach)
