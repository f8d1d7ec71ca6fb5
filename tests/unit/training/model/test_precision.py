"""Low precision and gradient clipping, alone and in real process groups."""

from __future__ import annotations

import math
from functools import partial

import pytest
import rank_jobs as jobs
import torch
from ranks import ranks
from torch import nn

from raymlops.training.loop.gradients import backward, clip_gradient
from raymlops.training.model.precision import autocast, optimizer_step, overflow_expected, scaler_of, skip_step


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("strategy", "world"), [("ddp", 1), ("ddp", 2), ("fsdp", 2)])
def test_low_precision_learns(strategy: str, world: int, precision: str) -> None:
    """The loss of one batch halves in 12 steps, with batch normalisation too; ranks agree, weights stay float32."""
    spec = {"strategy": strategy, "precision": precision, "lr": 0.03}
    job = partial(jobs.train, steps=12, spec=spec, config={"batch_norm": True}, one_batch=True)
    found = ranks().run(world, job)
    for result in found:
        losses = result["losses"]
        assert losses[-1] < losses[0] / 2
        assert losses == found[0]["losses"]
        assert all(tensor.dtype in {torch.float32, torch.int64} for tensor in result["state"].values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_ddp_and_fsdp_agree_in_low_precision(precision: str) -> None:
    """Different rounding, the same curve: a bf16 number has 8 bits, so losses of about 5.6 agree within 0.005."""
    curves = [
        ranks().run(
            2,
            partial(
                jobs.train,
                steps=4,
                spec={"strategy": strategy, "precision": precision},
                config=jobs.LANGUAGE,
                language=True,
            ),
        )[0]["losses"]
        for strategy in ("ddp", "fsdp")
    ]
    assert curves[0] == pytest.approx(curves[1], abs=5e-3)


@pytest.mark.parametrize(("strategy", "on"), [("ddp", [0, 1]), ("fsdp", [1])])
def test_an_overflow_is_left_out_on_every_rank(strategy: str, on: list[int]) -> None:
    """Infinity in one rank's shard, under ddp in every copy, leaves the step out everywhere and halves the scale."""
    job = partial(jobs.overflow, spec={"strategy": strategy, "precision": "fp16"}, on=on)
    for found in ranks().run(2, job):
        assert found["taken"] == [True, False, True]
        assert [math.isfinite(norm) for norm in found["norms"]] == [True, False, True]
        assert found["scale"] == 2.0**15


def trained() -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A model whose gradient is its input, at zero, and its optimizer, learning rate 1."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


@pytest.mark.parametrize(("clip_norm", "want"), [(None, [-0.3, -0.4]), (1.0, [-0.3, -0.4]), (0.1, [-0.06, -0.08])])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_after_unscaling(precision: str, clip_norm: float | None, want: list[float]) -> None:
    """The gradient (.3, .4) has the norm .5; clipped to .1 the step is (.06, .08), whatever the loss was scaled by."""
    spec = jobs.spec_of(precision=precision)
    scaler = scaler_of(spec, "cpu")
    model, optimizer = trained()
    with autocast(spec, "cpu"):
        # Halved outside float16, where a gradient of 2^16, the scale, is already infinity.
        loss = model(torch.tensor([[0.6, 0.8]])).sum().float() / 2
    backward(loss, scaler)
    norm = clip_gradient(optimizer, scaler, max_norm=clip_norm)
    assert norm is not None
    assert (norm.item(), norm.dtype) == (pytest.approx(0.5, rel=1e-3), torch.float32)
    assert optimizer_step(optimizer, scaler)
    assert model.weight.flatten().tolist() == pytest.approx(want, rel=1e-3)


def test_no_norm_where_none_is_asked_for() -> None:
    """Without clipping and guard nothing is computed."""
    _, optimizer = trained()
    assert clip_gradient(optimizer, None, max_norm=None, need_norm=False) is None


def test_a_step_can_be_left_out() -> None:
    """After a step that was left out the scaler takes the next one."""
    spec = jobs.spec_of(precision="fp16")
    scaler = scaler_of(spec, "cpu")
    model, optimizer = trained()
    for left_out in (True, False):
        optimizer.zero_grad()
        backward(model(torch.tensor([[1.0, 2.0]])).sum(), scaler)
        clip_gradient(optimizer, scaler, max_norm=None)
        if left_out:
            skip_step(scaler)
            assert model.weight.abs().sum() == 0
        else:
            assert optimizer_step(optimizer, scaler)
            assert model.weight.flatten().tolist() == [-1.0, -2.0]


def test_an_overflow_that_no_scale_explains() -> None:
    """2^16 is halved 16 times to 1; the overflow at a scale of 1 is the model's own."""
    scaler = scaler_of(jobs.spec_of(precision="fp16"), "cpu")
    model, optimizer = trained()
    expected = []
    for _ in range(17):
        optimizer.zero_grad()
        backward(model(torch.tensor([[float("inf"), 1.0]])).sum(), scaler)
        clip_gradient(optimizer, scaler, max_norm=None)
        assert not optimizer_step(optimizer, scaler)
        expected.append(overflow_expected(scaler))
    assert expected == [True] * 16 + [False]
    assert not overflow_expected(None)
