import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from raymlops.errors import NotFoundError, RefusedError
from raymlops.state.rollouts import (
    Rollout,
    newest_rollout,
    rollout_of,
    rollouts,
    running,
    start_rollout,
    update_rollout,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def rollout(number=1, *, name="flights", **fields):
    started = NOW + timedelta(minutes=number)
    first = Rollout(f"r{number}", name, 7, 6, (0.1, 0.5, 1.0), 0, "running", {"bake_s": 60.0}, started, started)
    return replace(first, **fields)


def test_a_rollout_is_read_as_it_was_written(state):
    """Every field comes back, the times with their zone, the steps as a tuple."""
    with state.writing() as connection:
        start_rollout(connection, rollout())
        assert running(connection) == running(connection, "flights") == [rollout()]
        assert running(connection, "digits") == []
    assert rollout().weight == 0.1
    assert json.loads(json.dumps(rollout(ended_at=NOW).to_dict()))["ended_at"] == NOW.isoformat()


def test_a_second_one_of_a_model_is_refused_by_the_name_of_the_first(state):
    """The message says which version is on its way, and nothing is added; another model may start."""
    with state.writing() as connection:
        start_rollout(connection, rollout(1))
    with (
        pytest.raises(RefusedError, match=r"version 7 of flights .* \(rollout r1, at 10 percent\)"),
        state.writing() as c,
    ):
        start_rollout(c, rollout(2, version=8))
    with state.writing() as connection:
        start_rollout(connection, rollout(3, name="digits"))
        assert [item.id for item in rollouts(connection)] == ["r3", "r1"]


def test_of_many_that_start_at_once_one_starts(state):
    """Eight threads, each with a connection of its own: one is through, seven are refused."""
    ready, refused = threading.Barrier(8), []

    def start(number):
        ready.wait()
        try:
            with state.writing() as connection:
                start_rollout(connection, rollout(number))
        except RefusedError:
            refused.append(number)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with state.reading() as connection:
        assert (len(refused), len(running(connection))) == (7, 1)


def test_what_became_of_it_is_kept_and_the_next_may_start(state):
    """Step, evidence, reason and end are replaced; the newest comes first, and a limit keeps it alone."""
    ended = rollout(1, step=1, status="aborted", evidence={"numbers": {}}, reason="errors", ended_at=NOW)
    with state.writing() as connection:
        start_rollout(connection, rollout(1))
        update_rollout(connection, ended)
        assert running(connection) == []
        start_rollout(connection, rollout(2))
        assert rollouts(connection, "flights") == [rollout(2), ended]
        assert rollouts(connection, limit=1) == [rollout(2)]
    assert newest_rollout(state, "flights") == newest_rollout(state, "flights", 7) == rollout(2)
    assert (newest_rollout(state, "flights", 8), newest_rollout(state, "digits")) == (None, None)
    assert rollout_of(state, "flights", "r1") == ended
    with pytest.raises(NotFoundError, match="digits has no rollout r1"):
        rollout_of(state, "digits", "r1")


def test_an_end_is_final(state):
    """Whoever decided on an old reading cannot set it running again, nor end it another way."""
    with state.writing() as connection:
        start_rollout(connection, rollout())
        update_rollout(connection, rollout(status="stopped", ended_at=NOW))
        for late in (rollout(step=1), rollout(status="promoted", ended_at=NOW)):
            with pytest.raises(RefusedError, match="has ended: it is stopped"):
                update_rollout(connection, late)
        assert [item.status for item in rollouts(connection)] == ["stopped"]


def test_a_step_is_not_taken_back(state):
    """Whoever counted for the step before is told so; numbers of the same step replace each other."""
    with state.writing() as connection:
        start_rollout(connection, rollout())
        update_rollout(connection, rollout(step=1))
        with pytest.raises(RefusedError, match="is at step 2"):
            update_rollout(connection, rollout(evidence={"numbers": {}}))
        update_rollout(connection, rollout(step=1, reason="60 s"))
        assert running(connection) == [rollout(step=1, reason="60 s")]


def test_a_rollout_that_is_not_there_cannot_be_changed(state):
    """The message names it."""
    with pytest.raises(NotFoundError, match="no rollout r1"), state.writing() as connection:
        update_rollout(connection, rollout())


def test_a_change_that_fails_takes_the_rollout_back(state):
    """It is one transaction with whatever else the caller writes."""

    def fail():
        with state.writing() as connection:
            start_rollout(connection, rollout())
            raise OSError

    with pytest.raises(OSError):
        fail()
    with state.reading() as connection:
        assert rollouts(connection) == []
