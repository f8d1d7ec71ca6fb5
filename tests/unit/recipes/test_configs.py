"""The shipped configurations and the example load, bind to their recipes, and stand on their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raymlops.config.load import load
from raymlops.project import bind
from raymlops.testing import RecipeContract

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
EXAMPLE = ROOT / "examples" / "own_recipe"

sys.path.insert(0, str(EXAMPLE))
from iris_like import IrisLike  # noqa: E402 - its folder is put on the path as `raymlops train` does there


class TestExampleContract(RecipeContract):
    recipe = IrisLike


@pytest.mark.parametrize("env", [None, "local", "staging", "prod"])
@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "base"], ids=lambda path: path.stem)
def test_shipped_config_is_valid_in_every_environment(path, env):
    """Every key is a field, every end of the search space is allowed, also with each overlay."""
    project = bind(load(path, env=env))
    assert project.spec.project.name == path.stem
    assert project.spec.sweep.space
    assert project.spec.gate.thresholds


def test_shipped_recipe_configs_are_the_recipes_defaults():
    """What a reader copies from and what the class does by itself are one thing."""
    for path in CONFIGS:
        if path.stem != "base":
            project = bind(load(path))
            assert project.recipe_config == project.recipe_class.Config(), path.stem


def test_production_names_credentials_and_holds_none():
    """The tracking server, its password and both databases come by reference."""
    spec = load(ROOT / "configs" / "flights.yaml", env="prod").spec
    references = (
        spec.tracking.uri,
        spec.tracking.username,
        spec.tracking.password,
        spec.storage.optuna,
        spec.storage.state,
    )
    assert all(getattr(value, "env", None) or getattr(value, "file", None) for value in references)


def test_example_is_short_and_valid():
    """A recipe of one's own takes at most 50 lines, and its configuration names it from its own folder."""
    assert len((EXAMPLE / "iris_like.py").read_text().splitlines()) <= 50
    assert bind(load(EXAMPLE / "config.yaml")).recipe_class is IrisLike
