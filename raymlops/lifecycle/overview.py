"""The status of endpoints: what should be live of each model, since when and by whom, and the state of its rollout.

Reads the state, without creating it; what Serve actually runs is reported elsewhere.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.display import utc_time
from raymlops.errors import NotFoundError, RaymlopsError, StorageError
from raymlops.lifecycle.live.alias_owner import left_to, words
from raymlops.lifecycle.live.lineup import ROUTE_ACTIONS, asks_for_keys, champion_of, cools, monitored, taken_by
from raymlops.lifecycle.live.outage import START_ACTIONS, outage
from raymlops.lifecycle.live.withdrawals import in_question
from raymlops.lifecycle.loop.status import loop_lines, loop_status
from raymlops.lifecycle.prediction_log import parse_moment
from raymlops.lifecycle.rollout.follow import begins
from raymlops.lifecycle.sources import Source, spec_of, state_of, stores_of
from raymlops.lifecycle.watch.monitor_text import monitor_text, too_short_log
from raymlops.lifecycle.watch.status import (
    drift_lines,
    drift_status,
    quality_line,
    quality_status,
    undelivered,
    undelivered_text,
)
from raymlops.predictions.counts import Losses
from raymlops.records import Record, aligned
from raymlops.serving.control.render import settings_of
from raymlops.state.audit import changes_of, is_recorded
from raymlops.state.conditions import EVERYTHING, conditions
from raymlops.state.database import state_url
from raymlops.state.engine import open_engine
from raymlops.state.lease import holder_of
from raymlops.state.loop import kept_by_bakes
from raymlops.state.rollouts import Rollout, newest_rollout
from raymlops.state.store import State
from raymlops.state.watch.messages import unsent_messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.records import ModelVersionRef
    from raymlops.state.audit import AuditEvent
    from raymlops.state.conditions import Condition
    from raymlops.state.store import Deployment
    from raymlops.state.transitions import Transition
    from raymlops.state.watch.messages import Message

ANSWER_S = 5.0
UNMOVED = "it does not progress: no controller of this state is running. Start it: raymlops controller"


@dataclass(frozen=True)
class ModelOverview(Record):
    """The desired state of one model. Shares are 0 to 1, times ISO 8601 in UTC."""

    name: str
    champion: int | None
    since: str | None
    """When the champion took the route."""
    by: str | None
    """Who promoted it."""
    why: str | None
    canaries: dict[int, float]
    """Share of the requests by version."""
    shadows: dict[int, float]
    """Share of the requests that are copied to it, by version."""
    warm: dict[int, str | None]
    """Versions without requests, with the time when each is removed; None for one that stays until it is removed."""
    rollout: dict[str, Any] | None
    """The running one, with its evidence and its last decision."""
    coming: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Versions on their way up: what each gets then (``goal``), since when, by whom, and until when it may take
    (None before it is started)."""
    condition: dict[str, Any] | None = None
    """Why Serve does not run it as desired yet, since when, and when that is tried again; None if it does."""
    keys: bool = False
    """Whether its callers need an API key."""
    aborted: dict[str, Any] | None = None
    """The newest rollout, if it was aborted, as ``rollout``."""
    watched: str | None = None
    """How its traffic is watched: by which windows, within which bounds, who is told; None without a champion."""
    drift: dict[str, Any] | None = None
    """The newest verdict on its inputs and outputs, and open incidents; None where nothing was judged yet."""
    loop: dict[str, Any] | None = None
    """What its retraining waits for, the open one and the last one; None where nothing is configured or was done."""
    quality: dict[str, Any] | None = None
    """The newest verdict on the champion by its labels, and what is known of these; None where none was judged yet."""
    messages: dict[str, Any] | None = None
    """How many messages about incidents some messenger lacks after an attempt, since when, why, and when it is tried
    again; None if every messenger has them."""
    aliases_of: str | None = None
    """The other state that owns its aliases in MLflow; None if this one does, or MLflow was not asked yet."""
    moved_by: str | None = None
    """The controller that moves rollouts, by user, machine and process; None if none is running."""

    def summary(self) -> dict[str, str | None]:
        """Return the desired state as named texts."""
        has_champion = self.champion is not None
        since = f" since {utc_time(self.since)} by {self.by}" if self.since else ""
        return {
            "champion": f"version {self.champion}{since}" if has_champion else "none",
            "callers": ("need an API key" if self.keys else "need no key") if has_champion else None,
            "canary": "\n".join(f"version {n} answers {100 * weight:g}%" for n, weight in self.canaries.items()),
            "shadow": "\n".join(f"version {n} gets copies of {100 * part:g}%" for n, part in self.shadows.items()),
            "warm": "\n".join(
                f"version {n} until {utc_time(end) if end else 'removed'}" for n, end in self.warm.items()
            ),
            "coming": "\n".join(self._coming()),
            "waits": self._waits(),
            "messages": undelivered_text(self.messages),
            "rollout": "\n".join(self._rollout()),
            "aborted": self._aborted(),
            "aliases": None if self.aliases_of is None else words(self.name, self.aliases_of),
            "watched": self.watched,
            "drift": drift_lines(self.drift),
            "loop": "\n".join(self._loop()),
            "quality": quality_line(self.quality),
        }

    def text(self) -> str:
        """Return the name, and the summary indented below it."""
        return "\n  ".join([self.name, *aligned(self.summary(), width=10).splitlines()])

    def _rollout(self) -> list[str]:
        rollout = self.rollout
        if rollout is None:
            return []
        step, steps = rollout["step"], rollout["steps"]
        reason = rollout["reason"] or begins(step, steps)
        since = utc_time(rollout["step_started_at"])
        lines = [f"{rollout['id']} of version {rollout['version']}: {reason}, at this step since {since}"]
        for seen in rollout["evidence"].get("steps", []):
            sides = ", ".join(
                f"{side} {seen[side]['requests']:,} requests, {seen[side]['errors']} errors, "
                f"{seen[side].get('refused', 0)} rejected, {seen[side]['slow']} slow, {seen[side]['late']} late"
                for side in ("canary", "champion")
            )
            lines += [f"{100 * seen['weight']:g}%: {text}" for text in (sides, *_labelled(seen))]
        lines += _losses_until(rollout["evidence"])
        return lines if self.moved_by else [*lines, UNMOVED]

    def _loop(self) -> list[str]:
        lines = (loop_lines(self.loop) or "").splitlines()
        stands = self.loop is not None and self.loop.get("open") is not None and not self.moved_by
        return [*lines, UNMOVED] if stands else lines

    def _coming(self) -> list[str]:
        lines = []
        for version, one in self.coming.items():
            goal = one["goal"]
            purpose = "for the route" if goal.get("role") else "for its traffic" if goal else "beside the champion"
            purpose = f"in place of version {goal['replaces']}, which has ended" if "replaces" in goal else purpose
            lines.append(f"version {version} {purpose}, since {utc_time(one['since'])} by {one['by']}")
        return lines if self.moved_by or not lines else [*lines, UNMOVED]

    def _waits(self) -> str | None:
        if self.condition is None:
            return None
        again = self.condition["retry_at"]
        tried = f"; tried again at {utc_time(again)}" if again else ""
        return f"{self.condition['reason']}\nsince {utc_time(self.condition['since'])}{tried}"

    def _aborted(self) -> str | None:
        ended = self.aborted
        if ended is None:
            return None
        return (
            f"rollout {ended['id']} of version {ended['version']} at {utc_time(ended['ended_at'])}: {ended['reason']}"
        )


