"""What is sent arrives with the same bits, types and memory formats, and costs no descriptor."""

from __future__ import annotations

import os
import resource
from collections import namedtuple
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from raymlops.data.loading.messages import Closed, pair, readable, receive, send, send_heartbeat

Point = namedtuple("Point", "x y")  # noqa: PYI024 - as recipes have them


def through(value: Any) -> Any:
    """Send a value to ourselves."""
    here, there = pair()
    with here, there:
        send(here, value)
        return receive(there)[0]


TENSORS = {
    "float": torch.randn(3, 4),
    "part of a larger one": torch.arange(100).reshape(10, 10)[2:5, ::3],
    "bfloat16": torch.randn(5).to(torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "complex conjugate": torch.randn(4, dtype=torch.complex64).conj(),
    "single": torch.tensor(7),
    "empty": torch.empty(0, 3, dtype=torch.int16),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "repeated": torch.randn(1, 3).expand(4, 3),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_keep_bits_and_formats(name: str) -> None:
    """Of every kind; what has no gaps keeps its strides."""
    sent, found = TENSORS[name], through(TENSORS[name])
    assert found.dtype == sent.dtype
    assert found.shape == sent.shape
    assert torch.equal(found.to_dense(), sent.to_dense())
    if name == "channels last":
        assert found.stride() == sent.stride()


def test_containers_and_arrays_arrive_and_can_be_written() -> None:
    """Nested ones, texts, None, arrays, and tensors that the receiver changes."""
    found = through({"p": Point(torch.ones(2), [np.arange(3), "text", None]), "n": 1})
    assert found["p"].y[0].tolist() == [0, 1, 2]
    assert found["p"].y[1:] == ["text", None]
    found["p"].x.add_(1)
    assert found["p"].x.tolist() == [2, 2]


def test_kept_batches_hold_no_descriptor() -> None:
    """A loop may keep more batches than a process may open files."""
    before = psutil.Process().num_fds()
    kept = [through({"x": torch.full((1000,), float(number))}) for number in range(50)]
    assert psutil.Process().num_fds() <= before + 1
    assert [float(batch["x"][-1]) for batch in kept] == list(range(50))


def test_a_lost_descriptor_is_told() -> None:
    """Where a process has as many open files as it may, a message is not taken for a number."""
    here, there = pair()
    with here, there:
        send(here, "text")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (there.fileno() + 1, limits[1]))
        taken = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.dup(there.fileno()))
            with pytest.raises(OSError, match="Too many open files"):
                receive(there)
        finally:
            for each in taken:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_end_is_told_after_what_was_sent() -> None:
    """Also where the other side died with messages unread."""
    here, there = pair()
    assert not readable(here, within_s=0.0)
    send(here, "never read")
    send_heartbeat(there, 5)
    send(there, "last words")
    there.close()
    assert readable(here, within_s=0.0)
    assert [receive(here), receive(here)] == [(None, 5), ("last words", None)]
    with pytest.raises(Closed):
        receive(here)
    with pytest.raises(Closed):
        send(here, "too late")
    here.close()
