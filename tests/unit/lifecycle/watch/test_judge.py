"""The controller judges each window once: by a real state, a real log and the profiles of a real bundle."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from killed_judge import DiedError, dying_at, raised, rows
from served_days import DAY, TODAY, bundle_of, deploy, references, serve
from spread import at_most, spread
from stored import put

from raymlops.config.schema import MonitorSection
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.watch.drift import judged
from raymlops.lifecycle.watch.judge import Judge, judge_due
from raymlops.lifecycle.watch.messaging.tell import tell_incidents
from raymlops.state.schema import audit
from raymlops.state.store import State
from raymlops.state.watch.incidents import incidents_of, record_window
from raymlops.state.watch.messages import messages_of
from raymlops.state.watch.windows import JudgedWindow, judged_windows

HOUR = timedelta(hours=1)


def counted(state, url, now=TODAY + HOUR, *, then=lambda _now: None):
    """Count the hours that are over, and go on."""
    LogMaintenance(state, url, then=then).run(now)


def outcomes(state, *, side="inputs", kind="drift", name="flights"):
    """Return the outcomes of the windows that were judged, the oldest first."""
    found = [one for one in judged_windows(state, name) if (one.side, one.kind) == (side, kind)]
    return [one.outcome for one in found][::-1]


def test_windows_are_judged_once_as_they_end(live, url, tmp_path):
    """Each hour of a week the controller looks: a window a day, skew once, and an incident from alarm to quiet."""
    shifts = [0, 0, 0, 0, 0, 0.6, 0.6, 0.6, 0, 0, 0]
    for day in range(4, len(shifts) + 1):
        serve(tmp_path, shifts[:day][-1:], until=TODAY + day * DAY, seed=day)
        for hours in (0, 1, 2, 13):
            counted(live, url, TODAY + day * DAY + hours * HOUR, then=Judge(live))
    assert outcomes(live) == ["waiting", "ok", "warn", "alarm", "alarm", "ok", "ok", "ok"]
    assert outcomes(live, side="outputs") == ["waiting", *["ok"] * 7]
    assert (outcomes(live, kind="skew"), outcomes(live, side="outputs", kind="skew")) == (["ok"], ["ok"])
    (incident,) = incidents_of(live)
    assert (incident.column, incident.windows, incident.version) == ("distance", 2, 0)
    assert incident.opened_at == TODAY + 5 * DAY
    assert incident.closed_at == TODAY + 10 * DAY + HOUR
    assert [one.what for one in messages_of(live, "flights")] == ["closed", "opened"]
    events = [event.action for event in live.events("flights") if event.action.startswith("incident")]
    assert events == ["incident.close", "incident.open"]


def test_what_was_missed_is_judged_later_a_week_back(live, url, tmp_path):
    """The controller was away for 12 days: as many windows as it finds since a week ago, in order."""
    serve(tmp_path, [0] * 9 + [0.6] * 3)
    counted(live, url, then=Judge(live))
    assert outcomes(live) == ["ok"] * 4 + ["warn", "alarm", "alarm"]
    assert [one.what for one in messages_of(live, "flights")] == ["opened"]
    assert min(one.start for one in judged_windows(live, "flights") if one.kind == "drift") == TODAY - 7 * DAY


def test_two_judges_at_once_write_each_verdict_once(live, url, tmp_path):
    """Of a lease that was lost and of its successor: whoever comes second finds the row."""
    serve(tmp_path, [0] * 4 + [0.6] * 3)
    counted(live, url)
    ready = threading.Barrier(2)

    def judge():
        ready.wait()
        Judge(live)(TODAY + HOUR)

    threads = [threading.Thread(target=judge) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes(live) == ["waiting", "ok", "ok", "ok", "warn", "alarm", "alarm"]
    assert [one.windows for one in incidents_of(live)] == [2]
    assert [one.what for one in messages_of(live, "flights")] == ["opened"]


def judged_and_told(state):
    judge_due(state, "flights", now=TODAY + HOUR)
    tell_incidents(state, now=TODAY + HOUR)


@at_most()
def test_a_judgement_that_ends_anywhere_is_completed_by_the_next(live, url, tmp_path, most):
    """At each statement and commit of all windows that are due, and what follows: nothing is missing, nothing twice."""
    serve(tmp_path, [0] * 4 + [0.6] * 2)
    counted(live, url)
    with (
        closing(sqlite3.connect(tmp_path / "state.db")) as source,
        closing(sqlite3.connect(tmp_path / "due.db")) as due,
    ):
        source.backup(due)
    places = dying_at(live, -1, raised)
    judged_and_told(live)
    expected = rows(url)
    assert len(expected["messages"]) == 1
    for number in spread(range(places[0]), most):
        ended = f"sqlite:///{shutil.copy(tmp_path / 'due.db', tmp_path / f'{number}.db')}"
        with State.open(ended) as state:
            dying_at(state, number, raised)
            with pytest.raises(DiedError):
                judged_and_told(state)
        with State.open(ended) as state:
            judged_and_told(state)
        assert rows(ended) == expected, number
    assert places[0] > 80


def test_a_window_waits_for_hours_that_are_not_counted(live, url, tmp_path):
    """For a day, and the windows after it with it; then it has no verdict for good."""
    serve(tmp_path, [0] * 5)
    counted(live, url)
    folder = tmp_path / "predictions/flights/version=3" / f"date={TODAY - DAY:%Y-%m-%d}"
    (profile,) = folder.glob("**/profile.counts")
    profile.unlink()
    for hours in (1, 23):
        judge_due(live, "flights", now=TODAY + hours * HOUR)
        assert outcomes(live) == ["waiting", "ok", "ok", "ok"]
    judge_due(live, "flights", now=TODAY + 25 * HOUR)
    assert outcomes(live) == ["waiting", "ok", "ok", "ok", "waiting"]
    assert "not counted" in judged_windows(live, "flights")[0].reason


def test_a_version_that_is_replaced_takes_its_incidents_along(live, url, tmp_path, trained):
    """Skew was told once; the next version is judged for itself, and the old one's is over."""
    serve(tmp_path, [0.9] * 4)
    judge = Judge(live)
    counted(live, url, then=judge)
    (skew,) = incidents_of(live, "flights", open_only=True)
    assert (skew.kind, skew.side, skew.version) == ("skew", "inputs", 3)
    assert outcomes(live, kind="skew") == ["alarm"]
    assert outcomes(live) == ["waiting", "ok", "ok", "ok"]
    deploy(live, bundle_of(tmp_path, references(mean=0.9)), version=4)
    for day in (1, 2, 3):
        serve(tmp_path, [0.9], until=TODAY + day * DAY, version=4, seed=day)
        counted(live, url, TODAY + day * DAY + HOUR, then=judge)
    assert incidents_of(live, "flights", open_only=True) == []
    assert [one.outcome for one in judged_windows(live, "flights") if one.kind == "skew" and one.version == 4] == [
        "ok"
    ] * 2
    assert outcomes(live)[-2:] == ["ok", "ok"]
    assert [one.what for one in messages_of(live, "flights")] == ["closed", "opened"]


