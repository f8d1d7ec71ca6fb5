"""A rollout as it is followed from outside: which one is running, and each decision on it until it ends.

Only reads: the controller continues whether or not anyone watches.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raymlops.errors import UsageError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.sources import Source, serve_of, spec_of, state_of
from raymlops.state.rollouts import Rollout, rollout_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


POLL_S = 1.0
REPORT_EVERY_S = 10.0
"""Interval of the lines about a step that is still waiting."""


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
        while (found := rollout_of(state, name, rollout_id)).status == "running":
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
    reason = rollout.reason or begins(0, rollout.steps)
    return f"rollout {rollout.id} of {rollout.name} version {rollout.version}:{state} {reason}"


def begins(step: int, steps: Sequence[float]) -> str:
    """Return which step of a rollout begins."""
    return f"step {step + 1} of {len(steps)} at {100 * steps[step]:g} percent begins"
