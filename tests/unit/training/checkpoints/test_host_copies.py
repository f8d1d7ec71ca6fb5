"""Copies in host memory, and the check that numbers are finite."""

from __future__ import annotations

import pytest
import torch

from raymlops.errors import RecipeError
from raymlops.training.checkpoints.host_copies import HostCopies, entries_not_finite, not_finite


def test_a_copy_is_the_callers_no_more() -> None:
    """What the loop does next does not reach it; containers are copied too."""
    tree = {"state": {0: {"step": torch.tensor(1.0), "m": torch.ones(2, 3).T}}, "groups": [{"lr": 0.1, "b": (1, 2)}]}
    copied = HostCopies().copy(tree, of="optimizer")
    tree["state"][0]["m"].zero_()
    tree["groups"][0]["lr"] = 0.5
    assert copied["state"][0]["m"].tolist() == [[1.0, 1.0]] * 3
    assert copied["state"][0]["m"].is_contiguous()
    assert copied["groups"] == [{"lr": 0.1, "b": (1, 2)}]


def test_memory_is_used_again_where_shapes_stay() -> None:
    """The second copy lies where the first did; one of another shape has its own."""
    copies = HostCopies()
    first = copies.copy({"a": torch.ones(4), "b": torch.ones(2)}, of="model")
    second = copies.copy({"a": torch.zeros(4), "b": torch.ones(3)}, of="model")
    assert second["a"].data_ptr() == first["a"].data_ptr()
    assert second["a"].tolist() == [0.0] * 4
    assert second["b"].shape == (3,)
    assert copies.size_bytes == 4 * 4 + 3 * 4


def test_what_could_not_be_read_back_is_refused() -> None:
    """The error names where it is."""
    with pytest.raises(RecipeError, match=r"optimizer/state/0/rng is a Generator, which a checkpoint cannot hold"):
        HostCopies().copy({"state": {0: {"rng": torch.Generator()}}}, of="optimizer")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_found(dtype: torch.dtype, bad: float) -> None:
    """In every float type that has both."""
    state = {"count": torch.tensor([7]), "fine": torch.ones(5, dtype=dtype), "empty": torch.empty(0, dtype=dtype)}
    assert not_finite(state) is None
    broken = torch.ones(5)
    broken[3] = bad
    assert not_finite(state | {"broken": broken.to(dtype)}) == "broken"


def test_a_sum_that_overflows_is_no_infinity() -> None:
    """2 * 3e38 is over float32's 3.4e38, yet each number is finite; so are 100,000 of float16's largest."""
    state = {"a": torch.full((2,), 3e38), "b": torch.full((100_000,), 65504.0, dtype=torch.float16)}
    assert torch.isinf(state["a"].sum())
    assert not_finite(state) is None
    assert not_finite({}) is None


INF, NAN = float("inf"), float("nan")


def test_what_was_infinite_from_the_start_is_no_fault() -> None:
    """Entry by entry: the mask's upper triangle may stay infinite, become finite, and infinite again."""
    start = {"mask": torch.tensor([[0.0, -INF], [0.0, 0.0]]), "low": torch.tensor(INF), "weight": torch.ones(3)}
    meant = entries_not_finite(start)
    assert {name: entries.tolist() for name, entries in meant.items()} == {
        "mask": [[False, True], [False, False]], "low": True
    }  # fmt: skip
    assert not_finite(start, except_for=meant) is None
    assert not_finite(start | {"low": torch.tensor(-2.0)}, except_for=meant) is None
    assert not_finite(start | {"low": torch.tensor(NAN)}, except_for=meant) is None
    assert not_finite(start | {"mask": torch.tensor([[0.0, -INF], [-INF, 0.0]])}, except_for=meant) == "mask"
    assert not_finite(start | {"weight": torch.tensor([1.0, NAN, 1.0])}, except_for=meant) == "weight"
    assert not_finite(start) == "mask"


def test_an_observer_that_takes_its_shape_from_the_first_batch_cannot_be_compared() -> None:
    """One number that was infinite became one of each channel."""
    meant = entries_not_finite({"low": torch.tensor(INF)})
    assert not_finite({"low": torch.tensor([1.0, INF])}, except_for=meant) is None


def test_what_a_checkpoint_holds_counts_beside_what_was_built() -> None:
    """Of one that goes on both were there at a start; of another shape the checkpoint's."""
    built = entries_not_finite({"a": torch.tensor([INF, 0.0]), "b": torch.tensor(INF)})
    found = entries_not_finite({"a": torch.tensor([0.0, INF]), "b": torch.tensor([0.0, NAN])}, besides=built)
    assert {name: entries.tolist() for name, entries in found.items()} == {"a": [True, True], "b": [False, True]}
    assert found["a"] is not built["a"]
    assert built["a"].tolist() == [True, False]


def test_large_numbers_are_no_infinities_of_the_start() -> None:
    """Their sum is."""
    assert entries_not_finite({"a": torch.full((2,), 3e38)}) == {}
