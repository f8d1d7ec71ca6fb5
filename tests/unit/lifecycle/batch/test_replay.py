"""Logged requests through a challenger: real logs, labels and bundles, answered in this process."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from echoed_log import bundle, label, log
from echoes import Constant, Echo, Gaps, Inverted, Percent
from labelled_answers import NOW

from raymlops.lifecycle.batch.replay import here, replay
from raymlops.lifecycle.batch.replay_piece import TrainedUntil
from raymlops.state.store import Deployment
from raymlops.storage.filesystem import root_of

DAY = timedelta(days=1)
ASKED = np.linspace(0.005, 0.995, 100)


@pytest.fixture
def champion(tmp_path):
    """Return version 1, which answers what it is asked; its log is beside its bundle."""
    return Deployment("m", 1, bundle(tmp_path), "run-1", "champion", {"log": {"enabled": True}})


def replayed(champion, challenger, *, since=NOW - DAY, until=NOW, **times):
    return replay(
        champion, challenger, log=root_of(champion.bundle.uri), since=since, until=until, answer=here, **times
    )


def trained(*, rows, labels):
    """Return that a challenger knew rows and labels until so long ago."""
    return TrainedUntil((NOW - rows).timestamp(), (NOW - labels).timestamp())


def checks(decision):
    return {check.name: check for check in decision.checks}


def test_the_same_answers_pass(champion, tmp_path):
    """100 rows in two hours: none fails, none gets another decision, and the answers lie as they lay."""
    log(tmp_path, ASKED[:50], ago_h=1)
    log(tmp_path, ASKED[50:], ago_h=3, rows=10)
    found = replayed(champion, bundle(tmp_path, Echo))

    assert found.passed
    assert checks(found)["answers logged requests"].detail == "0 of 100 rows that the champion answered failed"
    assert checks(found)["decides alike"].got == 0
    assert checks(found)["answers as the champion's"].got == 0
    assert any("no replayed request has a label" in note.lower() for note in found.notes)


def test_exchanged_classes_are_refused_with_numbers(champion, tmp_path):
    """All decisions but those near one half are the other ones."""
    log(tmp_path, ASKED)
    found = replayed(champion, bundle(tmp_path, Inverted))

    assert not found.passed
    check = checks(found)["decides alike"]
    assert (check.passed, check.got, check.detail) == (False, 1.0, "100 of 100 rows get another decision")


def test_half_of_the_answers_in_other_units_are_refused(champion, tmp_path):
    """50 of 100 are 51 to 100 where the champion's are .01 to .99: no decision is another one, and half lie alike."""
    log(tmp_path, ASKED)
    found = checks(replayed(champion, bundle(tmp_path, Percent)))

    assert found["decides alike"].passed
    assert found["answers as the champion's"].passed
    check = found["answers of the champion's size"]
    assert (check.passed, check.got) == (False, pytest.approx(0.5, abs=0.01))
    assert check.detail.startswith("p: 50.0% of its answers are further than ")


def test_one_answer_to_all_requests_is_refused(champion, tmp_path):
    """Rows in requests of 10: the champion told all 99 pairs of consecutive ones apart."""
    log(tmp_path, ASKED, rows=10)
    check = checks(replayed(champion, bundle(tmp_path, Constant)))["tells rows apart"]

    assert (check.passed, check.got) == (False, 1.0)
    assert check.detail == "99 of 99 pairs of rows to which the champion gave two answers get one"


def test_rows_that_it_does_not_answer_are_counted_one_by_one(champion, tmp_path):
    """10 of 100 are above .9; their batch is 100 rows, of which the other 90 are answered."""
    log(tmp_path, ASKED)
    check = checks(replayed(champion, bundle(tmp_path, Gaps)))["answers logged requests"]

    assert (check.passed, check.got) == (False, pytest.approx(0.1))
    assert check.detail.startswith("10 of 100 rows that the champion answered failed; NonFiniteError: Gaps.decode()")


def test_rows_of_a_sampled_log_count_by_their_weight(champion, tmp_path):
    """40 rows that stand for 4 each beside 40 whole ones: of 200 rows 160 are the sample's."""
    log(tmp_path, np.full(40, 0.95), ago_h=1, weight=4)
    log(tmp_path, np.full(40, 0.5), ago_h=3)
    check = checks(replayed(champion, bundle(tmp_path, Gaps)))["answers logged requests"]

    assert check.got == pytest.approx(160 / 200)


def test_copies_for_shadows_and_older_hours_are_left_out(champion, tmp_path):
    """10 rows of a shadow, 10 of two days ago, and 10 that count."""
    log(tmp_path, ASKED[:10], ago_h=1)
    log(tmp_path, ASKED[:10], ago_h=2, route="shadow")
    log(tmp_path, ASKED[:10], ago_h=48)
    detail = checks(replayed(champion, bundle(tmp_path, Echo)))["answers logged requests"].detail

    assert detail.startswith("0 of 10 rows")


