"""The cell magic ``%%raymlops my_recipe.py``: a notebook's cell becomes a module that workers and jobs can import.

Owns which file names are taken, and that the newest text counts. Knows nothing of recipes but how they are named.
"""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError, UsageError
from raymlops.storage.filesystem import write_bytes

if TYPE_CHECKING:
    from types import ModuleType

MAGIC = "raymlops"


def add_magic(shell: Any) -> None:
    """Add the magic to an IPython shell."""
    shell.register_magic_function(_run, magic_kind="cell", magic_name=MAGIC)


def write_module(name: str, text: str, *, folder: Path) -> ModuleType:
    """Write a module into a folder and import it from there, in place of an older one of this name.

    Raises:
        UsageError: the name is no plain ``NAME.py``, or one that another module has.
        SyntaxError: the text is no Python; it holds the place, and nothing was written.
        StorageError: the file cannot be written.
    """
    stem = _stem(name)
    path = folder.absolute() / name
    _refuse_others(stem, path)
    text = text if text.endswith("\n") else f"{text}\n"
    compile(text, str(path), "exec", dont_inherit=True)
    try:
        write_bytes(path, text.encode())
    except StorageError as error:
        raise StorageError(f"{path} cannot be written: {error.__cause__}") from error
    # Python takes compiled code of the same second and size for that of the new text.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # an absolute one: Ray's workers are given this list
    sys.modules.pop(stem, None)
    importlib.invalidate_caches()
    return importlib.import_module(stem)


def recipes_in(module: ModuleType) -> list[str]:
    """Return the import string of each recipe that a module defines."""
    from raymlops.recipe import RecipeBase, reference_of

    return [
        reference_of(value)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, RecipeBase) and value.__module__ == module.__name__
    ]


def _run(line: str, cell: str) -> None:
    """Write the cell to a module in the working directory and import it: %%raymlops my_recipe.py."""
    module = write_module(line.strip(), cell, folder=Path.cwd())
    named = ", ".join(f'recipe="{reference}"' for reference in recipes_in(module))
    sys.stdout.write(f"wrote {line.strip()}{f': {named}' if named else ', which defines no recipe'}\n")


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path would take folders apart
    if suffix != ".py" or not stem.isidentifier() or keyword.iskeyword(stem):
        raise UsageError(
            f"%%{MAGIC} writes a module into the working directory, and {name!r} is no name for one",
            hint=f"Write for example %%{MAGIC} my_recipe.py: letters, digits and _ alone, and no folder.",
        )
    return stem


def _refuse_others(stem: str, path: Path) -> None:
    """Refuse the name of a module that is another one: it would hide that, or be hidden by it."""
    loaded = getattr(sys.modules.get(stem), "__file__", None)
    found: str | None = None
    if stem in sys.builtin_module_names or stem in sys.stdlib_module_names:
        found = "Python's own"
    elif stem in sys.modules:
        found = loaded or "one without a file"
    else:
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(stem)
            found = None if spec is None else spec.origin or "a folder"
    if found is not None and found != str(path) and Path(found).absolute() != path:
        raise UsageError(
            f"%%{MAGIC} {path.name}: there is another module {stem!r} already ({found})",
            hint="Choose another name.",
        )
