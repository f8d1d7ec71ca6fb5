from dataclasses import replace
from datetime import UTC, datetime

from raymlops.state.conditions import EVERYTHING, Condition, conditions, put_conditions

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_conditions_are_replaced_and_what_is_as_desired_has_none(state):
    """Every field comes back, the times with their zone."""
    everything = Condition(EVERYTHING, "Serve does not answer", NOW)
    failing = Condition("flights", "version 7 does not start", NOW, 2, NOW)
    put_conditions(state, [everything, failing])
    assert conditions(state) == {EVERYTHING: everything, "flights": failing}
    put_conditions(state, [later := replace(failing, attempts=3)])
    assert conditions(state) == {"flights": later}
    put_conditions(state, [])
    assert conditions(state) == {}


def test_the_same_conditions_are_not_written_again(state):
    """They are looked at each second, and nobody is kept waiting: the second time needs no lock."""
    condition = Condition("flights", "it comes up", NOW)
    put_conditions(state, [condition])
    with state.writing():
        put_conditions(state, [condition])
