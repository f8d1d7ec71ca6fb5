"""What counts as known one hour before a scheduled departure, on a handful of made-up flights and on the real ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raymlops.recipes.flights_features import (
    CATEGORICAL,
    NUMERIC,
    WEATHER,
    _data_folder,
    _read_csv,
    features,
)

MIDNIGHT = pd.Timestamp("2013-03-05 00:00", tz="America/New_York")


def flights(*rows, day=MIDNIGHT):
    """Make flights of (scheduled "HH:MM", departure delay or None, arrival delay or None, origin, carrier)."""
    table = []
    for time, departed, arrived, origin, carrier in rows:
        hour, minute = map(int, time.split(":"))
        table.append(
            {
                "year": day.year,
                "month": day.month,
                "day": day.day,
                "hour": hour,
                "minute": minute,
                "time_hour": day.replace(hour=hour).tz_convert("UTC"),
                "dep_delay": np.nan if departed is None else float(departed),
                "arr_delay": np.nan if arrived is None else float(arrived),
                "air_time": np.nan if arrived is None else 100.0,
                "origin": origin,
                "carrier": carrier,
                "dest": "ATL",
                "distance": 746,
            }
        )
    return pd.DataFrame(table)


def weather(*temps, first=MIDNIGHT, origin="JFK"):
    """Make one record an hour from ``first``, whose temperatures are given, None for a record that is not there."""
    rows = [
        dict.fromkeys(WEATHER, 1.0)
        | {"origin": origin, "time_hour": first.tz_convert("UTC") + pd.Timedelta(hours=h), "temp": t}
        for h, t in enumerate(temps)
        if t is not None
    ]
    return pd.DataFrame(rows)


NO_WEATHER = weather(0.0, first=MIDNIGHT - pd.Timedelta(days=30))


def test_recent_delays_are_of_flights_that_left_by_the_moment():
    """Asked at 11:00 of a flight at 12:00: 8:30+20 and 10:30+30 have left in the 3 hours before, 10:40+30 has not."""
    table = features(
        flights(
            ("12:00", 0, 0, "JFK", "B6"),
            ("08:30", 20, 0, "JFK", "B6"),
            ("10:30", 30, 0, "JFK", "AA"),
            ("10:40", 30, 0, "JFK", "B6"),
            ("10:00", 500, 0, "LGA", "B6"),
        ),
        NO_WEATHER,
    )
    assert table["origin_delay"][0] == 25.0  # (20 + 30) / 2: one that leaves in the very minute of asking has left
    assert table["carrier_delay"][0] == 20.0


def test_departures_before_the_window_are_forgotten():
    """Asked at 11:00, the window opens after 8:00: a departure at 8:00 is out, one at 8:01 is in."""
    table = features(
        flights(("12:00", 0, 0, "JFK", "B6"), ("08:00", 0, 0, "JFK", "B6"), ("08:01", 0, 0, "JFK", "AA")), NO_WEATHER
    )
    assert table["origin_delay"][0] == 0.0
    assert np.isnan(table["carrier_delay"][0])


def test_waiting_is_the_share_that_was_due_and_has_not_left():
    """Due by 11:00: one gone early, one gone late, one still waiting, one to be cancelled: 2 of 4."""
    table = features(
        flights(
            ("12:00", 0, 0, "JFK", "B6"),
            ("09:00", -5, 0, "JFK", "B6"),
            ("09:30", 60, 0, "JFK", "B6"),
            ("10:30", 31, 0, "JFK", "B6"),
            ("10:50", None, None, "JFK", "B6"),
            ("11:01", 0, 0, "JFK", "B6"),
        ),
        NO_WEATHER,
    )
    assert table["origin_waiting"][0] == 0.5


def test_windows_reach_over_midnight():
    """A flight at 1:30 is asked about at 0:30, when one due at 23:00 the day before has left 45 minutes late."""
    day = MIDNIGHT + pd.Timedelta(days=1)
    both = pd.concat([flights(("01:30", 0, 0, "JFK", "B6"), day=day), flights(("23:00", 45, 0, "JFK", "B6"))])
    assert features(both, NO_WEATHER)["origin_delay"][0] == 45.0


def test_windows_count_real_hours_when_the_clocks_change():
    """On 10 March 2013 there was no 2:00: asked at 5:00, three hours before is 1:00, so 0:45 is out and 1:15 is in."""
    day = pd.Timestamp("2013-03-10 00:00", tz="America/New_York")
    rows = [("06:00", 0, 0, "JFK", "B6"), ("00:45", 0, 0, "JFK", "B6"), ("01:15", 10, 0, "JFK", "B6")]
    assert features(flights(*rows, day=day), NO_WEATHER)["origin_delay"][0] == 10.0


@pytest.mark.parametrize(
    ("departure", "expected"),
    [
        ("12:00", 10.0),  # asked at 11:00, when the hour from 10:00 has just ended
        ("12:59", 10.0),  # asked at 11:59, in the middle of the hour from 11:00
        ("13:00", 11.0),
    ],
)
def test_weather_is_of_the_last_hour_that_had_ended(departure, expected):
    """The record of an hour is known when that hour is over, not while it lasts."""
    table = features(flights((departure, 0, 0, "JFK", "B6")), weather(*map(float, range(24))))
    assert table["temp"][0] == expected


def test_weather_gaps_are_filled_for_three_hours_and_then_missing():
    """Records end at 6:00 to 7:00: still used when asked until 10:59, missing from 11:00."""
    records = weather(*map(float, range(7)))
    rows = [(time, 0, 0, "JFK", "B6") for time in ("11:59", "12:00")]
    assert features(flights(*rows), records)["temp"].tolist() == [6.0, pytest.approx(np.nan, nan_ok=True)]


def test_weather_of_another_airport_is_not_taken():
    """LGA without records has missing weather beside JFK's."""
    table = features(flights(("12:00", 0, 0, "LGA", "B6")), weather(*map(float, range(24))))
    assert np.isnan(table["temp"][0])


