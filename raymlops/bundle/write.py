"""Writing a bundle: every file, then the manifest that vouches for them, then the name that makes it one.

The same contents give the same bytes, so the same digest and the same folder: nothing in a bundle says when
or where it was written. A process killed at any point leaves nothing under the name of a bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

import numpy as np

from raymlops.bundle import verify as names
from raymlops.bundle.code import collect, own_version
from raymlops.bundle.sketch import sketch
from raymlops.errors import RecipeError, StorageError
from raymlops.recipe import reference_of
from raymlops.records import BundleRef
from raymlops.storage.filesystem import FOLDER, child

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import torch

    from raymlops.recipe import RecipeBase
    from raymlops.signature import Signature
    from raymlops.storage.filesystem import Location, Place

_CHUNK_BYTES = 4 << 20
_ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True)
class BundleContents:
    """What goes into a bundle."""

    weights: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]
    """What ``fit`` learnt, as JSON data."""
    signature: Signature
    example: list[dict[str, Any]]
    """Request rows that work."""
    recipe_class: type[RecipeBase]
    recipe_config: Mapping[str, Any]
    """The recipe's own configuration, as JSON data."""
    seed: int
    config_yaml: str
    """The whole resolved configuration."""
    profile: Mapping[str, Any]
    """Reference profiles of features and predictions, by split."""
    evaluation: Mapping[str, Any]
    """Metrics on the held-out test split."""
    row_hashes: npt.NDArray[Any]
    """One 64-bit hash for each training row."""
    lineage: Mapping[str, Any]
    loss: Mapping[str, Any] | None = None
    """How answers are compared with labels, see ``answerloss``; None writes nothing of it."""


def write_bundle(
    root_uri: Location, contents: BundleContents, *, cache: str | os.PathLike[str] = names.DEFAULT_CACHE
) -> BundleRef:
    """Write ``<root>/bundles/<digest>/`` and return where it is; what is there already is verified and left alone.

    A local folder is written beside its place, synced and renamed. On another filesystem, which has no such rename, the
    manifest is written last: without it a folder is no bundle. The weights, which may fill most of the memory, are
    written first, from where they are, to a temporary folder: there, or below ``cache``.

    Raises:
        RecipeError: the code, state or configuration cannot be kept.
        BundleError: a damaged bundle stands where this one belongs.
        StorageError: the storage cannot be written, or is full.
    """
    files = _render(contents)
    bundles = child(root_uri, FOLDER)
    try:
        with _temporary(Path(cache).expanduser() if bundles.local is None else bundles.local) as temporary:
            weights = temporary / names.WEIGHTS
            entries = {names.WEIGHTS: _write_weights(weights, contents.weights)} | {
                name: names.FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                for name, data in files.items()
            }
            manifest = names.Manifest(format_version=names.FORMAT_VERSION, files=entries).to_bytes()
            digest = hashlib.sha256(manifest).hexdigest()
            place = child(root_uri, FOLDER, digest)
            # Last, so that a folder of files without it is not mistaken for a bundle.
            files[names.MANIFEST] = manifest
            if place.local is not None:
                _write_local(place.local, files, temporary=temporary, digest=digest)
            else:
                _write_remote(place, files, weights=weights, digest=digest)
    except OSError as error:
        raise StorageError(
            f"the bundle in {bundles.uri} cannot be written: {error}",
            hint="Check that the folder exists, belongs to you and has room, or set storage.path.",
        ) from error
    return BundleRef(uri=place.uri, digest=digest)


def _render(contents: BundleContents) -> dict[str, bytes]:
    code = collect(contents.recipe_class)
    recipe = {
        "import": reference_of(contents.recipe_class),
        "code": "bundle" if code.files else "installed",
        "distribution": code.distribution,
        "version": code.version,
        "raymlops_version": own_version(),
        "left_out": list(code.left_out),
        "config": contents.recipe_config,
        "seed": contents.seed,
    }
    return {
        names.ROWS: _tensors({"row_hashes": sketch(contents.row_hashes).view(np.int64)}),
        names.RECIPE: _json(recipe, name=names.RECIPE, exact=True),
        names.STATE: _json(contents.state, name=names.STATE, exact=True),
        names.SIGNATURE: _json(contents.signature.to_dict(), name=names.SIGNATURE),
        names.EXAMPLE: _json(contents.example, name=names.EXAMPLE),
        names.CONFIG: contents.config_yaml.encode(),
        names.PROFILE: _json(contents.profile, name=names.PROFILE),
        names.EVALUATION: _json(contents.evaluation, name=names.EVALUATION),
        names.LINEAGE: _json(contents.lineage, name=names.LINEAGE),
        **({} if contents.loss is None else {names.LOSS: _json(contents.loss, name=names.LOSS)}),
        **{f"{names.CODE}/{path}": data for path, data in sorted(code.files.items())},
    }


def _write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> names.FileEntry:
    """Write tensors from where they are, so that memory holds them once, as the bytes of ``safetensors.save``."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    end = 0
    for name in sorted(plain, key=lambda name: plain[name].data_ptr()):
        tensor = plain[name]
        if tensor.nbytes and tensor.data_ptr() < end:
            # Tied weights share memory, which safetensors refuses: each name gets a copy of its own, and a model
            # that ties them copies both into the one place.
            plain[name] = tensor.clone()
        else:
            end = max(end, tensor.data_ptr() + tensor.nbytes)
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(plain, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # it takes the right to read from all but the owner
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return names.FileEntry(sha256=digest, size=path.stat().st_size)


def _tensors(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(arrays))


def _json(data: Any, *, name: str, exact: bool = False) -> bytes:
    """Return JSON; NaN is null, unless ``exact`` asks for what comes back as it was, the order of keys included."""
    try:
        plain = data if exact else _finite(data)
        text = json.dumps(plain, indent=1, sort_keys=not exact, ensure_ascii=False, default=_scalar)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{name} of the bundle cannot be written as JSON: {error}") from error
    return (text + "\n").encode()


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, np.generic | np.ndarray):
        return _finite(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    msg = f"{type(value).__name__} is not JSON data"
    raise TypeError(msg)


@contextlib.contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """Make a folder in ``parent`` whose name marks it as temporary, and remove what is left of it."""
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    folder = parent / f".{uuid4().hex}.tmp"
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_local(folder: Path, files: dict[str, bytes], *, temporary: Path, digest: str) -> None:
    """Add the files to those in ``temporary`` and make it the bundle's folder."""
    if folder.exists():
        names.verify(folder, digest)
        return
    for name, data in files.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    for inner, _, _ in os.walk(temporary):
        _sync_folder(Path(inner))
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        # Another process wrote the same bundle meanwhile.
        names.verify(folder, digest)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove what killed writers left a day ago or longer."""
    for path in parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _write_remote(place: Place, files: dict[str, bytes], *, weights: Path, digest: str) -> None:
    from pyarrow.fs import FileType

    manifest = place.filesystem.get_file_info(f"{place.path}/{names.MANIFEST}")
    if manifest.type == FileType.File:
        names.verify(place, digest)
        return
    for name in (names.WEIGHTS, *files):
        path = f"{place.path}/{name}"
        place.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        source: BinaryIO = weights.open("rb") if name == names.WEIGHTS else io.BytesIO(files[name])
        with source, place.filesystem.open_output_stream(path) as stream:
            shutil.copyfileobj(source, stream, _CHUNK_BYTES)
