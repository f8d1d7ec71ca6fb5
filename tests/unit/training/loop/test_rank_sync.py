"""What ranks decide alike."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from raymlops.errors import RecipeError
from raymlops.training.loop.rank_sync import Agreed, Agreement
from raymlops.training.model.ranks import Ranks

if TYPE_CHECKING:
    from pathlib import Path


def test_alone_every_step_is_asked() -> None:
    """An order counts at the very step; the minutes start anew with each checkpoint."""
    now = [0.0]
    orders = [""]
    agreement = Agreement(lambda: orders[0], every_minutes=1.0, clock=lambda: now[0])
    assert agreement.at_step(1) == Agreed()
    now[0] = 60.0
    assert agreement.at_step(2) == Agreed(due=True)
    agreement.saved()
    orders[0] = "interrupted"
    assert agreement.at_step(3) == Agreed("interrupted")
    assert agreement.at_report(1, stop=False) == (False, "interrupted")


def _steps(rank: int, rendezvous: str, results: Any) -> None:
    """Take steps of 10 ms by a clock of its own; rank 1 hears of an order at step 40, on rank 0 checkpoints are due."""
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    step = 0
    agreement = Agreement(
        lambda: "drained" if rank == 1 and step >= 40 else "",
        every_minutes=0.5 / 60 if rank == 0 else 1000.0,
        ranks=Ranks(rank, 2),
        clock=lambda: step / 100,
    )
    due = []
    for step in range(1, 101):
        agreed = agreement.at_step(step)
        if agreed.due:
            due.append(step)
            agreement.saved()
        if agreed.order:
            break
    results.put((rank, step, agreed.order, due))
    try:
        agreement.at_report(2, stop=False) if rank == 0 else agreement.at_end(1)
    except RecipeError as error:
        results.put((rank, str(error)))
    dist.destroy_process_group()


def test_ranks_stop_at_one_step_and_notice_when_they_part_ways(tmp_path: Path) -> None:
    """Both stop within a quarter of a second of steps after step 40; then one reports more often than the other."""
    context = mp.get_context("spawn")
    results = context.Queue()
    mp.spawn(_steps, args=(f"file://{tmp_path}/rendezvous", results), nprocs=2)
    found = sorted((results.get() for _ in range(4)), key=str)
    steps = [entry for entry in found if len(entry) == 4]
    (_, first_step, first_order, first_due), (_, second_step, second_order, second_due) = steps
    assert (first_step, first_order) == (second_step, second_order)
    assert first_order == "drained"
    assert 40 <= first_step <= 40 + 26
    assert first_due == second_due
    errors = [entry[1] for entry in found if len(entry) == 2]
    assert len(errors) == 2
    assert all("one rank is at report 2" in text and "has ended at 1" in text for text in errors)


@pytest.mark.parametrize(("first", "second"), [("resized", "interrupted"), ("drained", "interrupted")])
def test_an_interrupt_wins(first: str, second: str) -> None:
    """Where ranks hear different orders, the one that ends the run counts."""
    from raymlops.training.loop.rank_sync import ORDERS

    assert ORDERS.index(first) < ORDERS.index(second)


def test_one_fast_step_does_not_make_ranks_deaf(tmp_path: Path) -> None:
    """A step that took a tenth of a millisecond among slow ones is followed by at most three steps without asking."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    try:
        now = [0.0]
        agreement = Agreement(
            lambda: "drained" if step > 3 else "", every_minutes=None, ranks=Ranks(0, 2), clock=lambda: now[0]
        )
        for step in range(1, 100):
            now[0] += 0.0001 if step == 2 else 0.3
            if agreement.at_step(step).order:
                break
        assert step <= 3 + 4
        agreement.moved_to(1)
        assert agreement.at_step(2).order == "drained"
    finally:
        dist.destroy_process_group()
