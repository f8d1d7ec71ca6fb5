"""Compare two batches, as the contract of a recipe does."""

from __future__ import annotations

from typing import Any

import torch

from raymlops.pytree import leaves


def assert_same(first: Any, second: Any, *, what: str, padded: bool = False) -> None:
    """Assert that two nested batches are equal, to the bit; ``padded`` allows the first to be wider by padding."""
    ours, theirs = dict(leaves(first)), dict(leaves(second))
    assert ours.keys() == theirs.keys(), f"{what} have other fields: {sorted(ours)}, {sorted(theirs)}"
    for name, value in ours.items():
        other = theirs[name]
        tensors = isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor)
        same = (_equal(value, other) or (padded and _is_padded(value, other))) if tensors else value == other
        assert same, f"{what} differ in {name.strip('/') or 'the batch'}"


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def _is_padded(wide: torch.Tensor, narrow: torch.Tensor) -> bool:
    """Return whether ``wide`` is ``narrow`` with one value before or behind its dimensions but the first."""
    if wide.ndim != narrow.ndim or wide.dtype != narrow.dtype or len(wide) != len(narrow):
        return False
    for end in (True, False):
        inside = tuple(
            slice(size) if end else slice(full - size, None)
            for full, size in zip(wide.shape, narrow.shape, strict=True)
        )
        outside = torch.ones(wide.shape, dtype=torch.bool)
        outside[inside] = False
        if _equal(wide[inside], narrow) and bool((wide[outside] == wide[outside][0]).all()):
            return True
    return False
