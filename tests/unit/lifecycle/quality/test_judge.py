"""A live version is judged by its labelled answers: a real log, real labels, and a bundle with real test rows."""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import timedelta

import numpy as np
import pytest
from killed_judge import DiedError, dying_at, raised, rows
from labelled_days import AA, DAY, FIRST, answer_day, label_day, live
from spread import at_most, spread
from sqlalchemy import make_url

from raymlops.lifecycle.quality.facts import quality_facts
from raymlops.lifecycle.quality.judge import QualityJudge, judge_due
from raymlops.lifecycle.quality.model import quality_model
from raymlops.lifecycle.watch.messaging.tell import tell_incidents
from raymlops.state.store import State
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.messages import messages_of
from raymlops.state.watch.windows import judged_windows

HOUR = timedelta(hours=1)


@pytest.fixture
def days(state, tmp_path):
    """Return what answers days, labels them, and judges each hour at which something is due."""
    judge = QualityJudge(state)

    def run(first, last, *, lag=2 * HOUR, slope=1.5, **changes):
        for day in range(first, last):
            rows = answer_day(tmp_path, day, slope=slope, **changes)
            label_day(tmp_path, day, rows, after=lag)
        judge(FIRST + last * DAY + lag + 2 * DAY)
        return judged_windows(state, "flights", kind="skill")[::-1]

    return run


def test_a_model_that_is_as_it_was_is_called_so(state, tmp_path, days):
    """Twelve days: too few labels at first, then as before; skill is about that at registration, and nothing opens."""
    live(state, tmp_path)
    found = days(0, 12)
    assert [one.start for one in found] == [FIRST + day * DAY for day in range(12)]
    assert {one.outcome for one in found} <= {"insufficient", "ok"}
    assert found[-1].outcome == "ok", found[-1].reason
    assert found[-1].rows == 300
    assert found[-1].details["coverage"]["labelled"] == 1.0
    assert sum(one.details["low"] < 0 < one.details["high"] for one in found) >= 10
    assert found[-1].details["verdict"]["lost"] == pytest.approx(0.0, abs=0.06)
    assert incidents_of(state) == []
    facts = quality_facts(state, "flights", now=FIRST + 30 * DAY)
    assert (facts.version, facts.windows, facts.labelled_rows) == (3, 12, 3600)
    assert facts.verdict.outcome == "as before"
    assert facts.labels_half_lag_s == pytest.approx(14 * 3600, rel=0.1)
    assert facts.until == FIRST + 12 * DAY


def test_one_that_got_worse_is_an_incident_that_is_told_once(state, tmp_path, days):
    """From the fourth day on labels no longer depend on the feature; another turn extends the incident."""
    live(state, tmp_path)
    days(0, 3)
    found = days(3, 7, slope=-1.5)
    assert found[-1].outcome == "alarm"
    assert "of skill lost since window" in found[-1].reason
    (incident,) = incidents_of(state)
    assert (incident.kind, incident.side, incident.version, incident.column) == ("skill", "outputs", 3, "skill")
    assert incident.windows >= 2
    (message,) = messages_of(state, "flights")
    assert message.what == "opened"
    assert "raymlops quality flights" in message.body
    assert "incident.open" in [event.action for event in state.events("flights")]
    assert quality_facts(state, "flights", now=FIRST + 30 * DAY).verdict.outcome == "worse"


def test_a_window_waits_for_its_labels(state, tmp_path):
    """Labels a week after their day: nothing is judged before half as long again as nine of ten took."""
    live(state, tmp_path)
    rows = answer_day(tmp_path, 0)
    label_day(tmp_path, 0, rows, after=7 * DAY)
    judge = QualityJudge(state)
    judge(FIRST + 2 * DAY)
    judge(FIRST + 9 * DAY)
    assert judged_windows(state, "flights") == []
    judge(FIRST + 13 * DAY)  # nine of ten took 7.9 days at most: due 11.85 days after the day's end
    assert [one.rows for one in judged_windows(state, "flights")] == [300]


def test_how_long_it_waits_can_be_said(state, tmp_path):
    """With labels_within_h a window is judged then, without its labels too."""
    live(state, tmp_path, labels_within_h=3)
    rows = answer_day(tmp_path, 0)
    label_day(tmp_path, 0, rows, after=HOUR)
    answer_day(tmp_path, 1)
    judge = QualityJudge(state)
    judge(FIRST + DAY + 2.5 * HOUR)
    assert judged_windows(state, "flights") == []
    judge(FIRST + 2 * DAY + 4 * HOUR)
    assert [(one.outcome, one.rows) for one in judged_windows(state, "flights")] == [
        ("insufficient", 0),
        ("insufficient", 300),
    ]


def test_without_any_label_nothing_is_read_or_kept(state, tmp_path):
    """A month later there is no window: nobody sends labels."""
    live(state, tmp_path)
    answer_day(tmp_path, 0)
    QualityJudge(state)(FIRST + 30 * DAY)
    assert judged_windows(state, "flights") == []


