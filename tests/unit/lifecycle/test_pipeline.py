from __future__ import annotations

import pytest

from raymlops.lifecycle.pipeline import _workers


@pytest.mark.parametrize(
    ("workers", "text"),
    [((0, 0), "this process"), ((1, 1), "1 worker"), ((2, 2), "2 workers"), ((1, 2), "1 to 2 workers")],
)
def test_the_step_says_on_how_many_workers(workers, text):
    """Fixed, elastic, or none."""
    assert _workers(workers) == text
