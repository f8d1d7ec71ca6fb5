"""The status of endpoints: what should be live of each model, since when and by whom, and the state of its rollout.

Reads the state, without creating it; what Serve actually runs is reported elsewhere.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.display import utc_time
from raymlops.errors import NotFoundError, RaymlopsError, UsageError
from raymlops.lifecycle.live.lineup import ROUTE_ACTIONS, asks_for_keys, champion_of, cools, taken_by
from raymlops.lifecycle.live.outage import START_ACTIONS, outage
from raymlops.lifecycle.live.withdrawals import in_question
from raymlops.lifecycle.sources import Source, serve_of, spec_of, state_of, stores_of
from raymlops.lifecycle.watch.status import drift_lines, drift_status, undelivered, undelivered_text
from raymlops.predictions.counts import Losses
from raymlops.records import Record, aligned
from raymlops.state.audit import changes_of
from raymlops.state.conditions import EVERYTHING, conditions
from raymlops.state.database import state_url
from raymlops.state.drift import unsent_messages
from raymlops.state.engine import open_engine
from raymlops.state.lease import holder_of
from raymlops.state.rollouts import Rollout, rollouts
from raymlops.state.store import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import ModelVersionRef
    from raymlops.state.audit import AuditEvent
    from raymlops.state.transitions import Transition

POLL_S = 1.0
ANSWER_S = 5.0
REPORT_EVERY_S = 10.0
"""Interval of the lines about a step that is still waiting."""
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
    drift: dict[str, Any] | None = None
    """The newest verdict on its inputs and outputs, and open incidents; None where nothing was judged yet."""
    messages: dict[str, Any] | None = None
    """How many messages about incidents some messenger lacks after an attempt, since when, why, and when it is tried
    again; None if every messenger has them."""
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
            "drift": drift_lines(self.drift),
        }

    def text(self) -> str:
        """Return the name, and the summary indented below it."""
        return "\n  ".join([self.name, *aligned(self.summary(), width=10).splitlines()])

    def _rollout(self) -> list[str]:
        rollout = self.rollout
        if rollout is None:
            return []
        step, steps = rollout["step"], rollout["steps"]
        reason = rollout["reason"] or _begins(step, steps)
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
    source: Source | None = None, *, root: str | None = None, env: str | None = None, reach: str | None = None
) -> list[ModelOverview]:
    """Return every model that should be live; an empty list if there is no state yet.

    The state is located by ``source`` or else by the environment; ``root`` is the folder of a cluster. ``reach`` is a
    host on which Serve listens: whether callers need a key may depend on it.
    """
    url = sqlite_url(Path(root).expanduser().absolute() / "state.db") if root else state_url(stores_of(source, env=env))
    if (file := sqlite_path(url)) is not None and not file.exists():
        return []
    from raymlops.lifecycle.rollout.actor import LEASE

    with State.open(url) as state:
        names = sorted({item.name for item in state.deployments()})
        mover = holder_of(url, LEASE) if names else None
        return [_of(state, name, mover=mover, reach=reach) for name in names]


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


def find_rollout(state: State, rollout_id: str, *, name: str) -> Rollout:
    """Return a rollout of a model by its id.

    Raises:
        NotFoundError: it does not exist.
    """
    with state.reading() as connection:
        for found in rollouts(connection, name):
            if found.id == rollout_id:
                return found
    raise NotFoundError(f"{name} has no rollout {rollout_id}")


def events(source: Source | None = None) -> list[AuditEvent]:
    """Return the whole audit record of the project's model, without a source of every model; oldest first.

    Raises:
        NotFoundError: it has nothing of the model. That of one which was removed stays.
    """
    spec = stores_of(source)
    with state_of(spec) as state:
        found = state.events(None if source is None else spec.project.name)[::-1]
    name = spec.project.name
    if source is not None and not any(event.subject.partition("/")[0] == name for event in found):
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
    with state.reading() as connection:
        newest = next((found for found in rollouts(connection, ref.name) if found.version == ref.version), None)
    if newest is None or newest.status != "aborted":
        return ()
    return (f"the last rollout of version {ref.version} was aborted: {newest.reason}",)


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


def follow_rollout(
    source: Source,
    rollout_id: str,
    *,
    on_line: Callable[[str], None],
    overrides: Sequence[str] = (),
    env: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Rollout:
    """Report each decision on a rollout until it ends and Serve runs what follows, and return it.

    The caller reports its end. Interrupting this does not stop the rollout: the controller continues it.

    Raises:
        NotFoundError: it does not exist.
        DeployError, ClusterError: it has ended, and Serve does not run what follows.
    """
    from raymlops.lifecycle.live.change import SHORT_S, converged
    from raymlops.lifecycle.live.reconciler import Reconciler

    spec = spec_of(source, overrides=overrides, env=env)
    reported = -1
    reported_at = float("-inf")
    name = spec.project.name
    with state_of(spec) as state:
        while (found := find_rollout(state, rollout_id, name=name)).status == "running":
            if found.step != reported or (found.reason and clock() - reported_at >= REPORT_EVERY_S):
                on_line(line_of(found))
                reported, reported_at = found.step, clock()
            sleep(POLL_S)
        with serve_of(spec) as api:
            reconciler = Reconciler(state, api, serve=spec.serve)
            converged(reconciler, lambda: list(filter(None, [champion_of(state.deployments(name))])), wait_s=SHORT_S)
    return found


def line_of(rollout: Rollout) -> str:
    """Return the status of a rollout as one line."""
    state = "" if rollout.status == "running" else f" {rollout.status}:"
    reason = rollout.reason or _begins(0, rollout.steps)
    return f"rollout {rollout.id} of {rollout.name} version {rollout.version}:{state} {reason}"


def _begins(step: int, steps: Sequence[float]) -> str:
    return f"step {step + 1} of {len(steps)} at {100 * steps[step]:g} percent begins"


def _of(state: State, name: str, *, mover: str | None, reach: str | None) -> ModelOverview:
    model = state.model(name)
    items, rollout = model.deployments, model.rollout
    found, warm = conditions(state), cools(items, changes_of(state, name))
    condition = found.get(name) or found.get(EVERYTHING)
    with state.reading() as connection:
        newest = next(iter(rollouts(connection, name, limit=1)), None)
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
        drift=None if champion is None else drift_status(state, name, champion.version),
        messages=undelivered(unsent_messages(state).get(name, [])),
    )


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
