"""How ranks join their process group, and what a recipe's own loop cannot have of Ray Train."""

from __future__ import annotations

import logging
import pickle
import socket
import threading

import pytest

from raymlops.errors import RecipeError
from raymlops.training.supervision.ray_train import NoBarrier, join_after_first, quiet_train


def test_a_report_to_ray_train_says_what_to_call_instead() -> None:
    """In the worker's process, where the stand-in arrives pickled."""
    barrier = pickle.loads(pickle.dumps(NoBarrier()))
    with pytest.raises(RecipeError, match=r"ray\.train\.report\(\).*not available") as error:
        _ = barrier.broadcast_from_rank_zero
    assert "ctx.report" in str(error.value.hint)


def test_a_rank_joins_once_the_first_one_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not try before, which would cost it half a second."""
    joined = threading.Event()
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))  # bound, but nobody is let in before it listens
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(first.getsockname()[1]))
        rank = threading.Thread(target=join_after_first, args=(joined.set,))
        rank.start()
        assert not joined.wait(0.1)
        first.listen()
        assert joined.wait(5.0)
        rank.join()


def test_the_log_of_ray_train_is_as_before_once_the_last_of_several_runs_has_ended() -> None:
    """In threads of one process, where the first one to begin is the first one to end."""
    logger = logging.getLogger("ray.train")
    before = logger.level
    first, second = quiet_train(), quiet_train()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logger.level == logging.CRITICAL
    second.__exit__(None, None, None)
    assert logger.level == before
