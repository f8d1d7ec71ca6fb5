"""One change of what is live, as a verb makes it: refuse what can never be, write what is desired, wait until it is so.

Owns the order, the waiting, and what is said of the end. The change is one transaction with its audit event; from then
on the controller completes it, whatever happens to the verb. While the verb waits it takes the same steps itself.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from raymlops.errors import ClusterError, DeployError, RaymlopsError, RefusedError, TrackingError, UnreachableError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.live.outage import START_ACTIONS, last_start
from raymlops.lifecycle.live.reconcile import seen_by
from raymlops.lifecycle.live.reconciler import Cluster, Reconciler
from raymlops.lifecycle.live.transitions import AGAIN
from raymlops.records import DeploymentRecord
from raymlops.serving.control.converge import broken, index_starts, lacking, standing_of
from raymlops.serving.control.details import routes
from raymlops.serving.control.plan import places_of, unreadable
from raymlops.serving.control.wait import await_answer
from raymlops.serving.names import app_name, route_of
from raymlops.state.audit import changes_of
from raymlops.state.transitions import newest_transition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.reconcile import Hold
    from raymlops.lifecycle.live.reconciler import Look
    from raymlops.serving.control.plan import Plan
    from raymlops.state.store import Change, Deployment, Model, State
    from raymlops.state.transitions import Transition

__all__ = ["Changed", "Cluster", "Decide", "Follow", "change", "record_of", "within"]

FIRST_POLL_S, POLL_S = 0.03, 0.25
"""Polling interval: short at first, since most changes take effect at once."""
SHORT_S = 30.0
"""Longest wait for Serve to take a change of which every version is up, and for a Serve or a state that is away."""
STEP_S = 25.0
"""Longest wait for a step of another process, which may be stopped."""
GONE_S = 20.0
"""Longest wait for removed versions to release their resources; Serve ends a hung one later."""
ALIAS_S = 10.0
"""Longest wait for MLflow. The version is live by then, and the controller sets the alias later."""
CONTINUES = "It stays desired, and the controller continues with it; raymlops status shows how far it is."

_log = logging.getLogger(__name__)

T = TypeVar("T")
Follow = Callable[[int], None]
Decide = Callable[["Model", "Plan | None"], "Change"]
"""A change as it is decided in its transaction, with what Serve runs if that is known."""


@dataclass(frozen=True)
class Changed:
    """What was desired of a model and what is, and what Serve runs."""

    before: Model
    after: Model
    plan: Plan
    changed: bool
    away_s: float | None = None
    """How long nobody answered, where a version replaced the champion."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the notes on this Serve: other states on it, models that others can reach without a key."""
        return self.plan.notes


