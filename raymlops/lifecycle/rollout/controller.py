"""The controller: moves rollouts, takes warm versions down when their time is over, and sets aliases that are pending.

Owns the order of a step and the handling of its errors. Decides nothing itself: ``policy`` and ``lineup`` do. Knows
nothing of Ray (see ``actor``), so that its tests need no cluster.

Every change is written to the desired state first, in one transaction with its audit event, then sent to Serve. After a
kill anywhere the next controller reads the state and brings Serve to it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from raymlops.errors import DeployError, OutdatedStateError, RaymlopsError, RefusedError, TakenError
from raymlops.lifecycle.live.change import ALIAS_S, change, within
from raymlops.lifecycle.live.lineup import (
    LineUp,
    champion_of,
    cooled,
    idle_of,
    with_canary,
    with_champion,
    without,
)
from raymlops.lifecycle.rollout.canary import settle
from raymlops.lifecycle.rollout.evidence import gathered, windows_of, with_sources
from raymlops.lifecycle.rollout.loss_reader import LossReader, LossReport, in_thread
from raymlops.lifecycle.rollout.policy import after, baked_at, decide
from raymlops.serving.control.apply import apply, refresh
from raymlops.serving.control.ownership import divide
from raymlops.serving.control.render import settings_of
from raymlops.state.aliases import complete_alias, pending_aliases
from raymlops.state.audit import changes_of
from raymlops.state.engine import this_user
from raymlops.state.rollouts import resume_rollout, running, update_rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.change import Cluster
    from raymlops.lifecycle.live.lineup import Follow
    from raymlops.lifecycle.rollout.evidence import Reports
    from raymlops.lifecycle.rollout.loss_reader import ReadLosses, Start
    from raymlops.state.rollouts import Rollout
    from raymlops.state.store import Deployment, State

ROLLOUT_PAUSE_S = 1.0
IDLE_PAUSE_S = 5.0
KEPT_EVERY_S = 5.0
"""Interval at which a rollout's evidence is written while nothing is decided."""
WARM_EVERY_S = 10.0
ALIAS_EVERY_S = 30.0
MAINTAIN_EVERY_S = 3600.0
LOCK_WAIT_S = 0.2
"""Another change of what is live is not waited for: the next step comes in a second."""

_log = logging.getLogger(__name__)


