"""A sampled log of traffic with a timetable: what was drawn is no drift, and drift is seen in it."""

from __future__ import annotations

from collections import Counter as Counted

import numpy as np
import pytest

from raymlops.monitor.drift import judge
from raymlops.monitor.own_windows import by_time
from raymlops.monitor.profiled import column_counts
from raymlops.profiles.count import Counter
from raymlops.profiles.profile import Profile
from raymlops.profiles.reference import Chunk, reference_of

DAY, HOURS, REQUESTS = 86_400.0, 24, 30
TRAINED, JUDGED = 56, 12
SHARE = 0.25


def days(number, *, size, seed, first=0, shift=0.0):
    """Return an hourly job that asks in requests of ``size`` rows of one of five regions: times, columns, requests."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(number * HOURS * REQUESTS), size)
    hour = first * HOURS + request // REQUESTS
    columns = {
        "hour": (hour % HOURS).astype(float),
        "region": np.array([f"r{at}" for at in range(5)], object)[request % 5],
        "amount": rng.normal(size=len(request)) + shift,
        "price": np.exp(rng.normal(size=len(request))),
    }
    return hour * 3600.0 + rng.uniform(0, 3600, len(request)), columns, request


@pytest.fixture(scope="module", params=[1, 5])
def trained(request):
    times, columns, _ = days(TRAINED, size=request.param, seed=1)
    return request.param, reference_of(lambda: [Chunk(columns, len(times), times)], rows=len(times))


def sampled(reference, times, columns, request, *, seed):
    """Return the profiles of days of which one request in four is written."""
    kept = np.random.default_rng(seed).random(request[-1] + 1) < SHARE
    found, first = [], int(times.min() // DAY)
    for day in range(first, first + JUDGED):
        rows = np.flatnonzero(kept[request] & (times // DAY == day))
        counter = Counter(reference.layout)
        counter.add({name: each[rows] for name, each in columns.items()}, rows=len(rows), requests=request[rows])
        found.append(Profile.weighted({1 / SHARE: counter.profile()}, reference.layout))
    return found


def verdicts(reference, profiles):
    blocks, found = reference.blocks, []
    for at in range(1, len(profiles)):
        start = (TRAINED + at) * DAY
        own = by_time(blocks.rows, blocks.times[:-1], blocks.times[1:], window_s=(start, start + DAY))
        found.append(judge(column_counts(blocks, profiles[at - 1 : at + 1])[0], own))
    return found


def test_a_sample_of_a_timetable_is_no_drift(trained):
    """Own days are all alike; in a quarter of the requests hours and regions vary by what was drawn.

    Counted by rows, without what drawing adds, 9 and 10 of 33 days were an alarm.
    """
    size, reference = trained
    said = Counted()
    for seed in range(3):
        times, columns, request = days(JUDGED, size=size, seed=[2, seed], first=TRAINED)
        said.update(one.outcome for one in verdicts(reference, sampled(reference, times, columns, request, seed=seed)))
    assert set(said) <= {"ok", "warn", "alarm"}
    assert said["alarm"] <= 1
    assert said["warn"] <= 4


def test_a_shift_is_seen_in_a_sample_by_its_requests(trained):
    """Half a standard deviation of rows, with some 180 requests a day."""
    size, reference = trained
    times, columns, request = days(JUDGED, size=size, seed=3, first=TRAINED, shift=0.5)
    found = verdicts(reference, sampled(reference, times, columns, request, seed=3))
    assert sum(one.outcome == "alarm" for one in found) > JUDGED // 2
    assert {name for one in found if one.outcome == "alarm" for name in one.flagged} == {"amount"}
