"""A window as it is kept and read again."""

from datetime import UTC, datetime, timedelta

import pytest

from raymlops.lifecycle.watch.drift import DriftRecord
from raymlops.lifecycle.watch.window_drift import WindowDrift, from_stored, to_stored
from raymlops.monitor.drift import ColumnDrift, DriftVerdict
from raymlops.monitor.effects import Histogram

START = datetime(2026, 1, 5, tzinfo=UTC)


def test_what_the_report_shows_is_kept():
    """The band of own windows, and the bars of what moved; names are cut to 200 characters."""
    nan = (float("nan"),) * 5
    shape = Histogram((), ("A" * 300, "1 others"), (0.5, 0.5), (1.0, 0.0))
    column = ColumnDrift(
        "carrier", "share of AA", 9.0, None, 0.001, True, (), 0.3, (0.0, 1.0), (nan, nan), (), ("UA",), None, shape
    )
    verdict = DriftVerdict("warn", "unlike", 500, 30, 28.5, 0.03, None, (column,), 3.5, None)
    window = WindowDrift("inputs", "drift", "training", START, START + timedelta(days=1), 500, verdict, "", {"a": "b"})
    found = from_stored(to_stored(window, name="flights", version=3, now=START))
    assert found.verdict is not None
    (kept,) = found.verdict.columns
    assert kept.histogram == Histogram((), (f"{'A' * 199}…", "1 others"), (0.5, 0.5), (1.0, 0.0))
    assert (found.verdict.band, found.verdict.band_running) == (3.5, None)
    assert str(kept.quantiles) == str(column.quantiles)
    assert found.refused == {"a": "b"}


def test_the_side_of_an_unknown_quantile_is_kept():
    """JSON has null where no bin holds it; which side that is, is told again."""
    nan, known = (float("nan"),) * 5, (1.0, 2.0, 3.0, 4.0, 5.0)
    told = ("glucose", "location", -9.0, None, 0.001, True, (), 1.0, (0.0, 0.0), (known, nan), (), (), None, None)
    column = ColumnDrift(*told, (0.5, 6.0), ((0.0, 0.0), (1.0, 0.0)))
    verdict = DriftVerdict("warn", "unlike", 500, 30, 28.5, 0.03, None, (column,), 3.5, None)
    window = WindowDrift("inputs", "drift", "training", START, START + timedelta(days=1), 500, verdict)
    stored = to_stored(window, name="clinic", version=3, now=START)
    assert stored.details["columns"][0]["quantiles"][1] == [None] * 5
    assert "3 -> below 0.5" in from_stored(stored).text()


@pytest.mark.parametrize("waits", [True, False])
def test_a_reason_is_kept_as_text_that_any_database_takes(waits):
    """It names a category, which is anybody's text; Postgres refuses NUL."""
    verdict = None if waits else DriftVerdict("alarm", "share of A\0\nÄ", 500, 30, 28.5, 0.03, None, (), 3.5, None)
    stop = START + timedelta(days=1)
    window = WindowDrift("inputs", "drift", None, START, stop, 500, verdict, "share of A\0\nÄ")
    assert to_stored(window, name="flights", version=3, now=START).reason == r"share of A\u0000\u000aÄ"


def test_what_is_judged_in_no_window_is_told_once():
    """A slice of too few rows; what one window alone cannot judge is told there, and so is all of a single window."""
    few, lacks = {"carrier=aa": "too few rows"}, {"carrier=aa": "too few rows", "hour": "redacted"}
    verdict = DriftVerdict("ok", "like", 500, 30, 28.5, 0.5, None, (), 3.5, None)
    windows = tuple(
        WindowDrift("inputs", "drift", "training", START, START + timedelta(days=1), 500, verdict, "", refused)
        for refused in (few, lacks, few)
    )
    lines = [line.strip() for line in DriftRecord("flights", 3, 24, windows).text().splitlines()]
    assert [line for line in lines if "judged" in line] == [
        "not judged: hour: redacted",
        "inputs, in no window judged: carrier=aa: too few rows",
    ]
    assert "not judged: carrier=aa: too few rows" in DriftRecord("flights", 3, 24, windows[:1]).text()
