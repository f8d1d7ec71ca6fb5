"""The loop in this process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from local_training import run_local
from loop_jobs import trained
from ranks import ranks

from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.errors import NonFiniteError, RecipeError, TrainingError, UsageError
from raymlops.project import bind


def test_it_learns(tiny_project: Any) -> None:
    """On 2,000 rows the AUC passes 0.85; the table's own noise allows about 0.87."""
    project = tiny_project(config={"train_rows": 2000, "validation_rows": 501}, epochs=4)
    assert run_local(project).metrics["validation/auc"] > 0.85


def test_the_same_seed_gives_the_same_run(tiny_project: Any) -> None:
    """Weights, order and dropout follow the seed; another seed gives another run."""
    config = {"dropout": 0.2}
    first, again = (run_local(tiny_project(config=config)).history for _ in range(2))
    assert first == again
    assert run_local(tiny_project(config=config, seed=1)).history != first


def test_weights_that_numpy_draws_follow_the_seed_too(tiny_project: Any) -> None:
    """Otherwise each rank starts with other ones, which a sharded model keeps; random draws follow it as well."""
    first = run_local(tiny_project(recipe="broken:DrawsWeights")).history
    random.random()  # somebody else draws
    np.random.random()  # noqa: NPY002
    assert run_local(tiny_project(recipe="broken:DrawsWeights")).history == first
    assert run_local(tiny_project(recipe="broken:DrawsWeights", seed=1)).history != first


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about a process without a GPU")
def test_a_gpu_that_is_not_there_is_missed(tiny_project: Any) -> None:
    """Nobody who asks for a GPU wants to find out in the morning that the CPU trained all night."""
    with pytest.raises(UsageError, match=r"^train\.gpus_per_worker is 1, but torch \S+ sees no GPU in this process"):
        run_local(tiny_project(gpus_per_worker=1))


@pytest.mark.parametrize("accumulate", [2, 5, 64])
def test_accumulation_changes_nothing(tiny_project: Any, accumulate: int) -> None:
    """The gradient of uneven micro-batches, 13 + 13 + 13 + 13 + 12 rows, is that of the batch of 64."""
    whole = run_local(tiny_project(optimizer="sgd"))
    pieces = run_local(tiny_project(optimizer="sgd", accumulate=accumulate))
    assert pieces.steps == whole.steps == 10
    for name, tensor in whole.model_state.items():
        torch.testing.assert_close(pieces.model_state[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_row_that_is_left_over_is_trained_with_batch_normalisation(tiny_project: Any, accumulate: int) -> None:
    """65 rows in batches of 64: the last step has one row, which has no variance and changes no running statistics."""
    result = run_local(tiny_project(recipe="broken:Items", config={"train_rows": 65}, accumulate=accumulate))
    assert result.steps == 4
    assert int(result.model_state["1.num_batches_tracked"]) == result.best_epoch * accumulate
    even = run_local(tiny_project(recipe="broken:Items", config={"train_rows": 65}, accumulate=accumulate, max_steps=1))
    left_over = run_local(
        tiny_project(recipe="broken:Items", config={"train_rows": 65}, accumulate=accumulate, max_steps=2)
    )
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(even.model_state[name], left_over.model_state[name])
    assert not torch.equal(even.model_state["0.weight"], left_over.model_state["0.weight"])


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 1), (16, 5), (20, 8)])
def test_a_single_image_goes_the_plain_way(tiny_project: Any, batch_size: int, accumulate: int) -> None:
    """It has many values per channel: the last of 65 images is a batch like any, in the running statistics too."""
    config = {"train_rows": 65}
    found = [
        run_local(tiny_project(recipe=recipe, config=config, batch_size=batch_size, accumulate=accumulate, epochs=3))
        for recipe in ("broken:Images", "broken:PlainImages")
    ]
    assert found[0].history == found[1].history
    for name, tensor in found[1].model_state.items():
        assert torch.equal(found[0].model_state[name], tensor), name


def test_single_images_of_ranks_go_the_plain_way() -> None:
    """13 images in batches of 4 on 3 ranks: shares of one, and a last batch that leaves two ranks none."""
    found = []
    for recipe in ("broken:Images", "broken:PlainImages"):
        data = {
            "project": {"name": "p"},
            "recipe": {"import": recipe, "config": {"train_rows": 13, "validation_rows": 20, "test_rows": 5}},
            "train": {"batch_size": 4, "num_workers": 3, "epochs": 2},
        }
        found.append(ranks().run(3, trained, bind(load_data(data)).to_dict()))
    assert found[0] == found[1]


