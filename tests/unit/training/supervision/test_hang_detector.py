"""Heartbeats tell how far an attempt is and whether it hangs."""

from __future__ import annotations

from raymlops.training.supervision.hang_detector import COMPILED_START_S, START_S, HangDetector
from raymlops.training.supervision.messages import Heartbeat


def watch(*, resumed: int = 0) -> HangDetector:
    return HangDetector(resumed=resumed, hang_timeout_s=8)


def beats(*many: Heartbeat) -> dict[int, Heartbeat]:
    return {beat.rank: beat for beat in many}


def test_the_first_and_the_last_step_are_dated_back() -> None:
    """At second 100 the box has not heard of the rank for 2 s, and it had stepped 0.5 s before: at 97.5."""
    seen = watch(resumed=40)
    assert seen.observe(beats(Heartbeat(0, step=40)), now_s=90) is None
    assert not seen.stepping
    seen.observe(beats(Heartbeat(0, step=41, step_age_s=0.5, silent_s=2)), now_s=100)
    seen.observe(beats(Heartbeat(0, step=50, step_age_s=0.25)), now_s=110)
    seen.observe(beats(Heartbeat(0, step=50, step_age_s=5.25)), now_s=115)
    assert (seen.first_step_s, seen.last_step_s, seen.step) == (97.5, 109.75, 50)


def test_ranks_that_all_stand_still_hang() -> None:
    """One that moves is enough: the others wait for it."""
    seen = watch()
    seen.observe(beats(Heartbeat(0, step=5), Heartbeat(1, step=5)), now_s=0)
    moving = beats(Heartbeat(0, step=5, tick_age_s=20), Heartbeat(1, step=5, tick_age_s=7))
    assert seen.observe(moving, now_s=20) is None
    still = beats(Heartbeat(0, step=5, tick_age_s=20), Heartbeat(1, step=5, tick_age_s=8.5))
    hang = seen.observe(still, now_s=21)
    assert hang is not None
    assert hang.message == "no rank has moved for 8 s after step 5 (train.hang_timeout_s)"
    assert hang.rank is None


def test_a_silent_rank_hangs_and_is_named() -> None:
    """A process that was stopped sends nothing, whatever the others do."""
    seen = watch()
    hang = seen.observe(beats(Heartbeat(0, step=5), Heartbeat(1, step=5, silent_s=9)), now_s=9)
    assert hang is not None
    assert (hang.message, hang.rank) == ("no heartbeat of rank 1 for 9 s (train.hang_timeout_s)", 1)
    both = seen.observe(beats(Heartbeat(0, silent_s=9), Heartbeat(1, silent_s=9)), now_s=9)
    assert both is not None
    assert both.rank is None
    assert "ranks 0, 1" in both.message


def test_a_start_may_take_longer() -> None:
    """Reading data and building the model are no steps: a minute whatever is configured, and not for ever."""
    seen = watch()
    assert (
        seen.observe(beats(Heartbeat(0, tick_age_s=START_S - 1), Heartbeat(1, tick_age_s=START_S - 1)), now_s=100)
        is None
    )
    late = beats(Heartbeat(0, tick_age_s=START_S + 1), Heartbeat(1, tick_age_s=START_S + 1))
    hang = seen.observe(late, now_s=400)
    assert hang is not None
    assert hang.message == "no rank has moved for 61 s before the first step (train.hang_timeout_s)"


def test_a_start_may_take_what_is_configured() -> None:
    """A longer hang_timeout_s holds from the beginning."""
    seen = HangDetector(resumed=0, hang_timeout_s=90)
    assert seen.observe(beats(Heartbeat(0, tick_age_s=89)), now_s=89) is None
    assert seen.observe(beats(Heartbeat(0, tick_age_s=91)), now_s=91) is not None


def test_a_compiled_first_step_may_take_minutes() -> None:
    """And only the first one: after it what is configured counts."""
    seen = HangDetector(resumed=0, hang_timeout_s=8, compiles=True)
    assert seen.observe(beats(Heartbeat(0, tick_age_s=COMPILED_START_S - 1)), now_s=599) is None
    assert seen.observe(beats(Heartbeat(0, tick_age_s=COMPILED_START_S + 1)), now_s=601) is not None
    assert seen.observe(beats(Heartbeat(0, step=1, tick_age_s=9)), now_s=610) is not None


def test_a_rank_that_has_ended_is_not_waited_for() -> None:
    """It is silent because it is done; the one that still runs is judged alone."""
    seen = watch()
    assert seen.observe(beats(Heartbeat(0, step=9, done=True, silent_s=99), Heartbeat(1, step=9)), now_s=99) is None
    hang = seen.observe(beats(Heartbeat(0, step=9, done=True), Heartbeat(1, step=9, tick_age_s=9)), now_s=99)
    assert hang is not None
