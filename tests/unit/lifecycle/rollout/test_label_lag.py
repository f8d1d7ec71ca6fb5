"""Whether labels come after their rows are removed, by a real log."""

from __future__ import annotations

from datetime import timedelta

import pytest
from labelled_answers import NOW, answer, label, log

from raymlops.lifecycle.rollout.label_lag import LateLabels, late_labels
from raymlops.predictions.labelled import load_labels
from raymlops.predictions.labels import Label
from raymlops.predictions.partition import Faults
from raymlops.storage.store import Store

HOUR = timedelta(hours=1)
THREE_DAYS = -3 * 24 * 60
"""In minutes from now."""


def late(folder, days, *, is_over=lambda: False):
    """Return what is said of the labels of the last hour by a log that keeps rows for so many days."""
    store = Store(str(folder))
    labels = load_labels(store, "m", Faults(), since=NOW - HOUR)
    fresh = labels.first_within(NOW - HOUR, None)
    return late_labels(store, "m", labels, fresh=fresh, retention_days=days, now=NOW, is_over=is_over)


@pytest.mark.parametrize(("days", "said"), [(2.0, LateLabels(2.0, 3.0)), (4.0, None)])
def test_labels_that_will_come_after_their_rows_are_removed(tmp_path, days, said):
    """Two of three came after three days, where rows are still there of a longer retention that was in force before."""
    log(tmp_path, answer("now"), *(answer(name, minute=THREE_DAYS) for name in "ab"))
    label(tmp_path, *(Label(name, 0, "1") for name in ("now", "a", "b")))
    assert late(tmp_path, days) == said


@pytest.mark.parametrize(("oldest", "said"), [(-20, LateLabels(1.0, None)), (-2, None)])
def test_labels_whose_rows_are_removed(tmp_path, oldest, said):
    """Two of three match no row of a whole day; of a log that began two hours ago they may be of rows before it."""
    log(tmp_path, answer("now"), answer("b", minute=oldest * 60))
    label(tmp_path, *(Label(name, 0, "1") for name in ("now", "gone", "gone too")))
    assert late(tmp_path, 1.0) == said


def test_labels_of_a_log_that_takes_too_long_are_not_said_to_be_late(tmp_path):
    """Of two hours one was read when the time was over."""
    log(tmp_path, answer("now"), *(answer(name, minute=THREE_DAYS) for name in "ab"))
    label(tmp_path, *(Label(name, 0, "1") for name in ("now", "a", "b")))
    assert late(tmp_path, 1.0, is_over=lambda: True) is None


@pytest.mark.parametrize(
    ("found", "late"), [(LateLabels(2.0, 3.0), "at least 3 d"), (LateLabels(2.0, None), "more than 2 d")]
)
def test_what_becomes_of_them_is_said_with_what_to_do(found, late):
    """By the median, or where that is not known by what the log keeps."""
    assert found.sentence() == (
        f"half of the labels of the last hour arrived {late} after their answers, but serve.log.retention_days is 2: "
        "labels of removed rows say nothing about quality; raise serve.log.retention_days, or set "
        "serve.rollout.quality_margin to null"
    )
