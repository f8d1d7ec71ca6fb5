"""Collect the code that a bundle contains.

A recipe that comes with raymlops is not copied: the bundle names the installed version. For any other one:

- a module inside a package adds the whole package: its ``.py`` files and its small data files
  (``_DATA_SUFFIXES``, at most ``MAX_DATA_BYTES`` each), without hidden folders, caches, virtual environments and
  folders named ``tests``. Every other file of it is omitted and listed in ``left_out``, and so are files whose name
  mentions secrets or credentials;
- a top-level module adds its file, and so does a module in a folder without ``__init__.py``;
- ``RecipeBase.package_data`` names further files, of any kind and of ``MAX_NAMED_BYTES`` together;
- modules that these files import are added in the same way, unless they are installed (the standard library,
  site-packages) or part of raymlops. Imports are read from the source, so a name computed at run time is not found.

An installed recipe's package is copied too, and the bundle names its distribution and version.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import sysconfig
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.display import some_of
from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raymlops.recipe import RecipeBase

MAX_DATA_BYTES = 1 << 20
MAX_TOTAL_BYTES = 16 << 20
MAX_NAMED_BYTES = 128 << 20
OWN_PACKAGE = "raymlops"

_DATA_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".pyi", ".typed"})
_SHOWN = 5
_PRIVATE = re.compile(r"secret|credential", re.IGNORECASE)
_FOR_READERS = frozenset({".md", ".rst", ".ipynb", ".pyc"})
_SKIPPED_FOLDERS = frozenset({"__pycache__", "tests", "node_modules", "venv", "site-packages"})


@dataclass(frozen=True)
class Code:
    """Files by their POSIX path under ``code/``; empty for a recipe that comes with raymlops."""

    files: dict[str, bytes] = field(default_factory=dict)
    distribution: str | None = None
    version: str | None = None
    left_out: tuple[str, ...] = ()
    """Files of its packages that are not in ``files``."""

    def notice(self) -> str:
        """Return a warning about files that do not travel, which code may read all the same; empty without one."""
        if not self.left_out:
            return ""
        return (
            f"a replica gets the recipe's code without {some_of(self.left_out, _SHOWN)}: if it reads such a file, name "
            "it in the recipe's package_data"
        )

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file by its path; for a recipe of raymlops, the installed version."""
        if not self.files:
            return {str(self.distribution): str(self.version)}
        return {path: hashlib.sha256(data).hexdigest() for path, data in self.files.items()}

    def sha(self) -> str:
        """Return the SHA-256 of all of ``digests``: equal for the same code."""
        return hashlib.sha256(json.dumps(self.digests(), sort_keys=True).encode()).hexdigest()


def collect(recipe_class: type[RecipeBase]) -> Code:
    """Return the code that a recipe needs, read from the files it was imported from.

    Raises:
        RecipeError: its module has no source file, the code is larger than ``MAX_TOTAL_BYTES``, or ``package_data``
            names no file or files larger than ``MAX_NAMED_BYTES``.
    """
    module_name = recipe_class.__module__
    root = module_name.partition(".")[0]
    if root == OWN_PACKAGE:
        return Code(distribution=OWN_PACKAGE, version=own_version())
    start = _unit(module_name)
    if start is None:
        raise RecipeError(
            f"the code of recipe {recipe_class.__qualname__} cannot be copied into the bundle: "
            f"module {module_name} has no source file that can be found",
            hint="Put it into a .py file in the working directory or in an installed package.",
        )
    distribution, version = _distribution(root) if _is_installed(start) else (None, None)
    files: dict[str, bytes] = {}
    left_out: list[str] = []
    queue, seen = [start], {start}
    while queue:
        read = _read(queue.pop(), left_out, most_bytes=MAX_TOTAL_BYTES - sum(map(len, files.values())))
        files |= read
        for path, source in read.items():
            for imported in imports_of(path, source):
                unit = _unit(imported)
                if unit is not None and unit not in seen and not _is_installed(unit):
                    seen.add(unit)
                    queue.append(unit)
    files |= _named(recipe_class)
    return Code(dict(sorted(files.items())), distribution, version, tuple(sorted(set(left_out) - files.keys())))


def owners() -> Mapping[str, list[str]]:
    """Return the installed distributions that each top-level module belongs to.

    Listing all their files takes 0.2 s, so that it is done again only where something was installed meanwhile: not for
    a folder of modules alone.
    """
    places = ((entry, _changed_at(entry)) for entry in sys.path)
    return _owners(tuple(place for place in places if _holds_distributions(*place)))


def imports_of(path: str, source: bytes) -> Iterator[str]:
    """Yield the absolute names that a file of the code imports, anywhere in its source; none of another file's."""
    if not path.endswith(".py"):
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        # A package may hold templates; one that is imported fails at its import, with its place.
        return
    package = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package):
                continue
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*")


def own_version() -> str:
    """Return the version of the installed raymlops."""
    return importlib.metadata.version(OWN_PACKAGE)


@dataclass(frozen=True)
class _Unit:
    """A module's file, or the folder of a package, which is copied as a whole."""

    name: str
    path: Path
    is_package: bool


