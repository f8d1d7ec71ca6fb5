"""``deploy --remove``: take a model off Serve, or one version beside its champion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.errors import UsageError
from raymlops.lifecycle.live import withdrawals
from raymlops.lifecycle.live.change import change
from raymlops.lifecycle.opening import live
from raymlops.lifecycle.sources import Source, spec_of

if TYPE_CHECKING:
    from raymlops.serving.control.plan import Plan
    from raymlops.state.store import Change, Model


def remove(source: Source) -> list[int]:
    """Remove every version of the model from Serve and return their numbers; the registry is unchanged.

    Raises:
        RefusedError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source)

    def decide(model: Model, _plan: Plan | None) -> Change:
        return withdrawals.removed(model, now=state.now(), why="requested")

    with live(spec) as (state, api):
        done = change(state, api, spec.project.name, decide=decide, serve=spec.serve, action="remove", blind=True)
    return [deployment.version for deployment in done.before.deployments]


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

    It stops once it gets no more requests. The registry is unchanged, so that it can be deployed again.

    Raises:
        NotFoundError: it is not up.
        RefusedError: it is the champion or is being rolled out.
        DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source)

    def decide(model: Model, _plan: Plan | None) -> Change:
        return withdrawals.version_removed(model, version, why=f"version {version} requested")

    with live(spec) as (state, api):
        change(state, api, spec.project.name, decide=decide, serve=spec.serve, action="remove.version", champion=False)
