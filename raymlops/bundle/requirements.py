"""What a bundle's code needs to be installed: the distributions that it imports, with their versions.

Owns how imports become requirements, and the comparison with what is installed. A version is that of the training
where it is known: the same run gives the same bundle wherever it is registered.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import TYPE_CHECKING

from raymlops.bundle.code import OWN_PACKAGE, imports_of, owners

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALWAYS = ("numpy", "torch")
"""What every model is made with."""


def requirements(files: Mapping[str, bytes], *, trained_with: Mapping[str, str]) -> dict[str, str]:
    """Return the distributions that code imports, by name, with their versions.

    ``trained_with`` holds those of the training; of another distribution it is the installed version. An import that is
    not installed here, such as one within ``try``, is no requirement.
    """
    distributions = owners()
    own = {path.partition("/")[0].removesuffix(".py") for path in files} | {OWN_PACKAGE} | sys.stdlib_module_names
    names = set(ALWAYS)
    for imported in sorted({name for path, source in files.items() for name in imports_of(path, source)}):
        root = imported.partition(".")[0]
        if root not in own:
            names |= set(_owning(distributions.get(root, []), imported))
    versions = {name: trained_with.get(name) or installed_version(name) for name in names}
    return {name: version for name, version in sorted(versions.items()) if version}


def differing(recorded: Mapping[str, str]) -> Iterator[str]:
    """Yield in words each distribution that is not installed here in its recorded version.

    Builds of one version, such as ``2.6.0+cpu``, do not differ.
    """
    for name, version in recorded.items():
        here = installed_version(name)
        if here is None:
            yield f"{name} {version}, which is not installed here"
        elif public(here) != public(version):
            yield f"{name} {version}, {here} here"


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def public(version: str) -> str:
    """Return a version without its local part, which no index has."""
    return version.partition("+")[0]


def _owning(candidates: list[str], imported: str) -> set[str]:
    """Return which distributions a module is of: several share the root of a namespace, such as ``google``."""
    found = set(candidates)
    if len(found) < 2:
        return found
    path = imported.replace(".", "/")
    while "/" in path:
        having = {name for name in found if _holds(name, path)}
        if having:
            return having if len(having) < len(found) else set()
        path = path.rpartition("/")[0]
    return set()


def _holds(name: str, path: str) -> bool:
    files = importlib.metadata.files(name) or ()
    return any(file.as_posix().startswith((f"{path}/", f"{path}.")) for file in files)
