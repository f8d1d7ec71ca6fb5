"""Places for forwarded requests: what one model may take depends on which others are busy."""

from __future__ import annotations

import contextlib

import pytest

from raymlops.serving.places import IN_FLIGHT, OWN_PLACES, Places
from raymlops.serving.refusal import Refusal


def fill(places, stack, model):
    """Take all places that a model gets; return how many."""
    for count in range(1000):
        try:
            stack.enter_context(places.hold(model))
        except Refusal:
            return count
    raise AssertionError


def test_idle_models_keep_no_place_from_a_busy_one():
    """Half of what is shared, however many others there are; with its own."""
    places = Places()
    with contextlib.ExitStack() as stack:
        assert fill(places, stack, "a") == IN_FLIGHT // 2 + OWN_PLACES
    assert not places.taken


def test_models_that_hang_leave_the_others_their_own_places():
    """Whatever hangs: the hundredth model is answered too, and never more than are shared are taken beyond that."""
    places = Places()
    with contextlib.ExitStack() as stack:
        taken = [fill(places, stack, f"m{index}") for index in range(100)]
    assert taken[:2] == [IN_FLIGHT // 2 + OWN_PLACES, IN_FLIGHT // 3 + OWN_PLACES]
    assert set(taken[3:]) == {OWN_PLACES}
    assert sum(taken) == IN_FLIGHT + 100 * OWN_PLACES


def test_a_share_grows_again_once_others_are_idle():
    """Nobody keeps a place longer than a request."""
    places = Places()
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        fill(places, first, "a")
        fewer = fill(places, second, "b")
        first.close()
        assert fill(places, second, "b") == IN_FLIGHT // 2 + OWN_PLACES - fewer


def test_a_request_that_fails_gives_its_place_back():
    """Whatever it raised."""
    places = Places()
    with pytest.raises(TimeoutError), places.hold("a"):
        raise TimeoutError
    assert not places.taken
