"""Where a bundle is: a local folder, or a path on any pyarrow filesystem named by its URI.

Owns the reading of that text. Knows nothing of what a bundle holds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import local_path
from raymlops.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


FOLDER = "bundles"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder. ``local`` is set for a local one, else ``filesystem`` and ``path``."""

    uri: str
    local: Path | None = None
    filesystem: Any = None
    path: str = ""


Location = str | os.PathLike[str] | Place


def locate(uri: Location) -> Place:
    """Read a path, a ``file://`` URI or the URI of a pyarrow filesystem (``s3://``, ``gs://``).

    Raises:
        StorageError: pyarrow knows no such filesystem, or refuses the URI.
    """
    if isinstance(uri, Place):
        return uri
    text = os.fspath(uri)
    path = local_path(text)
    if path is not None:
        return Place(uri=str(path), local=path)
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        filesystem, path_text = FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"{text!r} is no storage that can be opened: {error}",
            hint="Write a folder, or the URI of a filesystem that pyarrow knows: s3://, gs://, abfs://, hdfs://.",
        ) from error
    return Place(uri=text.rstrip("/"), filesystem=filesystem, path=path_text.rstrip("/"))


def root_of(bundle_uri: str) -> str:
    """Return the storage that a bundle was written under: ``write_bundle`` puts it into ``<root>/bundles/<digest>``."""
    path, mark, options = bundle_uri.partition("?")
    return path.rpartition(f"/{FOLDER}/")[0] + mark + options


def child(parent: Location, *names: str) -> Place:
    """Return a place inside another; a URI's options after ``?`` stay at its end."""
    place = locate(parent)
    if place.local is not None:
        inner = place.local.joinpath(*names)
        return Place(uri=str(inner), local=inner)
    base, question, options = place.uri.partition("?")
    uri = "/".join([base.rstrip("/"), *names]) + question + options
    return Place(uri=uri, filesystem=place.filesystem, path="/".join([place.path, *names]))