def change(
    state: State,
    cluster: Cluster,
    name: str,
    *,
    decide: Decide,
    serve: ServeSection,
    action: str,
    subject: int | None = None,
    champion: bool = True,
    hurry: bool = False,
    blind: bool = False,
    actor: str | None = None,
    wait_s: float = SHORT_S,
) -> Changed:
    """Change what is desired of a model, and wait until Serve runs it.

    ``decide`` is called in the transaction, with what Serve runs; with None if another change came in between, or if
    Serve does not answer and the change is ``blind``. At the end the version that came up by ``action``, the
    ``subject``, and the ``champion`` run as desired, in a ``hurry`` with one replica.

    Raises:
        TakenError, OutdatedStateError: the model on Serve is another state's, or a newer copy's of this one, or a
            foreign application has its name or route; nothing was changed.
        StorageError: another release stored settings of a version that stays; nothing was changed.
        RefusedError: another verb took the version away, or asked for the route, while it came up.
        DeployError: the version did not come up, and what was live still is; or Serve has not taken a change yet.
        ClusterError: Serve does not answer; a blind change is desired all the same.
        UnreachableError: the state database does not answer, or is locked; the hint says whether the change is desired.
        RaymlopsError: of ``decide``; nothing was changed.
    """
    reconciler = Reconciler(state, cluster, serve=serve)
    plan: Plan | None = None
    try:
        plan = reconciler.look(starts=not blind)
    except ClusterError:
        if not blind:
            raise

    def decided(model: Model) -> Change:
        found = decide(model, seen_by(plan, model))
        # A model that another state took over can be removed from this one.
        if plan is not None and (found.model.deployments or not model.deployments):
            places = places_of(found.model.deployments) or [(name, "", None)]
            for error in (*plan.division.taken(places).values(), *unreadable(found.model.deployments).values()):
                raise error
        return found

    held = None if plan is None else routes(plan.details).get(route_of(name))
    before, after = state.change(name, decided, actor=actor)
    mine = [one for one in after.coming if one.action == action and subject in {None, one.version}]
    old, new = champion_of(before.deployments), champion_of(after.deployments)
    stays = not mine and old is not None and new is not None and old.version == new.version
    plan, acted, after = _carried_out(
        state,
        reconciler,
        after,
        mine,
        subject=subject,
        champion=champion,
        hurry=hurry,
        sent=hurry and stays,  # where no route moves, a hurry does not wait for a champion that fails meanwhile
        wait_s=wait_s,
    )
    new = champion_of(after.deployments)
    if plan.local and new is not None and champion and routes(plan.details).get(route_of(name)) != held:
        await_answer(plan.listens.base_url, new)
    measured = None
    if any("replaces" in one.goal for one in mine):
        measured = last_start(changes_of(state, name, START_ACTIONS))
    changed, away_s = acted or before.deployments != after.deployments, None if measured is None else measured[1]
    return Changed(before, after, plan, changed, away_s)


def record_of(done: Changed, version: int) -> DeploymentRecord:
    """Return the record of a change by which a version is up.

    Raises:
        RefusedError: another verb took it down just after it had come up.
    """
    new, old = done.after.item(version), champion_of(done.before.deployments)
    if new is None:
        raise RefusedError(f"version {version} of {done.after.name} came up, and was then taken down", hint=AGAIN)
    return DeploymentRecord(
        name=new.name,
        version=version,
        digest=new.bundle.digest,
        role=new.role,
        url=f"{done.plan.listens.base_url}/models/{new.name}/predict" if new.role == "champion" else None,
        previous_version=old.version if old and old.version != version else None,
        changed=done.changed,
        warnings=done.warnings,
        away_s=done.away_s,
    )