def overview(
    source: Source | None = None,
    *,
    root: str | None = None,
    overrides: Sequence[str] = (),
    env: str | None = None,
    reach: str | None = None,
) -> list[ModelOverview]:
    """Return every model that should be live; an empty list if there is no state yet.

    The state is located by ``source`` or else by the environment; ``root`` is the folder of a cluster. ``reach`` is a
    host on which Serve listens: whether callers need a key may depend on it.
    """
    if root:
        url = sqlite_url(Path(root).expanduser().absolute() / "state.db")
    else:
        url = state_url(stores_of(source, overrides=overrides, env=env))
    if (file := sqlite_path(url)) is not None and not file.exists():
        return []
    from raymlops.lifecycle.rollout.actor import LEASE

    with State.open(url) as state:
        names = sorted({item.name for item in state.deployments()})
        mover = holder_of(url, LEASE) if names else None
        waits, unsent = conditions(state), unsent_messages(state)
        return [_of(state, name, waits, unsent.get(name, []), mover=mover, reach=reach) for name in names]


def wanted(root: Path | str) -> list[str]:
    """Return the names of the models that should be live, from the state in a cluster's folder.

    An empty list where there is no state yet or it cannot be read: other verbs report what is wrong with it.
    """
    file = Path(root) / "state.db"
    if not file.exists():
        return []
    with suppress(RaymlopsError), State(open_engine(sqlite_url(file))) as state:
        return sorted({item.name for item in state.deployments()})
    return []


