"""What of a window is beyond a bound. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from raymlops.config.data import QualitySection
from raymlops.lifecycle.watch.bounds.breach import WindowQuality, bounds_windows, breaches, silence
from raymlops.monitor.data_quality import ColumnQuality, Shares

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def window(rows=500, repeated=None, **nulls):
    columns = tuple(ColumnQuality(name, Shares(0.0, share)) for name, share in nulls.items())
    return WindowQuality(FIRST, FIRST, rows, None, columns, repeated)


def test_each_bound_is_judged_by_itself():
    """A column that is within its bound is not named, and a bound that is not set is none."""
    bounds = QualitySection(max_nulls=0.1, max_repeated=0.02, min_rows=1000)
    found = list(breaches(window(repeated=0.05, hour=0.2, day=0.05), bounds))
    assert [one.subject for one in found] == ["min_rows", "max_repeated", "hour (max_nulls)"]
    assert [one.text for one in found] == [
        "500 rows, fewer than 1,000",
        "5.00% of the rows repeat a request id, more than 2.00%",
        "missing: 20.0%, more than 10.0%",
    ]
    assert found[2].finding("then").message == "then: hour, missing: 20.0%, more than 10.0% (max_nulls)"
    assert list(breaches(window(rows=0, hour=1.0), QualitySection())) == []


def test_rare_texts_are_bounded_beside_those_of_training():
    """A free text has two thirds of them in training: 66.9% is as usual, 72.1% is 5.4 points more.

    In few rows 2 points of these may be chance.
    """
    bounds = QualitySection(max_new_categories=0.05)

    def found(after, chance=0.0):
        column = ColumnQuality("note", Shares(0.0, 0.0), new_categories=Shares(0.667, after, chance))
        return [one.text for one in breaches(WindowQuality(FIRST, FIRST, 500, None, (column,), None), bounds)]

    assert found(0.669) == []
    (text,) = found(0.721)
    assert text == "texts that training has not, or hardly: 72.1%, more than 5.0% beside the 66.7% of training"
    assert found(0.721, 0.02) == []
    assert found(0.741, 0.02) == [f"{text.replace('72.1%', '74.1%')} and 2.0% of chance"]


def test_silence_has_a_bound_of_its_own():
    """It is one of the time since, not of windows."""
    bounds = QualitySection(max_silence_h=6)
    assert silence(6.0, bounds) is None
    assert silence(6.5, bounds).text == "no row for 6.5 h, more than 6"
    assert silence(48.0, QualitySection()) is None
    assert not bounds_windows(bounds)
    assert bounds_windows(QualitySection(min_rows=1))
