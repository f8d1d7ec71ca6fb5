"""A run is the same to the bit whatever reads its batches, also where it stops and resumes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attempts import Attempt
from loader_processes import loader_processes
from local_training import MemorySaver, run_local
from saved_weights import load_weights
from spread import places

from raymlops.data.cache import DataCache
from raymlops.data.prepare import Memory, prepare
from raymlops.errors import RecipeError, TrainingError
from raymlops.training.inprocess import run_in_process
from raymlops.training.loop.outcome import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from raymlops.project import Project


SMALL = Memory(whole_bytes=0, cache_bytes=20_000)
"""Streams files of 300 rows, in windows of about a third of them."""


def same(left: Attempt, right: Attempt) -> bool:
    """Return whether two runs ended with equal weights, the same curve and the same metrics of the test split."""
    one, other = (load_weights(attempt.saver.best_uri)[0] for attempt in (left, right))
    said, also = ((attempt.outcome.history, attempt.outcome.test) for attempt in (left, right))
    return said == also and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("recipe", "counts"),
    [("loaded:Mixed", (3,)), ("loaded:Passing", (2,)), ("loaded:Padded", (2,)), ("loaded:Streamed", (2,))],
)
def test_loaders_change_nothing(
    recipe: str, counts: tuple[int, ...], tiny_project: Callable[..., Project], tmp_path: Path
) -> None:
    """None, two and three of them: items, an iterable, a table of which each batch is encoded, streamed files."""
    # 300 rows in batches of 64, each in 3 micro-batches; the last one has 44.
    options = {"epochs": 2, "accumulate": 3, "log_every_steps": 1, "eval_batch_size": 40, "eval_every_steps": 3}
    runs = {
        count: Attempt(
            tiny_project(recipe=recipe, data_workers=count, **options), tmp_path / f"{count}", token="t", memory=SMALL
        )
        for count in (0, *counts)
    }
    assert runs[0].outcome.steps == 10
    assert runs[0].outcome.test
    for count in counts:
        assert same(runs[0], runs[count]), count
        assert runs[0].points == runs[count].points


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("recipe", "stops"),
    places([("loaded:Mixed", (8,)), ("loaded:Mixed", (2,)), ("loaded:Passing", (5,)), ("loaded:Streamed", (8,))], 2),
)
def test_a_resume_in_mid_epoch_is_exact(
    recipe: str, stops: tuple[int, ...], tiny_project: Callable[..., Project], tmp_path: Path
) -> None:
    """Stopped after some orders with loaders, it ends as if it never had loaders."""
    options = {"epochs": 2, "accumulate": 2, "log_every_steps": 1, "recipe": recipe}
    whole = Attempt(tiny_project(**options), tmp_path / "whole", token="w", memory=SMALL)
    project = tiny_project(data_workers=2, **options)
    for after in stops:
        first = Attempt(project, tmp_path / f"cut-{after}", token="a", after=after, memory=SMALL)
        assert first.outcome.stopped == "interrupted"
        second = Attempt(project, tmp_path / f"cut-{after}", token="b", memory=SMALL)
        assert same(whole, second), after
        assert first.points + second.points == whole.points, after


def test_kept_data_follows_the_progress(tiny_project: Callable[..., Project]) -> None:
    """A sweep's trials share splits, with a recipe that is not their own; its ``collate`` sees each trial's steps."""
    project, cache = tiny_project(recipe="loaded:Mixed", epochs=2), DataCache()
    plain = run_local(project)
    for _ in range(2):
        again = run_local(project, prepared=cache.get(project))
        assert again.history == plain.history
        assert all(torch.equal(again.model_state[name], value) for name, value in plain.model_state.items())


@pytest.mark.usefixtures("forked")
def test_a_trial_encodes_no_test_table(tiny_project: Callable[..., Project]) -> None:
    """It never evaluates that split."""
    project = tiny_project(epochs=1, data_workers=1)
    prepared = prepare(project)
    run_in_process(project, prepared, saver=MemorySaver(), hooks=Hooks(trial=True))
    encoded = {name for name, split in prepared.splits.items() if "encoded" in vars(split)}
    assert encoded == {"train", "validation"}


@pytest.mark.usefixtures("forked")
def test_a_loop_of_its_own_has_them_too(tiny_project: Callable[..., Project], tmp_path: Path) -> None:
    """``ctx.batches`` reads ahead, and what it has read does not change when it is kept."""
    options = {"epochs": 1, "recipe": "loaded:OwnLoop"}
    runs = [Attempt(tiny_project(data_workers=count, **options), tmp_path / str(count), token="t") for count in (0, 2)]
    assert same(*runs)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("raises", RecipeError, r"item 150 raised ValueError: the file is cut short at .*loaded\.py"),
        ("dies", TrainingError, r"was killed by SIGKILL while it read \d+ rows of the train split"),
        ("hangs", TrainingError, "has sent no heartbeat for"),
    ],
)
def test_a_fault_ends_the_attempt(
    fault: str, kind: Any, said: str, tiny_project: Callable[..., Project], tmp_path: Path
) -> None:
    """What is raised names the item or the rows, and nothing of the attempt is left."""
    project = tiny_project(recipe="loaded:Broken", config={"fault": fault}, data_workers=2, hang_timeout_s=3.0)
    started_s = time.monotonic()
    with pytest.raises(kind, match=said):
        Attempt(project, tmp_path, token="t")
    assert time.monotonic() - started_s < 60
    assert loader_processes() == []
