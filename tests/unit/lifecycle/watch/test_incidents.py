"""What becomes of incidents by verdicts and decisions. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.errors import RefusedError
from raymlops.lifecycle.watch.incidents import acknowledge, file_verdict, known, rebaselined, retire, revoke
from raymlops.state.watch.incidents import unacknowledged
from raymlops.state.watch.windows import JudgedWindow

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
COLUMNS = ("hour", "day", "carrier")


def window(at, outcome, *, hours=24, kind="drift"):
    """Return a judged window."""
    start = FIRST + at * timedelta(hours=hours)
    stop = start + timedelta(hours=hours)
    return JudgedWindow("m", "inputs", kind, 0, start, stop, 3, outcome, "why", 1_000, stop)


class History:
    """The windows of one cause, judged one after the other, as the state keeps them."""

    def __init__(self, hours=24, kind="drift"):
        self.hours, self.kind = hours, kind
        self.incidents, self.actions, self.at = {}, [], 0

    @property
    def open(self):
        return [one for one in self.incidents.values() if one.closed_at is None]

    @property
    def columns(self):
        return {one.column for one in self.open}

    def judge(self, outcome, columns=("hour",), calm=None):
        found = window(self.at, outcome, hours=self.hours, kind=self.kind)
        self.at += 1
        for filed in list(file_verdict(found, columns if outcome == "alarm" else (), self.open, calm=calm)):
            self.took(filed)
        return self

    def took(self, filed):
        self.actions += [filed.action] if filed.action else []
        self.incidents[filed.incident.id] = filed.incident


def opened(*columns, **fields):
    return [one.incident for one in file_verdict(window(0, "alarm", **fields), columns or ("hour",), ())]


def test_an_incident_from_its_first_window_to_its_last():
    """Only an alarm opens one; it extends by alarms, and is over after two quiet windows running."""
    history = History()
    for outcome in ("ok", "warn", "insufficient", "waiting"):
        history.judge(outcome)
    assert (history.incidents, history.actions) == ({}, [])
    for outcome in ("alarm", "alarm", "ok", "alarm", "ok"):
        history.judge(outcome)
    (incident,) = history.open
    assert (incident.windows, incident.column) == (3, "hour")
    assert (incident.opened_at, incident.last_at) == (FIRST + 4 * DAY, FIRST + 7 * DAY)
    history.judge("ok")
    assert history.open == []
    assert history.incidents[incident.id].closed_at == FIRST + 10 * DAY
    assert history.actions == ["incident.open", "incident.close"]


def test_each_column_has_an_incident_whatever_else_is_open():
    """Four faults, one after the other, of which none ends: four incidents, each from its own first window."""
    history = History()
    columns = ()
    for column in ("age", "visits", "amount", "plan"):
        columns = (*columns, column)
        history.judge("alarm", columns).judge("alarm", columns)
    assert [(one.column, (one.opened_at - FIRST).days, one.windows) for one in history.open] == [
        *(("age", 0, 8), ("visits", 2, 6), ("amount", 4, 4), ("plan", 6, 2))
    ]
    assert history.actions == ["incident.open"] * 4


def test_a_column_is_over_while_another_one_is_an_alarm():
    """It was as usual for two days, and in the days between not judged or beyond the band of own windows."""
    history = History().judge("alarm", ("hour", "day"))
    history.judge("alarm", ("day",), {"hour": True, "day": False}).judge("alarm", ("day",), {"day": False})
    assert history.columns == {"hour", "day"}
    history.judge("alarm", ("day",), {"hour": False, "day": False})
    history.judge("alarm", ("day",), {"hour": True, "day": False})
    assert history.columns == {"hour", "day"}
    history.judge("alarm", ("day",), {"hour": True, "day": False})
    assert history.columns == {"day"}


def test_a_slice_that_moves_with_its_column_has_no_incident():
    """Where the column did not move it has one, which is the slice's."""
    history = History().judge("alarm", ("hour", "hour[carrier=AA]"))
    history.judge("alarm", ("hour[carrier=AA]", "day[carrier=AA]"))
    assert {one.column: one.windows for one in history.open} == {"hour": 2, "day[carrier=AA]": 1}


