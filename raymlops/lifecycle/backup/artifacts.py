"""The artifacts of registered runs and of sweeps: copied into a backup, and written to where their run has them now.

A registered version's MLflow model holds a copy of its bundle, which no backup keeps twice: it is put back from the
bundle.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.bundle.pyfunc import DATA
from raymlops.config.paths import local_path
from raymlops.errors import RefusedError, StorageError
from raymlops.storage import filesystem
from raymlops.storage.manifest import entry_of, mismatch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from raymlops.records import BundleRef

FOLDER = "artifacts"
_SCHEMES = ("file:", "s3://", "gs://", "gcs://", "abfs://", "abfss://", "hdfs://")


def is_reachable(uri: str) -> bool:
    """Return whether files at a URI can be read here: not those that MLflow's server keeps, ``mlflow-artifacts:/``."""
    return uri.startswith(_SCHEMES) or re.match(r"[a-zA-Z][\w+.-]*:", uri) is None


def save_artifacts(artifacts: Mapping[str, str], models: Collection[str], folder: Path) -> list[str]:
    """Copy the artifacts of runs into the folder of a backup, without the bundles in ``models``; return what lacks.

    Raises:
        OSError: the folder cannot be written.
    """
    lacks = []
    for run_id, uri in sorted(artifacts.items()):
        if not is_reachable(uri):
            lacks.append(f"the artifacts of run {run_id}, which MLflow's server alone can read: {uri}")
            continue
        copies = [f"{model.removeprefix(f'{uri}/')}/{DATA}/" for model in models if model.startswith(f"{uri}/")]
        try:
            names, links = _files(uri)
            lacks += [f"artifacts of run {run_id}: {name} is a link, which is not followed" for name in links]
            for name in names:
                if not name.startswith(tuple(copies)):
                    filesystem.download(filesystem.join(uri, name), folder / FOLDER / run_id / name)
        except StorageError as error:
            lacks.append(f"artifacts of run {run_id}: {error.message}")
    return lacks


def _files(uri: str) -> tuple[list[str], list[str]]:
    """Return the files below a place by their path there, and the links: they may lead out of it, or to itself."""
    if (local := local_path(uri)) is None:
        return [name for name, info in filesystem.entries(uri, recursive=True).items() if info.is_file], []
    files: list[str] = []
    links: list[str] = []
    with filesystem.errors(uri):
        for inner, folders, names in os.walk(local, onerror=_raise):
            for path in (Path(inner, name) for name in sorted((*folders, *names))):
                if path.is_symlink():
                    links.append(path.relative_to(local).as_posix())
                elif path.is_file():
                    files.append(path.relative_to(local).as_posix())
    return files, links


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # no folder has no files
        raise error


def restore_artifacts(folder: Path, artifacts: Mapping[str, str]) -> int:
    """Write the artifacts in a backup to the URI of each run, and return how many files were not there before.

    Raises:
        RefusedError: another file is where one belongs; it is left as it is.
        StorageError: they cannot be written.
    """
    return sum(
        _put(path, uri)
        for run_id, base in sorted(artifacts.items())
        for path, uri in _targets(folder / FOLDER / run_id, base)
    )


def restore_models(models: Mapping[str, str], bundles: Mapping[str, BundleRef]) -> int:
    """Put the copy of its bundle into each MLflow model, by URI and digest; return how many files were not there.

    Raises:
        BundleError, StorageError, RefusedError: as ``restore_artifacts``.
    """
    from raymlops.bundle.verify import fetch

    return sum(
        _put(path, uri)
        for model, digest in sorted(models.items())
        if digest in bundles and is_reachable(model)
        for path, uri in _targets(fetch(bundles[digest].uri, digest), filesystem.join(model, DATA))
    )


def check_free(
    folder: Path, artifacts: Mapping[str, str], models: Mapping[str, str], bundles: Mapping[str, BundleRef]
) -> None:
    """Make sure, writing nothing, that nothing is in the way of what the two others write.

    Raises:
        RefusedError: another file, or a folder, is where a file belongs.
        StorageError: a folder cannot be made.
    """
    from raymlops.bundle.verify import fetch

    for run_id, base in sorted(artifacts.items()):
        if is_reachable(base):
            _check_free(folder / FOLDER / run_id, base)
    for model, digest in sorted(models.items()):
        data = filesystem.join(model, DATA)
        if digest in bundles and is_reachable(model):
            check_makeable(data)
            if filesystem.entries(data):
                _check_free(fetch(bundles[digest].uri, digest), data)


def check_makeable(uri: str) -> None:
    """Make sure, writing nothing, that a local folder is there or can be made; another filesystem is not asked.

    Raises:
        StorageError: a file is in its place, or this user may not write where it would be.
    """
    if (folder := local_path(uri)) is None:
        return
    with filesystem.errors(uri):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        why = "is a file" if not there.is_dir() else "is not this user's to write"
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise StorageError(f"the folder {str(folder)!r} cannot be made: {str(there)!r} {why}")


def _check_free(folder: Path, base: str) -> None:
    check_makeable(base)
    if not filesystem.entries(base):
        return
    for path, uri in _targets(folder, base):
        if (local := local_path(uri)) is not None:
            check_makeable(str(local.parent))
        _is_there(path, uri)


def _targets(folder: Path, base: str) -> list[tuple[Path, str]]:
    """Return each file below a folder, and where it belongs below a URI."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path, filesystem.join(base, path.relative_to(folder).as_posix())) for path in files]


def _is_there(path: Path, uri: str) -> bool:
    """Return whether a file is where it belongs; refuse anything else that is there."""
    there = filesystem.info(uri)
    if there.is_file:
        problem = mismatch(filesystem.reader(uri), entry_of(path))
        what = None if problem is None else f"another file: expected {problem[0]}, got {problem[1]}"
    else:
        what = "a folder, and a file belongs there" if local_path(uri) and there.type.name == "Directory" else None
    if what is not None:
        raise RefusedError(
            f"{uri} is there and is {what}",
            hint="It is left as it is. Restore into another storage.path, or move it away.",
        )
    return bool(there.is_file)


def _put(path: Path, uri: str) -> bool:
    """Write a file unless it is there already; return whether it was written."""
    if _is_there(path, uri):
        return False
    if (local := local_path(uri)) is not None:
        for left in local.parent.glob(f".{glob.escape(local.name)}-{'[0-9a-f]' * 32}"):
            left.unlink()  # of a restore that was killed: MLflow would list it
    with filesystem.create(uri) as target, path.open("rb") as source:
        shutil.copyfileobj(source, target, filesystem.CHUNK_BYTES)
    return True