def followed(follow: Follow, version: int) -> tuple[str, ...]:
    """Set the alias of a version that is live; a failure is a warning, since the controller sets it later."""
    try:
        within(ALIAS_S, partial(follow, version))
    except RaymlopsError as error:
        return (f"version {version} is live, but the alias champion was not set: {error.message}",)
    return ()


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what MLflow answers, with a time limit, so that a server that hangs blocks nothing.

    Raises:
        TrackingError: it did not answer in time; it may still do what it was asked for.
    """
    answers: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="raymlops-alias", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TrackingError(f"MLflow did not answer within {seconds:g} s; the controller tries again later")
    if raised:
        raise raised[0]
    return answers[0]


def converged(
    reconciler: Reconciler,
    items: Callable[[], Sequence[Deployment]],
    *,
    wait_s: float,
    hurry: bool = False,
    sent: bool = False,
) -> tuple[Plan, bool]:
    """Take steps until these deployments run as desired; return what Serve runs then, and whether a step was needed.

    ``hurry`` and ``sent`` as of ``lacking``.

    Raises:
        DeployError: one fails, or Serve has not taken them in ``wait_s``.
        ClusterError: Serve does not answer.
    """
    any_step, deadline = False, time.monotonic() + wait_s
    for look, wanted in _looks(reconciler, items):
        plan, any_step = look.plan, any_step or look.acted
        if look.acted:
            continue
        if (lack := lacking(plan, wanted, hurry=hurry, sent=sent)) is None:
            if hurry or not index_starts(plan):
                break
            lack = "the list of models is being started"
        if not sent and (failing := [item for item in wanted if broken(plan, item)]):
            which = f"version {failing[0].version} of {failing[0].name}"
            raise DeployError(f"{which} does not run: {lacking(plan, failing)}", hint=_hint(CONTINUES, plan.upgrade))
        if time.monotonic() > deadline and look.hold is None:
            hint = _hint(CONTINUES, plan.upgrade)
            raise DeployError(f"Serve has not taken it in {wait_s:g} s: {lack}", hint=hint)
    return plan, any_step


def _carried_out(
    state: State,
    reconciler: Reconciler,
    wanted: Model,
    mine: Sequence[Transition],
    *,
    subject: int | None,
    champion: bool,
    hurry: bool,
    sent: bool,
    wait_s: float,
) -> tuple[Plan, bool, Model]:
    """Take steps until a change is carried out; return what Serve runs then, whether any was needed, and the model."""
    came_up, ask = False, partial(state.model, wanted.name)
    for coming in mine:
        newest = partial(newest_transition, state, coming.name, coming.version)
        for look, found in _looks(reconciler, newest):
            came_up |= look.acted
            if not look.acted and _ended(found, coming, upgrade=look.plan.upgrade):
                break
    versions = {subject, *(one.version for one in mine)}

    def concerned() -> list[Deployment]:
        items = ask().deployments
        return [item for item in items if item.version in versions or (champion and item.role == "champion")]

    plan, acted = converged(reconciler, concerned, wait_s=wait_s, hurry=hurry, sent=sent)
    deadline = time.monotonic() + GONE_S
    for look, model in _looks(reconciler, ask):
        plan = look.plan
        if not _leaving(plan, model) or (time.monotonic() > deadline and look.hold is None):
            break
    return plan, acted or came_up, model


def _looks(reconciler: Reconciler, ask: Callable[[], T]) -> Iterator[tuple[Look, T]]:
    """Yield what a step saw, and what the state is asked for, again and again."""
    pauses = itertools.chain((FIRST_POLL_S * 2**index for index in range(3)), itertools.repeat(POLL_S))
    away_since: float | None = None
    told = False
    hold: Hold | None = None
    while True:
        try:
            look = reconciler.step()
            asked = ask()
        except UnreachableError as error:
            if away_since is None:
                away_since = time.monotonic()
                _log.warning("waiting: %s", error.message)
            if time.monotonic() - away_since > SHORT_S:
                raise type(error)(error.message, hint=_hint(CONTINUES, error.hint)) from error
            acted = False
        else:
            away_since, acted = None, look.acted
            if (busy := look.held_by) is not None:
                if look.held_s > STEP_S:
                    hint = f"{busy.hint} What was requested stays desired, and is carried out then."
                    raise DeployError(f"no step was taken for {STEP_S:g} s: {busy.message}", hint=hint)
                if not told:
                    _log.warning("waiting: %s. %s", busy.message, busy.hint)
                told = True
            if look.hold is not None and look.hold != hold:
                _log.warning("waiting: %s", look.hold)
            hold = look.hold or hold
            yield look, asked
        if not acted:
            time.sleep(next(pauses))


def _ended(found: Transition | None, coming: Transition, *, upgrade: str | None) -> bool:
    """Return whether a version, whose newest transition is ``found``, has what it came up for.

    Raises:
        DeployError: it did not come up.
        RefusedError: it was superseded.
    """
    if found is None or found.id != coming.id:
        found = replace(coming, status="superseded", reason="it was requested again")
    if found.status == "superseded":
        raise RefusedError(f"version {coming.version} of {coming.name} no longer comes up: {found.reason}", hint=AGAIN)
    if found.status == "failed":
        old = found.goal.get("replaces")
        live = "What was live still is." if old is None else f"Version {old} is brought back."
        hint = f"{live} raymlops doctor shows whether there is room."
        raise DeployError(found.reason, hint=_hint(hint, upgrade))
    return found.status == "done"


def _hint(*parts: str | None) -> str:
    return "\n".join(filter(None, parts))


def _leaving(plan: Plan, model: Model) -> bool:
    """Return whether Serve still runs versions of a model that are not desired."""
    return bool(standing_of(plan, model.name) - {app_name(item.name, item.version) for item in model.deployments})