@pytest.mark.parametrize(("hours", "before"), [(24, 24), (168, 168), (6, 24)])
def test_an_alarm_by_two_windows_running_begins_with_the_first(hours, before):
    """Of windows shorter than a day with the same hours of the day before; so does what is normal from then on."""
    second = replace(window(8, "alarm", hours=hours), p_two=0.004)
    (filed,) = file_verdict(second, ("hour",), ())
    began = second.start - timedelta(hours=before)
    assert (filed.incident.opened_at, filed.incident.last_at) == (began, second.start)
    assert acknowledge(filed.incident, now=second.stop, actor="ada", why="new").baseline.start == began
    for other in (replace(second, p_two=0.4), replace(second, kind="quality")):
        (filed,) = file_verdict(other, ("hour",), ())
        assert filed.incident.opened_at == second.start


def test_a_column_that_slips_beside_one_that_moved_before_begins_now():
    """Two windows running are an alarm for the hour, by 9 of at least 5; the day was at 1 in the one before."""
    running = [{"column": "hour", "distance_running": 9.0}, {"column": "day", "distance_running": 1.0}]
    found = replace(window(8, "alarm"), p_two=0.004, details={"columns": running, "band_running": 5.0})
    began = {one.incident.column: one.incident.opened_at for one in file_verdict(found, ("hour", "day"), ())}
    assert began == {"hour": FIRST + 7 * DAY, "day": FIRST + 8 * DAY}


def test_windows_of_six_hours_are_quiet_for_two_days():
    """What drifts in the evening alone is one incident, however many evenings."""
    history = History(hours=6)
    for _ in range(3):
        for outcome in ("alarm", "ok", "ok", "ok"):
            history.judge(outcome)
    for _ in range(4):
        history.judge("ok")
    assert len(history.open) == len(history.incidents) == 1
    assert history.judge("ok").open == []


@pytest.mark.parametrize("outcome", ["insufficient", "waiting"])
@pytest.mark.parametrize("hours", [1, 6, 12])
def test_windows_without_a_verdict_count_as_little_as_empty_ones(hours, outcome):
    """The nights have none; the days are as usual again, each hour of them as often as wanted."""
    history, a_day = History(hours=hours).judge("alarm"), 24 // hours
    for _ in range(2 * a_day):
        assert history.judge(outcome).open
        history.judge("ok")
    assert history.open == []


def test_an_id_is_that_of_the_first_window_whoever_judges_it():
    """Two judges make the same incidents; another window, or column, makes another one."""
    one, two, later = History().judge("alarm"), History().judge("alarm"), History().judge("ok").judge("alarm")
    others = (later, History(hours=6).judge("alarm"), History().judge("alarm", ("day",)))
    assert one.incidents == two.incidents
    assert all(one.incidents.keys().isdisjoint(other.incidents) for other in others)


def test_what_a_person_says_is_normal_closes_its_incident_once():
    """With a baseline of its column from its first window on; a new baseline for all has none for it."""
    hour, day = opened("hour", "day")
    now = FIRST + 9 * DAY
    filed = acknowledge(hour, now=now, actor="ada", why="new sensors")
    after = filed.incident
    assert (after.closed_at, after.acknowledged_by, after.is_normal) == (now, "ada", True)
    assert filed.action == "incident.acknowledge"
    assert (filed.baseline.start, filed.baseline.columns, filed.baseline.why) == (FIRST, ("hour",), "new sensors")
    assert rebaselined(day, now=now, actor="ada", why="all").baseline is None
    for decide in (acknowledge, known):
        with pytest.raises(RefusedError, match="was closed at 2026-01-10 00:00 UTC, acknowledged by ada"):
            decide(after, now=now, actor="bob", why="me too")
    gone = retire(hour, now=now, why="version 4 is live now")
    assert (gone.action, gone.incident.closed_why) == ("incident.close", "version 4 is live now")
    assert not gone.incident.is_normal


