"""Import the code of a bundle: isolated beside other versions of itself, or exclusively in a process.

In both modes a finder serves exactly the modules that the verified manifest lists, from sources that it read and
verified once, and neither reads nor writes byte code.

*Isolated*: modules live under a package named after the digest, so two versions of ``shop.recipe`` are two
modules. Relative imports need nothing more. An absolute import of the bundle's own code (``from shop.features import
x``, also inside a function that runs much later) goes through the ``__import__`` in its module's ``__builtins__``,
which is ours and looks in the bundle first. ``importlib.import_module("shop.features")`` does not: it sees the
process, not the bundle. Write ``importlib.import_module(".features", __package__)`` where a name is computed.

*Exclusive*: a replica owns its process, and modules get their plain names, so that everything works as in training.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import threading
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raymlops.bundle.verify import CODE
from raymlops.errors import BundleError, RecipeImportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.bundle.verify import BundleFiles

PREFIX = "raymlops_bundle_"

_lock = threading.Lock()


def import_module(files: BundleFiles, name: str, *, exclusive: bool) -> ModuleType:
    """Import a module of a verified local bundle.

    Raises:
        RecipeImportError: the bundle has no such module, it raises, or (``exclusive``) another file was
            imported under that name before.
        BundleError: a file changed since the bundle was verified.
    """
    with _lock:
        finder = _finder(files, exclusive=exclusive)
    try:
        return importlib.import_module(finder.prefix + name)
    except (BundleError, RecipeImportError):
        raise
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise RecipeImportError(
            f"importing {name} from bundle {files.digest[:12]} raised {type(error).__name__}: {error}",
            hint="Install what it needs here; only the recipe's own code travels." if missing else None,
        ) from error


def _finder(files: BundleFiles, *, exclusive: bool) -> _Finder:
    prefix = "" if exclusive else f"{PREFIX}{files.digest}."
    for finder in sys.meta_path:
        if isinstance(finder, _Finder) and finder.digest == files.digest and finder.prefix == prefix:
            return finder
    finder = _Finder(files, prefix=prefix)
    if exclusive:
        finder.refuse_others()
    else:
        package = ModuleType(prefix.rstrip("."), f"The code of bundle {files.digest}.")
        package.__path__ = []
        sys.modules[package.__name__] = package
    sys.meta_path.insert(0, finder)
    return finder


class _Finder(MetaPathFinder):
    """Finds the modules of one bundle under one prefix."""

    def __init__(self, files: BundleFiles, *, prefix: str) -> None:
        self.digest = files.digest
        self.prefix = prefix
        folder = Path(files.uri)
        self._root = folder / CODE
        self._paths: dict[str, Path] = {}
        self._sources: dict[str, bytes] = {}
        """Dotted name to source: read now, so that a late import needs no file and none can change before it."""
        self._folders: set[str] = set()
        """Dotted names of folders that hold modules: packages, and namespaces without ``__init__.py``."""
        for path in files.manifest:
            if not (path.startswith(f"{CODE}/") and path.endswith(".py")):
                continue
            parts = path.removesuffix(".py").split("/")[1:]
            self._folders |= {".".join(parts[:count]) for count in range(1, len(parts))}
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name not in self._paths or parts[-1] == "__init__":
                self._paths[name] = folder / path
                self._sources[name] = files.read(path)

    def owns(self, name: str) -> bool:
        """Tell whether an absolute import of ``name`` means the bundle's own code.

        Under a package of the bundle everything does, so that a module that did not travel is missing rather than
        another version; beside it in a mere folder, an installed module keeps its right.
        """
        if name in self._paths or name in self._folders:
            return True
        parts = name.split(".")
        parents = (".".join(parts[:count]) for count in range(1, len(parts)))
        return any(parent in self._paths for parent in parents)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of the bundle, None for any other."""
        del path, target
        if not fullname.startswith(self.prefix):
            return None
        name = fullname.removeprefix(self.prefix)
        folder = self._root.joinpath(*name.split("."))
        if name in self._paths:
            return spec_from_file_location(
                fullname,
                self._paths[name],
                loader=_Loader(fullname, str(self._paths[name]), source=self._sources[name], finder=self),
                submodule_search_locations=[str(folder)] if self._paths[name].name == "__init__.py" else None,
            )
        if name in self._folders:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            return spec
        return None

    def refuse_others(self) -> None:
        """Refuse modules whose names this process has imported from elsewhere."""
        for name, path in self._paths.items():
            other = getattr(sys.modules.get(name), "__file__", None)
            if other is not None and Path(other) != path:
                raise RecipeImportError(
                    f"the bundle's module {name} cannot be imported: {other} was imported under that name before",
                    hint="Load the bundle in a process of its own, or without exclusive=True.",
                )

    def import_(  # its parameters are those of __import__, which may be called by keyword
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Do what ``__import__`` does, with the bundle's own code first."""
        if level or not self.owns(name):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        importlib.import_module(self.prefix + name)
        if fromlist:
            return builtins.__import__(self.prefix + name, globals, locals, fromlist, 0)
        return sys.modules[self.prefix + name.partition(".")[0]]


class _Loader(SourceFileLoader):
    """Runs a source that was checked; no byte code is read or written."""

    def __init__(self, fullname: str, path: str, *, source: bytes, finder: _Finder) -> None:
        super().__init__(fullname, path)
        self._source = source
        self._finder = finder

    def get_code(self, fullname: str) -> Any:
        """Compile the source."""
        return self.source_to_code(self._source, self.get_filename(fullname))

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, in isolation with an ``__import__`` that sees the bundle."""
        if self._finder.prefix:
            # Functions keep the builtins of the module they were defined in, so this holds for imports
            # that run later. A dict of our own leaves the process's builtins alone.
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._finder.import_}
        super().exec_module(module)
