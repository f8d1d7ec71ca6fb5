"""What is live of every model, since when and by whom, and how its rollout is doing: read from the state alone.

Owns what is told. That Serve runs it is Serve's to say. Asking makes no database.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.errors import NotFoundError, RaymlopsError, RefusedError
from raymlops.lifecycle.live.lineup import asks_for_keys, champion_of, cools, taken_by
from raymlops.lifecycle.sources import Source, place_of, spec_of
from raymlops.records import Record
from raymlops.state.aliases import owed
from raymlops.state.database import state_url
from raymlops.state.engine import open_engine
from raymlops.state.lease import holder_of
from raymlops.state.rollouts import Rollout, rollouts, running
from raymlops.state.store import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.records import ModelVersionRef

POLL_S = 1.0
ANSWER_S = 5.0
FLIP_S = 60.0
"""How long a promotion may be carried out or taken back."""
ALIAS_LOOKS = 12
"""How often MLflow's alias is looked after once its version is live; the controller lets it follow later too."""
TELL_EVERY_S = 10.0
"""How often a wait is told of while nothing but its time changes."""


@dataclass(frozen=True)
class ModelOverview(Record):
    """One model. Shares are 0 to 1, times ISO 8601 in UTC."""

    name: str
    champion: int | None
    since: str | None
    """When the champion took the route."""
    by: str | None
    """Who gave it."""
    why: str | None
    canaries: dict[int, float]
    """Version to its share of the requests."""
    shadows: dict[int, float]
    """Version to the share of the requests of which it gets copies."""
    warm: dict[int, str | None]
    """Version that gets no request, to when it is taken down; None where it stands until it is told to go."""
    rollout: dict[str, Any] | None
    """The one that runs, with its evidence and its last decision."""
    keys: bool = False
    """Whether its callers need an API key."""
    aborted: dict[str, Any] | None = None
    """The newest rollout, where it was aborted, as ``rollout``."""
    moved_by: str | None = None
    """Who moves what is live: the state's controller by user, machine and process; None where there is none."""


def overview(
    source: Source | None = None, *, root: str | None = None, env: str | None = None, reach: str | None = None
) -> list[ModelOverview]:
    """Return every model that should be live; none where there is no state yet.

    The state is where ``source`` says, without one where the environment does; ``root`` is a cluster's own folder.
    ``reach`` is a host at which Serve is known to listen, on which it may depend whether callers need a key.
    """
    url = sqlite_url(Path(root).expanduser().absolute() / "state.db") if root else state_url(place_of(source, env=env))
    if (file := sqlite_path(url)) is not None and not file.exists():
        return []
    from raymlops.lifecycle.rollout.actor import LEASE

    with State.open(url) as state:
        names = sorted({item.name for item in state.deployments()})
        mover = holder_of(url, LEASE) if names else None
        return [_of(state, name, mover=mover, reach=reach) for name in names]


def wanted(root: Path | str) -> list[str]:
    """Return the names of the models that should be live, by the state in a cluster's folder; it is only read.

    None where there is no state yet, and where it cannot be read as it is: other verbs say what is wrong with it.
    """
    file = Path(root) / "state.db"
    if not file.exists():
        return []
    with suppress(RaymlopsError), State(open_engine(sqlite_url(file))) as state:
        return sorted({item.name for item in state.deployments()})
    return []


