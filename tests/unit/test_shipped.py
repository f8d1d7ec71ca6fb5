"""What users copy from: the shipped configurations, jobs and example hold what the documents promise."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from raymlops.config.load import load
from raymlops.config.schema import ProjectSpec

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))
NAMED = [path for path in CONFIGS if path.name != "base.yaml"]


@pytest.mark.parametrize("overlay", [None, *sorted(path.stem for path in ROOT.glob("configs/env/*.yaml"))])
@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.stem)
def test_every_configuration_holds_with_every_overlay(path, overlay):
    """Each shipped file loads, by itself and under each environment."""
    assert load(path, env=overlay).spec.project.name == path.stem


@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.stem)
def test_every_configuration_says_what_to_expect(path):
    """The comment at the top names the command, an expected result and the seconds it takes."""
    head = path.read_text().split("\nextends", 1)[0]
    assert f"raymlops train --config configs/{path.name}" in head
    assert re.search(r"config configs/\S+\s.*\d+ (s|seconds)\b", head)
    assert re.search(r"(?s)# Expected on .*\b\d\.\d{2,}", head)


@pytest.mark.parametrize("path", sorted(ROOT.glob("jobs/*.py")), ids=lambda path: path.stem)
def test_jobs_are_short(path):
    """A job script is at most 30 lines."""
    assert len(path.read_text().splitlines()) <= 30


def test_a_recipe_of_ones_own_is_at_most_50_lines():
    """The example outside the package keeps the promise of the README."""
    assert len((ROOT / "examples/own_recipe/iris_like.py").read_text().splitlines()) <= 50


def test_every_field_is_described():
    """Each field of each section has a description, which the JSON Schema shows in an editor."""
    sections = [field.annotation for field in ProjectSpec.model_fields.values()]
    assert all(issubclass(section, BaseModel) for section in sections)
    bare = [f"{s.__name__}.{name}" for s in sections for name, field in s.model_fields.items() if not field.description]
    assert bare == []
