"""The controller: brings Serve to what is desired, moves rollouts, ends warm versions, and keeps aliases right.

Owns the order of a round and the handling of its errors. Decides nothing itself: ``reconcile``, ``policy`` and
``lineup`` do. Knows nothing of Ray (see ``actor``), so that its tests need no cluster.

Whatever it decides is written to the desired state, in one transaction with its audit event; the reconciler carries it
out. After a kill anywhere the next controller continues from there.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.errors import OutdatedStateError, RaymlopsError, RefusedError, TakenError
from raymlops.lifecycle.live.alias_owner import note_owner
from raymlops.lifecycle.live.change import ALIAS_S, within
from raymlops.lifecycle.live.held import held
from raymlops.lifecycle.live.lineup import champion_of, cooled, idle_of, with_canary, without
from raymlops.lifecycle.live.reconcile import is_up, seen_by
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.transitions import PROMOTED, ROUTE, Request, bring
from raymlops.lifecycle.rollout.evidence import gathered, windows_of, with_sources
from raymlops.lifecycle.rollout.loss_reader import LossReader, LossReport, in_thread
from raymlops.lifecycle.rollout.policy import after, baked_at, decide, judges_quality
from raymlops.serving.control.ownership import divide
from raymlops.serving.control.render import settings_of
from raymlops.state.audit import changes_of
from raymlops.state.engine import this_user
from raymlops.state.loop import kept_by_bakes
from raymlops.state.rollouts import running, update_rollout
from raymlops.state.store import Change
from raymlops.state.versions import withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from raymlops.config.serve import ServeSection
    from raymlops.lifecycle.live.reconciler import Cluster
    from raymlops.lifecycle.rollout.evidence import Reports
    from raymlops.lifecycle.rollout.loss_reader import ReadLosses, Start
    from raymlops.serving.control.ownership import Division
    from raymlops.serving.control.plan import Plan
    from raymlops.state.loop import Retraining, Stage
    from raymlops.state.rollouts import Rollout
    from raymlops.state.store import Model, State

ROUND_S = 1.0
"""Between two rounds while anything moves."""
IDLE_S = 5.0
KEPT_EVERY_S = 5.0
"""Interval at which a rollout's evidence is written while nothing is decided."""
WAITS: frozenset[Stage] = frozenset({"proposed", "baking"})
"""Stages of a retraining that last for hours."""
WARM_EVERY_S = 10.0
ALIAS_EVERY_S = 30.0
RETRAIN_EVERY_S = 2.0
"""Between two looks at retrainings that have not ended."""
MAINTAIN_EVERY_S = 3600.0
TELL_EVERY_S = 5.0
"""Half as long as Ray takes to export gauges: one that is not set again disappears."""
STEPS = 20
"""Longest sequence of steps of one round."""

_log = logging.getLogger(__name__)


class Aliases(Protocol):
    """The aliases of models in MLflow."""

    def owned_by(self, name: str, version: int) -> str | None:
        """Return which other state owns the aliases of a model; where none does, who has the version in MLflow."""

    def champion(self, name: str) -> int | None:
        """Return the version that the alias ``champion`` of a model names."""

    def set_champion(self, name: str, version: int) -> None:
        """Point the alias ``champion`` to a version."""

    def withdraw(self, name: str, versions: Collection[int]) -> None:
        """Remove the alias ``challenger`` if it names one of these versions."""


class Retrainings(Protocol):
    """What moves the retrainings of a state."""

    def open(self) -> list[Retraining]:
        """Return those that have not ended."""

    def step(self, one: Retraining, now: datetime) -> Retraining:
        """Take the steps of one that are due."""


