"""What a supervised run says: events, and each restart once its workers have made a step, with the seconds it cost."""

from __future__ import annotations

from supervised import Recorder, Restart

from raymlops.training.supervision.hang_detector import HangDetector
from raymlops.training.supervision.messages import Heartbeat
from raymlops.training.supervision.notices import Notifier


def watch(*steps: tuple[int, float], resumed: int = 0) -> HangDetector:
    """Return one that has seen a rank do these steps, each at its second."""
    seen = HangDetector(resumed=resumed, hang_timeout_s=60)
    for step, now_s in steps:
        seen.observe({0: Heartbeat(0, step=step)}, now_s=now_s)
    return seen


def test_a_change_is_noted_with_what_it_cost() -> None:
    """From the last step of the old workers, at second 20, to the first new one of the others, at 29.4."""
    recorder = Recorder()
    notify = Notifier(recorder)
    notify.starting(2, step=0, reason="")
    notify.ended(watch((1, 5), (45, 20)))
    notify.starting(1, step=40, reason="rank 1: its node b died")
    notify.observe(watch(resumed=40))
    assert recorder.restarts == []
    notify.observe(watch((41, 29.4), (50, 33), resumed=40))
    notify.observe(watch((41, 29.4), (60, 40), resumed=40))
    assert recorder.restarts == [Restart("resumed with 1 worker after 9.4 s: rank 1: its node b died", 40, 1)]
    assert recorder.messages == ["starting 2 workers", "starting 1 worker after step 40"]


def test_an_attempt_without_a_step_is_noted_when_it_ends() -> None:
    """The seconds count on from the last step that there was."""
    recorder = Recorder()
    notify = Notifier(recorder)
    notify.ended(watch((45, 20)))
    notify.starting(2, step=40, reason="a")
    notify.ended(watch(resumed=40))
    notify.starting(2, step=40, reason="b")
    notify.observe(watch((41, 50), resumed=40))
    assert [restart.reason for restart in recorder.restarts] == [
        "resumed with 2 workers, which took no step: a",
        "resumed with 2 workers after 30.0 s: b",
    ]


def test_a_run_that_goes_on_has_no_seconds_to_count() -> None:
    """Its last step was in another process."""
    recorder = Recorder()
    notify = Notifier(recorder)
    notify.starting(2, step=40, reason="the run is resumed after step 40")
    notify.observe(watch((41, 50), resumed=40))
    assert recorder.restarts[0].reason == "resumed with 2 workers: the run is resumed after step 40"
