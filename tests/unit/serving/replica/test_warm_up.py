"""What a replica has run before it is ready, and what it says of it."""

from __future__ import annotations

import os

import numpy as np
import pytest

from raymlops.arrays import Column
from raymlops.errors import InsufficientResourcesError
from raymlops.serving.replica import memory, warm_up
from raymlops.serving.replica.batcher import Batcher
from raymlops.serving.replica.warm_up import WarmUp

TEXT = Column("text", "string")


class Model:
    """Remembers the rows of each batch, and may lack the memory for a large one."""

    def __init__(self, *, most=10_000, error=MemoryError):
        self.rows = []
        self.most, self.error = most, error

    def __call__(self, columns):
        (values,) = columns.values()
        self.rows.append(len(values))
        if len(values) > self.most:
            raise self.error("tried to allocate 2.00 GiB")
        return {"y": np.zeros(len(values))}


class OutOfMemoryError(RuntimeError):
    """Torch's, by its name."""


def warmed(model, example, *, timeout_s=30.0, memory_bytes=None, **options):
    batcher = Batcher(model, **{"max_rows": 1024, **options})
    try:
        return warm_up.warm_up(batcher, example, timeout_s=timeout_s, memory_bytes=memory_bytes)
    finally:
        batcher.close()


def test_batches_of_all_sizes_up_to_the_largest_are_run():
    """The example of three rows five times, then one row, and eight times as many each time, up to the bound."""
    model = Model()
    outputs, found = warmed(model, {"x": np.arange(3.0)})
    assert model.rows == [3] * 5 + [1, 8, 64, 512, 1024]
    assert len(outputs["y"]) == 3
    assert found.batch_rows == 1024
    assert found.peak_memory_bytes > 10_000_000
    assert found.peak_gpu_memory_bytes is None


def test_rows_that_differ_in_length_are_bounded_by_their_elements():
    """Ten letters are the longest: 1,000 elements are 100 such rows."""
    model = Model()
    example = {"text": np.array(["a", "b" * 10], dtype=object)}
    warmed(model, example, max_elements=1000, varying=[TEXT])
    assert model.rows == [2] * 5 + [1, 8, 64, 100]


def test_a_batch_that_would_be_too_late_for_its_requests_is_not_run(monkeypatch, caplog):
    """One of 8 rows takes a second, so that one of 64 would take eight; five are allowed."""

    class Time:
        now = 0.0

        @classmethod
        def perf_counter(cls):
            return cls.now

    monkeypatch.setattr(warm_up, "time", Time)
    model = Model()

    def slow(columns):
        Time.now += len(columns["x"]) / 8
        return model(columns)

    _, found = warmed(slow, {"x": np.zeros(1)}, timeout_s=5.0)
    assert (found.batch_rows, model.rows) == (8, [1] * 5 + [1, 8])
    assert "a batch of 8 rows took 1.00 s, so that one of 64 would be later than serve.timeout_s (5 s)" in caplog.text
    assert f"warm-up: {found}" in caplog.text


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError])
def test_a_batch_that_does_not_fit_is_said_with_its_size(error):
    """Of the host or of the GPU; any other error is the model's own."""
    with pytest.raises(
        InsufficientResourcesError, match="not enough memory with a batch of 512 rows: tried to"
    ) as raised:
        warmed(Model(most=64, error=error), {"x": np.zeros(2)})
    assert "serve.max_batch_rows" in raised.value.hint
    with pytest.raises(ArithmeticError):
        warmed(Model(most=64, error=ArithmeticError), {"x": np.zeros(2)})


def test_a_replica_above_its_bound_is_refused():
    """Once its first batch has shown it."""
    with pytest.raises(
        InsufficientResourcesError, match=r"uses .* GB of memory with a batch of 2 rows, and serve.memory_gb"
    ):
        warmed(Model(), {"x": np.zeros(2)}, memory_bytes=1_000_000)
    model = Model()
    warmed(model, {"x": np.zeros(2)}, memory_bytes=10**13)
    assert model.rows[-1] == 1024


def test_memory_is_what_is_resident():
    """200 MB that are touched count, in the peak also once they are gone."""
    before, peak = memory.used_bytes(), memory.peak_bytes()
    held = bytearray(os.urandom(1000)) * 200_000
    assert memory.used_bytes() - before > 150_000_000
    del held
    assert memory.peak_bytes() >= max(peak, before + 150_000_000)


def test_the_bound_is_told_with_both_numbers():
    """None is no bound."""
    memory.require_within(None, used=lambda: 10**18, when="while it serves")
    memory.require_within(2 * 10**9, used=lambda: 2 * 10**9, when="while it serves")
    with pytest.raises(InsufficientResourcesError) as raised:
        memory.require_within(1_500_000_000, used=lambda: 2_250_000_000, when="while it serves")
    assert raised.value.message == "a replica uses 2.25 GB of memory while it serves, and serve.memory_gb is 1.5"


@pytest.mark.parametrize(("share", "bounds"), [(0.25, [0.25]), (1.0, []), (2.0, []), (0.0, [])])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch, share, bounds):
    """Whole cards are a replica's own."""
    bounded = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", bounded.append)
    memory.keep_to_share(share)
    assert bounded == bounds


def test_a_warm_up_is_told_in_a_line():
    """With the GPU where there is one."""
    found = WarmUp(64, 1.234, 512_000_000, None)
    assert str(found) == "batches of up to 64 rows in 1.23 s, peak memory 0.51 GB"
    assert str(WarmUp(64, 1.234, 512_000_000, 3 * 10**9)).endswith("peak memory 0.51 GB, 3.00 GB of the GPU")
