import json
from dataclasses import replace
from datetime import timedelta

import pytest
from killed_judge import DiedError, dying_at, raised
from retrained import HOUR, NOW, begun_at_once, frozen, history, moved, retraining, telling, told
from spread import at_most, spread

from raymlops.errors import NotFoundError, RefusedError
from raymlops.state.freezes import freeze, freeze_of, thaw
from raymlops.state.loop import advance, begin, retraining_of, retrainings_of, retrainings_that_count
from raymlops.state.store import State
from raymlops.state.watch.messages import messages_of, unsent_messages


def test_a_retraining_is_read_as_it_was_written(state):
    """Every field comes back, with the message and the audit event; its first stage is on its record."""
    first = retraining()
    assert begin(state, first, message=telling(first))
    (found,) = retrainings_of(state, "flights")
    assert found == replace(first, stages=found.stages) == retraining_of(state, first.id)
    assert found.stages == ({"stage": "decided", "at": NOW.isoformat(), "why": first.why, "actor": "controller"},)
    assert retrainings_of(state, "digits") == []
    assert [one.id for one in messages_of(state, "flights")] == [f"{first.id}-decided"]
    assert unsent_messages(state).keys() == {"flights"}
    (event,) = state.events("flights")
    assert (event.action, event.before, event.after["trigger"], event.why) == (
        "retrain.decided",
        None,
        "skill",
        first.why,
    )
    assert json.loads(json.dumps(found.to_dict()))["made_at"] == NOW.isoformat()


def test_the_same_evidence_is_the_same_retraining(state):
    """A second controller that decides on it adds nothing, not even once the first one has ended."""
    first = retraining()
    assert begin(state, first, message=telling(first))
    assert not begin(state, retraining(made_at=NOW + HOUR), message=telling(first))
    after = advance(state, *moved(retraining_of(state, first.id), "stopped"), why="it failed")
    assert after is not None
    assert not begin(state, retraining(made_at=NOW + HOUR))
    assert (len(retrainings_of(state)), len(messages_of(state, "flights"))) == (1, 1)


def test_one_at_a_time_a_model(state):
    """Another one is refused by the name of the open one; of another model it is not, and later neither."""
    first, second = retraining(), retraining("later", made_at=NOW + 2 * HOUR)
    begin(state, first)
    with pytest.raises(RefusedError, match=rf"flights is retrained already: retraining {first.id} \(skill, for"):
        begin(state, second)
    assert begin(state, retraining(name="digits"))
    advance(state, *moved(retraining_of(state, first.id), "done"), why="it was better")
    assert begin(state, second)
    assert [one.id for one in retrainings_of(state, open_only=True)] == [second.id, retraining(name="digits").id]
    assert [one.id for one in retrainings_of(state, "flights", limit=1)] == [second.id]


def test_what_was_decided_on_an_outdated_reading_is_not_added(state):
    """Another controller's decision that has ended meanwhile counts for the cool-down, so that this one is void."""
    assert begin(state, retraining(ended_at=NOW), known=0)
    assert not begin(state, retraining("later"), known=0)
    assert begin(state, retraining("later"), known=1)


def test_of_a_long_history_only_what_counts_is_read(state):
    """Those for the champion, as evidence is not tried twice; those of the budget's days; and the newest two."""
    for hours in range(100):
        at = NOW + hours * HOUR
        champion = 3 + (hours == 40)
        assert begin(state, retraining(f"{hours}", champion=champion, made_at=at, stage_at=at, ended_at=at))

    def counting(champion, since):
        found, number = retrainings_that_count(state, "flights", champion=champion, since=NOW + since * HOUR)
        assert number == 100
        return [round((one.made_at - NOW) / HOUR) for one in found]

    assert counting(4, since=96) == [99, 98, 97, 40]
    assert counting(4, since=200) == [99, 98, 40]
    assert counting(5, since=200) == [99, 98]
    assert len(counting(3, since=200)) == 99


def test_of_many_that_begin_at_once_one_does(state):
    """Eight threads: one is through, seven are refused."""
    assert (begun_at_once(state, 8), len(retrainings_of(state))) == (7, 1)


def test_a_change_counts_for_who_read_the_newest(state):
    """Of two controllers that read the same one moves it; the other gets None, and tells nobody."""
    first = retraining()
    begin(state, first)
    read = retraining_of(state, first.id)
    after = advance(state, *moved(read, "checking"), why="act", message=telling(first, "promoted"))
    assert advance(state, *moved(read, "stopped"), why="late", message=telling(first, "stopped")) is None
    found = retraining_of(state, first.id)
    assert found == after
    assert (found.stage, found.revision, [each["stage"] for each in found.stages]) == (
        "checking",
        1,
        ["decided", "checking"],
    )
    assert [one.what for one in messages_of(state, "flights")] == ["promoted"]
    assert [event.action for event in state.events("flights")] == ["retrain.checking", "retrain.decided"]


