"""What users copy from: the shipped configurations, jobs and example hold what the documents promise."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from raymlops.config.schema import ProjectSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("jobs/*.py")), ids=lambda path: path.stem)
def test_jobs_are_short(path):
    """A job script is at most 30 lines."""
    assert len(path.read_text().splitlines()) <= 30


def test_every_field_is_described():
    """Each field of each section has a description, which the JSON Schema shows in an editor."""
    sections = [field.annotation for field in ProjectSpec.model_fields.values()]
    assert all(issubclass(section, BaseModel) for section in sections)
    bare = [f"{s.__name__}.{name}" for s in sections for name, field in s.model_fields.items() if not field.description]
    assert bare == []
