"""``deploy --remove --version N``: remove one version that runs beside the champion.

Owns which version may be removed. The registry is unchanged, so that the version can be deployed again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError, RefusedError, UsageError
from raymlops.lifecycle.live.change import change
from raymlops.lifecycle.live.lineup import LineUp, champion_of, without
from raymlops.lifecycle.rollout.canary import refuse_running
from raymlops.lifecycle.sources import Source, opened, spec_of
from raymlops.state.rollouts import running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.change import Cluster
    from raymlops.state.store import Deployment, State


def number_of(version: str) -> int:
    """Return a version's number as it was given.

    Raises:
        UsageError: it is an alias, which may point to another version by the time of the removal.
    """
    if not version.isdigit():
        raise UsageError(
            f"--remove takes a version by its number, not {version!r}", hint="raymlops status shows which are up."
        )
    return int(version)


def remove_version(source: Source, version: int) -> None:
    """Remove one version from Serve that is not the champion: warm, a shadow, or a canary without a rollout.

    Its share of the traffic is removed first, so that it gets no more requests.

    Raises:
        NotFoundError: it is not up.
        RefusedError: it is the champion or is being rolled out, or another change takes too long.
        DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source)
    with opened(spec) as (state, api):
        take_down(state, api, spec.project.name, version=version, serve=spec.serve)


def take_down(state: State, cluster: Cluster, name: str, *, version: int, serve: ServeSection) -> None:
    """Take one version down, as ``remove_version``."""

    def decide(before: Sequence[Deployment], *, idle_first: bool) -> LineUp:
        item = _removable(state, before, name, version)
        if idle_first:
            idle = [replace(one, weight=0.0, shadow=0.0) if one is item else one for one in before]
            champion = champion_of(before)
            return LineUp(idle, None, frozenset({champion.version} if champion else ()))
        return LineUp(without(before, {version}), None)

    item = _removable(state, state.deployments(name), name, version)
    for idle_first in (True, False) if item.weight or item.shadow else (False,):
        change(
            state,
            cluster,
            name,
            decide=lambda before, idle_first=idle_first: decide(before, idle_first=idle_first),  # type: ignore[misc]
            serve=serve,
            action="remove.version",
            why=f"version {version} requested" + (", its traffic first" if idle_first else ""),
        )


def _removable(state: State, before: Sequence[Deployment], name: str, version: int) -> Deployment:
    """Return the version's deployment.

    Raises:
        NotFoundError, RefusedError: as ``remove_version``.
    """
    item = next((one for one in before if one.version == version), None)
    if item is None:
        up = ", ".join(f"{one.version} ({one.role})" for one in before) or "none"
        raise NotFoundError(f"version {version} of {name} is not up; versions that are: {up}")
    if item.role == "champion":
        raise RefusedError(
            f"version {version} of {name} is the champion, which answers the requests",
            hint="Make another version live first (raymlops rollback or deploy), or take the whole model down: "
            "--remove without --version.",
        )
    with state.reading() as connection:
        rolled_out = any(found.version == version for found in running(connection, name))
    if rolled_out:
        refuse_running(state, name)
    return item
