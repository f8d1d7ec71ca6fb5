"""A training that calls back becomes one that is asked."""

from __future__ import annotations

import gc
import math
import threading
import weakref

import pytest

from raymlops.errors import TrialHungError
from raymlops.training.loop.outcome import StopAskedError
from raymlops.tuning.trial.epoch_stream import Epoch, EpochStream, TrialThread
from raymlops.tuning.trial.watchdog import Watchdog


@pytest.fixture
def thread():
    return TrialThread()


def training(begun, epochs=3):
    def train(stream):
        for number in range(1, epochs + 1):
            begun.append(number)
            if stream.report(number, {"loss": 1 / number}):
                return

    return train


def hung():
    """A watchdog whose time is over as soon as the first step is done."""
    watchdog = Watchdog(hang_timeout_s=1e-9)
    watchdog.start(0)
    return watchdog


def test_epochs_come_one_by_one_and_then_none(thread):
    stream = EpochStream(training([], epochs=2), thread=thread)
    assert [stream.next() for _ in range(4)] == [Epoch(1, {"loss": 1.0}), Epoch(2, {"loss": 0.5}), None, None]


def test_a_stopped_training_has_begun_no_further_epoch(thread):
    begun = []
    stream = EpochStream(training(begun), thread=thread)
    stream.next()
    assert stream.stop()
    assert begun == [1]


def test_the_thread_is_free_for_the_next_training(thread):
    EpochStream(training([]), thread=thread).stop()
    following = EpochStream(training([]), thread=thread)
    assert following.next() == Epoch(1, {"loss": 1.0})
    following.stop()


def test_what_the_training_raises_is_raised_to_who_asks(thread):
    def train(stream):
        stream.report(1, {})
        raise ValueError("no")

    stream = EpochStream(train, thread=thread)
    stream.next()
    with pytest.raises(ValueError, match="no"):
        stream.next()
    assert stream.next() is None


def test_what_it_raises_when_it_was_told_to_stop_concerns_nobody(thread):
    def train(stream):
        stream.report(1, {})
        raise ValueError("no")

    stream = EpochStream(train, thread=thread)
    stream.next()
    assert stream.stop()


def test_the_last_epoch_is_not_waited_after(thread):
    """Its training ends by itself; whoever takes it need not ask for more to let it end."""
    ended = threading.Event()

    def train(stream):
        stream.report(1, {}, step=5, last=True)
        ended.set()

    stream = EpochStream(train, thread=thread)
    assert stream.next() == Epoch(1, {}, step=5, last=True)
    assert ended.wait(60)
    assert stream.next() is None


def test_a_training_elsewhere_does_not_wait_and_hears_of_the_stop_at_its_next_epoch(thread):
    go_on = threading.Event()
    answers = []

    def train(stream):
        answers.extend([stream.report(1, {}), stream.report(2, {})])
        go_on.wait(60)
        answers.extend([stream.report(3, {}), stream.report(4, {})])

    stream = EpochStream(train, thread=thread, holds=False)
    assert [stream.next().number, stream.next().number] == [1, 2]
    assert not stream.stop(timeout_s=0)
    go_on.set()
    assert stream.stop()
    assert answers == [False, False, True, True]


def test_one_that_reports_again_although_it_was_told_to_stop_is_ended(thread):
    raised = []

    def train(stream):
        try:
            while True:
                stream.report(1, {})
        except StopAskedError as error:
            raised.append(error.order)
            raise

    stream = EpochStream(train, thread=thread)
    stream.next()
    assert stream.stop()
    assert raised == ["interrupted"]


def test_a_training_whose_time_is_up_begins_no_further_epoch(thread):
    begun = []
    stream = EpochStream(training(begun), thread=thread)
    assert stream.next(left_s=lambda: 60.0).number == 1
    with pytest.raises(TimeoutError):
        stream.next(left_s=lambda: 0.0)
    assert stream.stop()
    assert begun == [1]


def test_an_epoch_whose_time_is_up_is_waited_for_no_longer(thread):
    free = threading.Event()
    stream = EpochStream(lambda _stream: free.wait(60), thread=thread)
    with pytest.raises(TimeoutError):
        stream.next(left_s=lambda: 0.0)
    free.set()
    assert stream.stop()


def test_a_training_that_hangs_raises_with_the_place_where_it_stands(thread):
    free, watchdog = threading.Event(), hung()

    def stands_still(stream):
        stream.report(1, {})
        watchdog.alive(1)
        free.wait(60)

    stream = EpochStream(stands_still, thread=thread, watchdog=watchdog)
    assert stream.next().number == 1
    with pytest.raises(TrialHungError, match="stands_still"):
        stream.next()
    with pytest.raises(TrialHungError):
        stream.stop()
    free.set()


def test_a_training_that_waits_to_be_asked_does_not_hang(thread):
    """The scheduler may take its time."""
    watchdog = Watchdog(hang_timeout_s=1e6)
    stream = EpochStream(training([]), thread=thread, watchdog=watchdog)
    stream.next()
    assert watchdog.left_s() == math.inf
    stream.stop()


def test_nothing_of_a_training_is_kept_when_it_has_ended(thread):
    """A model in the frames of an error would take the next trial's memory."""

    class Model:
        pass

    seen = []

    def train(stream):
        model = Model()
        seen.append(weakref.ref(model))
        raise ValueError("no")

    stream = EpochStream(train, thread=thread)
    with pytest.raises(ValueError, match="no"):
        stream.next()
    gc.collect()
    assert seen[0]() is None


def test_the_thread_keeps_no_process_alive(thread):
    assert thread._thread.daemon
