"""What the default loop runs beside the operations of a plain loop of PyTorch: a measure without noise."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from local_training import MemorySaver
from torch.utils._python_dispatch import TorchDispatchMode
from wide import Wide, WideConfig

from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.project import bind
from raymlops.training.inprocess import run_in_process
from raymlops.training.loop.outcome import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, HIDDEN, STEP = 64, 16, 5
"""The fifth step is counted: by then the optimizer has its state."""


class Operations(TorchDispatchMode):
    """Counts what reaches torch's dispatcher, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Counter[str]] = []
        self._counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._counted[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def end_step(self, _step: int = 0) -> None:
        """Keep what was counted since the last step."""
        self.steps.append(self._counted)
        self._counted = Counter()


def default_loop(**train: Any) -> Counter[str]:
    """Return the operations of one step of the default loop."""
    made = bind(
        load_data(
            {
                "project": {"name": "operations"},
                "recipe": {"import": "wide:Wide", "config": {"rows": ROWS * 10, "hidden": HIDDEN}},
                "train": {"epochs": 1, "batch_size": ROWS, "log_every_steps": 1000, **train},
            }
        )
    )
    with Operations() as counted:
        run_in_process(made, prepare(made), saver=MemorySaver(), hooks=Hooks(heartbeat=counted.end_step))
    return counted.steps[STEP]


def plain_loop(step: Callable[[Wide, Any, torch.optim.Optimizer, Any], None]) -> Counter[str]:
    """Return the operations of one step of a loop that calls ``step``."""
    recipe = Wide(WideConfig(rows=ROWS * 10, hidden=HIDDEN))
    table, model = recipe.datasets().train, recipe.model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    orders = torch.randperm(len(table)).split(ROWS)
    with Operations() as counted:
        for rows in orders:
            optimizer.zero_grad()
            step(recipe, model, optimizer, table[rows])
            optimizer.step()
            counted.end_step()
    return counted.steps[STEP]


def plain_step(recipe: Wide, model: Any, _optimizer: torch.optim.Optimizer, batch: Any) -> None:
    recipe.loss(model, batch).backward()


def clipped_step(recipe: Wide, model: Any, _optimizer: torch.optim.Optimizer, batch: Any) -> None:
    recipe.loss(model, batch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


@pytest.mark.parametrize(
    ("train", "step", "more"),
    [
        ({}, plain_step, {}),
        ({"schedule": "cosine", "warmup_fraction": 0.5}, plain_step, {}),
        ({"clip_norm": 1.0}, clipped_step, {}),
        ({"ema": 0.99}, plain_step, {"_foreach_lerp_": 1}),
    ],
)
def test_a_step_runs_two_operations_more_than_a_plain_loop(
    train: dict[str, Any], step: Any, more: dict[str, int]
) -> None:
    """Its loss, detached and times its rows, is kept for the next log."""
    assert default_loop(**train) - plain_loop(step) == Counter({"detach": 1, "mul": 1, **more})