def answering(serve_url: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the models that answer, by name, version and path: those that the endpoint lists, and others of ``names``.

    One that asks for a key is listed to callers with one alone. Whether it is ready it says to everybody.

    Raises:
        ClusterError: the endpoint does not answer.
    """
    import httpx

    from raymlops.serving.client.calls import model_path
    from raymlops.serving.client.client import Client

    with Client(serve_url, timeout_s=ANSWER_S, retries=2) as client:
        found = client.models()
    listed = {model["name"] for model in found}
    with httpx.Client(base_url=serve_url, timeout=ANSWER_S, trust_env=False) as asking:
        for name in names:
            path = model_path(name)
            with suppress(httpx.HTTPError):  # it does not answer
                if name not in listed and (ready := asking.get(f"{path}/readyz")).status_code == 200:
                    found.append({"name": name, "version": ready.headers.get("x-model-version", ""), "path": path})
    return found


def find_rollout(state: State, rollout_id: str, *, name: str) -> Rollout:
    """Return a rollout of a model by its id.

    Raises:
        NotFoundError: there is none.
    """
    with state.reading() as connection:
        for found in rollouts(connection, name):
            if found.id == rollout_id:
                return found
    raise NotFoundError(f"{name} has no rollout {rollout_id}")


def doubts_of(state: State, ref: ModelVersionRef) -> tuple[str, ...]:
    """Return what a rollout of this version ended with, where it was aborted and none came after it."""
    with state.reading() as connection:
        newest = next((found for found in rollouts(connection, ref.name) if found.version == ref.version), None)
    if newest is None or newest.status != "aborted":
        return ()
    return (f"the last rollout of version {ref.version} was aborted: {newest.reason}",)


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
    """Tell of each decision on a rollout until it ends, and return what it ended as, which is for the caller to tell.

    Whoever stops following changes nothing: the controller goes on.

    Raises:
        NotFoundError: there is no such rollout.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    told = -1
    told_at = float("-inf")
    with State.open(state_url(spec)) as state:
        while True:
            found = find_rollout(state, rollout_id, name=spec.project.name)
            if found.status == "promoted":
                found = _promoted(state, found, sleep=sleep)
            if found.status != "running":
                return found
            if found.step != told or (found.reason and clock() - told_at >= TELL_EVERY_S):
                on_line(line_of(found))
                told, told_at = found.step, clock()
            sleep(POLL_S)


def _promoted(state: State, rollout: Rollout, *, sleep: Callable[[float], None]) -> Rollout:
    """Return a rollout as it is once Serve has taken its promotion and the alias has followed, or not in time.

    It is written as promoted under the lock before Serve is told, and runs again where its version does not come up.
    """
    with suppress(RefusedError), state.exclusive(f"following rollout {rollout.id}", wait_s=FLIP_S):
        rollout = find_rollout(state, rollout.id, name=rollout.name)
    for _ in range(ALIAS_LOOKS):
        if rollout.status != "promoted" or (rollout.name, rollout.version) not in owed(state):
            break
        sleep(POLL_S)
    return rollout


def line_of(rollout: Rollout) -> str:
    """Return how a rollout is doing, in one line."""
    state = "" if rollout.status == "running" else f" {rollout.status}:"
    reason = rollout.reason or f"step 1 of {len(rollout.steps)} at {100 * rollout.weight:g} percent begins"
    return f"rollout {rollout.id} of {rollout.name} version {rollout.version}:{state} {reason}"


def _of(state: State, name: str, *, mover: str | None, reach: str | None) -> ModelOverview:
    items = state.deployments(name)
    changes = state.changes(name)
    with state.reading() as connection:
        rollout = next(iter(running(connection, name)), None)
        newest = next(iter(rollouts(connection, name, limit=1)), None)
    champion = champion_of(items)
    taken = None if champion is None else taken_by(champion.version, changes)
    return ModelOverview(
        name=name,
        champion=champion.version if champion else None,
        since=taken.ts.isoformat() if taken else None,
        by=taken.actor if taken else None,
        why=taken.why if taken else None,
        canaries={item.version: item.weight for item in items if item.weight},
        shadows={item.version: item.shadow for item in items if item.shadow},
        warm={version: end.isoformat() if end else None for version, end in cools(items, changes).items()},
        rollout=_shown(rollout) if rollout else None,
        keys=champion is not None and asks_for_keys(champion, reach),
        aborted=_shown(newest) if newest is not None and newest.status == "aborted" else None,
        moved_by=mover,
    )


def _shown(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout without the totals of single replicas."""
    data = rollout.to_dict()
    return {**data, "evidence": {key: value for key, value in data["evidence"].items() if key != "replicas"}}