class Controller:
    """Reconcile rollouts, warm versions and aliases. One thread calls ``step`` repeatedly."""

    def __init__(
        self,
        state: State,
        cluster: Cluster,
        *,
        reports: Reports,
        follow: Callable[[str], Follow] = lambda _name: lambda _version: None,
        losses: ReadLosses | None = None,
        start: Start = in_thread,
        maintain: Callable[[datetime], None] = lambda _now: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the state, Serve and the reports; ``follow(name)`` sets a model's alias, ``maintain`` runs once an hour.

        ``losses`` is called by ``start``, so that no decision waits for it. Intervals are measured by the monotonic
        ``clock``.
        """
        self._state = state
        self._cluster = cluster
        self._reports = reports
        self._follow = follow
        self._losses = None if losses is None else LossReader(losses, start=start)
        self._maintain = maintain
        self._behind = True  # what an earlier controller desired may not have reached Serve
        self._clock = clock
        self._pending_aliases: set[tuple[str, int]] = set()
        self._due: dict[str, float] = {}
        self._errors: dict[str, str] = {}
        self._seen: tuple[str, ...] = ()
        self._actor = f"controller of {this_user()}"

    def step(self, now: datetime) -> float:
        """Do what is due at ``now`` and return the seconds until the next step. Never raises a ``RaymlopsError``."""
        rollouts: list[Rollout] = []
        try:
            with self._state.reading() as connection:
                rollouts = running(connection)
            if self._behind or self._is_due("settings", IDLE_PAUSE_S):
                self._attempt("Serve", self._catch_up)
            for rollout in rollouts:
                self._attempt(rollout.name, partial(self._move, rollout, now))
            if self._is_due("warm", WARM_EVERY_S):
                for name in sorted({item.name for item in self._state.deployments()}):
                    self._attempt(f"{name} (keep warm)", partial(self._end_warm, name, now))
            if self._is_due("aliases", ALIAS_EVERY_S):
                self._set_pending_aliases()
            if self._is_due("maintain", MAINTAIN_EVERY_S):
                self._attempt("maintenance", partial(self._maintain, now))
        except RaymlopsError as error:  # the state database does not answer
            self._report("the state", error)
        return ROLLOUT_PAUSE_S if rollouts or self._behind else IDLE_PAUSE_S

    def _catch_up(self) -> None:
        """Bring Serve to the desired state if it may be behind, unless it runs no application of this state.

        Applications of other states are left alone, and recorded once. Otherwise send settings that did not reach
        Serve: a key whose revocation was interrupted, traffic bounds that a promotion left. Serve is read without the
        lock, since there is nearly always nothing to send.
        """
        if not self._behind:
            if refresh(self._state.desired(), api=self._cluster, dry_run=True):
                with self._state.exclusive("sending settings", wait_s=LOCK_WAIT_S):
                    refresh(self._state.desired(), api=self._cluster)
            return
        division = divide(self._cluster.get(), self._state.desired())
        if (seen := division.seen()) != self._seen:
            self._seen = seen
            for text in seen:
                _log.warning(text)
                self._state.record(action="controller.saw", subject="serve", why=text, actor=self._actor)
        if division.ours:
            with self._state.exclusive("catching up", wait_s=LOCK_WAIT_S):
                apply(self._state.desired(), api=self._cluster, wait_s=IDLE_PAUSE_S, concerned=())
        self._behind = False

    def _move(self, rollout: Rollout, now: datetime) -> None:
        if (ended := settle(self._state, rollout.name, now=now)) is not None:
            _log.info("rollout %s of %s is %s: %s", ended.id, ended.name, ended.status, ended.reason)
            return
        losses = self._known_losses(rollout, now)
        evidence = gathered(rollout, self._reports, losses=losses)
        decision = decide(rollout, evidence, now=now, losses=losses)
        done = with_sources(after(rollout, decision, evidence=evidence, now=now), rollout, self._reports)
        if decision.action == "wait":
            if self._is_due(f"keep {rollout.id}", KEPT_EVERY_S):
                with self._state.writing() as connection:
                    update_rollout(connection, done)
            return
        self._cluster.get()  # where Serve does not answer, nothing is decided
        _log.info("rollout %s of %s: %s: %s", rollout.id, rollout.name, decision.action, decision.reason)
        if decision.action == "promote":
            self._promote(rollout, done, now=now)
        else:
            self._shift(rollout, done, action=f"rollout.{decision.action}")

    def _known_losses(self, rollout: Rollout, now: datetime) -> LossReport | None:
        """Return what is known of the losses; a failure to read newer ones is recorded once, and stops nothing."""
        if self._losses is None:
            return None
        log = self._serve(rollout.name).log
        if not log.enabled:
            return LossReport(off="the prediction log is off; set serve.log.enabled")
        windows, needed = windows_of(rollout), baked_at(rollout)
        report = self._losses.report(rollout.name, rollout.id, windows, now=now, needed=needed, flush_s=log.flush_s)
        self._attempt(f"{rollout.name} (losses)", report.check)
        return report

    def _shift(self, rollout: Rollout, done: Rollout, *, action: str) -> None:
        """Write an advance or an abort, and send the new share; 0 for a rollout that has ended."""
        weight = done.weight if done.status == "running" else 0.0

        def line_up(before: Sequence[Deployment]) -> LineUp:
            self._check_same(rollout)
            return LineUp(
                with_canary(before, rollout.version, weight=weight),
                None,
                frozenset(),
                also=lambda connection: update_rollout(connection, done),
                kept=True,
            )

        self._change(rollout.name, line_up, action=action, why=done.reason)

    def _promote(self, rollout: Rollout, done: Rollout, *, now: datetime) -> None:
        # It ends in the transaction that makes its version champion, so that it cannot be aborted after that.
        decided = replace(done, status="running", ended_at=None)

        def line_up(before: Sequence[Deployment]) -> LineUp:
            self._check_same(rollout)
            new = next(item for item in before if item.version == rollout.version)
            return LineUp(
                with_champion(before, new),
                rollout.version,
                also=lambda connection: update_rollout(connection, done),
                undo=lambda connection: resume_rollout(connection, decided),
            )

        try:
            follow = self._follow(rollout.name)
            self._change(rollout.name, line_up, action="rollout.promote", why=decided.reason, follow=follow)
        except DeployError as error:
            reason = f"version {rollout.version} did not come up as champion: {error.message}"[:2000]
            failed = replace(decided, status="aborted", ended_at=now, reason=reason)
            self._shift(rollout, failed, action="rollout.abort")

    def _end_warm(self, name: str, now: datetime) -> None:
        """Take down the versions of a model whose time to be kept warm is over."""
        over = set(cooled(self._state.deployments(name), changes_of(self._state, name), now=now))
        if not over:
            return
        self._cluster.get()
        versions = ", ".join(map(str, sorted(over)))

        def line_up(before: Sequence[Deployment]) -> LineUp:
            idle = {item.version for item in idle_of(before)}
            return LineUp(without(before, over & idle), None, frozenset(), kept=True)

        self._change(name, line_up, action="keep_warm.end", why=f"version {versions} was kept warm for long enough")

    def _set_pending_aliases(self) -> None:
        """Set the aliases that could not be set when their version went live, and were pending last time already.

        The verb that made a version live may be setting a new one right now.
        """
        pending = set(pending_aliases(self._state))
        for name, version in sorted(pending & self._pending_aliases):
            self._attempt(f"{name} (alias)", partial(self._set_alias, name, version))
        self._pending_aliases = pending

    def _set_alias(self, name: str, version: int) -> None:
        champion = champion_of(self._state.deployments(name))
        if champion is not None and champion.version == version:
            within(ALIAS_S, self._follow(name))(version)
            why = "it had not followed its version"
            self._state.record(action="alias.follow", subject=f"{name}/{version}", why=why, actor=self._actor)
        complete_alias(self._state, name, version)

    def _change(
        self,
        name: str,
        line_up: Callable[[Sequence[Deployment]], LineUp],
        *,
        action: str,
        why: str,
        follow: Follow | None = None,
    ) -> None:
        try:
            change(
                self._state,
                self._cluster,
                name,
                decide=line_up,
                serve=self._serve(name),
                action=action,
                why=why,
                actor=self._actor,
                follow=follow,
                lock_wait_s=LOCK_WAIT_S,
            )
        except BaseException as error:
            if not isinstance(error, RefusedError):
                self._behind = True  # it may be desired without having reached Serve
            raise

    def _serve(self, name: str) -> ServeSection:
        deployments = self._state.deployments(name)
        return settings_of(champion_of(deployments) or deployments[0])

    def _check_same(self, rollout: Rollout) -> None:
        """Refuse to act on a rollout that was ended or moved meanwhile."""
        with self._state.reading() as connection:
            found = next(iter(running(connection, rollout.name)), None)
        if found is None or (found.id, found.step) != (rollout.id, rollout.step):
            raise RefusedError(f"the rollout {rollout.id} of {rollout.name} was moved by another process")

    def _is_due(self, what: str, every_s: float) -> bool:
        now, last = self._clock(), self._due.get(what)
        if last is not None and now - last < every_s:
            return False
        self._due[what] = now
        return True

    def _attempt(self, what: str, function: Callable[[], Any]) -> None:
        """Run one job; record an error once, and continue with the others."""
        try:
            function()
        except (TakenError, OutdatedStateError) as error:
            self._report(what, error)  # which no retry ends
        except RefusedError as error:
            _log.debug("%s: %s", what, error)  # another change is in progress
        except Exception as error:  # whatever it is, the next step retries
            self._report(what, error)
        else:
            self._errors.pop(what, None)

    def _report(self, what: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"[:2000]
        if self._errors.get(what) == text:
            return
        self._errors[what] = text
        unexpected = not isinstance(error, RaymlopsError)
        _log.warning("%s: %s", what, text, exc_info=error if unexpected else None)
        try:
            self._state.record(action="controller.error", subject=what.partition(" ")[0], why=text, actor=self._actor)
        except RaymlopsError as second:
            _log.warning("the audit record lacks that: %s", second)
