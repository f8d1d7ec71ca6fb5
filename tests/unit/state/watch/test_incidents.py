from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from raymlops.errors import RefusedError
from raymlops.lifecycle.watch.incidents import acknowledge, file_verdict, revoke
from raymlops.state.watch.incidents import (
    Baseline,
    Filed,
    Incident,
    add_baselines,
    baselines_of,
    change_incident,
    incidents_of,
    record_window,
    tell,
)
from raymlops.state.watch.messages import Message, messages_of, put_message, unsent_messages
from raymlops.state.watch.windows import JudgedWindow, judged_windows, newest_window, remove_windows

DAY = timedelta(days=1)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def judged(day=0, outcome="alarm", **fields):
    start = FIRST + day * DAY
    window = JudgedWindow("m", "inputs", "drift", 0, start, start + DAY, 3, outcome, "why", 1_000, start + DAY)
    return replace(window, **fields)


def opening(known):
    """Open an incident, or leave the open one as it is."""
    return (
        [] if known else [Filed(Incident("i", "m", "inputs", "drift", 0, FIRST, FIRST, 1, "hour"), "opened", "moved")]
    )


def nothing(_known):
    """Open no incident."""
    return []


def record(state, window, file=opening, normal=()):
    return record_window(state, window, file, normal=normal)


def test_a_verdict_and_what_follows_it_are_read_as_they_were_written(state):
    """Window, incident and event are there once."""
    assert record(state, judged(details={"columns": [{"column": "hour"}]}))
    (window,) = judged_windows(state, "m")
    (incident,) = incidents_of(state)
    assert window == judged(details={"columns": [{"column": "hour"}]})
    assert (incident.column, incident.opened_at, incident.closed_at) == ("hour", FIRST, None)
    (event,) = state.events("m")
    assert (event.action, event.before, event.after["i"]["column"]) == ("opened", {}, "hour")
    assert baselines_of(state, "m") == []


def test_a_window_that_was_judged_is_not_judged_again(state):
    """The second judge changes nothing, whatever it found."""
    assert record(state, judged())
    assert not record(state, judged(outcome="ok", reason="another"))
    assert [one.outcome for one in judged_windows(state, "m")] == ["alarm"]
    assert len(state.events("m")) == 1


def test_a_window_that_begins_before_another_one_ended_is_not_written(state):
    """Whatever its length: none is judged twice, and what follows is decided in order."""
    half = DAY / 2
    assert record(state, judged(1))
    assert not record(state, judged(0))
    assert not record(state, judged(1, stop=FIRST + DAY + half))
    assert not record(state, judged(1, start=FIRST + DAY + half))
    assert record(state, judged(2, stop=FIRST + 2 * DAY + half))
    assert record(state, judged(0, side="outputs", version=3), nothing)
    found = newest_window(state, "m", side="inputs", version=0)
    assert found.start == FIRST + 2 * DAY
    assert newest_window(state, "m", side="inputs", version=0, length_s=86400.0).start == FIRST + DAY
    assert newest_window(state, "m", side="inputs", version=0, length_s=3600.0) is None


def test_a_verdict_gets_the_open_incidents_of_what_it_is_about(state):
    """Of all columns; those of another side, kind or version are none of it."""
    seen = []

    def file(known):
        seen.append([one.column for one in known])
        return []

    record(state, judged())
    for fields in ({}, {"side": "outputs", "version": 3}, {"kind": "quality"}):
        record(state, judged(1, **fields), file)
    assert seen == [["hour"], [], []]


def test_what_is_taken_back_leaves_the_baseline_of_others(state):
    """Two columns were acknowledged by one row, as before columns had incidents: one of them is judged again."""
    record(state, judged())
    said = Baseline("m", "inputs", 0, FIRST, ("hour", "day"), "why", "me", FIRST)
    closing = partial(acknowledge, now=FIRST, actor="me", why="why")
    add_baselines(state, [said], lambda one: replace(closing(one), baseline=None))
    assert incidents_of(state)[0].is_normal
    again = partial(revoke, why="wrong")
    assert change_incident(state, "i", again, name="m").closed_at is None
    assert [one.columns for one in baselines_of(state, "m")] == [("day",)]
    change_incident(state, "i", closing, name="m")
    assert [one.columns for one in baselines_of(state, "m")] == [("hour",), ("day",)]
    change_incident(state, "i", again, name="m")
    assert [one.columns for one in baselines_of(state, "m")] == [("day",)]


