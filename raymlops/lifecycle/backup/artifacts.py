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
    written = 0
    for run_id, uri in sorted(artifacts.items()):
        base = folder / FOLDER / run_id
        for path in sorted(base.rglob("*")):
            if path.is_file():
                written += _put(path, filesystem.join(uri, path.relative_to(base).as_posix()))
    return written


def restore_models(models: Mapping[str, str], bundles: Mapping[str, BundleRef]) -> int:
    """Put the copy of its bundle into each MLflow model, by URI and digest; return how many files were not there.

    Raises:
        BundleError, StorageError, RefusedError: as ``restore_artifacts``.
    """
    from raymlops.bundle.verify import fetch

    written = 0
    for uri, digest in sorted(models.items()):
        if digest not in bundles or not is_reachable(uri):
            continue
        base = fetch(bundles[digest].uri, digest)
        for path in sorted(base.rglob("*")):
            if path.is_file():
                written += _put(path, filesystem.join(uri, DATA, path.relative_to(base).as_posix()))
    return written


def _put(path: Path, uri: str) -> bool:
    """Write a file unless it is there already; return whether it was written."""
    if filesystem.info(uri).is_file:
        problem = mismatch(filesystem.reader(uri), entry_of(path))
        if problem is not None:
            raise RefusedError(
                f"{uri} is there and is another file: expected {problem[0]}, got {problem[1]}",
                hint="It is left as it is. Restore into another storage.path, or move it away.",
            )
        return False
    if (local := local_path(uri)) is not None:
        for left in local.parent.glob(f".{glob.escape(local.name)}-{'[0-9a-f]' * 32}"):
            left.unlink()  # of a restore that was killed: MLflow would list it
    with filesystem.create(uri) as target, path.open("rb") as source:
        shutil.copyfileobj(source, target, filesystem.CHUNK_BYTES)
    return True
