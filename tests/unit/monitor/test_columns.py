"""Cells of a layout as the columns that a verdict is on."""

import numpy as np

from raymlops.monitor.columns import columns_of
from raymlops.profiles.layout import HEAD, Layout, Series

LAYOUT = Layout(
    (
        Series("x", "number", np.array([0.0, 1.0])),
        Series("when", "time", np.array([5.0])),
        Series("who", "category", categories=("a", "b")),
        Series("who", "length", np.array([3.0])),
    )
)


def test_what_is_not_a_finite_value_is_missing_and_times_are_left_out():
    """Cells of x: -inf, below 0, 0 to 1, from 1, inf, missing; of who: a, b, others, missing."""
    counts = np.arange(LAYOUT.size)[None, :]
    x, who, length = columns_of(LAYOUT, blocks=counts, windows=counts)
    at = HEAD
    assert (x.name, x.blocks.tolist(), x.nulls.tolist()) == ("x", [[at + 1, at + 2, at + 3]], [at + at + 4 + at + 5])
    assert x.edges is not None
    assert x.edges.tolist() == [0.0, 0.0, 1.0, 1.0]
    at += 6 + 5  # of x and of the time
    assert (who.labels, who.ordered) == (("a", "b", "all other values"), False)
    assert (who.windows.tolist(), who.window_nulls.tolist()) == ([[at, at + 1, at + 2]], [at + 3])
    assert (length.name, length.ordered) == ("who (length)", True)
