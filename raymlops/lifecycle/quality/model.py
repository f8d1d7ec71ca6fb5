"""A live version whose answers are compared with labels: by which rule, with what, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from raymlops.bundle.loss import own_losses
from raymlops.bundle.quality import quality_of
from raymlops.config.data import SkillSection
from raymlops.errors import BundleError, NotFoundError, StorageError, UsageError
from raymlops.lifecycle.live.lineup import ROUTE_ACTIONS, champion_of, monitored, retrained, taken_by
from raymlops.lifecycle.live.log_owner import log_of
from raymlops.lifecycle.prediction_log import stored_log
from raymlops.lifecycle.quality.answers import rule_of, test_rows
from raymlops.lifecycle.quality.measure import Measured, measure
from raymlops.lifecycle.quality.read import Reader
from raymlops.monitor.skill.scored import metrics_of
from raymlops.state.audit import changes_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from raymlops.answer_loss import AnswerLoss
    from raymlops.bundle.loss import OwnLosses, Pair
    from raymlops.lifecycle.quality.answers import AskRecipe
    from raymlops.monitor.skill.reference import QualityReference
    from raymlops.predictions.labelled import Labels
    from raymlops.records import BundleRef
    from raymlops.state.store import Deployment, State


_NOTHING = "labelled answers are not judged, which monitor.skill and the triggers skill and min_skill of retrain need"


def ask_here(bundle: BundleRef, pairs: Sequence[Pair]) -> OwnLosses:
    """Return losses by the recipe of a bundle, in this process."""
    return own_losses(bundle.uri, bundle.digest, pairs)


@dataclass(frozen=True, eq=False)
class QualityModel:
    """What is judged of a model."""

    name: str
    champion: Deployment
    since: datetime
    """When the champion took the route."""
    section: SkillSection
    rule: AnswerLoss
    known: QualityReference
    root: str
    """The storage with its log."""
    kept_since: datetime | None
    """Rows before are removed; None where all are kept."""
    ask: AskRecipe

    @property
    def version(self) -> int:
        """Return the champion's version."""
        return self.champion.version

    @property
    def window_s(self) -> float:
        """Return the length of a window."""
        return timedelta(hours=self.section.window_h).total_seconds()

    @property
    def reader(self) -> Reader:
        """Return what reads its answers."""
        ask = partial(self.ask, self.champion.bundle) if self.rule.kind == "recipe" else None
        return Reader(self.rule, self.known.classes, self.section.metric, tuple(self.known.slices), ask)

    def measure(self, labels: Labels, *, start: datetime, stop: datetime, now: datetime) -> Measured | None:
        """Measure a window by labels; None where the version answered nobody.

        Raises:
            StorageError: the log cannot be read.
            RaymlopsError: the recipe's ``loss_of`` cannot be asked.
        """
        since = max(start, self.since)
        found = self.reader.window(self.root, self.name, labels, version=self.version, since=since, until=stop)
        if found is None:
            return None
        return measure(found, self.rule, self.known, self.section, now=now.timestamp(), window_s=self.window_s)


def unjudged(item: Deployment) -> tuple[str, ...]:
    """Return why labelled answers of a version cannot be judged, where ``monitor.skill`` or a trigger asks for that.

    A bundle that cannot be read changes nothing: whatever else needs it says so.
    """
    section, triggers = monitored(item).skill, retrained(item).triggers
    if section == SkillSection() and not triggers.skill and triggers.min_skill is None:
        return ()
    try:
        rule = rule_of(item)
        if rule.kind == "none":
            return (f"{_NOTHING}: {rule.reason}",)
        if section.metric not in (there := metrics_of(rule)):
            return (f"monitor.skill.metric is {section.metric}, and its answers have {', '.join(there)}",)
        quality_of(item.bundle.uri, item.bundle.digest)
    except NotFoundError as error:
        return (f"{_NOTHING}: {error.message}. {error.hint}",)
    except (BundleError, StorageError):
        return ()
    return ()


def promoted_at(state: State, champion: Deployment) -> datetime:
    """Return when a champion took the route.

    Raises:
        StorageError, UnreachableError: the state cannot be read.
    """
    taken = taken_by(champion.version, changes_of(state, champion.name, ROUTE_ACTIONS))
    return champion.created_at if taken is None else taken.ts


def quality_model(
    state: State, name: str, *, now: datetime, section: SkillSection | None = None, ask: AskRecipe = ask_here
) -> QualityModel:
    """Return a live model, to be judged as ``section`` says, by default as it was deployed.

    Raises:
        NotFoundError: no such model is live, its answers have no loss, or its bundle keeps no test rows.
        UsageError: its answers have no such metric.
        BundleError: the bundle is not what its digest vouches for, or a newer raymlops wrote it.
        StorageError, UnreachableError: the state or a storage cannot be used.
    """
    champion = champion_of(state.deployments(name))
    if champion is None:
        raise NotFoundError(f"{name} has no live version", hint="raymlops status lists what is live.")
    rule = rule_of(champion)
    if rule.kind == "none":
        raise NotFoundError(f"answers of {name} version {champion.version} are compared with no label: {rule.reason}")
    chosen = monitored(champion).skill if section is None else section
    if chosen.metric not in (there := metrics_of(rule)):
        raise UsageError(
            f"monitor.skill.metric is {chosen.metric}, which answers of {name} version {champion.version} do not have",
            hint=f"They have {', '.join(there)}.",
        )
    known = test_rows(champion)
    log = stored_log(state, name)
    kept = None if log is None else log.kept_since(now)
    since, root = promoted_at(state, champion), log_of(champion, state.owner().id)
    return QualityModel(name, champion, since, chosen, rule, known, root, kept, ask)
