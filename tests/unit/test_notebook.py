"""The cell magic: a cell becomes a module that workers can import."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from IPython.core.interactiveshell import InteractiveShell

import raymlops
from raymlops.errors import UsageError
from raymlops.notebook import recipes_in, write_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "cell_recipe"
RECIPE = """
from raymlops import RecipeBase

class Mine(RecipeBase):
    batch = 32
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory, which nothing is left of afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop(NAME, None)


def test_a_cell_becomes_a_module(folder: Path) -> None:
    """In the working directory, which is on the path; its recipes are named."""
    module = write_module(f"{NAME}.py", RECIPE, folder=folder)
    assert (folder / f"{NAME}.py").read_text() == RECIPE
    assert module.__file__ == str(folder / f"{NAME}.py")
    assert recipes_in(module) == [f"{NAME}:Mine"]
    assert sys.path[0] == str(folder)
    assert [path.name for path in folder.iterdir() if path.is_file()] == [f"{NAME}.py"]


def test_a_changed_cell_counts_at_once(folder: Path) -> None:
    """Also one of the same length in the same second, for which Python would take what it compiled before."""
    write_module(f"{NAME}.py", "x = 1", folder=folder)
    assert write_module(f"{NAME}.py", "x = 2", folder=folder).x == 2
    command = [sys.executable, "-c", f"import {NAME}; print({NAME}.x)"]
    assert subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout == "2\n"


def test_a_cell_that_is_not_python_is_not_written(folder: Path) -> None:
    """The error has the place in the module, and what was there before stays."""
    write_module(f"{NAME}.py", "x = 1", folder=folder)
    with pytest.raises(SyntaxError) as caught:
        write_module(f"{NAME}.py", "x = 1\ny = (\n", folder=folder)
    assert (caught.value.filename, caught.value.lineno) == (str(folder / f"{NAME}.py"), 2)
    assert (folder / f"{NAME}.py").read_text() == "x = 1\n"


@pytest.mark.parametrize("name", ["", "recipe", "../recipe.py", "a/b.py", "my-recipe.py", "class.py", "a b.py"])
def test_only_a_plain_module_name_is_taken(name: str, folder: Path) -> None:
    """Everything else could not be imported, or lies elsewhere."""
    with pytest.raises(UsageError, match="is not a module"):
        write_module(name, "x = 1", folder=folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["json.py", "numpy.py", "raymlops.py", "tiny.py", "sys.py", "antigravity.py"])
def test_the_name_of_another_module_is_refused(name: str, folder: Path) -> None:
    """Python's own, an installed one, one that is found elsewhere."""
    with pytest.raises(UsageError, match="there is another module"):
        write_module(name, "x = 1", folder=folder)
    assert list(folder.iterdir()) == []


def test_the_magic_is_there_after_loading_the_extension(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says how the recipe is named."""
    shell = InteractiveShell()
    raymlops.load_ipython_extension(shell)
    result = shell.run_cell(f"%%raymlops {NAME}.py\n{RECIPE}")
    assert result.success
    assert f'wrote {NAME}.py: recipe="{NAME}:Mine"' in capsys.readouterr().out
