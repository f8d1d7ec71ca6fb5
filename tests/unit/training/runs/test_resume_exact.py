"""A run that stops anywhere and goes on ends where it would have ended."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attempts import Attempt
from saved_weights import load_weights
from tiny import Tiny

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.project import Project


class Drawn(Tiny):
    """Draws from every generator there is, in its loss and in its metrics."""

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        noise = float(np.random.rand()) + random.random() + float(torch.rand(()))  # noqa: NPY002 - what recipes do
        return super().loss(model, batch) * (1 + noise / 100)

    def metrics(self, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        sums = super().metrics(model, batch)
        return {**sums, "drawn": torch.rand(len(batch["label"])).sum()}

    def finalize(self, totals: Any) -> dict[str, float]:
        return {**super().finalize(totals), "drawn": float(totals["drawn"])}


@pytest.fixture
def project(tiny_project: Any) -> Project:
    # 300 rows in batches of 64: 5 steps an epoch, the last of 44 rows. A validation is one batch.
    made = tiny_project(
        epochs=3, log_every_steps=4, config={"dropout": 0.3}, accumulate=2, patience=3, eval_batch_size=101
    )
    return dataclasses.replace(made, recipe_class=Drawn)


def test_wherever_it_stops_it_ends_the_same(project: Project, tmp_path: Path) -> None:
    """Stopped after any number of steps, evaluations and reports: weights, history and points are equal to the bit."""
    whole = Attempt(project, tmp_path / "whole", token="w")
    expected, fit = load_weights(whole.saver.best_uri)
    asked = 3 * (5 + 1 + 1)
    for after in range(1, asked + 1):
        folder = tmp_path / f"cut-{after}"
        first = Attempt(project, folder, token="a", after=after)
        assert first.outcome.stopped == ("interrupted" if after < asked else "")
        second = Attempt(project, folder, token="b")
        assert second.outcome.history == whole.outcome.history, after
        assert second.outcome.best_epoch == whole.outcome.best_epoch
        assert second.outcome.steps == 15
        weights, state = load_weights(second.saver.best_uri)
        assert state == fit
        for name, tensor in expected.items():
            assert torch.equal(weights[name], tensor), (after, name)
        # In the history that led to the result each point was logged once.
        assert first.points + second.points == whole.points, after


def test_a_run_that_is_done_trains_nothing_more(project: Project, tmp_path: Path) -> None:
    """Going on with a finished run takes no step and has its result."""
    first = Attempt(project, tmp_path, token="a")
    again = Attempt(project, tmp_path, token="b")
    assert again.outcome.history == first.outcome.history
    assert again.points == []
    assert again.saver.best_uri == first.saver.best_uri


def test_more_epochs_go_on_from_the_end(project: Project, tmp_path: Path) -> None:
    """A run of 3 epochs goes on to 5; what it had reported stays."""
    first = Attempt(project, tmp_path, token="a")
    spec = project.spec.model_copy(update={"train": project.spec.train.model_copy(update={"epochs": 5})})
    longer = dataclasses.replace(project, spec=spec)
    second = Attempt(longer, tmp_path, token="b")
    assert second.outcome.epochs == 5
    assert second.outcome.history[:3] == first.outcome.history


class OwnLoop(Tiny):
    """Brings its own loop, which asks where it stands: one full-batch step an epoch."""

    def train_loop(self, ctx: Any) -> None:
        model = ctx.model()
        loss_of = ctx.parallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        state = ctx.restore(model=model, optimizer=optimizer)
        train = ctx.prepared.splits["train"]
        batch = ctx.batch(train, torch.arange(train.rows))
        for epoch in range(state.epoch, ctx.spec.epochs + 1):
            ctx.seed_step(epoch)
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()
            if ctx.report(epoch=epoch, step=epoch, metrics={"train/loss": loss.item(), **ctx.evaluate(model)}):
                return


def test_a_loop_of_its_own_goes_on_from_its_last_report(project: Project, tmp_path: Path) -> None:
    """One that calls restore() ends where it would have ended, wherever it was stopped."""
    own = dataclasses.replace(project, recipe_class=OwnLoop)
    whole = Attempt(own, tmp_path / "whole", token="w")
    assert whole.outcome.epochs == 3
    for after in range(1, 6):
        first = Attempt(own, tmp_path / f"cut-{after}", token="a", after=after)
        assert first.outcome.stopped == "interrupted"
        second = Attempt(own, tmp_path / f"cut-{after}", token="b")
        assert second.outcome.history == whole.outcome.history, after