def test_a_model_that_is_taken_down_has_no_open_incident(live, url, tmp_path):
    """It is told that this is over, and why is on the record."""
    serve(tmp_path, [0.9] * 4)
    counted(live, url, then=Judge(live))
    put(live, "flights", [], action="remove")
    Judge(live)(TODAY + DAY)
    assert incidents_of(live, open_only=True) == []
    assert [event.why for event in live.events() if event.action == "incident.close"] == ["flights was taken down"]


def test_a_window_for_a_part_of_which_nothing_was_live_has_no_verdict(live, url, tmp_path):
    """Taken down and deployed again within it: its evening is no day, and nothing is compared with it."""
    serve(tmp_path, [0] * 4 + [0.9, 0, 0])
    there = [one.to_dict() for one in live.deployments("flights")]
    down, again = TODAY - 4 * DAY + 6 * HOUR, TODAY - 3 * DAY + 6 * HOUR
    with live.writing() as connection:
        for action, before, after, ts in (("remove", there, [], down), ("deploy", [], there, again)):
            event = {"action": action, "subject": "flights", "before": before, "after": after}
            connection.execute(sa.insert(audit).values(ts=ts, actor="me", why="a test", **event))
    counted(live, url, then=Judge(live))
    assert outcomes(live) == ["waiting", "ok", "ok", "waiting", "waiting", "ok", "ok"]
    assert outcomes(live, side="outputs") == outcomes(live)
    reasons = {(one.side, one.reason) for one in judged_windows(live, "flights") if "live" in one.reason}
    assert reasons == {
        ("inputs", "no version was live for a part of it"),
        ("outputs", "version 3 was not live, or got another share of the traffic, for a part of it"),
    }
    assert incidents_of(live) == []


