from dataclasses import replace
from datetime import UTC, datetime, timedelta

from raymlops.state.transitions import Transition, given_up_in, newest_transition, put_transition, start, transitions_in

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_the_newest_of_each_version_is_kept(state):
    """Every field comes back, times with their zone, oldest first; another model's are its own."""
    first = Transition(
        *("t1", "flights", 7, {"role": "champion"}, "deploy", "deploy.start", "a test", "ada"),
        *(NOW, 60.0, NOW + timedelta(seconds=1), True, [{"version": 6}], "failed", "no such layer"),
    )
    again = replace(first, id="t3", began_at=NOW + timedelta(seconds=3), status="running", reason="")
    others = [
        replace(first, id="t2", version=8, began_at=NOW + timedelta(seconds=1)),
        replace(first, id="t4", name="digits", began_at=NOW + timedelta(seconds=2)),
    ]
    with state.writing() as connection:
        put_transition(connection, first)
        assert transitions_in(connection) == given_up_in(connection) == []
        for one in (*others, again):
            put_transition(connection, one)
        assert transitions_in(connection) == transitions_in(connection, "flights") == [again]
        assert transitions_in(connection, "digits") == []
        place = replace(others[0], version=9, goal={"role": "champion", "replaces": 8}, status="superseded")
        put_transition(connection, place)
        assert given_up_in(connection) == [place]
    assert newest_transition(state, "flights", 8) == others[0]
    assert newest_transition(state, "digits", 8) is None
    assert again.deadline_at == NOW + timedelta(seconds=61)
    assert state.desired().coming == state.model("flights").coming == (again,)


def test_the_time_of_a_transition_begins_with_its_last_start(state):
    """Whoever takes the later steps counts from then; what is not started has no deadline."""
    one = Transition("t1", "flights", 7, {}, "deploy", "deploy", "a test", "ada", NOW, 60.0)
    with state.writing() as connection:
        put_transition(connection, one)
    assert one.deadline_at is None
    for hours in (1, 2):
        start(state, [one], now=NOW + timedelta(hours=hours))
    assert [found.started_at for found in state.desired().coming] == [NOW + timedelta(hours=2)]
