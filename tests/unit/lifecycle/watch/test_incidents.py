"""What becomes of incidents by verdicts and decisions. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.errors import RefusedError
from raymlops.lifecycle.watch.incidents import acknowledge, file_verdict, rebaselined, retire
from raymlops.lifecycle.watch.window_drift import FEW_ROWS
from raymlops.state.watch.incidents import Known
from raymlops.state.watch.windows import JudgedWindow

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = ("hour", "day", "carrier")


def window(at, outcome, *, hours=24, kind="drift"):
    """Return a judged window; of outcome ``few`` it waits for rows."""
    start = FIRST + at * timedelta(hours=hours)
    stop = start + timedelta(hours=hours)
    outcome, why = ("waiting", FEW_ROWS) if outcome == "few" else (outcome, "why")
    return JudgedWindow("m", "inputs", kind, 0, start, stop, 3, outcome, why, 1_000, stop)


class History:
    """The windows of one cause, judged one after the other, as the state keeps them."""

    def __init__(self, hours=24):
        self.hours = hours
        self.known = Known()
        self.incidents, self.messages, self.actions, self.at = {}, [], [], 0

    def judge(self, outcome, columns=("hour",)):
        found = window(self.at, outcome, hours=self.hours)
        self.at += 1
        self.took(file_verdict(found, columns if outcome == "alarm" else (), self.known), outcome, found)
        return self

    def took(self, filed, outcome="", found=None):
        self.actions += [filed.action] if filed.action else []
        self.messages += [filed.message.id] if filed.message else []
        if filed.incident is not None:
            self.incidents[filed.incident.id] = filed.incident
        if filed.incident is None or filed.incident.closed_at is not None:
            self.known = Known()
            return
        alarm = outcome == "alarm"
        told = {one.rpartition("-")[2] for one in self.messages if one.startswith(filed.incident.id)}
        since = () if alarm or found is None else (*self.known.since, found)
        self.known = Known(filed.incident, since, frozenset(told), found if alarm else self.known.window)


class Bounds(History):
    """Those of windows by bounds, which a person may acknowledge."""

    def judge(self, outcome, columns=()):
        found = window(self.at, outcome, kind="quality")
        self.at += 1
        self.took(file_verdict(found, columns, self.known), outcome, found)
        return self

    def acknowledge(self):
        filed, last = acknowledge(self.known, now=FIRST, actor="ada", why="known"), self.known.window
        self.took(filed, "alarm", last)
        return self

    def told(self):
        return [one.rpartition("-")[2] for one in self.messages]


def test_an_incident_from_its_first_window_to_its_last():
    """Only an alarm opens one; it extends by alarms, gets worse once, and is over after two quiet windows running."""
    history = History()
    for outcome in ("ok", "warn", "insufficient", "waiting"):
        history.judge(outcome)
    assert (history.incidents, history.actions) == ({}, [])
    history.judge("alarm").judge("alarm").judge("alarm", ("hour", "day")).judge("alarm", ("carrier",))
    (incident,) = history.incidents.values()
    assert (incident.windows, incident.columns) == (4, ("hour", "day", "carrier"))
    assert (incident.opened_at, incident.last_at) == (FIRST + timedelta(days=4), FIRST + timedelta(days=7))
    for outcome in ("ok", "warn", "ok", "waiting", "ok"):
        history.judge(outcome)
    assert history.known.incident is not None
    history.judge("ok")
    (incident,) = history.incidents.values()
    assert incident.closed_at == FIRST + timedelta(days=14)
    assert history.actions == ["incident.open", "incident.escalate", "incident.close"]
    assert [one.rpartition("-")[2] for one in history.messages] == ["opened", "escalated", "closed"]


@pytest.mark.parametrize(("hours", "before"), [(24, 24), (168, 168), (6, 24)])
def test_an_alarm_by_two_windows_running_begins_with_the_first(hours, before):
    """Of windows shorter than a day with the same hours of the day before; so does what is normal from then on."""
    second = replace(window(8, "alarm", hours=hours), p_two=0.004)
    filed = file_verdict(second, ("hour",), Known())
    began = second.start - timedelta(hours=before)
    assert (filed.incident.opened_at, filed.incident.last_at) == (began, second.start)
    assert f"since {began:%Y-%m-%d %H:%M} UTC: two windows of" in filed.message.body
    assert f"--since {began:%Y-%m-%dT%H:%MZ}" in filed.message.body
    known = Known(filed.incident, window=second)
    assert acknowledge(known, now=second.stop, actor="ada", why="new").baseline.start == began
    for other in (replace(second, p_two=0.4), replace(second, kind="quality")):
        assert file_verdict(other, ("hour",), Known()).incident.opened_at == second.start


def test_windows_of_six_hours_are_quiet_for_two_days():
    """What drifts in the evening alone is one incident, however many evenings."""
    history = History(hours=6)
    for _ in range(3):
        for outcome in ("alarm", "ok", "ok", "ok"):
            history.judge(outcome)
    assert len(history.incidents) == 1
    for _ in range(4):
        history.judge("ok")
    assert history.known.incident is not None
    history.judge("ok")
    assert history.known.incident is None


def test_an_incident_ends_where_some_hours_of_the_day_cannot_be_judged():
    """Training has no nights: the other three windows of two days and a bit are eight that are ok."""
    history = History(hours=6).judge("alarm")
    for outcome in ("ok", "ok", "ok", "insufficient", "ok", "ok", "ok", "insufficient", "ok"):
        history.judge(outcome)
    assert history.known.incident is not None
    assert history.judge("ok").known.incident is None


@pytest.mark.parametrize("hours", [1, 6, 12])
def test_windows_with_too_few_rows_for_a_verdict_count_as_little_as_empty_ones(hours):
    """The nights have some rows and no verdict; the days are as usual again, each hour of them as often as wanted."""
    history, a_day = History(hours=hours), 24 // hours
    history.judge("alarm")
    for _ in range(2 * a_day - 1):
        history.judge("few").judge("ok")
    assert history.known.incident is not None
    history.judge("few").judge("waiting")
    for _ in range(2 * a_day):
        assert history.known.incident is not None
        history.judge("few").judge("ok")
    assert history.known.incident is None


def test_windows_of_another_length_do_not_count_to_those_that_are_quiet():
    """The afternoons were as usual while the mornings drifted; after a change each hour of the day has to be so."""
    history = History(hours=12)
    for _ in range(3):
        history.judge("alarm").judge("ok")
    history.hours, history.at = 24, 3
    assert history.judge("ok").known.incident is not None
    assert history.judge("ok").known.incident is None


def test_an_id_is_that_of_the_first_window_whoever_judges_it():
    """Two judges make the same incident and the same messages; another window makes another one."""
    one, two, later = History().judge("alarm"), History().judge("alarm"), History().judge("ok").judge("alarm")
    assert (one.incidents.keys(), one.messages) == (two.incidents.keys(), two.messages)
    assert one.incidents.keys().isdisjoint({*later.incidents, *History(hours=6).judge("alarm").incidents})


def test_what_a_person_says_closes_an_incident_once():
    """With a baseline of its columns from its first window on; a new baseline for all has none of its own."""
    history = History().judge("alarm", ("hour", "day")).judge("alarm")
    now = FIRST + timedelta(days=9)
    filed = acknowledge(history.known, now=now, actor="ada", why="new sensors")
    assert (filed.incident.closed_at, filed.incident.acknowledged_by, filed.action) == (
        now,
        "ada",
        "incident.acknowledge",
    )
    assert (filed.baseline.start, filed.baseline.columns, filed.baseline.why) == (FIRST, ("hour", "day"), "new sensors")
    assert (filed.message.what, filed.message.created_at) == ("closed", now)
    assert rebaselined(history.known, now=now, actor="ada", why="all").baseline is None
    closed = replace(history.known, incident=filed.incident)
    with pytest.raises(RefusedError, match="was closed at 2026-01-10 00:00 UTC, acknowledged by ada"):
        acknowledge(closed, now=now, actor="bob", why="me too")
    gone = retire(history.known, now=now, why="version 4 is live now")
    assert (gone.action, gone.why, gone.incident.acknowledged_at) == ("incident.close", "version 4 is live now", None)


def test_skew_has_no_baseline():
    """What is served is compared with what was served first anyway."""
    found = window(0, "alarm", kind="skew")
    incident = file_verdict(found, ("hour",), Known()).incident
    assert acknowledge(Known(incident, window=found), now=FIRST, actor="ada", why="known").baseline is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "ok", "warn", "alarm", "waiting"]), st.sampled_from(COLUMNS)), max_size=40
    )
)
def test_of_any_history_each_alarm_is_in_one_incident_and_each_message_is_written_once(outcomes):
    """An incident is as long as its alarms, and none is open after two quiet windows running."""
    history = History()
    for outcome, column in outcomes:
        history.judge(outcome, (column,))
    alarms = [column for outcome, column in outcomes if outcome == "alarm"]
    assert sum(one.windows for one in history.incidents.values()) == len(alarms)
    assert {column for one in history.incidents.values() for column in one.columns} == set(alarms)
    assert len(history.messages) == len(set(history.messages)) == len(history.actions)
    assert sum(one.endswith("opened") for one in history.messages) == len(history.incidents)
    open_ = [one for one in history.incidents.values() if one.closed_at is None]
    assert len(open_) <= 1
    if len(outcomes) > 1 and [outcome for outcome, _ in outcomes[-2:]] == ["ok", "ok"]:
        assert open_ == []


def test_what_is_beyond_a_bound_stays_open_until_it_is_within_it():
    """A person who knows of it makes nothing normal by that: the same is told no more, and what is further is."""
    found = window(0, "alarm", kind="quality")
    incident = file_verdict(found, ("carrier (max_nulls)",), Known()).incident
    filed = acknowledge(Known(incident, window=found), now=FIRST, actor="ada", why="a new feed")
    assert (filed.action, filed.message.what, filed.baseline) == ("incident.acknowledge", "acknowledged", None)
    assert (filed.incident.closed_at, filed.incident.acknowledged_by) == (None, "ada")
    known = Known(filed.incident, told=frozenset({"opened", "acknowledged"}), window=found)
    with pytest.raises(RefusedError, match="was acknowledged at 2026-01-01 00:00 UTC by ada"):
        acknowledge(known, now=FIRST, actor="bob", why="me too")
    same = file_verdict(window(1, "alarm", kind="quality"), ("carrier (max_nulls)",), known)
    assert (same.incident.id, same.incident.windows, same.message) == (incident.id, 2, None)
    assert file_verdict(window(1, "alarm", kind="quality"), ("min_rows",), known).message.what == "escalated"
    quiet = replace(known, since=(window(1, "ok", kind="quality"),))
    over = file_verdict(window(2, "ok", kind="quality"), (), quiet)
    assert (over.action, over.message.what) == ("incident.close", "closed")
    assert over.incident.closed_at is not None


def test_what_is_new_since_an_acknowledgement_is_told_and_counts():
    """Whoever knows of one column knows nothing of the next: each is told once, however it got worse before."""
    history = Bounds()
    history.judge("alarm", ("carrier (max_nulls)",)).judge("alarm", ("min_rows",)).judge(
        "alarm", ("early (max_nulls)",)
    )
    assert history.told() == ["opened", "escalated"]
    history.acknowledge().judge("alarm", ("carrier (max_nulls)", "min_rows", "early (max_nulls)"))
    assert history.told() == ["opened", "escalated", "acknowledged"]
    assert history.known.incident.acknowledged_by == "ada"
    distance = ("min_rows", "distance (max_out_of_range)")
    history.judge("alarm", distance)
    assert history.told()[3:] == ["escalated"]
    assert history.known.incident.acknowledged_at is history.known.incident.acknowledged_by is None
    history.judge("alarm", distance).judge("alarm", (*distance, "late (max_nulls)")).acknowledge()
    assert history.told()[4:] == ["escalated", "acknowledged"]
    history.judge("alarm", distance).judge("ok").judge("ok")
    assert history.told()[6:] == ["closed"]
    assert len(history.messages) == len(set(history.messages))


def test_silence_is_over_with_the_first_row():
    """However long it was: that one row came is no matter of chance."""
    found = window(0, "alarm", kind="silence", hours=7)
    incident = file_verdict(found, ("max_silence_h",), Known()).incident
    over = file_verdict(window(1, "ok", kind="silence", hours=1), (), Known(incident, window=found))
    assert over.incident.closed_at is not None
    assert over.message.what == "closed"