def test_windows_in_which_a_share_changed_are_no_part_of_skew_nor_of_outputs(live, url, tmp_path, trained):
    """Canary of a tenth from noon to the second noon: the first whole days of its own are later ones."""
    deploy(live, bundle_of(tmp_path, trained), version=4)
    with live.writing() as connection:
        three, four = ({"version": one, "role": "warm", "weight": 0.0} for one in (3, 4))
        steps = (
            ([], [three | {"role": "champion"}]),
            ([three | {"role": "champion"}], [three | {"role": "champion"}, four | {"weight": 0.1}]),
            ([three | {"role": "champion"}, four | {"weight": 0.1}], [three, four | {"role": "champion"}]),
        )
        for day, (before, after) in enumerate(steps):
            event = {"action": "deploy", "subject": "flights", "before": before, "after": after}
            ts = TODAY - (7 - day) * DAY + 12 * HOUR
            connection.execute(sa.insert(audit).values(ts=ts, actor="me", why="a test", **event))
    serve(tmp_path, [0.9, 0.9, 0, 0, 0, 0], version=4)
    counted(live, url, then=Judge(live))
    skew = [one for one in judged_windows(live, "flights") if one.kind == "skew"]
    assert {(one.side, one.outcome, one.start) for one in skew} == {
        (side, "ok", TODAY - 3 * DAY) for side in ("inputs", "outputs")
    }
    assert outcomes(live, side="outputs") == ["waiting", "waiting", "ok", "ok", "ok", "ok"]
    assert incidents_of(live, open_only=True) == []


def test_a_model_that_cannot_be_judged_stops_no_other_one(live, url, tmp_path, trained):
    """Its bundle is damaged: that is told once, and flights is judged. One of an earlier release is no error."""
    damaged = bundle_of(tmp_path / "other", trained)
    deploy(live, damaged, name="damaged", version=1)
    next((tmp_path / "other").rglob("profiles.parquet")).write_bytes(b"damaged")
    serve(tmp_path, [0, 0, 0])
    judge = Judge(live)
    for hours in (1, 2, 3):
        counted(live, url, TODAY + hours * HOUR, then=judge)
    assert outcomes(live) == ["waiting", "ok", "ok"]
    told = [event for event in live.events("damaged") if event.action == "controller.error"]
    assert len([event for event in told if "was not judged" in event.why]) == 1


def test_a_call_that_runs_out_of_time_goes_on_with_the_next_one(live, url, tmp_path, trained):
    """The maintenance of logs runs in between; each window is judged once, and every model has its turn."""
    deploy(live, bundle_of(tmp_path, trained), name="also", version=3)
    for name in ("also", "flights"):
        serve(tmp_path, [0, 0, 0], name=name)
    counted(live, url)
    seconds = iter(range(0, 10**6, 400))
    judge = Judge(live, clock=lambda: next(seconds))
    for call in range(1, 30):
        judge(TODAY + call * HOUR)
        if call == 3:
            assert len(judged_windows(live, "also")) + len(judged_windows(live, "flights")) < 8
    for name in ("also", "flights"):
        assert outcomes(live, name=name) == outcomes(live, name=name, side="outputs") == ["waiting", "ok", "ok"]


