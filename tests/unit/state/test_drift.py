from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from raymlops.state.drift import (
    Filed,
    Incident,
    JudgedWindow,
    Message,
    baselines_of,
    incidents_of,
    judged_windows,
    messages_of,
    put_message,
    record_window,
    unsent_messages,
)

DAY = timedelta(days=1)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def judged(day=0, outcome="alarm", **fields):
    start = FIRST + day * DAY
    window = JudgedWindow("m", "inputs", "drift", 0, start, start + DAY, 3, outcome, "why", 1_000, start + DAY)
    return replace(window, **fields)


def opening(window, incident, _outcomes):
    """Open an incident with its message, or leave the open one as it is."""
    if incident is not None:
        return Filed(incident)
    new = Incident("i", window.name, "inputs", "drift", 0, window.start, window.start, 1, ("hour",))
    return Filed(new, Message("i-opened", "i", "opened", "title", "body", window.judged_at), "drift.opened", "moved")


def test_a_verdict_and_what_follows_it_are_read_as_they_were_written(state):
    """The window names its incident; incident, message and event are there once."""
    assert record_window(state, judged(details={"columns": [{"column": "hour"}]}), opening)
    (window,) = judged_windows(state, "m")
    (incident,) = incidents_of(state)
    assert window == judged(details={"columns": [{"column": "hour"}]}, incident="i")
    assert (incident.columns, incident.opened_at, incident.closed_at) == (("hour",), FIRST, None)
    assert [one.id for one in messages_of(state, "m")] == ["i-opened"]
    (event,) = state.events("m")
    assert (event.action, event.before, event.after["id"]) == ("drift.opened", None, "i")
    assert baselines_of(state, "m") == []


def test_a_window_that_was_judged_is_not_judged_again(state):
    """The second judge changes nothing, whatever it found."""
    assert record_window(state, judged(), opening)
    assert not record_window(state, judged(outcome="ok", reason="another"), opening)
    assert [one.outcome for one in judged_windows(state, "m")] == ["alarm"]
    assert len(state.events("m")) == 1


def test_a_verdict_is_told_what_came_since_the_last_alarm(state):
    """The outcomes of the windows of its cause since then, in order, its own last."""
    seen = []

    def file(window, incident, outcomes):
        seen.append(list(outcomes))
        return opening(window, incident, outcomes)

    for day, outcome in enumerate(["alarm", "ok", "warn", "ok"]):
        record_window(state, judged(day, outcome), file)
    record_window(state, judged(1, "ok", side="outputs", version=3), lambda *_: Filed())
    assert seen == [["alarm"], ["ok"], ["ok", "warn"], ["ok", "warn", "ok"]]


def test_nothing_is_written_where_what_follows_cannot_be(state):
    """An error while the incident is decided leaves no verdict without it."""

    def fails(*_):
        raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        record_window(state, judged(), fails)
    assert (judged_windows(state, "m"), state.events("m")) == ([], [])


def test_a_message_is_unsent_until_every_messenger_has_it(state):
    """What became of it is kept, by model; once sent it stays sent."""
    record_window(state, judged(), opening)
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