class Controller:
    """Reconcile what is live. One thread calls ``step`` repeatedly."""

    def __init__(
        self,
        state: State,
        cluster: Cluster,
        *,
        serve: ServeSection,
        reports: Reports,
        aliases: Aliases | None = None,
        losses: ReadLosses | None = None,
        start: Start = in_thread,
        retrainings: Retrainings | None = None,
        maintain: Callable[[datetime], None] = lambda _now: None,
        tell: Callable[[datetime], None] = lambda _now: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the state, Serve, the reports and MLflow's aliases; ``maintain`` runs hourly, ``tell`` every 5 s.

        ``losses`` is called by ``start``, so that no decision waits for it. Intervals are measured by the monotonic
        ``clock``.
        """
        self._state = state
        self._cluster = cluster
        self._reports = reports
        self._aliases = aliases
        self._losses = None if losses is None else LossReader(losses, start=start)
        self._retrainings = retrainings
        self._maintain = maintain
        self._tell = tell
        self._clock = clock
        self._due: dict[str, float] = {}
        self._stay: dict[str, dict[int, int]] = {}
        self._errors: dict[str, str] = {}
        self._seen: tuple[str, ...] = ()
        self._actor = f"controller of {this_user()}"
        self._reconciler = Reconciler(state, cluster, serve=serve, actor=self._actor)

    def step(self, now: datetime) -> float:
        """Do what is due at ``now`` and return the seconds until the next step. Never raises a ``RaymlopsError``."""
        moving = retraining = False
        try:
            rollouts = self._running()
            moving = bool(rollouts) or bool(self._state.desired().coming)
            self._attempt("Serve", partial(self._reconcile, now))
            for rollout in rollouts:
                self._attempt(rollout.name, partial(self._move, rollout, now))
            if self._is_due("warm", WARM_EVERY_S):
                for name in sorted({item.name for item in self._state.deployments()}):
                    self._attempt(f"{name} (keep warm)", partial(self._end_warm, name, now))
            still = {found.id for found in self._running()}
            if any(rollout.id not in still for rollout in rollouts):
                self._due.pop("aliases", None)  # of a promotion; a verb sets its own
            if self._aliases is not None and self._is_due("aliases", ALIAS_EVERY_S):
                for item in self._state.deployments():
                    if item.role == "champion":
                        self._attempt(what := f"{item.name} (alias)", partial(self._follow, item.name, self._aliases))
                        if what in self._errors:
                            break  # an MLflow that hangs holds up one round once, not once a model
            retraining = self._retrain(now)
            if self._is_due("maintain", MAINTAIN_EVERY_S):
                self._attempt("maintenance", partial(self._maintain, now))
            if self._is_due("tell", TELL_EVERY_S):
                self._attempt("messages", partial(self._tell, now))
        except RaymlopsError as error:  # the state database does not answer
            self._report("the state", error)
        if moving or "Serve" in self._errors:
            return ROUND_S
        return RETRAIN_EVERY_S if retraining else IDLE_S

    def _running(self) -> list[Rollout]:
        with self._state.reading() as connection:
            return running(connection)

    def _reconcile(self, now: datetime) -> None:
        """Take steps until nothing is left to be done now. Applications of other states are recorded once.

        A state of an earlier release does not know its cluster: it is left alone where Serve runs nothing of it.
        """
        if not self._state.owner().cluster:
            division = divide(self._cluster.get(), self._state.desired())
            self._note_others(division)
            if not division.ours:
                return
        for _ in range(STEPS):
            look = self._reconciler.step(now)
            self._note_others(look.plan.division)
            if not look.acted:
                return

    def _note_others(self, division: Division) -> None:
        if (seen := division.seen()) == self._seen:
            return
        self._seen = seen
        for text in seen:
            _log.warning(text)
            self._state.record(action="controller.saw", subject="serve", why=text, actor=self._actor)

    def _move(self, rollout: Rollout, now: datetime) -> None:
        model = self._state.model(rollout.name)
        if any(one.action == PROMOTED for one in model.coming):
            return  # decided already
        losses = self._known_losses(rollout, now)
        evidence = gathered(rollout, self._reports, losses=losses)
        decision = decide(rollout, evidence, now=now, losses=losses)
        if decision.action in {"advance", "promote"} and (hold := held(model, model.rollout_why, now=now)):
            decision = replace(decision, action="wait", reason=f"held, although {decision.reason}: {hold}")
        done = with_sources(after(rollout, decision, evidence=evidence, now=now), rollout, self._reports)
        if decision.action == "wait":
            if self._is_due(f"keep {rollout.id}", KEPT_EVERY_S):
                with self._state.writing() as connection:
                    update_rollout(connection, done)
            return
        plan = self._reconciler.look()  # where Serve does not answer, nothing is decided
        _log.info("rollout %s of %s: %s: %s", rollout.id, rollout.name, decision.action, decision.reason)
        if decision.action == "promote":
            change = partial(self._promoted, rollout, replace(done, status="running", ended_at=None), plan, now)
        else:
            change = partial(self._shifted, rollout, done, decision.action, now)
        self._state.change(rollout.name, change, actor=self._actor)
        self._reconcile(now)

    def _shifted(self, rollout: Rollout, done: Rollout, action: str, now: datetime, model: Model) -> Change:
        """Return a model whose rollout advances or is aborted; the share of one that has ended is 0."""
        _check_same(rollout, model)
        if action == "advance":
            _check_free(model, now)
        weight = done.weight if done.status == "running" else 0.0
        deployments = tuple(with_canary(model.deployments, rollout.version, weight=weight))
        lost = {rollout.version: done.reason} if done.status == "aborted" else {}
        after = replace(model, deployments=deployments, rollout=done)
        return Change(after, f"rollout.{action}", done.reason, lost)

    def _promoted(self, rollout: Rollout, done: Rollout, plan: Plan, now: datetime, model: Model) -> Change:
        """Return a model whose rollout makes its version champion, once it has the replicas that the traffic needs."""
        _check_same(rollout, model)
        _check_free(model, now)
        new = model.item(rollout.version)
        assert new is not None
        timeout_s = settings_of(new).ready_timeout_s
        request = Request(PROMOTED, done.reason, self._actor, now, timeout_s)
        up = is_up(seen_by(plan, model), new, goal=ROUTE)
        return bring(replace(model, rollout=done), new, goal=ROUTE, request=request, up=up)

    def _retrain(self, now: datetime) -> bool:
        """Let each retraining take its next step, if that is due; return whether one is not at a stage of hours."""
        if self._retrainings is None:
            return False
        open_ = self._retrainings.open()
        if open_ and self._is_due("retrain", RETRAIN_EVERY_S):
            for one in open_:
                self._attempt(f"{one.name} (retraining)", partial(self._retrainings.step, one, now))
        return any(one.stage not in WAITS for one in open_)

    def _known_losses(self, rollout: Rollout, now: datetime) -> LossReport | None:
        """Return what is known of the losses; a failure to read newer ones is recorded once, and stops nothing."""
        if self._losses is None:
            return None
        log = self._serve(rollout.name).log
        if not log.enabled:
            return LossReport(off="the prediction log is off; set serve.log.enabled")
        if not judges_quality(rollout):
            return LossReport(off="serve.rollout.quality_margin is null")
        windows, needed = windows_of(rollout), baked_at(rollout)
        report = self._losses.report(rollout.name, rollout.id, windows, now=now, needed=needed, flush_s=log.flush_s)
        self._attempt(f"{rollout.name} (losses)", report.check)
        return report

    def _end_warm(self, name: str, now: datetime) -> None:
        """End the versions of a model whose time to be kept warm is over."""
        stay = self._stay.setdefault(name, {})
        over = set(cooled(self._state.deployments(name), changes_of(self._state, name), now=now, stay=stay))
        coming = {one.version for one in self._state.model(name).coming}
        if not (over := over - coming) or not (over := over - kept_by_bakes(self._state, name)):
            return
        versions = ", ".join(map(str, sorted(over)))

        def ended(model: Model) -> Change:
            idle = {item.version for item in idle_of(model.deployments)} - {one.version for one in model.coming}
            left = tuple(without(model.deployments, over & idle))
            return Change(
                replace(model, deployments=left), "keep_warm.end", f"version {versions} was kept warm for long enough"
            )

        self._state.change(name, ended, actor=self._actor)

    def _follow(self, name: str, aliases: Aliases) -> None:
        """Compare the aliases of a model with what is live and what was taken back, and set them right.

        Those of another state are left alone, which is recorded once.
        """
        before = champion_of(self._state.deployments(name))
        if before is None:
            return

        def look() -> tuple[str | None, int | None]:
            if (other := aliases.owned_by(name, before.version)) is not None:
                return other, None
            if lost := withdrawn(self._state, name):
                aliases.withdraw(name, lost)
            return None, aliases.champion(name)

        other, found = within(ALIAS_S, look)
        note_owner(self._state, name, other, actor=self._actor)
        champion = champion_of(self._state.deployments(name))  # a verb may have changed it meanwhile
        if other is not None or champion is None or found == champion.version:
            return
        within(ALIAS_S, partial(aliases.set_champion, name, champion.version))
        why = f"MLflow named version {found}" if found is not None else "MLflow named none"
        subject = f"{name}/{champion.version}"
        self._state.record(action="alias.follow", subject=subject, why=why, actor=self._actor)

    def _serve(self, name: str) -> ServeSection:
        deployments = self._state.deployments(name)
        return settings_of(champion_of(deployments) or deployments[0])

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


def _check_same(rollout: Rollout, model: Model) -> None:
    """Refuse to act on a rollout that was ended or moved meanwhile."""
    found = model.rollout
    if found is None or (found.id, found.step) != (rollout.id, rollout.step):
        raise RefusedError(f"the rollout {rollout.id} of {rollout.name} was moved by another process")


def _check_free(model: Model, now: datetime) -> None:
    """Refuse to give a rollout of the loop a larger share if something holds that since a moment ago."""
    if hold := held(model, model.rollout_why, now=now):
        raise RefusedError(hold)
