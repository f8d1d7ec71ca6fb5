"""The one loop that brings Serve to the desired state. The controller runs it each second, a verb while it waits.

Owns how a step is taken: under the lock of every step, so that there are never two at once; with the desired revision
read again before Serve is written; and never more than one. After a kill anywhere, whoever comes next continues from
what is written. What the next step is, ``reconcile`` decides.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.cluster.placement import show
from raymlops.errors import (
    BusyError,
    ClusterError,
    DeployError,
    ElsewhereError,
    RaymlopsError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from raymlops.lifecycle.live.reconcile import Drop, Fail, Hold, Reach, Send, next_step, starting
from raymlops.lifecycle.live.transitions import failed, reached
from raymlops.serving.control.details import covers
from raymlops.serving.control.plan import Api, Plan, plan_of
from raymlops.serving.names import app_name
from raymlops.state.conditions import EVERYTHING, Condition, conditions, put_conditions
from raymlops.state.identity import SHORT
from raymlops.state.transitions import start

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from raymlops.cluster.placement import Holder
    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.reconcile import Step
    from raymlops.serving.control.rest_api import Room
    from raymlops.state.store import State
    from raymlops.state.transitions import Transition

ASK_EVERY_S = 15.0
"""Interval at which it is asked who holds what a version waits for."""
LOCK_WAIT_S = 0.2
"""Another step is not waited for: it is taken for the same desired state."""
HELD_S = 5.0
"""A step that takes longer is the reason for standing still, and who takes it is named."""

_log = logging.getLogger(__name__)


class Cluster(Api, Protocol):
    """The part of ``ServeApi`` that changes of what is live use."""

    def cluster_id(self) -> str:
        """Return Ray's id of the cluster."""

    def room(self) -> Room:
        """Return the cluster's resources, and those that its actors hold."""

    def holders(self) -> list[Holder]:
        """Return who holds CPUs or GPUs."""


@dataclass(frozen=True)
class Look:
    """What a step saw, and whether it did anything."""

    plan: Plan
    acted: bool = False
    """A config that was sent before, and is not in force yet, is nothing new."""
    conditions: dict[str, Condition] = field(default_factory=dict)
    held_by: BusyError | None = None
    """Names a process that has held the lock over steps for ``HELD_S``, and may be stopped."""
    held_s: float = 0.0
    hold: Hold | None = None
    """What is to be sent waits for builds."""