def test_windows_without_labels_wait_for_the_first_that_has_some(state, tmp_path):
    """Labels begin on the third day: both days before it are passed over once it is due."""
    live(state, tmp_path)
    for day in (0, 1):
        answer_day(tmp_path, day)
    label_day(tmp_path, 2, answer_day(tmp_path, 2), after=HOUR)
    QualityJudge(state)(FIRST + 6 * DAY)
    assert [one.rows for one in judged_windows(state, "flights")] == [300, 0, 0]


def test_labels_of_unlike_answers_give_no_verdict(state, tmp_path):
    """Only answers above .3 are labelled: the window is kept with its reason, and counts for no verdict."""
    live(state, tmp_path)
    rows = answer_day(tmp_path, 0, number=1000)
    label_day(tmp_path, 0, rows, after=HOUR, chosen=rows["p"] > 0.3)
    QualityJudge(state)(FIRST + 4 * DAY)
    (found,) = judged_windows(state, "flights")
    assert found.outcome == "waiting"
    assert found.reason.startswith("labelled answers are unlike unlabelled ones of the same age")


def test_contradicting_labels_and_those_before_their_answer_do_not_count(state, tmp_path):
    """One in fifty has two labels that differ; the rest counts."""
    live(state, tmp_path)
    rows = answer_day(tmp_path, 0)
    label_day(tmp_path, 0, rows, after=HOUR)
    label_day(tmp_path, 0, rows, after=2 * HOUR, chosen=np.arange(300) % 50 == 0, flip=True)
    QualityJudge(state)(FIRST + 4 * DAY)
    (found,) = judged_windows(state, "flights")
    assert found.rows == 294
    assert found.details["notes"] == ["left out: 6 labels contradict each other"]


def test_a_caller_that_floods_the_labels_has_its_share(state, tmp_path):
    """One of three callers has nine tenths of the labelled rows: as many as the two others' count."""
    live(state, tmp_path, max_caller_share=0.5)
    for seed, number, caller in ((1, 100, "ours"), (2, 100, "theirs"), (3, 1800, "flood")):
        rows = answer_day(tmp_path, 0, number=number, seed=seed, caller=caller)
        label_day(tmp_path, 0, rows, after=HOUR, seed=seed, caller=caller)
    QualityJudge(state)(FIRST + 4 * DAY)
    (found,) = judged_windows(state, "flights")
    assert found.rows == 400
    assert found.details["notes"] == ["1,600 labels of callers with more than 50% of all are left out"]


def test_a_bound_of_skill_is_an_incident_of_its_own(state, tmp_path, days):
    """A model that is as it was, of skill .3, where .6 is asked for."""
    live(state, tmp_path, min=0.6)
    found = days(0, 3)
    assert found[-1].outcome == "alarm"
    assert [one.column for one in incidents_of(state)] == ["min"]


def test_other_metrics(state, tmp_path, days):
    """Of AUC skill is twice what it is above a half."""
    live(state, tmp_path, metric="auc")
    found = days(0, 4)
    assert found[-1].outcome in {"ok", "insufficient"}
    assert found[-1].details["skill"] == pytest.approx(0.6, abs=0.15)
    assert found[-1].details["expected_skill"] == pytest.approx(0.6, abs=0.15)


def test_slices_say_where(state, tmp_path, days):
    """Slices of the bundle have their skill; none is named where nothing changed."""
    live(state, tmp_path)
    (found,) = days(0, 1)
    (one,) = found.details["slices"]
    assert (one["name"], one["flagged"]) == (AA.name, False)
    assert one["clusters"] == pytest.approx(150, abs=30)


def test_copies_and_what_other_versions_answer_do_not_count(state, tmp_path):
    """Of a canary and of a shadow are other rows."""
    live(state, tmp_path)
    for seed, version, route in ((1, 3, "champion"), (2, 4, "canary"), (3, 3, "shadow"), (4, 3, "pinned")):
        rows = answer_day(tmp_path, 0, seed=seed, version=version, route=route)
        label_day(tmp_path, 0, rows, after=HOUR, seed=seed)
    QualityJudge(state)(FIRST + 4 * DAY)
    assert [one.rows for one in judged_windows(state, "flights")] == [300]


@at_most(10)
def test_a_judge_that_dies_at_any_statement_leaves_what_one_that_lives_does(tmp_path, state, url, most):
    """Two windows, of which the second is an alarm: taken again every row is there once."""
    live(state, tmp_path)
    for day in range(2):
        label_day(tmp_path, day, answer_day(tmp_path, day, number=200, slope=-1.5), after=HOUR)
    now, database = FIRST + 5 * DAY, make_url(url).database

    def judge(number, die=raised):
        copy = f"sqlite:///{shutil.copy(database, tmp_path / 'copy.db')}"
        with State.open(copy) as other:
            count = dying_at(other, number, die)
            with suppress(DiedError):
                judge_due(other, quality_model(other, "flights", now=now), now=now, actor="me")
                tell_incidents(other, now=now)
        with State.open(copy) as other:
            judge_due(other, quality_model(other, "flights", now=now), now=now, actor="me")
            tell_incidents(other, now=now)
        return count[0], rows(copy)

    state.close()
    count, expected = judge(-1)
    assert [len(expected[table]) for table in ("drift_windows", "incidents", "messages")] == [2, 1, 1]
    for number in spread(range(count), most):
        assert judge(number)[1] == expected, number
