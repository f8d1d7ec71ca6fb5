import pytest
from ruamel.yaml import YAML

from raymlops.cli.scaffold import scaffold
from raymlops.config.load import load
from raymlops.errors import InvalidNameError, UsageError


def test_scaffold_is_a_valid_project(tmp_path, monkeypatch):
    """The files are there and the configuration holds."""
    monkeypatch.chdir(tmp_path)
    folder, files = scaffold("late-parcels")
    assert files == [
        ".github/workflows/ci.yml",
        ".gitignore",
        "README.md",
        "config.yaml",
        "data.csv",
        "late_parcels.py",
        "requirements.txt",
        "test_late_parcels.py",
    ]
    steps = YAML(typ="safe").load(folder / ".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [
        "pip install -r requirements.txt",
        "raymlops validate config.yaml",
        "pytest -q",
    ]
    assert load(folder / "config.yaml").spec.recipe.import_ == "late_parcels:LateParcels"


@pytest.mark.parametrize("name", ["Bad", "a--b", "json", "torch", "class", "1st", "-x", "ü", "../x"])
def test_names_that_cannot_be_modules_or_models(name, tmp_path, monkeypatch):
    """A name that would hide a module or that no registry takes is refused, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidNameError):
        scaffold(name)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_left_alone(tmp_path, monkeypatch):
    """A folder that exists is not written into."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="exists"):
        scaffold("mine")
    assert list((tmp_path / "mine").iterdir()) == []
