"""A training that calls back becomes one that is asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from raymlops.tuning.epochs import Epoch, EpochStream


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def training(begun, epochs=3):
    def train(on_epoch):
        for number in range(1, epochs + 1):
            begun.append(number)
            if on_epoch(number, {"loss": 1 / number}):
                return

    return train


def test_epochs_come_one_by_one_and_then_none(thread):
    stream = EpochStream(training([], epochs=2), thread=thread)
    assert [stream.next() for _ in range(3)] == [Epoch(1, {"loss": 1.0}), Epoch(2, {"loss": 0.5}), None]


def test_a_stopped_training_has_begun_no_further_epoch(thread):
    begun = []
    stream = EpochStream(training(begun), thread=thread)
    stream.next()
    stream.stop()
    assert begun == [1]


def test_the_thread_is_free_for_the_next_training(thread):
    EpochStream(training([]), thread=thread).stop()
    following = EpochStream(training([]), thread=thread)
    assert following.next() == Epoch(1, {"loss": 1.0})
    following.stop()


def test_what_the_training_raises_is_raised_to_who_asks(thread):
    def train(on_epoch):
        on_epoch(1, {})
        raise ValueError("no")

    stream = EpochStream(train, thread=thread)
    stream.next()
    with pytest.raises(ValueError, match="no"):
        stream.next()
