"""The learning rate is a function of the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raymlops.config.train import TORCH_SCHEDULES, TrainSection
from raymlops.recipe import RecipeBase
from raymlops.training.loop.optimizer import build_optimizer, lr_factor, total_steps


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, the first 2 of them warm-up: 1/2 and 2/2. Then 8 steps at progress 0/8 ... 7/8.
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        # (1 + cos(pi p)) / 2 at p = 0, 1/8, ..., 7/8
        ("cosine", [0.5, 1, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]),
    ],
)
def test_schedules(schedule: Any, expected: list[float]) -> None:
    """Warm-up, then constant, a line or a half cosine to zero at the step after the last."""
    section = TrainSection(lr=2.0, schedule=schedule, warmup_fraction=0.2)
    rates = [2 * lr_factor(section, step, steps=10) for step in range(10)]
    assert rates == pytest.approx([2 * share for share in expected], abs=1e-6)


def test_a_warm_up_may_be_a_number_of_steps() -> None:
    """Two of them, whatever the length; one that is longer than the run ends in mid-rise."""
    assert [lr_factor(TrainSection(schedule="linear", warmup_steps=2), step, steps=4) for step in range(4)] == [
        *(0.5, 1, 1, 0.5)
    ]
    assert [lr_factor(TrainSection(warmup_steps=4), step, steps=2) for step in range(2)] == [0.25, 0.5]


def test_steps_of_a_run(tiny_project: Any) -> None:
    """300 rows in batches of 64 are ceil(4.7) = 5 steps an epoch, 2 epochs 10; max_steps cuts."""
    assert total_steps(tiny_project().spec.train, rows=300) == 10
    assert total_steps(tiny_project(max_steps=7).spec.train, rows=300) == 7
    assert total_steps(tiny_project(max_steps=777, epochs=None).spec.train, rows=300) == 777


def test_how_long_a_run_is_without_epochs() -> None:
    """As many as max_steps takes, else five; a spec reads back as it was written."""
    for given, epochs in (({}, 5), ({"max_steps": 9}, None), ({"epochs": None}, 5), ({"epochs": 2, "max_steps": 9}, 2)):
        section = TrainSection(**given)
        assert section.epochs == epochs
        assert TrainSection.model_validate(section.model_dump(mode="json")) == section


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers_take_their_settings(tiny_project: Any, name: str, kind: type) -> None:
    """Momentum is sgd's own and the first beta of adam; frozen parameters are left out."""
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(requires_grad=False)
    spec = tiny_project(optimizer=name, momentum=0.7, weight_decay=0.01).spec.train
    optimizer = build_optimizer(RecipeBase(), model, spec)
    group = optimizer.param_groups[0]
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (1e-2, 0.01, 1)
    assert group.get("momentum", group.get("betas", (None,))[0] if "betas" in group else None) == 0.7


def test_what_is_suggested_for_a_misspelt_schedule_exists() -> None:
    """In the installed torch, which may have more."""
    found = {name for name, kind in vars(torch.optim.lr_scheduler).items() if isinstance(kind, type)}
    assert set(TORCH_SCHEDULES) <= found
