"""The controller: what moves rollouts, ends what was kept warm for long enough, and lets an alias follow later.

Owns what is done at each step and what happens when something of it fails. Decides nothing itself: ``rollout`` and
``lineup`` do. Knows nothing of Ray (see ``steering``), so that its tests need no cluster.

Everything it does is desired state first, in one transaction with its audit event, then Serve. A controller that is
killed anywhere is followed by one that reads the state and brings Serve to it.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
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
    without_traffic,
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
"""How often a rollout's evidence is written while nothing is decided."""
WARM_EVERY_S = 10.0
ALIAS_EVERY_S = 30.0
MAINTAIN_EVERY_S = 3600.0
LOCK_WAIT_S = 0.2
"""Whoever changes what is live now is not waited for: there is another step in a second."""

_log = logging.getLogger(__name__)


class Controller:
    """Move what has to move. ``step`` is called again and again, by one thread."""

    def __init__(
        self,
        state: State,
        cluster: Cluster,
        *,
        reports: Reports,
        follow: Callable[[str], Follow] | None = None,
        losses: ReadLosses | None = None,
        start: Start = in_thread,
        maintain: Callable[[datetime], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what it works with; ``follow(name)`` sets a model's alias, and ``maintain`` is called once an hour.

        ``losses`` is called by ``start``, so that no decision waits for it. Pauses are measured by ``clock``, which
        nobody sets back.
        """
        self._state = state
        self._cluster = cluster
        self._reports = reports
        self._follow = follow
        self._losses = None if losses is None else LossReader(losses, start=start)
        self._maintain = maintain
        self._behind = True  # what a controller before this one desired may not have reached Serve
        self._clock = clock
        self._debts: set[tuple[str, int]] = set()
        self._due: dict[str, float] = {}
        self._errors: dict[str, str] = {}
        self._seen: tuple[str, ...] = ()
        self._actor = f"controller of {this_user()}"

    def step(self, now: datetime) -> float:
        """Do what is to be done at ``now`` and return the seconds until the next step. Never raises what is ours."""
        rollouts: list[Rollout] = []
        try:
            with self._state.reading() as connection:
                rollouts = running(connection)
            if self._behind or self._is_due("settings", IDLE_PAUSE_S):
                self._attempt("Serve", self._catch_up)
            for rollout in rollouts:
                self._attempt(rollout.name, lambda rollout=rollout: self._move(rollout, now))  # type: ignore[misc]
            for every_s, what in ((WARM_EVERY_S, self._cool), (ALIAS_EVERY_S, self._follow_later)):
                if self._is_due(what.__name__, every_s):
                    what(now)
            if self._maintain is not None and self._is_due("maintain", MAINTAIN_EVERY_S):
                self._attempt("maintenance", lambda: self._maintain(now))  # type: ignore[misc]
        except RaymlopsError as error:  # the state database does not answer
            self._tell("the state", error)
        return ROLLOUT_PAUSE_S if rollouts or self._behind else IDLE_PAUSE_S

    def _catch_up(self) -> None:
        """Bring Serve to the desired state where it may not be there yet; not a Serve that runs nothing of ours.

        What is of other states is left alone, and told once.

        Settings that did not reach it are sent at any time: a key whose revocation was cut off, bounds that a flip left
        behind. Serve is looked at without the lock, so that nobody is kept waiting for what is nearly always nothing.
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
        """Return what is known of the losses; that newer ones cannot be read is told once, and ends nothing."""
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
        """Go to the next step, or take the share away."""
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
        # It ends in the transaction that makes its version champion: nobody finds a rollout to abort after that.
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
            self._change(rollout.name, line_up, action="rollout.promote", why=decided.reason, follow=True)
        except DeployError as error:
            reason = f"version {rollout.version} did not come up as champion: {error.message}"[:2000]
            failed = replace(decided, status="aborted", ended_at=now, reason=reason)

            def back(before: Sequence[Deployment]) -> LineUp:
                wanted = without_traffic(before, {rollout.version})
                return LineUp(
                    wanted, None, frozenset(), also=lambda connection: update_rollout(connection, failed), kept=True
                )

            self._change(rollout.name, back, action="rollout.abort", why=reason)

    def _cool(self, now: datetime) -> None:
        """Take down what has been kept warm for long enough."""
        by_name: dict[str, list[Deployment]] = defaultdict(list)
        for item in self._state.deployments():
            by_name[item.name].append(item)
        for name, items in by_name.items():
            if idle_of(items):
                self._attempt(f"{name} (keep warm)", lambda name=name: self._cool_one(name, now))  # type: ignore[misc]

    def _cool_one(self, name: str, now: datetime) -> None:
        over = set(cooled(self._state.deployments(name), changes_of(self._state, name), now=now))
        if not over:
            return
        self._cluster.get()
        versions = ", ".join(map(str, sorted(over)))

        def line_up(before: Sequence[Deployment]) -> LineUp:
            idle = {item.version for item in idle_of(before)}
            return LineUp(without(before, over & idle), None, frozenset(), kept=True)

        self._change(name, line_up, action="keep_warm.end", why=f"version {versions} was kept warm for long enough")

    def _follow_later(self, now: datetime) -> None:  # noqa: ARG002 - as every job
        """Set the aliases that could not follow when their version went live."""
        follow = self._follow
        if follow is None:
            return
        debts = set(pending_aliases(self._state))
        for name, version in sorted(debts & self._debts):  # whoever made it live may be setting it right now
            self._attempt(f"{name} (alias)", partial(self._follow_now, follow, name, version))
        self._debts = debts

    def _follow_now(self, follow: Callable[[str], Follow], name: str, version: int) -> None:
        champion = champion_of(self._state.deployments(name))
        if champion is not None and champion.version == version:
            within(ALIAS_S, follow(name))(version)
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
        follow: bool = False,
    ) -> None:
        later = self._follow(name) if follow and self._follow is not None else None
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
                follow=later,
                lock_wait_s=LOCK_WAIT_S,
            )
        except RefusedError:
            raise
        except BaseException:
            self._behind = True  # it may be desired, and not be what Serve runs
            raise

    def _serve(self, name: str) -> ServeSection:
        deployments = self._state.deployments(name)
        return settings_of(champion_of(deployments) or deployments[0])

    def _check_same(self, rollout: Rollout) -> None:
        """Refuse to act on a rollout that somebody has ended or moved meanwhile."""
        with self._state.reading() as connection:
            found = next(iter(running(connection, rollout.name)), None)
        if found is None or (found.id, found.step) != (rollout.id, rollout.step):
            raise RefusedError(f"the rollout {rollout.id} of {rollout.name} was moved by somebody else")

    def _is_due(self, what: str, every_s: float) -> bool:
        now, last = self._clock(), self._due.get(what)
        if last is not None and now - last < every_s:
            return False
        self._due[what] = now
        return True

    def _attempt(self, what: str, function: Callable[[], Any]) -> None:
        """Do one thing; what it raises is told once, and keeps nothing else from being done."""
        try:
            function()
        except (TakenError, OutdatedStateError) as error:
            self._tell(what, error)  # which no waiting ends
        except RefusedError as error:
            _log.debug("%s: %s", what, error)  # somebody else is at it
        except Exception as error:  # whatever it is, the next step comes
            self._tell(what, error)
        else:
            self._errors.pop(what, None)

    def _tell(self, what: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"[:2000]
        if self._errors.get(what) == text:
            return
        self._errors[what] = text
        unexpected = not isinstance(error, RaymlopsError)
        _log.warning("%s: %s", what, text, exc_info=error if unexpected else None)
        try:
            self._state.record(action="controller.error", subject=what.partition(" ")[0], why=text, actor=self._actor)
        except RaymlopsError as second:
            _log.warning("that is not in the audit record: %s", second)

    @property
    def errors(self) -> dict[str, str]:
        """Return what does not work now."""
        return dict(self._errors)


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)
