"""``rollback``: take back a version on its way, a share of the traffic, or the last change of the route."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from raymlops.bundle.verify import read_manifest
from raymlops.errors import NotFoundError, RefusedError
from raymlops.lifecycle.live import withdrawals
from raymlops.lifecycle.live.capacity import leaving_first
from raymlops.lifecycle.live.change import change, followed, record_of
from raymlops.lifecycle.live.lineup import ROUTE_ACTIONS, champion_of, previous_champion
from raymlops.lifecycle.live.reconcile import is_up
from raymlops.lifecycle.live.staging import gone
from raymlops.lifecycle.live.transitions import ROLLBACK, ROUTE, Request
from raymlops.lifecycle.opening import live
from raymlops.lifecycle.registration.aliases import MlflowAliases
from raymlops.lifecycle.rollout.actor import ensure_controller
from raymlops.lifecycle.rollout.canary import traffic_record
from raymlops.lifecycle.sources import Source, spec_of, state_of
from raymlops.state.audit import changes_of
from raymlops.state.engine import this_user

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import DeploymentRecord
    from raymlops.serving.control.plan import Plan
    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.store import Change, Deployment, Model, State


def rollback(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    on_live: Callable[[int], None] | None = None,
) -> DeploymentRecord:
    """Revert the last change: a canary's share of the traffic, or else the route of the champion.

    If a version is being rolled out or has a share, its share is removed, its rollout ends, and the champion stays.
    Otherwise, or if it has just become champion, the route goes back to the previous champion. That takes about a
    second while it is warm, and does not depend on the version that loses the route, which may hang. An earlier
    champion that is not up and whose bundle is gone is passed over, with a warning.

    Needs the state database and Serve, but not MLflow: if its alias cannot be set, the record has a warning, and the
    controller sets it later. ``on_live`` is called with the version once it answers, before the alias is set, which
    takes longer.

    Raises:
        NotFoundError: the model is not served, or no version was champion before.
        RefusedError, InsufficientResourcesError, DeployError, ClusterError: as ``deploy``.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    name = spec.project.name
    with live(spec) as (state, api):
        warnings = ensure_controller(spec, state, dashboard_url=api.dashboard_url)
        record = roll_back(spec, state, api)
        if record.role == "champion":
            if on_live is not None:
                on_live(record.version)
            import mlflow  # noqa: F401 - takes seconds, in which MLflow's server has nothing to answer

            warnings += followed(partial(MlflowAliases(spec, state.owner()).set_champion, name), record.version)
    return replace(record, warnings=(*record.warnings, *warnings))


def roll_back(
    spec: ProjectSpec, state: State, api: ServeApi, *, check: Callable[[str, str], object] = read_manifest
) -> DeploymentRecord:
    """Take back a version on its way or a canary's share, or give the route back; ``check`` as of ``gone``."""
    name, serve = spec.project.name, spec.serve
    standing = state.model(name)
    request = Request(ROLLBACK, "requested", this_user(), state.now(), serve.ready_timeout_s, hurry=True)
    seen, live_now = withdrawals.in_question(standing), champion_of(standing.deployments)
    champion = None if live_now is None else live_now.version
    leaving: tuple[int, ...] = ()
    read = partial(changes_of, state, name, ROUTE_ACTIONS)
    passed = {} if seen else gone(standing, read, check=check)
    if not seen:
        with suppress(NotFoundError):  # which the change raises, if it is so by then
            target = previous_champion(standing.deployments, read(), passed)
            replaces = live_now is not None and live_now.replaces
            leaving = leaving_first(api, state.desired(), target, replaces=replaces)

    def decide(model: Model, plan: Plan | None) -> Change:
        def up(item: Deployment) -> bool:
            return is_up(plan, item, goal=ROUTE, hurry=True)

        return withdrawals.roll_back(
            model, read(), request=request, up=up, seen=seen, champion=champion, leaving=leaving, gone=passed
        )

    done = change(state, api, name, decide=decide, serve=serve, action=request.action, hurry=True, blind=True)
    old, new = champion_of(done.before.deployments), champion_of(done.after.deployments)
    lost = withdrawals.in_question(done.before) or seen
    if lost and (new is None or (old is not None and old.version == new.version and new.version not in lost)):
        return traffic_record(done, lost[0])
    if new is None:
        raise RefusedError(f"{name} was taken off Serve just now", hint="Run the same command again.")
    record = record_of(done, new.version)
    return replace(record, warnings=(*record.warnings, *_passed_over(passed)))


def rollback_target(source: Source) -> str:
    """Return what ``rollback`` would do now, as text, according to the state.

    Raises:
        NotFoundError: as ``rollback``.
    """
    spec = spec_of(source)
    name = spec.project.name
    with state_of(spec) as state:
        model = state.model(name)
        if coming := withdrawals.route_takers(model):
            return f"takes back version {coming[0].version} of {name}, which is on its way to the route"
        if lost := {*withdrawals.in_question(model)}:
            return f"takes the share of the traffic away from version {', '.join(map(str, sorted(lost)))} of {name}"
        read = partial(changes_of, state, name, ROUTE_ACTIONS)
        passed = gone(model, read)
        target = previous_champion(model.deployments, read(), passed)
        champion = champion_of(model.deployments)
        left = f" back from version {champion.version}" if champion else ""
        return "; ".join([f"gives the route of {name}{left} to version {target.version}", *_passed_over(passed)])


def _passed_over(passed: Mapping[int, str]) -> list[str]:
    return [f"version {version} is passed over: {why}" for version, why in passed.items()]