def test_departures_in_the_hour_count_the_schedule():
    """Cancelled flights were on the schedule too; the next hour and the other airport are not counted."""
    table = features(
        flights(
            ("12:00", 0, 0, "JFK", "B6"),
            ("12:59", None, None, "JFK", "AA"),
            ("13:00", 0, 0, "JFK", "B6"),
            ("12:30", 0, 0, "LGA", "B6"),
        ),
        NO_WEATHER,
    )
    assert table["origin_departures"].tolist() == [2, 2, 1, 1]


def test_label_is_late_from_fifteen_minutes_and_missing_without_an_arrival():
    """14 is on time, 15 is late, a cancelled flight is neither."""
    table = features(flights(*[("12:00", 0, arrived, "JFK", "B6") for arrived in (14, 15, None)]), NO_WEATHER)
    assert table["late"].tolist() == [0.0, 1.0, pytest.approx(np.nan, nan_ok=True)]


@pytest.mark.parametrize("now", ["2013-02-08 15:00", "2013-03-10 12:30", "2013-07-10 20:00", "2013-11-28 09:00"])
def test_no_feature_known_by_a_moment_changes_with_what_happens_after_it(now):
    """The future is replaced on the real flights: outcomes of all that had not left, and weather not yet observed."""
    folder = _data_folder()
    real, skies = _read_csv(folder, "flights"), _read_csv(folder, "weather")
    moment = pd.Timestamp(now, tz="America/New_York").tz_convert("UTC")
    near = (real["time_hour"] > moment - pd.Timedelta(days=3)) & (real["time_hour"] < moment + pd.Timedelta(days=2))
    real = real[near].reset_index(drop=True)
    changed, other_skies = _other_future(real, moment), _other_weather(skies, moment)
    before, after = features(real, skies), features(changed, other_skies)
    known = before["moment"] <= moment.timestamp() / 60
    assert 2000 < known.sum() < len(known) - 1000
    for name in (*CATEGORICAL, *NUMERIC):
        np.testing.assert_array_equal(before[name][known], after[name][known], err_msg=name)
    # The replacement did reach the features of later flights, so the test above could have failed.
    for name in ("origin_delay", "carrier_delay", "origin_waiting", "carrier_waiting", *WEATHER):
        assert not np.array_equal(before[name][~known], after[name][~known], equal_nan=True), name


def _other_future(real, moment):
    """Give every flight that had not left by the moment another departure after it, or cancel it."""
    rng = np.random.default_rng(0)
    frame = real.copy()
    scheduled = frame["time_hour"] + pd.to_timedelta(frame["minute"], unit="min")
    lead = ((moment - scheduled) / pd.Timedelta(minutes=1)).to_numpy()
    open_ = ~(frame["dep_delay"].to_numpy() <= lead)
    fate = np.floor(np.maximum(lead, -40)) + rng.integers(1, 400, len(frame))
    fate[rng.random(len(frame)) < 0.3] = np.nan
    frame.loc[open_, "dep_delay"] = fate[open_]
    # An arrival is known later than its departure; whoever is in the air at the moment gets another one, too.
    frame["arr_delay"] = rng.permutation(frame["arr_delay"].to_numpy())
    return frame


def _other_weather(skies, moment):
    """Replace the records of every hour that had not ended by the moment, and drop some of them."""
    rng = np.random.default_rng(1)
    frame = skies.copy()
    later = (frame["time_hour"] + pd.Timedelta(hours=1) > moment).to_numpy()
    for name in WEATHER:
        frame.loc[later, name] = rng.normal(size=later.sum())
    return frame[~later | (rng.random(len(frame)) < 0.9)].reset_index(drop=True)