def test_nothing_is_taken_back_of_a_column_that_drifted_again(state):
    """It has an open incident, which is another one."""
    record(state, judged())
    change_incident(state, "i", partial(acknowledge, now=FIRST, actor="me", why="why"), name="m")
    again = Incident("j", "m", "inputs", "drift", 0, FIRST + DAY, FIRST + DAY, 1, "hour")
    record(state, judged(1), lambda _known: [Filed(again)], normal=baselines_of(state, "m"))
    with pytest.raises(RefusedError, match="incident j is open"):
        change_incident(state, "i", partial(revoke, why="wrong"), name="m")


def test_skew_is_judged_once_a_version(state):
    """Whichever window another judge takes for the first one."""
    assert record(state, judged(kind="skew", version=3))
    assert not record(state, judged(1, kind="skew", version=3))
    assert record(state, judged(1, kind="skew", version=4), nothing)


def test_a_verdict_by_what_is_no_longer_normal_is_not_written(state):
    """A person said so while it was found."""
    baseline = Baseline("m", "inputs", 0, FIRST, None, "new sensors", "me", FIRST)
    assert add_baselines(state, [baseline], Filed) == ()
    assert baselines_of(state, "m") == [baseline]
    assert not record(state, judged())
    assert record(state, judged(), normal=[baseline])
    (_, event) = state.events("m")
    assert (event.action, event.why, event.after["start"]) == ("drift.rebaseline", "new sensors", FIRST.isoformat())


def test_nothing_is_written_where_what_follows_cannot_be(state):
    """An error while the incident is decided leaves no verdict without it."""

    def fails(*_):
        raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        record(state, judged(), fails)
    assert (judged_windows(state, "m"), state.events("m")) == ([], [])


def test_old_verdicts_are_removed_but_for_those_that_others_depend_on(state):
    """Skew, the first window with enough rows, and those of an incident that is open."""
    record(state, judged(0, kind="skew", version=3), nothing)
    for day in range(6):
        follows = partial(file_verdict, window := judged(day, "alarm" if day == 4 else "warn", rows=500 if day else 50))
        record(state, window, lambda known, follows=follows: follows(("hour",), known, calm={}))
    assert remove_windows(state, before=FIRST + 5 * DAY, rows=100) == 3
    assert [((one.start - FIRST).days, one.kind) for one in judged_windows(state, "m")] == [
        *((5, "drift"), (4, "drift"), (1, "drift"), (0, "skew"))
    ]
    assert remove_windows(state, before=FIRST + 5 * DAY, rows=100) == 0


def test_a_message_is_unsent_until_every_messenger_has_it(state):
    """What became of it is kept, by model; once sent it stays sent."""
    record(state, judged())
    tell(state, lambda *_: [(Message("i-opened", "i", "opened", "title", "body", FIRST), [])])
    ((name, (message,)),) = unsent_messages(state).items()
    assert (name, message.id) == ("m", "i-opened")
    tried = replace(message, attempts=1, last_error="no route", reached=("a",))
    put_message(state, tried)
    assert unsent_messages(state) == {"m": [tried]}
    sent = replace(tried, sent_at=FIRST, last_error=None, reached=("a", "b"))
    put_message(state, sent)
    put_message(state, tried)
    assert messages_of(state, "m") == [sent]
    assert unsent_messages(state) == {}


def test_of_what_is_judged_by_time_the_second_judge_finds_what_the_first_wrote(state):
    """Silence ends now, which is another time for each judge: one that overlaps what is there is not written."""
    first = judged(kind="silence", rows=0)
    assert record(state, first, nothing)
    assert not record(state, replace(first, stop=first.stop + timedelta(seconds=2)), nothing)
    assert record(state, judged(day=1, kind="silence", outcome="ok"), nothing)


def test_verdicts_by_bounds_are_removed_as_those_on_drift(state):
    """Skew is judged once a version, and stays."""
    for kind in ("drift", "quality", "silence", "skew"):
        record(state, judged(outcome="ok", kind=kind, rows=10), nothing)
    assert remove_windows(state, before=FIRST + DAY, rows=100) == 3
    assert [one.kind for one in judged_windows(state, "m")] == ["skew"]