def test_what_is_known_stays_open_until_it_is_over_by_itself():
    """Nothing is normal by that: it extends, and is over, as any other one."""
    history = History().judge("alarm")
    (incident,) = history.open
    filed = known(incident, now=FIRST + DAY, actor="ada", why="being mended")
    assert (filed.baseline, filed.action) == (None, "incident.known")
    history.took(filed)
    history.judge("alarm").judge("ok")
    (incident,) = history.open
    assert (incident.windows, incident.acknowledged_by) == (2, "ada")
    assert history.judge("ok").open == []
    assert not history.incidents[incident.id].is_normal


def test_what_was_said_is_taken_back():
    """Of what is normal and of what is known; it is open and untold. What nobody said, or is over, is refused."""
    (incident,) = opened()
    told = replace(incident, thread=incident.id, told="opened")
    for decide in (acknowledge, known):
        said = replace(decide(told, now=FIRST + DAY, actor="ada", why="x").incident, told="acknowledged")
        again = revoke(said, why="wrong")
        assert (again.incident, again.action, again.why) == (incident, "incident.revoke", "wrong")
    over = replace(known(told, now=FIRST, actor="ada", why="x").incident, closed_at=FIRST + DAY)
    for one in (told, over):
        with pytest.raises(RefusedError):
            revoke(one, why="wrong")


def test_skew_has_no_baseline():
    """What is served is compared with what was served first anyway; later windows do not end it."""
    (incident,) = opened(kind="skew")
    assert acknowledge(incident, now=FIRST, actor="ada", why="known").baseline is None
    assert list(file_verdict(window(1, "ok", kind="skew"), (), [incident])) == []


def test_what_is_beyond_a_bound_can_be_known_and_not_normal():
    """A bound says itself what is normal; another one is told whoever knows of the first."""
    history = History(kind="quality").judge("alarm", ("carrier (max_nulls)",))
    with pytest.raises(RefusedError):
        acknowledge(history.open[0], now=FIRST, actor="ada", why="a new feed")
    history.took(known(history.open[0], now=FIRST, actor="ada", why="a new feed"))
    history.judge("alarm", ("carrier (max_nulls)", "min_rows"))
    assert {one.column: one.acknowledged_by for one in history.open} == {
        "carrier (max_nulls)": "ada",
        "min_rows": None,
    }
    assert history.judge("ok").judge("ok").open == []


def test_silence_is_over_with_the_first_row():
    """However long it was: that one row came is no matter of chance."""
    (incident,) = opened("max_silence_h", kind="silence", hours=7)
    (over,) = file_verdict(window(1, "ok", kind="silence", hours=1), (), [incident])
    assert (over.incident.closed_at is not None, over.action) == (True, "incident.close")


def test_columns_that_nobody_acknowledged_are_told_from_the_others():
    """By the incidents of a window, also of columns that its verdict did not keep, and of those that are over."""
    hour, day, carrier = opened("hour", "day", "carrier")
    said = acknowledge(hour, now=FIRST + 9 * DAY, actor="ada", why="x").incident
    muted = known(day, now=FIRST, actor="ada", why="x").incident
    assert unacknowledged(["hour", "day", "hour[carrier=AA]"], [said, muted], start=FIRST) == ()
    assert unacknowledged(["hour", "new"], [said, muted], start=FIRST) == ("new",)
    assert unacknowledged(["hour"], [said, muted, carrier], start=FIRST) == ("carrier",)
    later = FIRST + 3 * DAY
    assert unacknowledged(["day"], [said, muted, carrier], start=later) == ()
    assert unacknowledged(["hour"], [said, muted], start=later) == ("hour",)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "ok", "warn", "alarm", "waiting"]), st.sampled_from(COLUMNS)), max_size=40
    )
)
def test_of_any_history_each_alarm_is_in_one_incident(outcomes):
    """At most one is open of a column, and none after two windows running in which it was quiet."""
    history = History()
    for outcome, column in outcomes:
        history.judge(outcome, (column,))
    alarms = [column for outcome, column in outcomes if outcome == "alarm"]
    for column in COLUMNS:
        ours = [one for one in history.incidents.values() if one.column == column]
        assert sum(one.windows for one in ours) == alarms.count(column)
        assert sum(one.closed_at is None for one in ours) <= 1
    assert history.actions.count("incident.open") == len(history.incidents)
    if len(outcomes) > 1 and [outcome for outcome, _ in outcomes[-2:]] == ["ok", "ok"]:
        assert history.open == []