def test_windows_are_as_long_as_the_version_was_deployed_with(state, url, tmp_path, trained):
    """Six hours, of which the one at noon has rows; a deployment of an earlier release has days."""
    deploy(state, bundle_of(tmp_path, trained), monitor={"window_h": 6})
    serve(tmp_path, [0, 0, 0])
    counted(state, url, then=Judge(state))
    starts = {(one.start.hour, (one.stop - one.start) / HOUR) for one in judged_windows(state, "flights")}
    assert starts == {(12, 6.0)}
    assert incidents_of(state) == []


def test_verdicts_are_kept_for_two_years(live):
    """Those of a model that is live no more, too."""
    for days in (800, 799, 700):
        start = TODAY - days * DAY
        old = JudgedWindow("gone", "inputs", "drift", 0, start, start + DAY, 3, "ok", "why", 500, start)
        assert record_window(live, old, lambda _known: [])
    Judge(live)(TODAY)
    assert [(TODAY - one.start).days for one in judged_windows(live, "gone")] == [700, 800]


def watch_by(state, **monitor):
    """Deploy the same version with other settings."""
    (item,) = state.deployments("flights")
    put(state, "flights", [replace(item, monitor=monitor)])


def test_after_a_change_of_length_only_what_comes_then_is_judged(live, url, tmp_path):
    """The mornings drifted. A week that was told is not told again, and the incident goes on until days are quiet."""
    judge = Judge(live)
    watch_by(live, window_h=12)
    for shift, hour in ((0.0, 6), (0.0, 18)):
        serve(tmp_path, [shift] * 10, until=TODAY + (hour - 12) * HOUR, seed=hour)
    for day, hour, shift in ((1, 6, 0.9), (1, 18, 0.0), (2, 6, 0.9), (2, 18, 0.0)):
        serve(tmp_path, [shift], until=TODAY + day * DAY + (hour - 12) * HOUR, seed=100 * day + hour)
    counted(live, url, TODAY + 2 * DAY + HOUR, then=judge)
    before = judged_windows(live, "flights")
    (first,) = incidents_of(live, open_only=True)
    watch_by(live, window_h=24)
    counted(live, url, TODAY + 2 * DAY + 2 * HOUR, then=judge)
    assert judged_windows(live, "flights") == before
    for day, still in ((3, 1), (4, 0)):
        for hour in (6, 18):
            serve(tmp_path, [0.0], until=TODAY + day * DAY + (hour - 12) * HOUR, seed=100 * day + hour)
        counted(live, url, TODAY + day * DAY + HOUR, then=judge)
        assert len(incidents_of(live, open_only=True)) == still
    assert [one.id for one in incidents_of(live)] == [first.id]
    watch_by(live, window_h=6)
    counted(live, url, TODAY + 4 * DAY + 2 * HOUR, then=judge)
    assert [one.what for one in messages_of(live, "flights")] == ["closed", "opened"]
    assert [event for event in live.events() if event.action == "controller.error"] == []


def test_skew_stays_as_it_was_judged_whatever_the_length_is_then(live, url, tmp_path):
    """The first days have been removed from the log since: what is left of it drifted, and is no skew."""
    serve(tmp_path, [0] * 4 + [0.9] * 3)
    counted(live, url, then=Judge(live))
    for day in range(7, 3, -1):
        shutil.rmtree(tmp_path / f"predictions/flights/version=3/date={TODAY - day * DAY:%Y-%m-%d}")
    watch_by(live, window_h=12)
    serve(tmp_path, [0.9], until=TODAY + DAY, seed=5)
    counted(live, url, TODAY + DAY + HOUR, then=Judge(live))
    assert outcomes(live, kind="skew") == ["ok"]
    assert outcomes(live)[-1] != "waiting"
    record = judged(live, "flights", now=TODAY + DAY + HOUR, monitor=MonitorSection(window_h=12))
    assert [one.outcome for one in record.windows if one.kind == "skew"] == ["ok", "ok"]
    assert [one.outcome for one in record.windows if (one.side, one.kind) == ("inputs", "drift")] != ["waiting"]
