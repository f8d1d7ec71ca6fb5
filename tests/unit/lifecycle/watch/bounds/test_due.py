"""What is beyond a bound is an incident, told once: by a real state, a real log and the profiles of a real bundle."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
from served_days import DAY, TODAY, serve
from stored import put

from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.watch.judge import Judge, judge_due
from raymlops.state.drift import incidents_of, judged_windows
from raymlops.state.messages import messages_of

HOUR = timedelta(hours=1)


def bounded(state, **quality):
    """Deploy the model anew with these bounds, long ago."""
    (item,) = state.deployments("flights")
    put(state, "flights", [], action="remove")
    put(state, "flights", [replace(item, created_at=TODAY - 90 * DAY, monitor={"quality": quality})])


def day(state, url, tmp_path, number, rows=120, **columns):
    """Serve a day, count it and judge what is due."""
    until = TODAY + number * DAY
    if rows:
        serve(tmp_path, [0.0], until=until, seed=number, number=rows, **columns)
    LogMaintenance(state, url, then=Judge(state)).run(until + HOUR)


def of(state, kind):
    """Return the outcomes of a kind, the oldest first."""
    return [one.outcome for one in judged_windows(state, "flights") if one.kind == kind][::-1]


def told(state):
    return [one.what for one in messages_of(state, "flights")][::-1]


def test_an_incident_from_the_first_window_beyond_a_bound_to_two_within(live, url, tmp_path):
    """A day without any row is one with fewer than allowed; the day in which traffic began is none."""
    bounded(live, min_rows=100)
    for number, rows in enumerate((120, 120, 40, 30, 0, 120, 120), start=1):
        day(live, url, tmp_path, number, rows)
    assert of(live, "quality") == ["ok", "alarm", "alarm", "alarm", "ok", "ok"]
    (incident,) = incidents_of(live)
    assert (incident.kind, incident.side, incident.version) == ("quality", "inputs", 0)
    assert (incident.columns, incident.windows) == (("min_rows",), 3)
    assert (incident.opened_at, incident.closed_at) == (TODAY + 2 * DAY, TODAY + 7 * DAY + HOUR)
    assert told(live) == ["opened", "closed"]
    assert [event.action for event in live.events("flights") if event.action.startswith("incident")] == [
        "incident.close",
        "incident.open",
    ]


def test_a_column_beyond_its_bound_is_named_with_what_is_allowed(live, url, tmp_path):
    """24 of 120 texts are none of training's."""
    bounded(live, max_new_categories=0.1)
    day(live, url, tmp_path, 1)
    day(live, url, tmp_path, 2, carrier=np.array(["XX"] * 24 + ["AA"] * 96, dtype=object))
    (incident,) = (one for one in incidents_of(live) if one.kind == "quality")
    assert incident.columns == ("carrier (max_new_categories)",)
    body = next(one.body for one in messages_of(live, "flights") if one.incident == incident.id)
    assert "- carrier: texts that training has not, or hardly: 20.0%, more than 10.0%\n" in body


def test_without_a_bound_nothing_is_kept_but_what_ends_an_incident(live, url, tmp_path):
    """A deploy without the bound leaves its windows within their bounds."""
    day(live, url, tmp_path, 1)
    assert of(live, "quality") == []
    bounded(live, min_rows=100)
    day(live, url, tmp_path, 2, 40)
    bounded(live)
    for number in (3, 4, 5):
        day(live, url, tmp_path, number)
    assert of(live, "quality") == ["alarm", "ok", "ok"]
    assert told(live) == ["opened", "closed"]


def test_bounds_are_of_windows_since_they_are_there(live, url, tmp_path):
    """A week of small days before that is no alarm; the newest window is judged."""
    for number in range(1, 5):
        day(live, url, tmp_path, number, 40)
    bounded(live, min_rows=100)
    day(live, url, tmp_path, 5)
    assert of(live, "quality") == ["ok"]


def test_silence_is_an_incident_until_the_first_row(live, tmp_path):
    """By the hour that is looked at; told once however long it lasts, and anew the next time."""
    bounded(live, max_silence_h=6)
    serve(tmp_path, [0.0])  # at noon of the day before: its hour ends at 13:00
    for hours in (18, 20, 21, 30):
        judge_due(live, "flights", now=TODAY - DAY + hours * HOUR)
    assert of(live, "silence") == ["alarm"]
    (incident,) = incidents_of(live, open_only=True)
    assert (incident.kind, incident.opened_at) == ("silence", TODAY - DAY + 13 * HOUR)
    serve(tmp_path, [0.0], until=TODAY + DAY, seed=3)
    judge_due(live, "flights", now=TODAY + 12.5 * HOUR)
    assert of(live, "silence") == ["alarm", "ok"]
    assert told(live) == ["opened", "closed"]
    judge_due(live, "flights", now=TODAY + 20 * HOUR)
    assert of(live, "silence") == ["alarm", "ok", "alarm"]
    assert len(incidents_of(live)) == 2


def test_the_longest_silence_that_a_bound_allows_is_an_alarm_once_it_is_exceeded(live, tmp_path):
    """The last hour with rows ends at 13:00: two days later nothing is, half an hour after that it is 48.5 hours."""
    bounded(live, max_silence_h=48)
    serve(tmp_path, [0.0])
    end = TODAY - DAY + 13 * HOUR
    judge_due(live, "flights", now=end + 48 * HOUR)
    assert of(live, "silence") == []
    judge_due(live, "flights", now=end + 48.5 * HOUR)
    assert of(live, "silence") == ["alarm"]


def test_a_model_that_has_just_been_deployed_is_not_silent(live, tmp_path):
    """Nobody can have asked it before it was there, whatever came long ago."""
    serve(tmp_path, [0.0])
    (item,) = live.deployments("flights")
    put(live, "flights", [], action="remove")
    put(live, "flights", [replace(item, created_at=TODAY + 5 * HOUR, monitor={"quality": {"max_silence_h": 6}})])
    judge_due(live, "flights", now=TODAY + 10 * HOUR)
    assert of(live, "silence") == []
    judge_due(live, "flights", now=TODAY + 12 * HOUR)
    assert of(live, "silence") == ["alarm"]
