"""Which labels count, for all five that judge or train by them: rollouts, quality, replay, bake and training."""

from __future__ import annotations

import re
from datetime import timedelta

import numpy as np
import pytest
from echoed_log import HOUR_S, RULE
from echoes import Echo
from labelled_answers import NOW
from stored import put
from tiny_bundle import contents_of

from raymlops.bundle.write import write_bundle
from raymlops.config.data import SkillSection
from raymlops.config.retrain import RetrainSection
from raymlops.errors import DataRefusedError
from raymlops.lifecycle.batch.replay import here, replay
from raymlops.lifecycle.loop.log_tables import log_tables
from raymlops.lifecycle.quality import answers as of_version
from raymlops.lifecycle.quality.model import QualityModel, ask_here
from raymlops.lifecycle.registration.quality import of_answers
from raymlops.lifecycle.retraining.compare import compared
from raymlops.lifecycle.rollout.label_losses import LabelLosses
from raymlops.lifecycle.rollout.loss_reader import Window as Step
from raymlops.monitor.replayed import Bounds
from raymlops.predictions.labelled import load_labels
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.partition import Faults
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings
from raymlops.records import ModelVersionRef
from raymlops.splits import Window
from raymlops.state.loop import Retraining
from raymlops.state.store import Deployment
from raymlops.state.versions import record_version
from raymlops.state.watch.incidents import record_window
from raymlops.state.watch.windows import JudgedWindow
from raymlops.storage.store import Store

SINCE = NOW - timedelta(hours=2)
GOOD = 38
"""Requests whose labels count: too few to compare versions, or to train on, which is said with their number."""
DOORS = ("rollout", "quality", "replay", "bake", "training")


def asked(number, *, name="r", callers="ab", minute=0, **fields):
    """Return requests of one row, of callers by turns, a minute or more into the hour before now."""
    at = NOW.timestamp() - HOUR_S + 60 * minute
    x = np.where(np.arange(number) % 4 < 2, 0.1, 0.9)
    return [
        RequestRecord(f"{name}{of}", at + of, 1, "champion", "native", 200, "", 1, 9, 0.1, 0.1)._replace(
            columns={"x": x[of : of + 1]}, outputs={"p": x[of : of + 1]}, caller=callers[of % len(callers)], **fields
        )
        for of in range(number)
    ]


class World:
    """A live version, its log and its labels, as five doors see it."""

    def __init__(self, state, folder, answers, *, most=None):
        truths = [False, True] * 40
        known = of_answers(RULE, [{"p": 0.9 if truth else 0.1} for truth in truths], truths)
        contents = contents_of(Echo(), loss=RULE.to_dict(), quality=known.to_dict())
        settings, bound = {"log": {"enabled": True}}, {"max_caller_share": most}
        bounds = {"monitor": {"skill": bound}, "retrain": bound}
        self.champion = Deployment("m", 1, write_bundle(folder, contents), "run-1", "champion", settings, **bounds)
        self.state, self.folder, self.bound = state, str(folder), bound
        put(state, "m", [self.champion])
        self.log(answers)
        self.label(answers)

    def log(self, answers, *, writer="w"):
        """Write what was answered."""
        settings = LogSettings(enabled=True, uri=self.folder)
        log = PredictionLog(settings, name="m", signature=Echo().signature(), writer=writer)
        log.take(answers)
        log.close()

    def label(self, answers, *, minutes_ago=30, is_false=False):
        """Label requests so long before now."""
        moment = NOW.timestamp() - 60 * minutes_ago
        kept = LabelLog(self.folder, name="m", writer=f"l{minutes_ago}{is_false}", now=lambda: moment)
        said = {one.request_id: str(bool(one.columns["x"][0] > 0.5) != is_false).lower() for one in answers}
        kept.add([Label(of, 0, text) for of, text in said.items()]).result(timeout=30)
        kept.close()

    def rollout(self):
        """Return how many labels count, or why none does; as all doors do."""
        step = Step(SINCE, None)
        found = LabelLosses(self.state)("m", [step], labelled=lambda: None).losses[step]
        return found[None].note if None in found else found[1].count

    def quality(self):
        rule, known = of_version.rule_of(self.champion), of_version.test_rows(self.champion)
        section = SkillSection(**self.bound)
        model = QualityModel("m", self.champion, SINCE, section, rule, known, self.folder, None, ask_here)
        labels = load_labels(Store(self.folder), "m", Faults(), since=SINCE)
        found = model.measure(labels, start=SINCE, stop=NOW, now=NOW)
        return found.refused or found.labelled

    def replay(self):
        times = {"since": SINCE, "until": NOW}
        bounds = Bounds(**self.bound)
        found = replay(self.champion, self.champion.bundle, log=self.folder, **times, answer=here, bounds=bounds)
        details = [check.detail for check in found.checks if check.name == "not worse on labelled requests"]
        return _number(r"not enough labels: (\d+) labelled requests", details[0]) if details else found.notes[-1]

    def bake(self):
        record_version(self.state, ModelVersionRef("m", 2, "run-2", self.champion.bundle), why="a test", now=NOW)
        window = JudgedWindow("m", "outputs", "skill", 1, SINCE, NOW, 1, "ok", "", 60, NOW)
        record_window(self.state, window, lambda _known: [])
        found = compared(self.state, self.champion, 2, since=SINCE, until=NOW, answer=here)
        return found.rows or found.reason

    def training(self):
        policy = RetrainSection(data="log", **self.bound)
        settings = policy.model_dump(mode="json")
        about = ("person", "ada", NOW, "a test", settings, "ada", "checking", NOW, NOW)
        one = Retraining("abc", "m", 1, "run-1", *about)
        with pytest.raises(DataRefusedError) as refused:
            log_tables(self.state, one, self.champion, policy=policy, window=Window(SINCE, NOW), label="label")
        return _number(r"^of (\d+) labelled rows there are", refused.value.message) or refused.value.message