def _read(unit: _Unit, left_out: list[str], *, most_bytes: int) -> dict[str, bytes]:
    """Return a unit's files by their path in the bundle; add the paths of those that are omitted to ``left_out``."""
    base = unit.name.replace(".", "/")
    files: dict[str, bytes] = {}
    for path in _package_files(unit.path) if unit.is_package else [unit.path]:
        relative = f"{base}/{path.relative_to(unit.path).as_posix()}" if unit.is_package else f"{base}.py"
        if path.suffix != ".py" and (path.suffix not in _DATA_SUFFIXES or _PRIVATE.search(path.name)):
            left_out.append(relative)
            continue
        try:
            size = path.stat().st_size
            if path.suffix != ".py" and size > MAX_DATA_BYTES:
                left_out.append(relative)
                continue
            most_bytes -= size
            if most_bytes < 0:
                raise RecipeError(
                    f"the code of package {unit.name} is larger than {MAX_TOTAL_BYTES >> 20} MiB, "
                    f"at {path} ({size} bytes)",
                    hint="Keep data out of the package: what a replica needs of it can be named in package_data, or be "
                    "in the state that fit() returns.",
                )
            files[relative] = path.read_bytes()
        except OSError as error:
            raise RecipeError(f"the recipe's file {path} cannot be read: {error}") from error
    return files


def _package_files(folder: Path) -> Iterator[Path]:
    for inner, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED_FOLDERS and not name.startswith(".") and not name.endswith(".egg-info")
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix not in _FOR_READERS:
                yield Path(inner, name)


def _named(recipe_class: type[RecipeBase]) -> dict[str, bytes]:
    """Return the files of ``package_data`` by their path in the bundle, beside the module that names them."""
    owner = next(parent for parent in recipe_class.__mro__ if "package_data" in vars(parent))
    named: Any = recipe_class.package_data
    patterns = (named,) if isinstance(named, str) else tuple(named)
    module = sys.modules.get(owner.__module__)
    if not patterns or module is None or module.__file__ is None:
        return {}
    folder = Path(module.__file__).parent
    inner = (module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]).replace(".", "/")
    files: dict[str, bytes] = {}
    total = 0
    for pattern in patterns:
        where = f"{recipe_class.__qualname__}.package_data: {pattern!r}"
        found = [path for path in _glob(folder, pattern, where=where) if path.is_file()]
        # A pattern must not spread a secret that lies there; its name may.
        found = [path for path in found if path.name in pattern or not _PRIVATE.search(path.name)]
        if not found:
            raise RecipeError(
                f"{where} names no file below {folder}",
                hint="A pattern is relative to the folder of the recipe's module, such as assets/*.model or **/*.json.",
            )
        for path in sorted(found):
            try:
                total += path.stat().st_size
                if total > MAX_NAMED_BYTES:
                    raise RecipeError(
                        f"{where}: the named files are larger than {MAX_NAMED_BYTES >> 20} MiB, at {path}",
                        hint="Make what is large a part of the model, whose weights have no limit.",
                    )
                files["/".join(filter(None, (inner, path.relative_to(folder).as_posix())))] = path.read_bytes()
            except OSError as error:
                raise RecipeError(f"the recipe's file {path} cannot be read: {error}") from error
    return files


def _glob(folder: Path, pattern: str, *, where: str) -> list[Path]:
    if ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise RecipeError(f"{where} is outside of {folder}", hint="Keep the file beside the recipe's module.")
    try:
        return list(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise RecipeError(f"{where} is not a pattern: {error}") from error


def _unit(module_name: str) -> _Unit | None:
    """Return a module's outermost regular package, else its file; None without a source file."""
    if module_name.partition(".")[0] == OWN_PACKAGE:
        return None
    parts = module_name.split(".")
    search: list[str] | None = None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        spec = _spec(name, search)
        if spec is None:
            return None
        if spec.submodule_search_locations is not None and not spec.has_location:
            search = list(spec.submodule_search_locations)
            continue
        if not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        path = Path(spec.origin)
        if spec.submodule_search_locations is not None:
            return _Unit(name=name, path=path.parent, is_package=True)
        return _Unit(name=name, path=path, is_package=False)
    return None


def _spec(name: str, search: list[str] | None) -> ModuleSpec | None:
    """Find a module without importing any; ``search`` holds its parents' folders."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(loaded, ModuleSpec):
        return loaded
    try:
        return importlib.util.find_spec(name) if search is None else PathFinder.find_spec(name, search)
    except (ImportError, ValueError):
        return None


def _is_installed(unit: _Unit) -> bool:
    """Return whether a module is the standard library's or a distribution's, wherever pip put that one."""
    path = unit.path
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    standard = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if any(path.is_relative_to(folder) for folder in standard if folder):
        return True
    names = owners().get(unit.name.partition(".")[0], ())
    # An editable install has its RECORD elsewhere, and an egg-info in a source tree has none: both are the user's code.
    found = [each for each in map(importlib.metadata.distribution, names) if each.read_text("RECORD") is not None]
    return any(path.is_relative_to(Path(str(each.locate_file("")))) for each in found)


def _distribution(root: str) -> tuple[str | None, str | None]:
    names = owners().get(root)
    return (names[0], importlib.metadata.version(names[0])) if names else (None, None)


@lru_cache(maxsize=4)
def _owners(_places: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@lru_cache(maxsize=256)
def _holds_distributions(entry: str, _changed_at: int) -> bool:
    try:
        return any(each.name.lower().endswith(("dist-info", "egg-info")) for each in Path(entry or ".").iterdir())
    except NotADirectoryError:  # an archive may
        return True
    except OSError:
        return False


def _changed_at(folder: str) -> int:
    """Return when the entries of a folder last changed, as importlib's caches check it; 0 where it does not exist."""
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return 0
