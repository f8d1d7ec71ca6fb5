"""Write a bundle: every file, then the manifest that vouches for them, then the name that makes it one.

The same contents give the same bytes, digest and folder: a bundle does not record when or where it was written. A
process killed at any point leaves nothing under the name of a bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.bundle import verify as names
from raymlops.bundle import weights
from raymlops.bundle.code import collect, own_version
from raymlops.bundle.publish import is_there, publish
from raymlops.bundle.requirements import requirements
from raymlops.bundle.trained_rows import sketch
from raymlops.config.paths import local_path
from raymlops.errors import RecipeError
from raymlops.profiles.file import summary, write_references
from raymlops.recipe_import import reference_of
from raymlops.records import BundleRef
from raymlops.storage import filesystem
from raymlops.storage.filesystem import FOLDER
from raymlops.storage.manifest import BUNDLE, MANIFEST, entry_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch

    from raymlops.profiles.reference import Reference
    from raymlops.recipe import RecipeBase
    from raymlops.signature import Signature
    from raymlops.storage.filesystem import Location


@dataclass(frozen=True)
class BundleContents:
    """What goes into a bundle."""

    weights: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]
    """What ``fit`` learnt, as JSON data."""
    signature: Signature
    example: list[dict[str, Any]]
    """Valid request rows."""
    recipe_class: type[RecipeBase]
    recipe_config: Mapping[str, Any]
    """The recipe's own configuration, as JSON data."""
    seed: int
    config_yaml: str
    """The whole resolved configuration."""
    references: Mapping[str, Reference]
    """Of the training split's ``features`` and of the ``predictions`` for the validation split, where they are tables.
    """
    evaluation: Mapping[str, Any]
    """Metrics on the held-out test split."""
    row_hashes: npt.NDArray[Any]
    """One 64-bit hash for each training row, or for a random sample of them."""
    lineage: Mapping[str, Any]
    trained_with: Mapping[str, str] = field(default_factory=dict)
    """Versions of the distributions that were installed for the training, by name."""
    left_out: Sequence[str] | None = None
    """Files that the training found beside the code and that do not travel; None for those that are there now."""
    loss: Mapping[str, Any] | None = None
    """How answers are compared with labels, see ``answer_loss``; None omits the file."""
    quality: Mapping[str, Any] | None = None
    """What labelled answers are compared with, see ``monitor.skill.reference``; None omits the file."""
    hashed_share: float = 1.0
    """Share of the training rows that ``row_hashes`` is of."""


def write_bundle(
    root_uri: Location, contents: BundleContents, *, cache: str | os.PathLike[str] = names.DEFAULT_CACHE
) -> BundleRef:
    """Write ``<root>/bundles/<digest>/`` and return its reference; an existing one is verified and left unchanged.

    All files are written to a temporary folder first, the weights from where they are in memory, which they may almost
    fill. A local bundle is that folder, flushed and renamed. To another filesystem, which has no such rename, the files
    are uploaded from below ``cache``, the manifest last: without it a folder is no bundle.

    Raises:
        RecipeError: the code, state or configuration cannot be kept.
        BundleError: there is a damaged bundle where this one belongs.
        StorageError: the storage cannot be written, or is full.
    """
    files = _render(contents)
    bundles = filesystem.join(root_uri, FOLDER)
    local = local_path(bundles)
    parent = local or Path(cache).expanduser()
    with filesystem.errors(bundles), filesystem.temporary_folder(parent) as folder:
        weights.write(folder / names.WEIGHTS, contents.weights)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        order = [names.WEIGHTS, *files]
        manifest = BUNDLE.encode({name: entry_of(folder / name) for name in order})
        (folder / MANIFEST).write_bytes(manifest)
        digest = hashlib.sha256(manifest).hexdigest()
        uri = filesystem.join(bundles, digest)
        if is_there(uri):
            names.verify(uri, digest)
        else:
            publish(folder, uri, digest, order=order)
    return BundleRef(uri=uri, digest=digest)


def _render(contents: BundleContents) -> dict[str, bytes]:
    code = collect(contents.recipe_class)
    recipe = {
        "import": reference_of(contents.recipe_class),
        "code": "bundle" if code.files else "installed",
        "distribution": code.distribution,
        "version": code.version,
        "raymlops_version": own_version(),
        "requirements": requirements(code.files, trained_with=contents.trained_with),
        "left_out": list(code.left_out if contents.left_out is None else contents.left_out),
        "config": contents.recipe_config,
        "seed": contents.seed,
    }
    share = {} if contents.hashed_share == 1 else {"hashed_share": np.array([contents.hashed_share])}
    return {
        names.ROWS: _tensors({"row_hashes": sketch(contents.row_hashes).view(np.int64), **share}),
        names.RECIPE: _json(recipe, name=names.RECIPE, exact=True),
        names.STATE: _json(contents.state, name=names.STATE, exact=True),
        names.SIGNATURE: _json(contents.signature.to_dict(), name=names.SIGNATURE),
        names.EXAMPLE: _json(contents.example, name=names.EXAMPLE),
        names.CONFIG: contents.config_yaml.encode(),
        names.PROFILE: _json(summary(contents.references), name=names.PROFILE),
        names.PROFILES: write_references(contents.references),
        names.EVALUATION: _json(contents.evaluation, name=names.EVALUATION),
        names.LINEAGE: _json(contents.lineage, name=names.LINEAGE),
        **({} if contents.quality is None else {names.QUALITY: _json(contents.quality, name=names.QUALITY)}),
        **({} if contents.loss is None else {names.LOSS: _json(contents.loss, name=names.LOSS)}),
        **{f"{names.CODE}/{path}": data for path, data in sorted(code.files.items())},
    }


def _tensors(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(arrays))


def _json(data: Any, *, name: str, exact: bool = False) -> bytes:
    """Return JSON; NaN becomes null. With ``exact``, NaN and the order of keys are preserved."""
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