def _number(pattern, text):
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def counts(world):
    return {door: getattr(world, door)() for door in DOORS}


@pytest.mark.parametrize(
    ("others", "judged", "trained_on"),
    [
        ([], 0, 0),
        (asked(2, name="e", route="pinned"), 0, 2),
        (asked(2, name="e", fallback_from=2), 0, 2),
        (asked(2, name="e", route="canary", version=2), 0, 2),
        (asked(2, name="e", route="shadow", version=2), 0, 0),
        (asked(2, minute=9), 0, 0),
        (asked(2, callers="ba", minute=9), 2, 2),
    ],
    ids=["none", "pinned", "for a canary", "by a canary", "copies", "ids used again", "ids of another caller"],
)
def test_answers_of_the_versions_own_route_count_once(state, tmp_path, others, judged, trained_on):
    """Training alone takes whatever a caller was answered; of an id that its caller used again all take the first."""
    found = counts(World(state, tmp_path, asked(GOOD - 2) + others))
    assert found == dict.fromkeys(DOORS, GOOD - 2 + judged) | {"training": GOOD - 2 + trained_on}


def test_labels_that_are_not_to_be_believed_do_not_count(state, tmp_path):
    """Of 40 requests one has two labels that differ, and one had its label half an hour before it was asked."""
    contradicted, early = asked(1, name="c", callers="a"), asked(1, name="e", callers="a", minute=20)
    world = World(state, tmp_path, asked(GOOD, callers="a") + contradicted)
    world.label(contradicted, minutes_ago=20, is_false=True)
    world.log(early, writer="e")
    world.label(early, minutes_ago=70)
    assert counts(world) == dict.fromkeys(DOORS, GOOD)


def test_many_labels_that_do_not_count_are_no_verdict(state, tmp_path):
    """Four of 42 have two labels that differ: nobody knows who is right about the others."""
    contradicted = asked(4, name="c")
    world = World(state, tmp_path, asked(GOOD) + contradicted)
    world.label(contradicted, minutes_ago=20, is_false=True)
    found = counts(world)
    assert all("10% of the labels do not count, at most 5% may" in str(why) for why in found.values()), found


@pytest.mark.parametrize(
    ("callers", "most", "number"),
    [("aaab", None, GOOD), ("a" * 18 + "b", None, GOOD), ("a", 0.5, GOOD), ("aaaaaaabbb", 0.5, 20)],
)
def test_one_caller_may_have_most_of_the_labels_unless_it_is_bounded(state, tmp_path, callers, most, number):
    """28 of 38 are one's, half at most may be: of them as many as the other's 10 count. A single caller's count all."""
    assert counts(World(state, tmp_path, asked(GOOD, callers=callers), most=most)) == dict.fromkeys(DOORS, number)


def test_a_bound_that_too_few_callers_can_keep_to_is_no_verdict(state, tmp_path):
    """Two of at most .4 are not a whole."""
    found = counts(World(state, tmp_path, asked(GOOD, callers="aaab"), most=0.4))
    said = "of the labels, and one may send at most 40%, which 2 keys cannot keep to"
    assert all(said in str(why) for why in found.values()), found