def test_a_stage_keeps_its_failures_and_the_next_one_has_none(state):
    """What is recorded at one stage is no new stage; a note alone is no audit event."""
    begin(state, retraining(stage="training"))
    read = retraining_of(state, retraining().id)
    failed = advance(state, *moved(read, "training", submission_id="job-1", failures=1), why="it crashed")
    waits = advance(state, failed, failed.at("training", now=NOW, note="its job runs"), why="")
    after = advance(state, *moved(waits, "gating", run_id="run-4"), why="it was trained")
    assert [failed.stage_at, failed.failures, waits.note, after.failures] == [NOW, 1, "its job runs", 0]
    assert (after.submission_id, after.run_id, after.stage_at, after.note) == ("job-1", "run-4", NOW + HOUR, "")
    assert [event.action for event in state.events("flights")] == [
        "retrain.gating",
        "retrain.training",
        "retrain.training",
    ]


@pytest.mark.parametrize("end", ["done", "stopped", "rejected", "taken_back"])
def test_an_end_is_final(state, end):
    """It has its time then, and can be moved by nobody."""
    begin(state, retraining())
    ended = advance(state, *moved(retraining_of(state, retraining().id), end), why="the end")
    assert (ended.ended_at, ended.is_open) == (NOW + HOUR, False)
    with pytest.raises(RefusedError, match="has ended"):
        advance(state, *moved(ended, "stopped"), why="again")


def test_no_stage_comes_back(state):
    """From gating there is no way to training."""
    begin(state, retraining(stage="gating"))
    with pytest.raises(RefusedError, match="is gating, and cannot be training"):
        advance(state, *moved(retraining_of(state, retraining().id), "training"), why="once more")


def test_what_was_only_observed_ends_where_it_was_decided(state):
    """Another one may begin."""
    begin(state, retraining(ended_at=NOW))
    (observed,) = retrainings_of(state)
    assert not observed.is_open
    assert "observed 2026-01-01 12:00 UTC" in observed.text()
    assert begin(state, retraining("later"))


def test_an_unknown_one_is_not_found(state):
    """The message says where ids are."""
    with pytest.raises(NotFoundError, match="no retraining abc"):
        retraining_of(state, "abc")


def test_a_frozen_model_is_not_retrained(state):
    """The reason is in the message; another model is, and the model itself once that is over."""
    freeze(state, frozen(until=NOW + HOUR))
    with pytest.raises(RefusedError, match=r"frozen since .* by ada, until 2026-01-01 13:00 UTC: holidays"):
        begin(state, retraining())
    assert retrainings_of(state) == []
    assert begin(state, retraining(name="digits"))
    assert begin(state, retraining(made_at=NOW + HOUR))


def test_a_freeze_ends_by_its_time_or_by_a_person(state):
    """It holds before its end; thawing what is not frozen is refused, and who thawed is on record."""
    freeze(state, frozen(until=NOW + HOUR))
    assert freeze_of(state, "flights", now=NOW + HOUR - timedelta(seconds=1)) == frozen(until=NOW + HOUR)
    assert freeze_of(state, "flights", now=NOW + HOUR) is None
    assert freeze_of(state, "digits", now=NOW) is None
    with pytest.raises(RefusedError, match="not frozen since 2026-01-01 13:00 UTC"):
        thaw(state, "flights", now=NOW + HOUR, actor="bob", why="over")
    freeze(state, frozen(why="a migration", made_at=NOW + HOUR))
    assert freeze_of(state, "flights", now=NOW + 99 * HOUR).why == "a migration"
    assert thaw(state, "flights", now=NOW + 2 * HOUR, actor="bob", why="over").why == "a migration"
    assert freeze_of(state, "flights", now=NOW + 2 * HOUR) is None
    with pytest.raises(RefusedError, match="flights is not frozen"):
        thaw(state, "flights", now=NOW, actor="bob", why="over")
    events = [(event.action, event.actor, event.why) for event in state.events("flights")]
    assert events == [
        ("loop.thaw", "bob", "over"),
        ("loop.freeze", "ada", "a migration"),
        ("loop.freeze", "ada", "holidays"),
    ]


@at_most()
def test_an_error_at_any_statement_leaves_all_or_nothing(url, tmp_path, most):
    """Taken again the history leaves each row, message and event once, as if nothing had happened."""
    with State.open(url) as state:
        passed = dying_at(state, -1, raised)
        history(state)
        places = range(passed[0])
        expected = told(state)
    assert len(places) > 20
    assert [what for what, _ in expected[-1]] == [
        "retrain.stopped",
        "retrain.checking",
        "retrain.decided",
        "loop.thaw",
        "loop.freeze",
    ]
    for number in spread(places, most):
        for file in tmp_path.glob("state.db*"):
            file.unlink()
        with State.open(url) as state:
            dying_at(state, number, raised)
            with pytest.raises(DiedError):
                history(state)
        with State.open(url) as state:
            history(state)
            assert told(state) == expected, number
