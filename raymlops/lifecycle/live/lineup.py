"""Which version holds the route, gets a share of the requests, or is warm. Pure: deployments in, deployments out.

What is logged and kept, who may call, how rollouts go, ``monitor`` and ``retrain`` are settings of the model: every
version that is up has those of the newest deploy, also after a rollback. Where nothing says whether callers need an API
key, it depends on the address at which Serve listens, and stays open here.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from raymlops.config.retrain import RetrainSection
from raymlops.config.schema import MonitorSection
from raymlops.config.serve import ServeSection
from raymlops.config.stored import read_stored
from raymlops.errors import NotFoundError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from datetime import datetime

    from raymlops.state.audit import AuditEvent
    from raymlops.state.store import Deployment

BEGUN = ".start"
"""Suffix of the action by which a version comes up that gets the route afterwards."""
BESIDE = "deploy.beside"
"""Action by which a version comes up without the route, also one that gets a share of the traffic then."""
ROUTE_ACTIONS = tuple(
    action + end for action in ("deploy", "promote", "rollback", "rollout.promote", "remove") for end in ("", ".undone")
)
"""Actions of the audit events that may change which version holds the route; until 0.1 also by being undone."""
OF_MODEL = ("allowed_hosts", "log", "rollout")
"""Fields of ``serve`` that belong to the model, apart from ``auth``."""
UNFINISHED_S = 120.0
"""How much longer than its own time to come up such a version is kept at least: its verb may still be waiting."""


def with_champion(before: Sequence[Deployment], new: Deployment, *, configured: bool = False) -> list[Deployment]:
    """Return the line-up with ``new`` as champion, and all that is up beside it.

    The previous champion is kept warm. Canaries lose their shares, since they were compared with that champion. Shadows
    continue, except ``new`` itself. If ``new`` is champion already, with the same settings, the line-up is unchanged.

    All get the settings of the model that ``new`` has. Whether keys are required stays as with the previous champion:
    the ``auth`` of ``new`` counts only if it was ``configured`` now; without one, nothing is opened.
    """
    old = champion_of(before)
    auth = _auth(old, new, configured=configured)
    if old is not None and old.version == new.version:
        items = [with_settings(item, new) if item.version == new.version else item for item in before]
        return [of_model(item, new, auth=auth) for item in items]
    champion = next((with_settings(item, new) for item in before if item.version == new.version), new)
    others = [replace(item, role="warm", weight=0.0) for item in before if item.version != new.version]
    champion = replace(champion, role="champion", weight=0.0, shadow=0.0)
    items = sorted([champion, *others], key=lambda item: item.version)
    return [of_model(item, new, auth=auth) for item in items]


def of_model(item: Deployment, like: Deployment, *, auth: str | None) -> Deployment:
    """Return ``item`` with the settings of the model as ``like`` has them, and this ``auth``.

    Its slices stay, since those are what its bundle was registered with.
    """
    serve = item.serve | {field: like.serve[field] for field in OF_MODEL if field in like.serve}
    slices = {"slices": item.monitor["slices"]} if "slices" in item.monitor else {}
    monitor, retrain = {**(like.monitor or item.monitor), **slices}, like.retrain or item.retrain
    return _asking(replace(item, serve=serve, monitor=monitor, retrain=retrain), auth)


def beside(before: Sequence[Deployment], new: Deployment) -> list[Deployment]:
    """Return the line-up with ``new`` up, without a route; a version that is up keeps its role and its shares."""
    if any(item.version == new.version for item in before):
        return [with_settings(item, new) if item.version == new.version else item for item in before]
    return sorted([*before, replace(new, role="warm", weight=0.0, shadow=0.0)], key=lambda item: item.version)


def as_asked(before: Sequence[Deployment], new: Deployment) -> Deployment:
    """Return ``new`` for a place beside the champion, requiring keys if the champion does."""
    old = champion_of(before)
    return _asking(new, _auth(old, new, configured=False))


def asks_for_keys(item: Deployment, host: str | None = None) -> bool:
    """Return whether callers need an API key by the settings of a version.

    ``host`` is where Serve listens; without it the settings' own counts.
    """
    return _stored(item, "host", "auth").key_required_at(host)


def opens(before: Sequence[Deployment], wanted: Sequence[Deployment], host: str | None = None) -> bool:
    """Return whether a model whose callers needed an API key answers anybody afterwards; ``host`` as above."""
    old, new = champion_of(before), champion_of(wanted)
    return old is not None and new is not None and asks_for_keys(old, host) and not asks_for_keys(new, host)


def with_canary(before: Sequence[Deployment], version: int, *, weight: float) -> list[Deployment]:
    """Return the line-up in which a version that stands beside the champion answers a share of the requests, 0 to 1.

    Raises:
        RefusedError: it is the champion, nobody is, or the canaries would have more than everything.
    """
    _beside_champion(before, version, "a canary")
    others = sum(item.weight for item in before if item.version != version)
    if others + weight > 1 + 1e-9:
        raise RefusedError(
            f"version {version} cannot answer {100 * weight:g}%: other canaries answer {100 * others:g}% already",
            hint="raymlops rollback takes the canaries' shares away; or give it less.",
        )
    return [replace(item, weight=weight) if item.version == version else item for item in before]


def with_shadow(before: Sequence[Deployment], version: int, *, share: float) -> list[Deployment]:
    """Return the line-up in which a version that stands beside the champion gets copies of a share of the requests.

    Raises:
        RefusedError: it is the champion, or nobody is.
    """
    _beside_champion(before, version, "a shadow")
    return [replace(item, shadow=share) if item.version == version else item for item in before]


def without_traffic(before: Sequence[Deployment], versions: Collection[int] | None = None) -> list[Deployment]:
    """Return the line-up without the shares of these canaries, by default of all; shadows continue."""
    return [replace(item, weight=0.0) if versions is None or item.version in versions else item for item in before]


def without(before: Sequence[Deployment], versions: Collection[int]) -> list[Deployment]:
    """Return the line-up without these versions."""
    return [item for item in before if item.version not in versions]


def canaries_of(deployments: Sequence[Deployment]) -> list[Deployment]:
    """Return the versions that answer a share of the requests beside the champion."""
    return [item for item in deployments if item.weight > 0]


def idle_of(deployments: Sequence[Deployment]) -> list[Deployment]:
    """Return the warm versions that get no requests."""
    return [item for item in deployments if item.role == "warm" and not item.weight and not item.shadow]


def spare_of(before: Sequence[Deployment], new: Deployment) -> frozenset[int]:
    """Return the idle versions that may be removed if there is no room for ``new`` beside them."""
    return frozenset(item.version for item in idle_of(before) if item.version != new.version)


def cools(
    deployments: Sequence[Deployment], changes: Iterable[AuditEvent], stay: dict[int, int] | None = None
) -> dict[int, datetime | None]:
    """Return until when each idle version is kept warm; None for one that is kept until it is removed.

    ``changes`` is the audit record of the model, newest first, read only as far as needed: it has the time at which a
    version last lost the route or its share. A version that never had either was deployed beside the champion, unless
    it was to get the route and its verb was killed. One that made room and was restored is kept as before. The time is
    the champion's ``keep_warm_s``, the newest setting.

    ``stay`` remembers from call to call of which versions no more is to be read: those kept until they are removed,
    each with the newest event by then.
    """
    stay = {} if stay is None else stay
    newest = 0
    idle = {item.version: item for item in idle_of(deployments)}
    champion = champion_of(deployments)
    found: dict[int, datetime | None] = {}
    for event in changes:
        newest = newest or event.id
        for version in idle.keys() - found.keys():
            if event.id <= stay.get(version, -1):
                found[version] = None
                continue
            had, has = (_state_in(version, side) for side in (event.before, event.after))
            if has != "idle":
                continue
            seconds = _stored(champion or idle[version], "keep_warm_s").keep_warm_s
            if had == "busy":
                found[version] = event.ts + timedelta(seconds=seconds)
            elif had is None and event.action.endswith(BEGUN):
                ready = _stored(idle[version], "ready_timeout_s").ready_timeout_s
                found[version] = event.ts + timedelta(seconds=max(seconds, ready + UNFINISHED_S))
            elif had is None and event.action == BESIDE:
                found[version] = None
        if found.keys() == idle.keys():
            break
    ends = {version: found.get(version) for version in idle}
    stay.update({version: newest for version, end in ends.items() if end is None})
    return ends


def cooled(
    deployments: Sequence[Deployment],
    changes: Iterable[AuditEvent],
    *,
    now: datetime,
    stay: dict[int, int] | None = None,
) -> list[int]:
    """Return the idle versions whose time to be kept warm is over; ``stay`` as of ``cools``."""
    if not idle_of(deployments):
        return []
    return [version for version, end in cools(deployments, changes, stay).items() if end is not None and end <= now]


def previous_champion(
    before: Sequence[Deployment], changes: Iterable[AuditEvent], gone: Collection[int] = ()
) -> Deployment:
    """Return the version that was champion before the one that is; versions that are ``gone`` are passed over.

    ``changes`` are those of the route in the audit record, newest first, read only as far as needed. Changes that were
    undone and versions that did not come up do not count, nor does a champion that was rolled back from, however often
    it was champion before, until it becomes champion again. Removing the model and deploying it again keeps the
    history. A warm version is returned as it is, so that it can take the route without a restart.

    Raises:
        NotFoundError: the model is not served, or there was no such champion; the hint names the warm versions.
    """
    from raymlops.state.store import Deployment

    current = champion_of(before)
    if current is None:
        raise NotFoundError("the model is not served, so there is nothing to roll back")
    known: dict[int, Deployment | dict[str, Any]] = {item.version: item for item in before}
    left: dict[int | None, bool] = {}  # whether the newest change by which it had or got the route rolled back from it
    above: int | None = current.version  # the champion of which the previous one is looked for
    undone = False
    for event in changes:
        was, became = champions_in(event)
        for item in (*event.after, *event.before):
            known.setdefault(item["version"], item)
        if was == became:
            continue
        if event.action.endswith(".undone") or undone:
            undone = event.action.endswith(".undone")
            continue
        back = event.action == "rollback"
        left.setdefault(became, False)
        left.setdefault(was, back)
        if became != above or back:  # a rollback returns to a champion, whose previous one stays the same
            continue
        if was is not None and was not in {current.version, *gone} and not left.get(was):
            found = known[was]
            return found if isinstance(found, Deployment) else Deployment.from_dict(found)
        above = was
    lost = [version for version, lost in left.items() if lost and version is not None]
    raise _nowhere_back(current, before, lost, gone)


def with_settings(item: Deployment, new: Deployment) -> Deployment:
    """Return ``item`` with the settings of ``new``; its role and age stay."""
    return replace(
        item,
        serve=new.serve or item.serve,
        monitor=new.monitor or item.monitor,
        retrain=new.retrain or item.retrain,
    )


def monitored(item: Deployment) -> MonitorSection:
    """Return the ``monitor`` section with which a version was deployed; the defaults where an earlier release did it.

    Raises:
        StorageError: another release stored what this one cannot read.
    """
    return read_stored(MonitorSection, item.monitor)


def retrained(item: Deployment) -> RetrainSection:
    """Return the ``retrain`` section with which a version was deployed; the defaults where an earlier release did it.

    Raises:
        StorageError: another release stored what this one cannot read.
    """
    return read_stored(RetrainSection, item.retrain)


def champion_of(deployments: Sequence[Deployment]) -> Deployment | None:
    """Return the version that holds the route, or None."""
    return next((item for item in deployments if item.role == "champion"), None)


def taken_by(version: int, changes: Iterable[AuditEvent]) -> AuditEvent | None:
    """Return the event by which a version took the route last; ``changes`` are those of the route, newest first."""
    for event in changes:
        was, became = champions_in(event)
        if became == version and was != version:
            return event
    return None


def champions_in(event: AuditEvent) -> Iterator[int | None]:
    """Yield which version was champion before a change, and which one after it."""
    for side in (event.before, event.after):
        yield next((item["version"] for item in side if item["role"] == "champion"), None)


def _nowhere_back(
    current: Deployment, before: Sequence[Deployment], left: Collection[int], gone: Collection[int]
) -> NotFoundError:
    but = f", but for what was rolled back from: {', '.join(map(str, sorted(left)))}" if left else ""
    but += f", but for what lost its bundle: {', '.join(map(str, sorted(gone)))}" if gone else ""
    warm = ", ".join(str(item.version) for item in before if item.role == "warm")
    hint = f"raymlops deploy --version N makes one live all the same; warm are: {warm}" if warm else None
    return NotFoundError(f"no version was champion before version {current.version}{but}", hint=hint)


def _auth(old: Deployment | None, new: Deployment, *, configured: bool) -> str | None:
    """Return the ``auth`` of all that is up with ``new`` as champion after ``old``."""
    asked: str | None = new.serve.get("auth")
    if old is None or (configured and asked is not None):
        return asked
    kept: str | None = old.serve.get("auth")
    if kept is None and asks_for_keys(old) and not asks_for_keys(replace(new, serve={**new.serve, "auth": None})):
        return "keys"  # they were needed at the old settings' address, and other settings open nothing
    if kept == "open" and configured and asks_for_keys(new):
        return asked
    return kept


def _asking(item: Deployment, auth: str | None) -> Deployment:
    return item if item.serve.get("auth") == auth else replace(item, serve={**item.serve, "auth": auth})


def _beside_champion(before: Sequence[Deployment], version: int, what: str) -> None:
    champion = champion_of(before)
    if champion is None:
        raise RefusedError(f"no version is live, so none can be {what}", hint="Deploy without it: all the traffic.")
    if champion.version == version:
        raise RefusedError(
            f"version {version} is live already, so it cannot be {what}", hint="Name another one with --version."
        )


def _stored(item: Deployment, *fields: str) -> ServeSection:
    """Return the settings of a version with these fields alone: no other one of another release keeps them back."""
    return read_stored(ServeSection, {field: item.serve[field] for field in fields if field in item.serve})


def _state_in(version: int, deployments: Sequence[dict[str, Any]]) -> str | None:
    for item in deployments:
        if item["version"] == version:
            return "busy" if item["role"] == "champion" or item.get("weight") or item.get("shadow") else "idle"
    return None
