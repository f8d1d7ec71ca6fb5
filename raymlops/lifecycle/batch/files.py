"""Input and output files of a batch prediction; the output is published atomically.

Owns the checks of both. Knows nothing of workers.
"""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.credentials import holds_credential, redact
from raymlops.config.paths import local_path
from raymlops.errors import RaymlopsError, RecipeError, StorageError, UsageError
from raymlops.lifecycle.batch.chunks import VERSION_COLUMN
from raymlops.records import Record, to_json
from raymlops.storage.delta.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.data.parquet.files import ParquetFiles
    from raymlops.signature import Signature

MANIFEST = "_manifest.json"
"""Written last. Parquet readers skip names with a leading underscore."""


def place(uri: str, what: str) -> str:
    """Return a URI that is valid on every worker.

    Raises:
        UsageError: the URI holds a credential.
    """
    from raymlops.storage.filesystem import absolute

    if holds_credential(uri):
        raise UsageError(f"the {what}'s URI holds a credential", hint="Give it by environment variables or a role.")
    prefix = PREFIX if uri.startswith(PREFIX) else ""
    return prefix + absolute(uri.removeprefix(prefix))


def refuse_existing(output: str) -> None:
    """Reject an output that exists.

    Raises:
        UsageError: it exists; says whether it is complete.
    """
    from raymlops.storage import filesystem

    found = filesystem.entries(output)
    if not found and (local_path(output) is None or not Path(output).is_file()):
        return
    complete = MANIFEST in found or not found
    raise UsageError(
        f"the output {output} exists" if complete else f"the output {output} exists, and is incomplete",
        hint="Choose another output, or remove it.",
    )


def input_files(source: str) -> ParquetFiles:
    """Return the Parquet files of the input.

    Raises:
        UsageError: there are no files, or no rows.
        StorageError: they cannot be read.
    """
    from raymlops.data.parquet.files import list_parquet

    try:
        files = list_parquet(source)
    except RecipeError as error:
        raise UsageError(f"the input {source} has no Parquet file: {error.message}") from error
    except StorageError as error:
        raise without_hint(error) from error
    if files.rows == 0:
        raise UsageError(f"the input {source} has no rows")
    return files


def kept_columns(files: ParquetFiles, signature: Signature, keep: Sequence[str] | None) -> dict[str, Any]:
    """Return the columns of the input to keep in the output, with their types.

    Raises:
        UsageError: a column does not exist or would be in the output twice, or the files have different types.
    """
    import pyarrow as pa

    from raymlops.data.parquet.reading import columns_of, open_parquet

    try:
        schemas = (
            [files.table.columns]
            if files.table is not None
            else [*(columns_of(open_parquet(file.uri)) for file in files.files), files.folder_columns]
        )
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise UsageError(f"the input files have columns of different types: {error}") from error
    except OSError as error:
        raise StorageError(redact(f"the input cannot be read: {error}")) from error
    inputs = {column.name for column in signature.inputs}
    if lacking := [
        column.name for column in signature.inputs if column.name not in schema.names and not column.nullable
    ]:
        raise UsageError(
            f"the input has no column {', '.join(lacking)}, which the model takes",
            hint=f"Its columns: {', '.join(schema.names)}; the model's: {', '.join(sorted(inputs))}.",
        )
    names = [name for name in schema.names if name not in inputs] if keep is None else list(dict.fromkeys(keep))
    if missing := [name for name in names if name not in schema.names]:
        raise UsageError(
            f"the input has no column {', '.join(missing)}", hint=f"Its columns: {', '.join(schema.names)}."
        )
    made = {VERSION_COLUMN, *(column.name for column in signature.outputs)}
    if twice := sorted(made.intersection(names)):
        folders = [f"{name}=..." for name in twice if name in files.folder_columns.names]
        where = f", by the names of its folders {', '.join(folders)}" if folders else ""
        raise UsageError(
            f"{', '.join(twice)} would be in the output twice: the input has it too{where}",
            hint="--keep names the columns to keep.",
        )
    return {name: schema.field(name).type for name in names}


@contextmanager
def published(output: str, names: Sequence[str]) -> Iterator[str]:
    """Yield the folder to write to; publish it as the output when the block succeeds, delete it otherwise.

    ``names`` are those of the files, which are deleted where the folder cannot be.
    """
    from raymlops.storage import filesystem

    remote = local_path(output) is None
    path = Path(output)
    folder = output if remote else str(path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}.tmp"))
    try:
        yield folder
        if not remote:
            try:
                filesystem.publish_folder(Path(folder), path)
            except OSError as error:
                raise UsageError(f"the output {output} appeared meanwhile, or cannot be created: {error}") from error
    except BaseException:
        with suppress(RaymlopsError):
            if remote:
                delete_files(folder, names)
            else:
                filesystem.delete(folder)
        raise


def delete_files(folder: str, names: Sequence[str]) -> None:
    """Delete those files of a folder that are there."""
    from raymlops.storage import filesystem

    for name in names:
        filesystem.delete(filesystem.join(folder, name))


def write_manifest(record: Record, folder: str) -> None:
    """Write the record into the output's folder; its presence says that the output is complete."""
    from raymlops.storage import filesystem

    data = json.loads(to_json(record.to_dict()))
    filesystem.write_bytes(filesystem.join(folder, MANIFEST), json.dumps(data, indent=1).encode())


def without_hint(error: RaymlopsError) -> RaymlopsError:
    """Return a storage error without its hint, which is for trainings."""
    if isinstance(error, StorageError):
        return StorageError(error.message, hint="Every worker must read the input, unchanged, and write the output.")
    return error
