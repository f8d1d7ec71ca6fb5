"""What a recipe's own loop cannot have of Ray Train."""

from __future__ import annotations

import pickle

import pytest

from raymlops.errors import RecipeError
from raymlops.training.supervision.ray_train import NoBarrier


def test_a_report_to_ray_train_says_what_to_call_instead() -> None:
    """In the worker's process, where the stand-in arrives pickled."""
    barrier = pickle.loads(pickle.dumps(NoBarrier()))
    with pytest.raises(RecipeError, match=r"ray\.train\.report\(\).*not available") as error:
        _ = barrier.broadcast_from_rank_zero
    assert "ctx.report" in str(error.value.hint)
