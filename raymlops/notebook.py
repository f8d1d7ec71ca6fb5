"""The cell magic ``%%raymlops my_recipe.py``: write a cell to a module that workers and jobs can import.

Owns which file names are accepted, and that the newest text is the one imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError, UsageError

if TYPE_CHECKING:
    from types import ModuleType

MAGIC = "raymlops"


def add_magic(shell: Any) -> None:
    """Add the magic to an IPython shell."""
    shell.register_magic_function(_run, magic_kind="cell", magic_name=MAGIC)


def write_module(name: str, text: str, *, folder: Path) -> ModuleType:
    """Write a module into a folder and import it from there, replacing an earlier one of this name.

    Raises:
        UsageError: the name is not a plain ``NAME.py``, or another module has it.
        SyntaxError: the text is not Python; nothing was written.
        StorageError: the file cannot be written.
    """
    from raymlops.storage.filesystem import write_bytes

    path = folder.absolute() / name
    stem = path.stem
    if name != f"{stem}.py" or not stem.isidentifier() or keyword.iskeyword(stem):
        raise UsageError(
            f"%%{MAGIC} writes a module into the working directory, and {name!r} is not a module's file name",
            hint=f"Write for example %%{MAGIC} my_recipe.py: letters, digits and _, and no folder.",
        )
    if (other := _other_module(stem, path)) is not None:
        raise UsageError(
            f"%%{MAGIC} {name}: there is another module {stem!r} already ({other})", hint="Choose another name."
        )
    text = text if text.endswith("\n") else f"{text}\n"
    compile(text, str(path), "exec", dont_inherit=True)
    try:
        write_bytes(str(path), text.encode())
    except StorageError as error:
        raise StorageError(f"{path} cannot be written: {error.__cause__}") from error
    # Python trusts bytecode whose source has the same size and second, which a quick edit may have.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # absolute: Ray's workers get this list
    sys.modules.pop(stem, None)
    importlib.invalidate_caches()
    return importlib.import_module(stem)


def recipes_in(module: ModuleType) -> list[str]:
    """Return the import string of each recipe that a module defines."""
    from raymlops.recipe import RecipeBase
    from raymlops.recipe_import import reference_of

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


def _other_module(stem: str, path: Path) -> str | None:
    """Return where another module of this name is: it would hide the cell's, or be hidden by it."""
    if stem in sys.builtin_module_names or stem in sys.stdlib_module_names:
        return "Python's own"
    found: str | None = None
    if stem in sys.modules:
        found = getattr(sys.modules[stem], "__file__", None) or "one without a file"
    else:
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(stem)
            found = None if spec is None else spec.origin or "a folder"
    return None if found is None or Path(found).absolute() == path else found