def answering(serve_url: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the models that answer, by name, version and path: those that the endpoint lists, and others of ``names``.

    A model that requires a key is listed only to callers with one, but its readiness is public. Over TLS no key is
    sent: the certificate has the names that callers know, not this machine's, and is not checked.

    Raises:
        ClusterError: the endpoint does not answer.
    """
    import httpx

    from raymlops.serving.client.calls import model_path
    from raymlops.serving.client.client import Client

    unchecked = httpx.HTTPTransport(verify=False) if serve_url.startswith("https:") else None
    key = "" if unchecked else None
    with Client(serve_url, api_key=key, timeout_s=ANSWER_S, retries=2, transport=unchecked) as client:
        found = client.models()
    listed = {model["name"] for model in found}
    with httpx.Client(base_url=serve_url, timeout=ANSWER_S, trust_env=False, verify=unchecked is None) as http:
        for name in names:
            path = model_path(name)
            with suppress(httpx.HTTPError):  # not live
                if name not in listed and (ready := http.get(f"{path}/readyz")).status_code == 200:
                    found.append({"name": name, "version": ready.headers.get("x-model-version", ""), "path": path})
    return found


def events(source: Source | None = None, *, since: str | None = None, limit: int | None = None) -> list[AuditEvent]:
    """Return the audit record of the project's model, without a source of every model; oldest first.

    Since a time, as ``7d`` or an ISO time; ``limit`` keeps the newest events only.

    Raises:
        NotFoundError: it has nothing of the model. That of one which was removed stays.
        UsageError: ``since`` is no time.
    """
    spec = stores_of(source)
    name = spec.project.name
    with state_of(spec) as state:
        first = None if since is None else parse_moment(since, now=state.now())
        found = state.events(None if source is None else name, since=first, limit=limit)[::-1]
        is_known = source is None or is_recorded(state, name)
    if not is_known:
        hint = "raymlops audit, without a name, prints that of every model."
        raise NotFoundError(f"the audit record has nothing of {name}", hint=hint)
    return found


def champion_line(source: Source) -> str:
    """Return a line that names the live version according to the state, for an interrupted command."""
    spec = spec_of(source)
    name = spec.project.name
    try:
        with state_of(spec) as state:
            model = state.model(name)
    except RaymlopsError as error:
        return f"what is live of {name} is unknown: {error.message}"
    champion = champion_of(model.deployments)
    live = f"version {champion.version} is live" if champion else "no version is live"
    if new := [one.version for one in model.coming if "replaces" in one.goal]:
        live = f"until version {new[0]} is up no version is live"
    return f"{live} of {name}; raymlops status shows the rest, and the same command again completes the change"


def outage_line(source: Source, version: str | None) -> str | None:
    """Return what happens to callers while a version replaces the champion; None where both are up meanwhile.

    Without a version it is that of a rollback, which goes by the champion's settings.
    """
    spec = spec_of(source)
    name = spec.project.name
    if version is not None and spec.serve.update == "beside":
        return None
    with suppress(RaymlopsError), state_of(spec) as state:
        model = state.model(name)
        champion = champion_of(model.deployments)
        if champion is None or str(champion.version) == version:
            return None
        if version is None and (in_question(model) or not champion.replaces):
            return None
        return outage(champion.version, changes_of(state, name, START_ACTIONS))
    return None


def doubts_of(state: State, ref: ModelVersionRef) -> tuple[str, ...]:
    """Return a warning if the last rollout of this version was aborted."""
    newest = newest_rollout(state, ref.name, ref.version)
    if newest is None or newest.status != "aborted":
        return ()
    return (f"the last rollout of version {ref.version} was aborted: {newest.reason}",)


def _of(
    state: State,
    name: str,
    waits: Mapping[str, Condition],
    unsent: Sequence[Message],
    *,
    mover: str | None,
    reach: str | None,
) -> ModelOverview:
    model = state.model(name)
    items, rollout = model.deployments, model.rollout
    warm = cools(items, changes_of(state, name))
    warm |= dict.fromkeys(warm.keys() & kept_by_bakes(state, name))
    condition = waits.get(name) or waits.get(EVERYTHING)
    newest = newest_rollout(state, name)
    champion, coming = champion_of(items), {one.version: _begun(one) for one in model.coming}
    taken = None if champion is None else taken_by(champion.version, changes_of(state, name, ROUTE_ACTIONS))
    return ModelOverview(
        name=name,
        champion=champion.version if champion else None,
        since=taken.ts.isoformat() if taken else None,
        by=taken.actor if taken else None,
        why=taken.why if taken else None,
        canaries={item.version: item.weight for item in items if item.weight},
        shadows={item.version: item.shadow for item in items if item.shadow},
        warm={version: end.isoformat() if end else None for version, end in warm.items() if version not in coming},
        rollout=_shown(rollout) if rollout else None,
        keys=champion is not None and asks_for_keys(champion, reach),
        aborted=_shown(newest) if newest is not None and newest.status == "aborted" else None,
        moved_by=mover,
        coming=coming,
        condition=None if condition is None else condition.to_dict(),
        watched=None if champion is None else _watched(champion),
        drift=None if champion is None else drift_status(state, name, champion.version),
        loop=_loop(state, name),
        quality=None if champion is None else quality_status(state, name, champion.version),
        messages=undelivered(unsent),
        aliases_of=left_to(state, name),
    )


def _watched(champion: Deployment) -> str:
    try:
        log, monitor = settings_of(champion).log, monitored(champion)
        if not log.enabled:
            return "off: serve.log.enabled is false"
        short = too_short_log(monitor, log)
        return monitor_text(monitor) + ("" if short is None else f"\n{short}")
    except StorageError as error:
        return f"unknown: {error.message}"


def _loop(state: State, name: str) -> dict[str, Any] | None:
    try:
        return loop_status(state, name, now=state.now())
    except StorageError as error:
        return {"lines": [f"unknown: {error.message}"]}


def _begun(transition: Transition) -> dict[str, Any]:
    until = transition.deadline_at and transition.deadline_at.isoformat()
    return {
        "goal": transition.goal,
        "since": transition.began_at.isoformat(),
        "by": transition.actor,
        "until": until,
    }


def _labelled(step: Mapping[str, Any]) -> list[str]:
    """Return the mean losses of a step in a line, none without labels."""
    canary, champion = (Losses.from_dict(step.get(f"{side}_losses", {})) for side in ("canary", "champion"))
    if not (canary.count and champion.count):
        return []
    against = f"{champion.mean:.3f} of {champion.count:,} labelled"
    return [f"mean loss {canary.mean:.3f} of {canary.count:,} against {against}"]


def _losses_until(evidence: Mapping[str, Any]) -> list[str]:
    """Return a line that says how old the losses are, none where they are not read."""
    read = (evidence.get("numbers") or {}).get("losses") or {}
    if read.get("unknown"):
        return [read["unknown"]]
    return [f"losses of what was answered until {utc_time(read['covers'])}"] if read.get("covers") else []


def _shown(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout without the totals of each replica."""
    data = rollout.to_dict()
    return {**data, "evidence": {key: value for key, value in data["evidence"].items() if key != "replicas"}}
