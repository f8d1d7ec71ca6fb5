"""The facts of a window of inputs, by a real log and the profiles of a real bundle."""

from __future__ import annotations

from datetime import timedelta

import pytest
from served_days import DAY, TODAY, serve, serve_faulty

from raymlops.config.data import QualitySection
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.watch.bounds.facts import last_hour_end, window_facts
from raymlops.lifecycle.watch.live_model import live_model
from raymlops.lifecycle.watch.windows import place_of

HOUR = timedelta(hours=1)


def facts_of(state, url, *, bounds=None, **options):
    """Return the facts of the day before, which is counted first."""
    LogMaintenance(state, url).run(TODAY + HOUR)
    side = live_model(state, "flights").sides[0]
    at = place_of(TODAY, 86_400.0) - 1
    side.traffic.read(at, at)
    return window_facts(side, side.windows.within(at, at)[0], bounds or QualitySection(), **options)


def test_what_rose_beyond_chance_is_told(live, url, tmp_path):
    """Of 140 rows 24 are out of range, 24 have a new text and 6 none; 20 of 140 are repeats."""
    serve_faulty(tmp_path, until=TODAY)
    found = facts_of(live, url, usual_rows=120.0, repeats=True)
    assert (found.rows, found.repeated) == (140, pytest.approx(20 / 140))
    after = {one.column: one for one in found.columns}
    assert after["distance"].out_of_range.after == pytest.approx(24 / 140)
    assert after["carrier"].new_categories.after == pytest.approx(24 / 140)
    assert after["carrier"].nulls.after == pytest.approx(6 / 140)
    assert found.line() == (
        "data, 2026-02-28 00:00 to 2026-03-01 00:00 UTC: 140 rows (usually 120); missing: carrier 4.3%; "
        "texts that training has not, or hardly: carrier 17.1%; out of the range of training: distance 17.1%; "
        "14.3% repeat a request id"
    )


def test_repeats_are_read_on_request(live, url, tmp_path):
    """They take a pass over the rows."""
    serve_faulty(tmp_path, until=TODAY)
    assert facts_of(live, url).repeated is None


def test_of_traffic_like_training_no_column_is_told(live, url, tmp_path):
    """Nothing of it rose, and nothing is beyond a bound."""
    serve(tmp_path, [0.0])
    assert facts_of(live, url, bounds=QualitySection(max_nulls=0.1)).columns == ()


def test_the_last_hour_with_rows_is_looked_for_over_49_hours(live, tmp_path):
    """It begins at noon of the day before, and ends at 13:00; what is later than now is none."""
    serve(tmp_path, [0.0])
    traffic, noon = live_model(live, "flights").traffic, TODAY - DAY + 12 * HOUR
    assert last_hour_end(traffic, noon - HOUR) is None
    assert last_hour_end(traffic, noon + 49 * HOUR) == noon + HOUR
    assert last_hour_end(traffic, noon + 50 * HOUR) is None


def test_an_hour_without_a_file_of_rows_ends_no_silence(live, tmp_path):
    """A writer whose disk is full leaves a folder for each hour."""
    serve(tmp_path, [0.0])
    noon = TODAY - DAY + 12 * HOUR
    (tmp_path / f"predictions/flights/version=3/date={noon:%Y-%m-%d}/hour=15").mkdir()
    assert last_hour_end(live_model(live, "flights").traffic, TODAY) == noon + HOUR
