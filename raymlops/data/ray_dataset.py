"""Write a Ray Data dataset as Parquet files: once, in the process that prepares a run, for all to read.

Ray Data (2.60) has no position: neither a restarted worker nor a resumed run could continue a pipeline in mid-epoch,
and each process would run it again. Files have row numbers. Equal rows are stored once: a small index file, named by
their SHA-256, points to them, which also works on filesystems without rename.

Owns the writing and the index. Knows nothing of recipes or splits.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from raymlops.data.columns import table_columns
from raymlops.data.parquet.files import GroupReader, ParquetFiles, list_parquet
from raymlops.data.row_hashes import digest_of, hash_columns
from raymlops.errors import NotFoundError, RecipeError, StorageError
from raymlops.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "data"
"""Below ``storage.path``."""

_GROUP_ROWS = 16_384


def is_ray_dataset(source: Any) -> bool:
    """Return whether a split is a ``ray.data.Dataset``."""
    data = sys.modules.get("ray.data")
    return data is not None and isinstance(source, data.Dataset)


def materialize(dataset: Any, uri: str, *, part: str) -> ParquetFiles:
    """Write a dataset's rows below ``uri`` in order, or find equal ones that were written before.

    Ray must be initialised, and every node must have access to ``uri``. The rows are read back once, for their digest.

    Raises:
        RecipeError: Ray is not initialised, the pipeline fails or has no rows, or a column is of a type that a
            request cannot have.
        StorageError: the files cannot be written.
    """
    import ray

    if not ray.is_initialized():
        raise RecipeError(
            f"the {part} split is a Ray Data dataset, but Ray is not initialised in this process",
            hint="Set train.num_workers to at least 1, or write the dataset as Parquet and return its folder.",
        )
    filesystem.check_writable(uri)
    folder = filesystem.join(uri, f"{part}-{uuid4().hex[:12]}")
    files = _written(dataset, folder, part=part)
    digest = _digest(files)
    index = filesystem.join(uri, f"{digest}.json")
    known = _known(index)
    if known is not None:
        with contextlib.suppress(StorageError):
            filesystem.delete(folder)
        return replace(known, rows_digest=digest)
    files = replace(files, rows_digest=digest)
    filesystem.write_bytes(index, json.dumps(files.to_dict()).encode())
    return files


def _written(dataset: Any, folder: str, *, part: str) -> ParquetFiles:
    with _in_order(dataset):
        arrow, path = filesystem.open_filesystem(folder)
        try:
            # Small row groups, because a window of an epoch's order mixes whole ones; checksums detect flipped bits.
            dataset.write_parquet(path, filesystem=arrow, row_group_size=_GROUP_ROWS, write_page_checksum=True)
        except OSError as error:
            raise StorageError(f"the {part} split could not be written to {folder!r}: {error}") from error
        except Exception as error:
            raise RecipeError(
                f"the pipeline of the {part} split, a Ray Data dataset, failed: {_root(error)}"
            ) from error
    try:
        return list_parquet(folder)
    except RecipeError as error:
        raise RecipeError(f"the {part} split, a Ray Data dataset, has no rows") from error


def _root(error: Exception) -> str:
    """Return the line of Ray's traceback with the pipeline's own exception, the first one of the chain."""
    found = re.search(r"^[A-Za-z_][\w.]*(?:Error|Exception)\b.*$", str(error), re.MULTILINE)
    return found.group() if found else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _in_order(dataset: Any) -> Iterator[None]:
    """Write blocks in the dataset's order, not as they complete: the same rows give the same digest."""
    options = dataset.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before


def _digest(files: ParquetFiles) -> str:
    reader = GroupReader(files)
    groups = (reader.read(group)[0] for group in range(len(files.places)))
    return digest_of(hash_columns(table_columns(table)) for table in groups)[:32]


def _known(index: str) -> ParquetFiles | None:
    """Return the files of an index, if they still exist unchanged."""
    try:
        files = ParquetFiles.from_dict(json.loads(filesystem.read_bytes(index)))
        files.verify()
    except (ValueError, KeyError, NotFoundError, StorageError):
        return None
    return files
