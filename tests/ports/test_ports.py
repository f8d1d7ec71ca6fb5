"""PyTorch scripts that became recipes: the same losses, exact resumes, and what more workers change."""

from __future__ import annotations

import importlib.util
import math
import statistics
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from attempts import Attempt
from local_training import run_local
from loop_jobs import trained
from ported import EXAMPLES, Order, Port
from ranks import ranks
from saved_weights import load_weights

from raymlops.config.load import load
from raymlops.data.prepare import prepare
from raymlops.testing import RecipeContract
from raymlops.training.preflight import preflight

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

PORTS = [
    Port("image_classifier", "ImageClassifier", {"epochs": 2}, "accuracy", off={"shift": False}, rows_alone=False),
    Port("gpt", "Definitions", {"max_steps": 14}, "loss", off={"dropout": 0.0}),
    Port("vae", "DigitsVae", {"epochs": 2}, "loss", off={"noise": 0.0}),
    Port("gan", "Gan", {"epochs": 2}, "distance", loss="train/generator", rows_alone=False),
    Port("two_towers", "TwoTowers", {"epochs": 1}, "recall_at_10", rows_alone=False),
    Port("fraud", "Fraud", {"epochs": 1}, "balanced_accuracy"),
]
LORA = Port("lora", "Comments", {"epochs": 1}, "accuracy", off={"dropout": 0.0})
NO_LORA = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "peft")),
    reason="transformers and peft are not installed",
)
LORA_MARKS = [NO_LORA, pytest.mark.filterwarnings("default")]


def by_name(soak: Container[str] = ()) -> list[Any]:
    """Return each port as a parameter, some of them for soak alone."""
    marks = {port.name: LORA_MARKS if port is LORA else [] for port in (*PORTS, LORA)}
    return [
        pytest.param(port, id=port.name, marks=[*marks[port.name], *([pytest.mark.soak] if port.name in soak else [])])
        for port in (*PORTS, LORA)
    ]


BY_NAME = by_name()


@pytest.fixture(autouse=True)
def one_thread():
    """Keep to one thread, as the recipe's run does: sums in another order differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestImageClassifier(RecipeContract):
    recipe = import_module("image_classifier.recipe").ImageClassifier


class TestGpt(RecipeContract):
    recipe = import_module("gpt.recipe").Definitions


class TestGan(RecipeContract):
    recipe = import_module("gan.recipe").Gan


@pytest.mark.parametrize("port", BY_NAME)
def test_a_port_passes_the_preflight(port: Port, tmp_path: Path) -> None:
    """Each can be trained and registered as it stands, and its configuration names it from its own folder."""
    assert load(port.folder / "config.yaml").spec.recipe.import_ == f"recipe:{port.recipe}"
    project = port.project(tmp_path)
    preflight(project, prepare(project))


@pytest.mark.parametrize("port", BY_NAME)
def test_losses_are_those_of_the_script(port: Port, tmp_path: Path) -> None:
    """On the same batches, each step seeded alike, so that dropout and noise are the same: within 1e-4 at each."""
    off = {"shift": False} if port.name == "image_classifier" else {}  # items are seeded by row, in a script by nothing
    project = port.project(tmp_path, config=off, **port.short)
    expected, metrics = port.script(order=Order(project), **off, **port.short)
    run = Attempt(project, tmp_path / "run", token="a")
    steps = [event.metrics for event in run.events if event.kind == "step"]
    losses = [metrics[port.loss] for metrics in steps if port.loss in metrics]
    assert len(losses) == len(expected) > 12
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-4)
    if port.name != "gan":  # its evaluation draws
        found = run.outcome.history[-1][f"validation/{port.metric}"]
        assert found == pytest.approx(metrics[port.metric], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("port", BY_NAME)
def test_a_resumed_run_is_bit_equal(port: Port, tmp_path: Path) -> None:
    """Interrupted twice, all random parts on: losses, reports and weights are those of a run in one go."""
    project = port.project(tmp_path, checkpoint_every_minutes="null", **port.short)
    whole = Attempt(project, tmp_path / "whole", token="w")
    points = []
    for number, after in enumerate((5, 4)):
        cut = Attempt(project, tmp_path / "cut", token=f"c{number}", after=after)
        assert cut.outcome.stopped
        points += cut.points
    resumed = Attempt(project, tmp_path / "cut", token="r")
    assert resumed.outcome.history == whole.outcome.history
    assert points + resumed.points == whole.points
    expected, _ = load_weights(whole.saver.best_uri)
    found, _ = load_weights(resumed.saver.best_uri)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("port", by_name(soak=["image_classifier", "gpt", "gan", "two_towers"]))
def test_two_workers(port: Port, tmp_path: Path) -> None:
    """Where the loss is a sum over rows, two workers make no difference; elsewhere it is known what does.

    Not so: batch normalisation sees a worker's rows (``image_classifier``), negatives are a worker's other rows
    (``two_towers``), noise is drawn by each worker (``gan``).
    """
    project = port.project(tmp_path, config=port.off, **port.short)
    alone = run_local(project).history[-1]
    (both, _), _ = ranks().run(2, trained, project.to_dict())
    assert both.keys() == alone.keys()
    for name, value in alone.items():
        print(f"{port.name} {name}: one worker {value:.5f}, two {both[name]:.5f}")
        if port.rows_alone:
            assert both[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert port.rows_alone or any(both[name] != pytest.approx(value, rel=1e-3) for name, value in alone.items())


@pytest.mark.parametrize("port", BY_NAME)
def test_what_a_port_changes(port: Port) -> None:
    """Fewer than 40 lines are new, those that serve it included; of a loop with two optimizers, fewer than 20."""
    counts = port.changes()
    print(port.name, counts)
    assert counts["new"] < 40
    if port.folder.parent == EXAMPLES:
        assert f"| `{port.name}` | {' | '.join(map(str, counts.values()))} |" in (EXAMPLES / "README.md").read_text()
    if port.name == "gan":
        script, recipe = ((port.folder / f"{name}.py").read_text() for name in ("script", "recipe"))
        kept = {line.strip() for line in script.splitlines()}
        loop = recipe[recipe.index("    def datasets") : recipe.index("    def metrics")]
        new = [line for line in loop.splitlines() if line.strip() and line.strip() not in kept]
        print(f"{len(new)} lines of data, model and loop are new")
        assert len(new) < 20


@pytest.mark.soak
@pytest.mark.parametrize("name", ["image_classifier", "gpt", "gan", "own_recipe"])
def test_an_example_is_tested_in_its_own_folder(name: str) -> None:
    """As a user runs it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=prepend", "."]
    ran = subprocess.run(command, cwd=EXAMPLES / name, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.soak
@pytest.mark.parametrize("port", BY_NAME)
def test_trained_as_well_as_by_the_script(port: Port, tmp_path: Path) -> None:
    """Five seeds each at full length, everything random: the means differ by no more than they scatter."""
    found: dict[str, list[float]] = {"script": [], "recipe": []}
    for seed in range(5):
        found["script"].append(port.script(seed=seed)[1][port.metric])
        history = run_local(port.project(tmp_path, seed=seed, log_every_steps=20)).history
        found["recipe"].append(history[-1][f"validation/{port.metric}"])
    shown: dict[str, Any] = {
        name: (statistics.mean(values), statistics.stdev(values)) for name, values in found.items()
    }
    print(port.name, port.metric, *(f"{name} {mean:.4f} +- {spread:.4f}" for name, (mean, spread) in shown.items()))
    (first, one), (second, other) = shown.values()
    assert abs(first - second) <= 3 * math.hypot(one, other) / math.sqrt(5) + 1e-3
