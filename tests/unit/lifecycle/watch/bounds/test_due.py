"""What is beyond a bound is an incident, told once: by a real state, a real log and the profiles of a real bundle."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import served_days
import sqlalchemy as sa
from served_days import DAY, TODAY, bundle_of, deploy, serve
from served_requests import SIGNATURE, served
from stored import put

from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.watch.judge import Judge
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.settings import LogSettings
from raymlops.state.schema import audit, deployments
from raymlops.state.watch.incidents import incidents_of
from raymlops.state.watch.messages import messages_of
from raymlops.state.watch.windows import judged_windows

HOUR = timedelta(hours=1)


def bounded(state, *, at=TODAY - 90 * DAY, **quality):
    """Deploy the model anew with these bounds, by default long ago."""
    (item,) = state.deployments("flights")
    put(state, "flights", [], action="remove")
    put(state, "flights", [replace(item, created_at=at, monitor={"quality": quality})])


def redeployed(state, at, **quality):
    """Deploy the same version with other bounds, at a time."""
    (before,) = state.deployments("flights")
    after = replace(before, monitor={"quality": quality})
    event = {"before": [before.to_dict()], "after": [after.to_dict()], "why": "a test", "actor": "ada"}
    with state.writing() as connection:
        connection.execute(sa.update(deployments).values(monitor=after.monitor))
        connection.execute(sa.insert(audit).values(ts=at, action="deploy", subject="flights", **event))


def row_at(tmp_path, moment):
    """Log a request."""
    columns = served_days.rows(np.random.default_rng(0), 50)
    log = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="flights", signature=SIGNATURE, writer="one")
    log.take([served("one", rows=50, ts=moment.timestamp(), columns=columns, outputs={"late": np.zeros(50)})])
    log.close()


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


def said(state):
    """Return the first line of each message, the oldest first."""
    return [one.body.splitlines()[0] for one in messages_of(state, "flights")][::-1]


def test_an_incident_from_the_first_window_beyond_a_bound_to_two_within(live, url, tmp_path):
    """A day without any row is one with fewer than allowed; the day in which traffic began is none."""
    bounded(live, min_rows=100)
    for number, rows in enumerate((120, 120, 40, 30, 0, 120, 120), start=1):
        day(live, url, tmp_path, number, rows)
    assert of(live, "quality") == ["ok", "alarm", "alarm", "alarm", "ok", "ok"]
    (incident,) = incidents_of(live)
    assert (incident.kind, incident.side, incident.version) == ("quality", "inputs", 0)
    assert (incident.column, incident.windows) == ("min_rows", 3)
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
    assert incident.column == "carrier (max_new_categories)"
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


def test_bounds_are_of_windows_that_ended_since_they_are_there(live, url, tmp_path):
    """A week of small days before that is no alarm, nor is the last of them; the day on which they were set is one."""
    for number in range(1, 5):
        day(live, url, tmp_path, number, 40)
    redeployed(live, TODAY + 4 * DAY + 15 * HOUR, min_rows=100)
    Judge(live)(TODAY + 4 * DAY + 16 * HOUR)
    assert of(live, "quality") == []
    day(live, url, tmp_path, 5, 40)
    assert of(live, "quality") == ["alarm"]


def test_bounds_that_were_removed_and_set_again_are_of_windows_since_then(live, url, tmp_path):
    """Nobody asked of the days between; another bound of silence changes nothing of that."""
    redeployed(live, TODAY - DAY, min_rows=100)
    for number in (1, 2):
        day(live, url, tmp_path, number)
    redeployed(live, TODAY + 2 * DAY + 2 * HOUR)
    for number in (3, 4, 5, 6):
        day(live, url, tmp_path, number, 40)
    redeployed(live, TODAY + 6 * DAY + 2 * HOUR, min_rows=100)
    day(live, url, tmp_path, 7)
    redeployed(live, TODAY + 7 * DAY + 2 * HOUR, min_rows=100, max_silence_h=48)
    day(live, url, tmp_path, 8)
    assert [one.stop for one in judged_windows(live, "flights") if one.kind == "quality"][::-1] == [
        TODAY + number * DAY
        for number in (2, 7, 8)  # traffic began on the first day
    ]
    assert told(live) == []


def test_windows_that_a_controller_missed_are_judged_by_bounds_that_were_there(live, url, tmp_path):
    """As those of drift are; the day in which traffic began is none."""
    bounded(live, min_rows=100)
    serve(tmp_path, [0.0] * 4, number=40)
    LogMaintenance(live, url, then=Judge(live)).run(TODAY + HOUR)
    assert of(live, "quality") == ["alarm"] * 3


def test_what_is_new_is_kept_of_many_columns_beyond_their_bounds(live, url, tmp_path):
    """What an incident has already comes after it, however much more it rose."""
    redeployed(live, TODAY - DAY, max_new_categories=0.1)
    unknown = np.array(["XX"] * 24 + ["AA"] * 96, dtype=object)
    day(live, url, tmp_path, 1)
    day(live, url, tmp_path, 2, carrier=unknown)
    redeployed(live, TODAY + 2 * DAY, max_new_categories=0.1, max_out_of_range=0.05)
    day(live, url, tmp_path, 3, carrier=unknown, distance=np.array([0.0] * 110 + [1e6] * 10))
    window = next(one for one in judged_windows(live, "flights") if one.kind == "quality")
    assert [one["column"] for one in window.details["beyond"]] == ["distance", "carrier"]


def test_silence_is_an_incident_until_the_first_row(live, tmp_path):
    """By the hour that is looked at; told once however long it lasts, and anew the next time."""
    bounded(live, max_silence_h=6)
    serve(tmp_path, [0.0])  # at noon of the day before: its hour ends at 13:00
    for hours in (18, 20, 21, 30):
        Judge(live)(TODAY - DAY + hours * HOUR)
    assert of(live, "silence") == ["alarm"]
    (incident,) = incidents_of(live, open_only=True)
    assert (incident.kind, incident.opened_at) == ("silence", TODAY - DAY + 13 * HOUR)
    serve(tmp_path, [0.0], until=TODAY + DAY, seed=3)
    Judge(live)(TODAY + 12.5 * HOUR)
    assert of(live, "silence") == ["alarm", "ok"]
    assert told(live) == ["opened", "closed"]
    Judge(live)(TODAY + 20 * HOUR)
    assert of(live, "silence") == ["alarm", "ok", "alarm"]
    assert len(incidents_of(live)) == 2


def test_the_longest_silence_that_a_bound_allows_is_an_alarm_once_it_is_exceeded(live, tmp_path):
    """The last hour with rows ends at 13:00: two days later nothing is, half an hour after that it is 48.5 hours."""
    bounded(live, max_silence_h=48)
    serve(tmp_path, [0.0])
    end = TODAY - DAY + 13 * HOUR
    Judge(live)(end + 48 * HOUR)
    assert of(live, "silence") == []
    Judge(live)(end + 48.5 * HOUR)
    assert of(live, "silence") == ["alarm"]


def test_a_model_that_has_just_been_deployed_is_not_silent(live, tmp_path):
    """Nobody can have asked it before it was there, whatever came long ago."""
    serve(tmp_path, [0.0])
    (item,) = live.deployments("flights")
    put(live, "flights", [], action="remove")
    put(live, "flights", [replace(item, created_at=TODAY + 5 * HOUR, monitor={"quality": {"max_silence_h": 6}})])
    Judge(live)(TODAY + 10 * HOUR)
    assert of(live, "silence") == []
    Judge(live)(TODAY + 12 * HOUR)
    assert of(live, "silence") == ["alarm"]


def test_another_version_ends_no_silence(live, tmp_path, trained):
    """It is deployed to mend it, and no row comes."""
    bounded(live, max_silence_h=6)
    serve(tmp_path, [0.0])
    Judge(live)(TODAY - DAY + 20 * HOUR)
    (item,) = live.deployments("flights")
    deploy(live, bundle_of(tmp_path / "next", trained), version=4)
    (after,) = live.deployments("flights")
    put(live, "flights", [], action="remove")
    put(live, "flights", [replace(after, created_at=TODAY - DAY + 20.5 * HOUR, monitor=item.monitor)])
    for hours in (21, 24, 30):
        Judge(live)(TODAY - DAY + hours * HOUR)
    assert (of(live, "silence"), told(live)) == (["alarm"], ["opened"])


def test_how_silence_ends_is_said(live, tmp_path):
    """With rows; by a bound that allows it; or because the model was taken down."""
    bounded(live, max_silence_h=6)
    serve(tmp_path, [0.0])
    Judge(live)(TODAY - DAY + 20 * HOUR)
    redeployed(live, TODAY - DAY + 21 * HOUR, max_silence_h=12)
    Judge(live)(TODAY - DAY + 22 * HOUR)
    Judge(live)(TODAY + 2 * HOUR)
    row_at(tmp_path, TODAY + 2.5 * HOUR)
    Judge(live)(TODAY + 2.7 * HOUR)
    Judge(live)(TODAY + 20 * HOUR)
    put(live, "flights", [], action="remove")
    Judge(live)(TODAY + 21 * HOUR)
    assert said(live) == [
        "Alarm: no row since 2026-02-28 13:00 UTC.",
        "Over: monitor.quality allows it; there was no row since 2026-02-28 13:00 UTC.",
        "Alarm: no row since 2026-02-28 22:00 UTC.",
        "Over: rows came; there was no row since 2026-02-28 22:00 UTC.",
        "Alarm: no row since 2026-03-01 03:00 UTC.",
        "Over: flights was taken down; there was no row since 2026-03-01 03:00 UTC.",
    ]


def test_silence_is_told_after_a_clock_was_ahead(live, tmp_path):
    """By an hour, when it began: the row after that ends it, and it is told anew once it lasts as long again."""
    bounded(live, max_silence_h=6)
    serve(tmp_path, [0.0])
    began = TODAY - DAY
    Judge(live)(began + 20.1 * HOUR)
    row_at(tmp_path, began + 19.1 * HOUR)
    Judge(live)(began + 19.2 * HOUR)
    assert of(live, "silence") == ["alarm", "ok"]
    Judge(live)(began + 26.2 * HOUR)
    assert of(live, "silence") == ["alarm", "ok", "alarm"]
    row_at(tmp_path, began + 27 * HOUR)
    Judge(live)(began + 27.2 * HOUR)
    assert of(live, "silence") == ["alarm", "ok", "alarm", "ok"]
    assert sorted(told(live)) == ["closed", "closed", "opened", "opened"]
