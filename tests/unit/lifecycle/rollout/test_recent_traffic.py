"""The last hour of a model's log, and what is said where there is none."""

from dataclasses import replace
from datetime import timedelta

import pytest
from labelled_answers import NOW, SIGNATURE, answer, label, log
from tiny_bundle import tiny_contents

from raymlops.answer_loss import AnswerLoss
from raymlops.bundle.write import write_bundle
from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.rollout.label_lag import LateLabels
from raymlops.lifecycle.rollout.power import RecentTraffic
from raymlops.lifecycle.rollout.recent_traffic import outlook, recent_traffic
from raymlops.predictions.labels import Label
from raymlops.predictions.settings import in_sample
from raymlops.records import BundleRef
from raymlops.state.store import Deployment

RULE = AnswerLoss("probability", "yes", ("p",), positive=True, negative=False)
SETTINGS = RolloutSection(slow_s=0.25)


@pytest.fixture
def champion(tmp_path):
    bundle = write_bundle(tmp_path, tiny_contents(signature=SIGNATURE, loss=RULE.to_dict()))
    return Deployment("m", 1, bundle, "run", "champion")


def test_requests_of_the_last_hour_are_counted_that_chance_gave_to_a_version(champion, tmp_path):
    """Four of them, one with three rows and one slow: neither pinned ones nor copies, nor what is older."""
    log(
        tmp_path,
        answer("a", rows=3),
        answer("b", minute=-59),
        answer("c", version=2, route="canary"),
        answer("d", model_seconds=0.3),
        answer("e", route="pinned"),
        answer("f", version=2, route="shadow"),
        answer("g", minute=-61),
    )
    assert recent_traffic(champion, SETTINGS, now=NOW) == RecentTraffic(4.0, 0.25, None)


def test_what_is_slow_in_the_outlook_is_what_will_be_in_the_rollout(champion, tmp_path):
    """A canary that is later than ``canary_timeout_s`` has not answered: of 2 s no answer is slow, of 0.2 s one is."""
    log(tmp_path, answer("a", model_seconds=0.3), answer("b", model_seconds=0.1))
    late = replace(champion, serve={"traffic": {"canary_timeout_s": 0.2}})
    slow = SETTINGS.model_copy(update={"slow_s": 2.0})
    assert [recent_traffic(one, slow, now=NOW).slow for one in (champion, late)] == [0.0, 0.5]


def test_labels_are_counted_by_request(champion, tmp_path):
    """Two requests, three rows; where they stopped an hour ago none, and eight days later they are not expected."""
    log(tmp_path, answer("a", rows=2), answer("b"))
    label(tmp_path, Label("a", 0, "1"), Label("a", 1, "1"), Label("b", 0, "1"), minute=-1)
    assert recent_traffic(champion, SETTINGS, now=NOW).labelled == 2.0
    assert recent_traffic(champion, SETTINGS, now=NOW + timedelta(hours=1)).labelled == 0.0
    assert recent_traffic(champion, SETTINGS, now=NOW + timedelta(days=9)).labelled is None
    ignored = SETTINGS.model_copy(update={"quality_margin": None})
    assert recent_traffic(champion, ignored, now=NOW).labelled is None


def test_a_request_of_a_sample_stands_for_others(champion, tmp_path):
    """Two logged ones in four, one of them slow, are four requests and two slow; of labels those with a logged row."""
    half = replace(champion, serve={"log": {"sample": 0.5}})
    names = [str(number) for number in range(100)]
    logged = [name for name in names if in_sample(name, 0.5, salt="s")][:2]
    log(tmp_path, answer(logged[0])._replace(weight=2.0), answer(logged[1], model_seconds=0.3)._replace(weight=2.0))
    left_out = [name for name in names if not in_sample(name, 0.5, salt="s")][:3]
    label(tmp_path, *(Label(name, 0, "1") for name in (*logged, *left_out)), minute=-1)
    found = recent_traffic(half, SETTINGS, now=NOW, state_id="s")
    assert found == RecentTraffic(4.0, 0.5, 2.0, answers=found.answers)
    assert found.answers.count == 2


def test_labels_that_will_come_after_their_rows_are_removed_are_in_the_outlook(champion, tmp_path):
    """Two of three came after three days, and rows are kept for two; kept forever, nothing is said."""
    log(tmp_path, answer("now"), *(answer(name, minute=-3 * 24 * 60) for name in "ab"))
    label(tmp_path, *(Label(name, 0, "1") for name in ("now", "a", "b")))
    for days, said in ((2, [LateLabels(2, 3.0).sentence()]), (None, [])):
        kept = replace(champion, serve={"log": {"retention_days": days}})
        assert [text for text in outlook(kept, SETTINGS, now=NOW) if "retention_days" in text] == said


def test_a_log_that_takes_too_long_is_extrapolated(champion, tmp_path):
    """The first half hour was read when the time was over: 30 requests a half hour are 60 an hour."""
    log(tmp_path, *(answer(f"{minute}", minute=minute) for minute in range(-60, -30)))
    ticks = iter([0.0, 11.0])
    found = recent_traffic(champion, SETTINGS, now=NOW, clock=lambda: next(ticks))
    assert found.requests == pytest.approx(60, rel=0.05)


def test_without_a_log_it_says_so(champion, tmp_path):
    """Nothing was asked yet, the log is off, or its storage is away: a deploy goes on all the same."""
    assert outlook(champion, SETTINGS, now=NOW)[0].startswith("no request in the last hour")
    off = Deployment("m", 1, champion.bundle, "run", "champion", {"log": {"enabled": False}})
    assert outlook(off, SETTINGS, now=NOW) == (
        "what the rollout can show is not known: the prediction log is off; set serve.log.enabled",
    )
    away = Deployment("m", 1, BundleRef("nosuch://logs/bundles/d", "d" * 64), "run", "champion")
    assert outlook(away, SETTINGS, now=NOW)[0].startswith("what the rollout can show is not known: 'nosuch://logs")
