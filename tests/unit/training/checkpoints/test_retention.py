"""Which checkpoints stay, and what the pointer says of them."""

from __future__ import annotations

import json

import pytest

from raymlops.config.train import TrainSection
from raymlops.errors import StorageError
from raymlops.training.checkpoints.retention import Entry, Kept, ranked, with_best_of
from raymlops.training.checkpoints.state import RunState
from raymlops.training.loop.early_stopping import Best


def run_of(*values: float | None, best: int | None = None) -> Kept:
    """Checkpoints c1, c2, ... with these values."""
    kept = Kept()
    for number, value in enumerate(values, 1):
        entry = Entry(f"c{number}", step=10 * number, order=number, reports=number, value=value)
        kept = kept.saved(entry, best=number == best)
    return kept


def names(kept: Kept) -> list[str]:
    return [entry.name for entry in kept.entries]


def test_the_last_and_the_best_few_stay() -> None:
    """Of six the last two (c5, c6) and the lowest two (c2 = 1, c4 = 2)."""
    kept = run_of(9, 1, 8, 2, 7, 6, best=2)
    assert names(kept.pruned(TrainSection(keep_checkpoints=2, keep_best=2, mode="min"))) == ["c2", "c4", "c5", "c6"]


def test_the_highest_are_best_where_more_is_better() -> None:
    """c1 = 9 and c3 = 8."""
    assert names(run_of(9, 1, 8, 2, 7, 6).pruned(TrainSection(keep_checkpoints=1, keep_best=2, mode="max"))) == [
        "c1",
        "c3",
        "c6",
    ]


def test_what_was_said_to_be_best_stays_whatever_its_value() -> None:
    """By value c1 is best, but a report said c2: as where the metric's mode has a tolerance."""
    assert names(run_of(1, 2, 3, None, best=2).pruned(TrainSection(keep_checkpoints=1, keep_best=1, mode="min"))) == [
        "c1",
        "c2",
        "c4",
    ]


def test_of_equals_the_older_is_better() -> None:
    """As in the loop, where only less is an improvement; those without a value are not ranked."""
    kept = run_of(5, None, 5, 4)
    assert [entry.name for entry in ranked(kept.entries, mode="min")] == ["c4", "c1", "c3"]


def test_the_pointer_comes_back() -> None:
    """As it was written; unknown fields of a newer minor version would be ignored."""
    kept = run_of(5, None, best=1)
    data = json.loads(kept.to_json())
    assert (data["best"], data["last"]) == ("c1", "c2")
    assert Kept.from_json(json.dumps(data | {"later": 1}).encode()) == kept


@pytest.mark.parametrize("cut", range(0, 250, 17))
def test_a_cut_pointer_is_not_trusted(cut: int) -> None:
    """Wherever it was cut."""
    assert Kept.from_json(run_of(5, None, best=1).to_json()[:cut]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b'{"format_version": 1, "best": "epoch-0001", "last": "epoch-0001"}',
        b'{"format_version": 2, "best": null, "last": "gone", "claim": "", "checkpoints": []}',
        b'{"format_version": 2, "best": null, "last": null, "claim": "", "checkpoints": [{"name": "a"}]}',
    ],
)
def test_a_pointer_that_makes_no_sense_is_not_trusted(data: bytes) -> None:
    """Another shape, the first format, or a name that it does not list."""
    assert Kept.from_json(data) is None


def test_a_newer_pointer_is_refused() -> None:
    """Rebuilding it would lose what the newer version keeps there."""
    with pytest.raises(StorageError, match=r"index\.json has format 3"):
        Kept.from_json(b'{"format_version": 3}')


def test_orders_go_on_over_attempts() -> None:
    """After the orders 1 to 3 comes 4, however many of them are still there."""
    assert Kept().next_order == 1
    assert run_of(1, 2, 3).pruned(TrainSection(keep_checkpoints=1, keep_best=1, mode="min")).next_order == 4


def test_a_best_that_is_lost_is_followed_by_the_best_that_is_there() -> None:
    """Report 3 was best, its checkpoint is gone: c1 is, and two reports have passed since."""
    state = RunState(history=[{}, {}, {}], best_epoch=3, best_value=0.1, best_step=30, waited=0, waited_from=0.1)
    mended = with_best_of(state, run_of(0.5, 0.7, best=1))
    assert (mended.best_epoch, mended.best_value, mended.best_step, mended.waited) == (1, 0.5, 10, 2)
    assert Best.of_run(mended, TrainSection()).waited_from == 0.5
    mended = with_best_of(state, Kept())
    assert (mended.best_epoch, mended.best_value, mended.best_step, mended.waited) == (0, None, 0, 0)
    best = Best.of_run(mended, TrainSection(patience=1))
    assert best.update(4, 0.3)
    assert not best.exhausted
    assert with_best_of(state, run_of(3, 2, 1, best=3)) is state


def test_what_a_later_release_says_of_a_checkpoint_is_left_out() -> None:
    """A pointer of this format with a key that is not known here is no damaged one."""
    data = json.loads(run_of(1.0).to_json())
    data["checkpoints"][0]["node"] = "a"
    kept = Kept.from_json(json.dumps(data).encode())
    assert kept is not None
    assert names(kept) == ["c1"]
    data["checkpoints"][0]["step"] = "ten"
    assert Kept.from_json(json.dumps(data).encode()) is None
