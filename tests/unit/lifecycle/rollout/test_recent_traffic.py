"""The last hour of a model's log, and what is said where there is none."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tiny_bundle import tiny_contents

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.bundle.write import write_bundle
from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.rollout.power import RecentTraffic
from raymlops.lifecycle.rollout.recent_traffic import outlook, recent_traffic
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings, in_sample
from raymlops.records import BundleRef
from raymlops.signature import Signature
from raymlops.state.store import Deployment

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
SIGNATURE = Signature((Column("x", "float"),), (Column("p", "float"), Column("yes", "bool")))
RULE = AnswerLoss("probability", "yes", ("p",), positive=True, negative=False)
SETTINGS = RolloutSection(slow_s=0.25)


@pytest.fixture
def champion(tmp_path):
    bundle = write_bundle(tmp_path, tiny_contents(signature=SIGNATURE, loss=RULE.to_dict()))
    return Deployment("m", 1, bundle, "run", "champion")


def answer(request_id, *, rows=1, version=1, route="champion", minute=-1, model_seconds=0.1):
    arrived = (NOW + timedelta(minutes=minute)).timestamp()
    served = RequestRecord(request_id, arrived, version, route, "native", 200, "", rows, 9, 0.1, model_seconds)
    outputs = {"p": np.full(rows, 0.5), "yes": np.ones(rows, bool)}
    return served._replace(columns={"x": np.ones(rows)}, outputs=outputs)


def log(tmp_path, *answers):
    written = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="m", signature=SIGNATURE, writer="a")
    written.take(answers)
    written.close()


def label(tmp_path, *labels, minute=0):
    kept = LabelLog(str(tmp_path), name="m", writer="a", now=(NOW + timedelta(minutes=minute)).timestamp)
    kept.add(labels).result(timeout=30)
    kept.close()


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
    logged = [name for name in names if in_sample(name, 0.5)][:2]
    log(tmp_path, answer(logged[0])._replace(weight=2.0), answer(logged[1], model_seconds=0.3)._replace(weight=2.0))
    left_out = [name for name in names if not in_sample(name, 0.5)][:3]
    label(tmp_path, *(Label(name, 0, "1") for name in (*logged, *left_out)), minute=-1)
    assert recent_traffic(half, SETTINGS, now=NOW) == RecentTraffic(4.0, 0.5, 2.0)


LATER_THAN_ROWS = (
    "half of the labels of the last hour arrived {} days after their answers or later, and serve.log.retention_days "
    "is {}: later ones match no row, and say nothing about quality"
)


@pytest.mark.parametrize(
    ("days", "said"),
    [(2, LATER_THAN_ROWS.format("3", "2")), (4, None), (None, None)],
)
def test_labels_that_will_come_after_their_rows_are_removed(champion, tmp_path, days, said):
    """Two of three came after three days, where rows are still there of a longer retention that was in force before."""
    kept = replace(champion, serve={"log": {"retention_days": days}})
    log(tmp_path, answer("now"), *(answer(name, minute=-3 * 24 * 60) for name in "ab"))
    label(tmp_path, *(Label(name, 0, "1") for name in ("now", "a", "b")))
    found = outlook(kept, SETTINGS, now=NOW)
    assert ([text for text in found if "retention_days" in text] or [None]) == [said]


@pytest.mark.parametrize(("oldest", "said"), [(-20, LATER_THAN_ROWS.format("more than 1", "1")), (-2, None)])
def test_labels_whose_rows_are_removed(champion, tmp_path, oldest, said):
    """Two of three match no row of a whole day; of a log that began two hours ago they may be of rows before it."""
    kept = replace(champion, serve={"log": {"retention_days": 1.0}})
    log(tmp_path, answer("now"), answer("b", minute=oldest * 60))
    label(tmp_path, *(Label(name, 0, "1") for name in ("now", "gone", "gone too")))
    found = outlook(kept, SETTINGS, now=NOW)
    assert ([text for text in found if "retention_days" in text] or [None]) == [said]


def test_labels_of_a_log_that_takes_too_long_are_not_said_to_be_late(champion, tmp_path):
    """Of two hours one was read when the time was over."""
    kept = replace(champion, serve={"log": {"retention_days": 1.0}})
    log(tmp_path, answer("now"), *(answer(name, minute=-3 * 24 * 60) for name in "ab"))
    label(tmp_path, *(Label(name, 0, "1") for name in ("now", "a", "b")))
    ticks = iter([0.0, 0.0, 11.0])
    assert recent_traffic(kept, SETTINGS, now=NOW, clock=lambda: next(ticks)).late is None


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
