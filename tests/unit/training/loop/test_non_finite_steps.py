"""A batch that gives NaN: the run ends, leaves it out, or goes back and then leaves it out."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attempts import Attempt
from saved_weights import load_weights
from tiny import Tiny

from raymlops.errors import NonFiniteError
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.state import RunState
from raymlops.training.loop.optimizer import lr_factor

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


def test_the_logged_learning_rate_is_that_of_the_step(poisoned: Any, tmp_path: Path) -> None:
    """Also after a skipped batch: a cosine over 10 steps."""
    project = poisoned("skip")
    done = Attempt(project, tmp_path, token="a")
    logged = {step: value for name, value, step in done.points if name == "train/lr"}
    assert len(logged) == 8  # the two skipped steps have no loss to log
    spec = project.spec.train
    assert logged == {step: spec.lr * lr_factor(spec, step - 1, steps=10) for step in logged}


def test_a_state_of_an_earlier_version_has_no_learning_rate() -> None:
    """Until the next step nothing is logged as the rate."""
    stored = {key: value for key, value in RunState(step=5, lr=0.1).to_dict().items() if key != "lr"}
    assert RunState.from_dict(stored) == RunState(step=5, lr=0.0)


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


def test_another_policy_from_a_checkpoint_on_gives_the_same_weights(poisoned: Any, tmp_path: Path) -> None:
    """Before the fault, which is behind the first step of this seed, no number depends on the policy."""
    begun = Attempt(poisoned("stop", seed=1), tmp_path / "stopped", token="a", after=1)
    assert (begun.outcome.stopped, begun.outcome.steps) == ("interrupted", 1)
    again = Attempt(poisoned("skip", seed=1), tmp_path / "stopped", token="b")
    whole = Attempt(poisoned("skip", seed=1), tmp_path / "whole", token="a")
    assert sum("the batch is left out" in event.message for event in again.events) == 2
    got, expected = (load_weights(str(done.saver.last_uri))[0] for done in (again, whole))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_rollback_leaves_out_all_since_the_checkpoint(poisoned: Any, tmp_path: Path) -> None:
    """With a checkpoint every second step, a fault takes the steps since the last one with it, and no others."""
    done = Attempt(poisoned("rollback"), tmp_path, token="a")
    told = [event.message for event in done.events if event.kind == "message"]
    assert len(told) == 2
    expected, went_back = set(), []
    for text in told:
        step = int(re.search(r"step (\d+), learning", text).group(1))
        back = re.search(r"back to checkpoint step-0*(\d+)-", text)
        back_to = int(back.group(1)) if back else step - 1  # before the first checkpoint there is no way back
        assert 0 < step - back_to <= 2
        went_back.append(back is not None)
        expected |= set(range(back_to + 1, step + 1))
    newest = recall(str(tmp_path), metric="validation/loss", mode="min")
    assert went_back[-1]
    assert set(newest.state.skipped) == expected
    assert len(newest.state.faults) == 2
    assert (done.outcome.epochs, done.outcome.steps) == (2, 10)


def test_a_rollback_past_several_logs_goes_on_logging(tiny_project: Any, tmp_path: Path) -> None:
    """From step 5 back to the checkpoint of step 1, whose loss is not logged yet: it is logged at step 2, again."""

    def loss(self: Any, model: Any, batch: Any) -> torch.Tensor:
        found = Tiny.loss(self, model, batch)
        return found * float("nan") if model.training and self.progress.step == 4 else found

    project = tiny_project(epochs=1, on_non_finite="rollback", log_every_steps=2, checkpoint_every_minutes=None)
    project = dataclasses.replace(project, recipe_class=type("Tiny", (Tiny,), {"loss": loss}))
    Attempt(project, tmp_path, token="a", after=1)
    done = Attempt(project, tmp_path, token="b")
    assert done.outcome.steps == 5


@pytest.mark.parametrize(("shorter", "faulty"), [({"epochs": 1}, 5), ({"epochs": 2, "max_steps": 3}, 4)])
def test_a_rollback_to_the_end_of_a_shorter_run_goes_on(
    tiny_project: Any, tmp_path: Path, shorter: dict[str, Any], faulty: int
) -> None:
    """The checkpoint says that the run was finished, which it no longer is; the rest of a cut epoch is trained too."""

    def loss(self: Any, model: Any, batch: Any) -> torch.Tensor:
        found = Tiny.loss(self, model, batch)
        return found * float("nan") if model.training and self.progress.step == faulty else found

    def project(**train: Any) -> Project:
        made = tiny_project(on_non_finite="rollback", checkpoint_every_minutes=None, schedule="constant", **train)
        return dataclasses.replace(made, recipe_class=type("Tiny", (Tiny,), {"loss": loss}))

    Attempt(project(**shorter), tmp_path, token="a")
    done = Attempt(project(epochs=2), tmp_path, token="b")
    assert (done.outcome.epochs, done.outcome.steps) == (2, 10)


class Normed(Poisoned):
    """Keeps running statistics, which a batch that does not count must not touch."""

    def model(self) -> torch.nn.Module:
        return NormedModel(super().model())


class NormedModel(torch.nn.Module):
    """Normalises the numbers first."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, batch: Any) -> torch.Tensor:
        numbers = batch["numbers"]
        poisoned = self.training and bool((numbers[:, 0] == Normed.poisoned_length).any())
        return self.inner({**batch, "numbers": self.norm(numbers * float("nan") if poisoned else numbers)})


def test_skip_keeps_running_statistics_clean(poisoned: Any, tmp_path: Path) -> None:
    """The batch's NaN is in no buffer afterwards, so that checkpoints are written and evaluation is finite."""
    made = dataclasses.replace(poisoned("skip"), recipe_class=Normed)
    Normed.poisoned_length = made.recipe().poison
    done = Attempt(made, tmp_path, token="a")
    assert (done.outcome.epochs, done.outcome.steps) == (2, 10)
    weights, _ = load_weights(done.saver.best_uri)
    assert torch.isfinite(weights["norm.running_mean"]).all()


def test_a_run_that_diverges_ends_under_every_policy(tiny_project: Any, tmp_path: Path) -> None:
    """After ten batches left out in a row it is no accident."""
    for policy in ("skip", "rollback"):
        broken = tiny_project(recipe="broken:Diverges", epochs=9, on_non_finite=policy, checkpoint_every_steps=1)
        with pytest.raises(
            NonFiniteError, match=r"NaN or infinite at epoch \d+, step \d+, learning rate .*: it happened 10 times"
        ):
            Attempt(broken, tmp_path / policy, token="a")
