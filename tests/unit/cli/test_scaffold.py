import re
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from raymlops.cli.scaffold import _PIPELINES, scaffold
from raymlops.config.load import load
from raymlops.errors import InvalidNameError, UsageError
from raymlops.lifecycle.loop.training_data import unretrainable
from raymlops.project import bind


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


def test_raymlops_is_installed_from_where_its_user_says(tmp_path, monkeypatch):
    """No package index has it, so that none may be asked for that name: whoever takes it there is somebody else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYMLOPS_SOURCE", raising=False)
    file = scaffold("late-parcels")[0] / "requirements.txt"

    def install():
        words = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "-r", "one.txt"]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False).stderr

    (line,) = [line for line in file.read_text().splitlines() if line.startswith("raymlops")]
    (tmp_path / "one.txt").write_text(f"{line}\n")
    assert "${RAYMLOPS_SOURCE}" in install()
    monkeypatch.setenv("RAYMLOPS_SOURCE", f"file://{tmp_path}/no.whl")
    assert "no.whl" in install()


def test_its_model_can_be_watched_and_retrained_by_the_lines_that_are_comments(tmp_path, monkeypatch):
    """Without another change; ``validate`` has nothing to say of them."""
    monkeypatch.chdir(tmp_path)
    folder, _ = scaffold("late-parcels")
    monkeypatch.syspath_prepend(folder)
    config = folder / "config.yaml"
    text, _, lines = config.read_text().partition("# monitor:")
    config.write_text(text + f"# monitor:{lines}".replace("# ", "", 1).replace("\n# ", "\n"))
    project = bind(load(config))
    assert project.spec.monitor.skill.min == 0.1
    assert project.spec.retrain.triggers.skill
    assert unretrainable(project) is None


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


def test_a_new_repository_becomes_a_project(tmp_path, monkeypatch):
    """Its workflows count at the repository's root alone; no file of somebody else's is replaced."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / ".git").mkdir(parents=True)
    (tmp_path / "mine" / "LICENSE").touch()
    scaffold("mine", ci="github")
    assert (tmp_path / "mine" / ".github" / "workflows" / "raymlops.yml").exists()
    with pytest.raises(UsageError, match=r"has .*README\.md, .* already"):
        scaffold("mine", ci="github")


@pytest.mark.parametrize("ci", [None, *_PIPELINES])
def test_the_readme_names_files_that_were_written(tmp_path, monkeypatch, ci):
    """Whatever checks and delivers the project."""
    monkeypatch.chdir(tmp_path)
    folder, files = scaffold("late-parcels", ci=ci)
    rows = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert [name for name in named if not (folder / name).exists()] == []
    assert [name for name in files if not (folder / name).is_file()] == []