class Reconciler:
    """Take steps towards the desired state of one database on one Serve."""

    def __init__(self, state: State, cluster: Cluster, *, serve: ServeSection, actor: str | None = None) -> None:
        """Take the state and Serve. ``serve`` says where it listens if it does not run yet."""
        self._state = state
        self._cluster = cluster
        self._actor = actor
        self._here = ""
        self._asked: datetime | None = None
        self._holder: tuple[BusyError, datetime] | None = None
        self._hold: Hold | None = None
        self._sent: Send | None = None
        self._places: dict[str, Any] = {
            "host": serve.host,
            "port": serve.port,
            "grpc_port": serve.grpc_port,
            "everywhere": serve.proxy_location == "every_node",
            "tls": serve.tls,
            "proxy": serve.proxy,
        }

    def step(self, now: datetime | None = None) -> Look:
        """Take one step, if one is due and no other process takes one; ``now`` is that of the database.

        Raises:
            ElsewhereError: the database is live on another cluster.
            OutdatedStateError: Serve runs what a newer copy of the state database desired; nothing was changed.
            ClusterError: the dashboard does not answer, or refuses us.
            DeployError: Serve refuses the config.
            StorageError, UnreachableError: the state database.
        """
        now = now or self._state.now()
        try:
            with self._state.exclusive("reconciling", wait_s=LOCK_WAIT_S):
                self._holder = None
                return self._step(now)
        except BusyError as error:
            return self._wait(error, now)
        except ElsewhereError:
            raise  # which is no condition of what is live there
        except RaymlopsError as error:
            if isinstance(error, ClusterError) or not isinstance(error, UnreachableError):  # else it cannot be written
                self._stand_still(error.message, now)
            raise
        except Exception as error:
            self._stand_still(f"{type(error).__name__}: {error}", now)
            raise

    def look(self, *, starts: bool = False) -> Plan:
        """Return what Serve runs and what is desired, without taking a step; raises as ``step``.

        ``starts`` says that a version is about to be desired.
        """
        desired = self._state.desired()
        self._here = self._here or self._cluster.cluster_id()
        if not desired.owner.may_be_on(self._here):
            raise ElsewhereError(
                f"this state database is live on another cluster: {desired.owner.cluster[:SHORT]}",
                hint="raymlops deploy --restore moves it here, as after a restart of the cluster.",
            )
        return plan_of(desired, self._cluster, **self._places, starts=starts)

    def _step(self, now: datetime) -> Look:
        before = conditions(self._state)
        plan = self.look()
        step, found = next_step(plan, before, now=now, holders=partial(self._holders, now))
        self._hold = step if isinstance(step, Hold) else None
        waiting = self._hold.applications if self._hold is not None else ()
        start(self._state, starting(plan, waiting, now=now, grows=lambda: self._cluster.room().grows), now=now)
        put_conditions(self._state, found.values())
        sent, self._sent = self._sent, step if isinstance(step, Send) else None
        if step is None or self._hold is not None:
            return Look(plan, conditions=found, hold=self._hold)
        acted = self._sent is None or self._sent != sent
        if acted:
            _log.info("reconciling: %s", step)
        self._take(step, plan, now)  # what was sent too: KubeRay passes it on later, and Serve may have lost it
        return Look(plan, acted=acted, conditions=found)

    def _holders(self, now: datetime) -> str | None:
        """Return who holds the cluster's resources; None if that was asked just now, or the dashboard does not say."""
        if self._asked is not None and now - self._asked < timedelta(seconds=ASK_EVERY_S):
            return None
        self._asked = now
        with suppress(ClusterError):
            return "".join(f"\n  {holder}" for holder in self._cluster.holders() if show(holder.resources))
        return None

    def _take(self, step: Step, plan: Plan, now: datetime) -> None:
        match step:
            case Reach(transition):
                try:
                    self._state.change(
                        transition.name, lambda model: reached(model, transition.id, now=now), actor=transition.actor
                    )
                except (UsageError, RefusedError) as error:  # what cannot be written must not stop every other model
                    self._take(Fail(transition, error.message), plan, now)
            case Fail(transition, reason):
                self._state.change(
                    transition.name, lambda model: failed(model, transition.id, reason, now=now), actor=self._actor
                )
            case Drop(failing):
                self._put(plan, {name: config for name, config in plan.ours.items() if name != failing}, now)
            case Send(applications):
                self._put(plan, applications, now)

    def _put(self, plan: Plan, applications: dict[str, dict[str, Any]], now: datetime) -> None:
        try:
            self._send(plan, applications)
        except DeployError as error:
            coming = [one for one in plan.desired.coming if _changes(one, plan, applications)]
            if not coming:
                raise
            if (at_fault := self._at_fault(coming, plan, applications)) is not None:
                self._take(Fail(at_fault, error.message), plan, now)

    def _send(self, plan: Plan, applications: dict[str, dict[str, Any]]) -> bool:
        """Send a config unless it is superseded: this process may have been stopped, and another one holds the lock."""
        revision = plan.desired.owner.revision
        return plan.put(self._cluster, applications, current=lambda: self._state.owner().revision == revision)

    def _at_fault(
        self, coming: list[Transition], plan: Plan, applications: dict[str, dict[str, Any]]
    ) -> Transition | None:
        """Return for which version Serve refuses a config: the one without which it takes it, or else the newest.

        None if that is not known, since something else is desired by now.
        """
        for one in reversed(coming) if len(coming) > 1 else ():
            name = app_name(one.name, one.version)
            rest = {key: config for key, config in applications.items() if key != name}
            with suppress(DeployError):
                sent = self._send(plan, rest | ({name: plan.ours[name]} if name in plan.ours else {}))
                return one if sent else None
        return coming[-1]

    def _wait(self, error: BusyError, now: datetime) -> Look:
        """Return what there is while another process holds the lock; one that seems to be stopped is named."""
        if self._holder is None or self._holder[0].message != error.message:
            self._holder = error, now
        held_s = (now - self._holder[1]).total_seconds()
        if held_s < HELD_S:
            return Look(self.look(), hold=self._hold)
        self._stand_still(error.message, now)
        return Look(self.look(), held_by=error, held_s=held_s, hold=self._hold)

    def _stand_still(self, reason: str, now: datetime) -> None:
        """Write why nothing is done, if the state can be written."""
        try:
            before = conditions(self._state)
            old = before.get(EVERYTHING)
            found = old if old is not None and old.reason == reason else Condition(EVERYTHING, reason, now)
            put_conditions(self._state, [*(one for name, one in before.items() if name != EVERYTHING), found])
        except RaymlopsError as second:
            _log.warning("not written: %s: %s", reason, second.message)


def _changes(transition: Transition, plan: Plan, applications: Mapping[str, Any]) -> bool:
    """Return whether a config starts the version of a transition, or gives it other settings."""
    name = app_name(transition.name, transition.version)
    return not covers(plan.ours.get(name), applications.get(name))
