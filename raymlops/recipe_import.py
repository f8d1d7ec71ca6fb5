"""Find a recipe class by its import string.

Owns what a reference may name, and what the error says where it names nothing.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

from raymlops.errors import RecipeImportError
from raymlops.recipe import RecipeBase, defines_loss
from raymlops.recipe_call import described, done
from raymlops.signals import from_handler


def resolve(reference: str | type) -> type[RecipeBase]:
    """Import a recipe class by ``"package.module:Class"``, or check a given class.

    Raises:
        RecipeImportError: the module or attribute is missing, is not a recipe, or is in ``__main__``,
            which no worker can import.
    """
    found: Any = import_object(reference) if isinstance(reference, str) else reference
    text = reference if isinstance(reference, str) else f"{reference.__module__}:{reference.__qualname__}"
    if not (inspect.isclass(found) and issubclass(found, RecipeBase)):
        raise RecipeImportError(
            f"recipe {text!r} is {described(found)}, not a subclass of raymlops.RecipeBase",
            hint="Name the class itself: package.module:Class.",
        )
    if found.__module__ == "__main__":
        raise _main_error(text)
    if "<locals>" in found.__qualname__:
        raise RecipeImportError(
            f"recipe {text!r} is defined inside a function, which no worker can import",
            hint="Move the class to the top level of its module.",
        )
    needed = ["datasets", "model", "loss", "signature"]
    if found.train_loop is not None:  # which may have several losses; then what is evaluated has no default
        needed[2] = "loss" if defines_loss(found) else "metrics"
    missing = [name for name in needed if getattr(found, name) is getattr(RecipeBase, name)]
    if missing:
        raise RecipeImportError(f"recipe {text!r} does not define {', '.join(missing)}", hint="Every recipe must.")
    return found


def reference_of(recipe: type[RecipeBase]) -> str:
    """Return the import string of a recipe class."""
    return f"{recipe.__module__}:{recipe.__qualname__}"


def import_object(reference: str, *, what: str = "recipe") -> Any:
    """Import what ``"package.module:Name"`` names; ``what`` is what it should be, for the error message.

    Raises:
        RecipeImportError: the module or attribute is missing, its import fails, or it is in ``__main__``.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (colon and module_name and attribute):
        raise RecipeImportError(f"{what} {reference!r} is not of the form package.module:Class")
    if module_name == "__main__":
        raise _main_error(reference, what=what)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # a console script starts without it; Ray passes it to its workers
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise RecipeImportError(f"{what} {reference!r}: importing {module_name} failed: {error}") from error
        raise RecipeImportError(
            f"{what} {reference!r}: there is no module {error.name!r}",
            hint=_module_hint(error.name),
        ) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and from_handler(error):
            raise
        raise RecipeImportError(f"{what} {reference!r}: importing {module_name} {done(error)}") from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        names = [name for name, value in vars(module).items() if inspect.isclass(value)]
        near = get_close_matches(attribute, names, n=1)
        raise RecipeImportError(
            f"{what} {reference!r}: module {module_name} has no attribute {attribute!r}",
            hint=f"Did you mean {module_name}:{near[0]}?" if near else f"Its classes: {', '.join(names) or 'none'}.",
        ) from error


def _main_error(text: str, *, what: str = "recipe") -> RecipeImportError:
    return RecipeImportError(
        f"{what} {text!r} is in __main__, which only this process can import",
        hint="In a notebook write its cell with `%%raymlops my_recipe.py` (after `%load_ext raymlops`), which makes it "
        f"a module, and name it my_recipe:{text.rpartition(':')[2]}; else move the class to a module of its own.",
    )


def _module_hint(missing: str) -> str:
    parent, _, leaf = missing.rpartition(".")
    try:
        path = list(importlib.import_module(parent).__path__) if parent else None
    except (ImportError, AttributeError):
        path = None
    names = [info.name for info in pkgutil.iter_modules(path)]
    near = get_close_matches(leaf, names, n=1)
    if near:
        return f"Did you mean {parent + '.' if parent else ''}{near[0]}?"
    return "Modules are searched in the working directory and the installed packages."