def test_worse_answers_to_labelled_requests_are_refused(champion, tmp_path):
    """60 requests, whose label is what the champion said: it loses (.1)^2 each, the other one (.9)^2."""
    log(tmp_path, np.tile([0.1, 0.9], 30))
    label(tmp_path, [False, True] * 30)
    check = checks(replayed(champion, bundle(tmp_path, Inverted)))["not worse on labelled requests"]

    assert (check.passed, check.got) == (False, pytest.approx((0.81 - 0.01) / 0.01))
    assert check.detail.startswith("worse: +80.000 lost by the challenger")


def test_labels_that_come_a_week_late_are_compared(champion, tmp_path):
    """60 requests of eight days ago, labelled now, that no training knew; those of the last day have no label yet."""
    log(tmp_path, np.tile([0.1, 0.9], 30), ago_h=192)
    label(tmp_path, [False, True] * 30, ago_h=192)
    log(tmp_path, ASKED)
    found = replayed(champion, bundle(tmp_path, Inverted), trained_until=trained(rows=9 * DAY, labels=2 * DAY))
    check = checks(found)["not worse on labelled requests"]

    assert (check.passed, check.got) == (False, pytest.approx((0.81 - 0.01) / 0.01))
    assert found.notes[0].startswith("60 labelled rows since 2026-02-21 12:")
    assert checks(found)["decides alike"].detail == "160 of 160 rows get another decision"


def test_no_more_labelled_rows_than_needed_are_replayed_besides(champion, tmp_path, monkeypatch):
    """Four hours of 20 labelled rows each: 50 are enough, and the newest hours have them."""
    monkeypatch.setattr("raymlops.lifecycle.batch.replay.MOST_LABELLED", 50)
    for days in (8, 9, 10, 11):
        log(tmp_path, np.tile([0.1, 0.9], 10), ago_h=24 * days)
        label(tmp_path, [False, True] * 10, ago_h=24 * days, writer=f"{days}")
    found = replayed(champion, bundle(tmp_path, Echo), trained_until=trained(rows=99 * DAY, labels=2 * DAY))

    assert found.notes[0].startswith("50 labelled rows since 2026-02-19 12:")
    assert checks(found)["answers logged requests"].detail.startswith("0 of 50 rows")


@pytest.mark.parametrize("known", [{"rows": DAY, "labels": 2 * DAY}, {"rows": 9 * DAY, "labels": -DAY}])
def test_labelled_rows_that_training_may_have_known_do_not_count(champion, tmp_path, known):
    """Rows asked before the newest one that was trained on, or labelled before its label was known."""
    for ago_h in (2, 192):
        log(tmp_path, np.tile([0.1, 0.9], 30), ago_h=ago_h)
        label(tmp_path, [False, True] * 30, ago_h=ago_h, writer=f"{ago_h}")
    known = known if known["labels"] < DAY else {**known, "rows": timedelta(0)}
    found = replayed(champion, bundle(tmp_path, Inverted), trained_until=trained(**known))

    assert "not worse on labelled requests" not in checks(found)
    assert found.notes[-1].endswith("60 labelled rows are left out, which it may have been trained on.")


def test_labels_that_contradict_each_other_are_not_compared(champion, tmp_path):
    """Somebody says the opposite of each of 60 labels, and corrects none."""
    log(tmp_path, np.tile([0.1, 0.9], 30))
    label(tmp_path, [False, True] * 30)
    label(tmp_path, [True, False] * 30, writer="b")
    found = replayed(champion, bundle(tmp_path, Inverted))

    assert "not worse on labelled requests" not in checks(found)
    assert found.notes[-1].startswith("Labelled requests are not compared: 100% of the labels do not count")


def test_few_labels_keep_nothing_back(champion, tmp_path):
    """10 labelled requests, and 40 are needed."""
    log(tmp_path, np.tile([0.1, 0.9], 30))
    label(tmp_path, [False, True] * 5)
    check = checks(replayed(champion, bundle(tmp_path, Inverted)))["not worse on labelled requests"]

    assert check.passed
    assert "not enough labels: 10 labelled requests, and 40 are needed" in check.detail


def test_a_log_without_requests_passes_and_says_so(champion, tmp_path):
    """Nothing was asked in these hours, nor ever."""
    found = replayed(champion, bundle(tmp_path, Inverted))

    assert (found.passed, found.checks) == (True, ())
    assert found.notes == ("No request was logged in these hours, so that none was replayed.",)


def test_inputs_that_are_redacted_are_named(champion, tmp_path):
    """Nobody can ask what the log does not hold."""
    hidden = Deployment("m", 1, champion.bundle, "run-1", "champion", {"log": {"enabled": True, "redact": ["x"]}})
    found = replayed(hidden, bundle(tmp_path, Echo))

    assert not found.passed
    assert "serve.log.redact leaves x out of the log" in found.checks[0].detail


def test_a_champion_without_a_profile_of_answers_leaves_the_distributions_out(tmp_path):
    """A note says that they are not compared."""
    old = Deployment("m", 1, bundle(tmp_path, profiled=False), "run-1", "champion", {"log": {"enabled": True}})
    log(tmp_path, ASKED)
    found = replayed(old, bundle(tmp_path, Echo))

    assert "answers as the champion's" not in checks(found)
    assert any("has no profile of its answers" in note for note in found.notes)
