"""API keys as verbs: change the state first, then send the change to Serve at once.

Owns what is reported of both. What a key is belongs to ``state``, what a replica does with one to ``serving``.

The state changes in a transaction of its own: a revoked key is revoked from then on, whatever happens to the cluster.
After a kill before it is sent the controller reconciles Serve with the state.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from raymlops.errors import ClusterError, OutdatedStateError, RaymlopsError, TakenError
from raymlops.lifecycle.live.change import converged
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.sources import Source, spec_of, state_of
from raymlops.records import Record
from raymlops.serving.control.plan import unreadable
from raymlops.serving.control.render import settings_of
from raymlops.serving.names import app_name
from raymlops.state.audit import changes_of
from raymlops.state.keys import EVERY_MODEL, KeyRecord, create_key, list_keys, revoke_key, rotate_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.change import Cluster
    from raymlops.serving.control.plan import Plan
    from raymlops.state.store import Deployment, State

WAIT_S = 20.0
"""Longest wait for the replicas of the key's models to confirm the change."""
SENT_LATER = "the controller sends it as soon as it can"
NO_CLUSTER = "no cluster is running; it takes effect with the next deployment"


@dataclass(frozen=True)
class KeyChange(Record):
    """One change of a key, and whether replicas have it."""

    key: KeyRecord
    secret: str | None = field(default=None, repr=False)
    """Of a new key; it is stored nowhere."""
    old: KeyRecord | None = None
    """Of a rotation: the previous key, with its expiry."""
    live: bool = False
    """Whether every replica of every model that the key opens has taken the change."""
    note: str = ""
    """Why it is not live."""
    failed: bool = False
    """Whether a running cluster did not take it."""
    warnings: tuple[str, ...] = ()
    """Of a new key: why it may not do what it was created for. Of any: notes on the cluster's Serve."""
    open_models: tuple[str, ...] = ()
    """Of a new key: models that it opens and that require none."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with the secret: for the answer of a command alone."""
        data: dict[str, Any] = {"key": self.key.to_dict(), "live": self.live, "note": self.note}
        data |= {} if self.secret is None else {"secret": self.secret}
        data |= {} if self.old is None else {"old": self.old.to_dict()}
        return {**data, "warnings": list(self.warnings), "open_models": list(self.open_models)}


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
        UsageError: an invalid name, model, scope, rate or time, or a valid key already has the name.
        StorageError, UnreachableError: the state database cannot be written; nothing was changed.
    """
    spec = spec_of(source)
    opened = tuple(models) or (spec.project.name,)
    with state_of(spec) as state:
        now = state.now()
        # Before the secret exists: an error afterwards would lose it.
        warnings = _doubts(opened, scopes, spec=spec, state=state)
        key, secret = create_key(
            state,
            name=name,
            models=opened,
            scopes=tuple(scopes),
            rate_per_s=rate_per_s,
            expires_at=None if expires_in_s is None else now + timedelta(seconds=expires_in_s),
            now=now,
        )
        change, reach = _send(spec, state, KeyChange(key, secret, warnings=warnings))
        return replace(change, open_models=_open_models(opened, spec=spec, state=state, reach=reach))


def revoke(source: Source, id_or_name: str) -> KeyChange:
    """Revoke a key for good; replicas reject it within seconds.

    A key that is already revoked is sent again, in case the cluster missed it.

    Raises:
        NotFoundError: there is no such key.
        UsageError: the name has several valid keys.
        StorageError, UnreachableError: the state database cannot be written; nothing was changed.
    """
    spec = spec_of(source)
    with state_of(spec) as state:
        key = revoke_key(state, id_or_name, now=state.now())
        change, _ = _send(spec, state, KeyChange(key))
    return change


def rotate(source: Source, id_or_name: str, *, grace_s: float) -> KeyChange:
    """Replace a key by a new one; the old one expires after ``grace_s``.

    Raises:
        NotFoundError: there is no such key.
        UsageError: the name has several valid keys.
        RefusedError: the key is revoked or has expired.
        StorageError, UnreachableError: the state database cannot be written; nothing was changed.
    """
    spec = spec_of(source)
    with state_of(spec) as state:
        key, secret, old = rotate_key(state, id_or_name, grace_s=grace_s, now=state.now())
        change, _ = _send(spec, state, KeyChange(key, secret, old))
    return change


def keys(source: Source) -> list[KeyRecord]:
    """Return every key, expired and revoked ones too, oldest first."""
    with state_of(spec_of(source)) as state:
        return list_keys(state)


def bring(state: State, api: Cluster, key: KeyRecord, *, serve: ServeSection) -> Plan:
    """Send the desired state, and wait until every model that the key opens has taken it; return what Serve runs.

    Raises:
        TakenError, OutdatedStateError: such a model on Serve is another state's, or a newer copy's of this one; or a
            foreign application has its place, and its champion does not run.
        DeployError: a model did not take it in time.
        ClusterError: Serve does not answer.
    """

    def opened() -> list[Deployment]:
        return [item for item in state.deployments() if item.role == "champion" and key.opens(item.name)]

    reconciler = Reconciler(state, api, serve=serve)
    reconciler.look()
    plan, _ = converged(reconciler, opened, wait_s=WAIT_S)
    plan.refuse_blocked({item.name for item in opened() if app_name(item.name, item.version) not in plan.ours})
    return plan


def _served(state: State) -> dict[str, ServeSection]:
    """Return the settings of every champion by model, without models that cannot be read."""
    champions = [item for item in state.deployments() if item.role == "champion"]
    unread = unreadable(champions)
    return {item.name: settings_of(item) for item in champions if item.name not in unread}


def _doubts(models: Sequence[str], scopes: Sequence[str], *, spec: ProjectSpec, state: State) -> tuple[str, ...]:
    """Return why a new key may not do what it was created for."""
    served = _served(state)
    warnings = []
    if "pin" in scopes and "predict" not in scopes:
        warnings.append("the key cannot predict: pin chooses the version, and a request needs the scope predict")
    for name in models:
        # The project's own model may get its key before its first version.
        known = {spec.project.name, EVERY_MODEL, *served}
        if name not in known and next(changes_of(state, name), None) is None:
            live = ", ".join(sorted(served)) or "none"
            warnings.append(f"no model {name} was ever deployed, as far as the state here knows; live are: {live}")
    return tuple(warnings)


def _open_models(models: Sequence[str], *, spec: ProjectSpec, state: State, reach: str | None) -> tuple[str, ...]:
    """Return the models that a key opens and that require none, where Serve is reached at ``reach``."""
    settings = {spec.project.name: spec.serve, **_served(state)}
    opened = [name for name in settings if EVERY_MODEL in models or name in models]
    return tuple(sorted(name for name in opened if not settings[name].key_required_at(reach)))


def _send(spec: ProjectSpec, state: State, change: KeyChange) -> tuple[KeyChange, str | None]:
    """Send a change that the state already holds; return it with the result, and the host at which Serve is reached."""
    from raymlops.lifecycle.rollout.actor import ensure_running
    from raymlops.lifecycle.sources import serve_of

    with ExitStack() as stack:
        try:
            api = stack.enter_context(serve_of(spec))
        except ClusterError:
            return replace(change, note=NO_CLUSTER), None
        try:
            plan = bring(state, api, change.key, serve=spec.serve)
        except RaymlopsError as error:
            note = f"the cluster has not taken it: {error}"
            if not isinstance(error, TakenError | OutdatedStateError):  # which no retry ends
                problem = ensure_running(spec, state, dashboard_url=api.dashboard_url, must_answer=False)
                note = f"{note}\n{problem or SENT_LATER}"
            return replace(change, note=note, failed=True), None
        problem = None
        if state.deployments():
            problem = ensure_running(spec, state, dashboard_url=api.dashboard_url, must_answer=False)
        warnings = (*change.warnings, *plan.notes)
        return replace(change, live=True, note=problem or "", warnings=warnings), plan.listens.reach
