"""A batch that gives NaN: the run ends, leaves it out, or goes back and then leaves it out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attempts import Attempt
from tiny import Tiny

from raymlops.errors import NonFiniteError
from raymlops.training.checkpoint import load_weights

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.project import Project


class Poisoned(Tiny):
    """Has one training row whose loss is no number."""

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        loss = super().loss(model, batch)
        if model.training and bool((batch["numbers"][:, 0] == self.poison).any()):
            return loss * float("nan")
        return loss

    @property
    def poison(self) -> float:
        # The 20th row's length; the preflight looks at the first 16.
        return float(torch.tensor(self.datasets().train["length"][20], dtype=torch.float32))


@pytest.fixture
def poisoned(tiny_project: Any) -> Any:
    def make(policy: str, **fields: Any) -> Project:
        made = tiny_project(epochs=2, on_non_finite=policy, checkpoint_every_steps=2, log_every_steps=1, **fields)
        return dataclasses.replace(made, recipe_class=Poisoned)

    return make


def test_stop_names_the_step(poisoned: Any, tmp_path: Path) -> None:
    """The default ends the run at the step that it happened in."""
    with pytest.raises(NonFiniteError, match=r"loss is nan at epoch 1, step \d, learning rate"):
        Attempt(poisoned("stop"), tmp_path, token="a")


def test_skip_leaves_the_batch_out_and_says_so(poisoned: Any, tmp_path: Path) -> None:
    """One batch an epoch is left out; every other step counts, and the weights are finite."""
    done = Attempt(poisoned("skip"), tmp_path, token="a")
    assert (done.outcome.epochs, done.outcome.steps) == (2, 10)
    told = [event.message for event in done.events if event.kind == "message"]
    assert len(told) == 2
    assert all("the batch is left out" in text for text in told)
    losses = [step for name, _, step in done.points if name == "train/loss"]
    assert len(set(losses)) == 10 - 2
    weights, _ = load_weights(done.saver.best_uri)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_rollback_ends_where_skipping_ends(poisoned: Any, tmp_path: Path) -> None:
    """Nothing was wrong before the batch, so going back and leaving it out changes nothing but the way."""
    skipped = Attempt(poisoned("skip"), tmp_path / "skip", token="a")
    back = Attempt(poisoned("rollback"), tmp_path / "back", token="a")
    assert any("back to checkpoint step-0000" in event.message for event in back.events)
    assert back.outcome.history == skipped.outcome.history
    expected, _ = load_weights(skipped.saver.best_uri)
    got, _ = load_weights(back.saver.best_uri)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_a_run_that_diverges_ends_under_every_policy(tiny_project: Any, tmp_path: Path) -> None:
    """After ten batches left out in a row it is no accident."""
    for policy in ("skip", "rollback"):
        broken = tiny_project(recipe="broken:Diverges", epochs=9, on_non_finite=policy, checkpoint_every_steps=1)
        with pytest.raises(NonFiniteError, match=r"loss or gradient is nan at epoch 3, step 14"):
            Attempt(broken, tmp_path / policy, token="a")