def test_a_rank_with_a_single_row_hands_it_on() -> None:
    """13 rows in batches of 8 on 3 ranks: 8 rows are 3, 3 and 2; 5 are 3 and 2, and the last rank fills up."""
    data = {
        "project": {"name": "p"},
        "recipe": {"import": "broken:Items", "config": {"train_rows": 13, "validation_rows": 20, "test_rows": 5}},
        "train": {"batch_size": 8, "num_workers": 3, "epochs": 2},
    }
    found = ranks().run(3, trained, bind(load_data(data)).to_dict())
    assert found[0][0].keys() >= {"train/loss", "validation/loss"}
    parameters = [
        {name: value for name, value in state.items() if "running" not in name} for _, state in found if state
    ]
    assert parameters
    assert all(state == parameters[0] for state in parameters)


def test_patience_ends_a_run(tiny_project: Any) -> None:
    """With a learning rate of almost zero no epoch after the first improves accuracy: 1 + 2 epochs."""
    result = run_local(tiny_project(epochs=50, lr=1e-12, patience=2, metric="validation/accuracy", mode="max"))
    assert (result.best_epoch, result.epochs, len(result.history)) == (1, 3, 3)


def test_the_best_epoch_is_kept(tiny_project: Any) -> None:
    """The kept weights give the metrics of the best epoch and not of the last."""
    project = tiny_project(config={"train_rows": 40}, epochs=30, lr=0.05, schedule="constant")
    prepared = prepare(project)
    result = run_local(project, prepared=prepared)
    losses = [epoch["validation/loss"] for epoch in result.history]
    assert result.best_epoch == losses.index(min(losses)) + 1 < len(losses)
    model = prepared.recipe.model()
    model.load_state_dict(result.model_state)
    from raymlops.training.loop.evaluation import totals

    sums = totals(prepared.recipe, model.eval(), prepared.splits["validation"], batch_size=4096)
    assert prepared.recipe.finalize(sums)["loss"] == pytest.approx(min(losses))


def test_max_steps_ends_in_mid_epoch(tiny_project: Any) -> None:
    """Seven steps of five an epoch: the second epoch is cut short, evaluated and reported."""
    result = run_local(tiny_project(epochs=9, max_steps=7))
    assert (result.steps, result.epochs) == (7, 2)


def test_steps_alone_may_be_the_length(tiny_project: Any) -> None:
    """Through as many epochs as that takes: 32 steps of 5 an epoch; the last one is cut."""
    result = run_local(tiny_project(epochs=None, max_steps=32))
    assert (result.steps, len(result.history)) == (32, 7)


def test_a_trial_can_be_stopped(tiny_project: Any) -> None:
    """on_epoch hears every epoch's metrics; True ends the run."""
    heard: list[int] = []

    def stop(epoch: int, metrics: dict[str, float]) -> bool:
        heard.append(epoch)
        return metrics["validation/loss"] > 0 and epoch == 2

    assert run_local(tiny_project(epochs=9), on_epoch=stop).epochs == 2
    assert heard == [1, 2]


def test_nan_names_epoch_step_and_rate(tiny_project: Any) -> None:
    """NaN from the fourth batch on, heard at the log of step 5, is attributed to step 4."""
    project = tiny_project(recipe="broken:Diverges", log_every_steps=5, schedule="constant")
    with pytest.raises(NonFiniteError, match=r"loss is nan at epoch 1, step 4, learning rate 0\.01"):
        run_local(project)


def test_clipping_bounds_the_step(tiny_project: Any) -> None:
    """One step of plain gradient descent moves by lr * clip_norm = 0.01 * 0.001 at most."""
    project = tiny_project(optimizer="sgd", momentum=0.0, clip_norm=1e-3, max_steps=1, schedule="constant")
    prepared = prepare(project)
    torch.manual_seed(project.spec.train.seed)
    before = prepared.recipe.model().state_dict()
    after = run_local(project, prepared=prepared).model_state
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
    assert 0 < float(moved) <= 1.01e-5


def test_a_recipe_may_bring_its_own_loop(tiny_project: Any) -> None:
    """A custom loop reports through the same context and is stopped, judged and kept like the default."""
    result = run_local(tiny_project(recipe="broken:OwnLoop", epochs=5))
    assert (result.epochs, result.steps) == (5, 5)
    assert result.history[-1]["validation/loss"] < result.history[0]["validation/loss"]


def test_a_loop_that_reports_nothing_is_an_error(tiny_project: Any) -> None:
    """There is no result without a report."""
    with pytest.raises(TrainingError, match="without a report"):
        run_local(tiny_project(recipe="broken:SilentLoop"))


def test_torch_is_left_as_it_was(tiny_project: Any) -> None:
    """A run neither moves the caller's random numbers nor keeps its thread count."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    run_local(tiny_project(epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_an_error_of_the_backward_pass_names_the_step_and_the_batch(tiny_project: Any) -> None:
    """No line of the recipe was running then."""
    expected = (
        r"BreaksInBackward: the backward pass raised RuntimeError: one of the variables .* in step 5, epoch 1, "
        r"with a batch of numbers \(44, 3\) float32, colour \(44\) int64, label \(44\) float32$"
    )
    with pytest.raises(RecipeError, match=expected):
        run_local(tiny_project(recipe="broken:BreaksInBackward"))
