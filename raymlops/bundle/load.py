"""Load a bundle as a model: verify it, import its code, load its weights.

Owns the path from input columns to output columns, which the endpoint, the MLflow flavour and the gate share. Knows
nothing of servers or registries: the digest to verify against comes from the caller.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymlops.answer_loss import AnswerLoss, declared
from raymlops.arrays import misfits
from raymlops.bundle import verify as names
from raymlops.bundle.code import own_version
from raymlops.bundle.imports import import_module
from raymlops.bundle.requirements import differing
from raymlops.column_types import TIME, read_time
from raymlops.errors import NonFiniteError, RecipeError, RecipeImportError
from raymlops.pytree import map_tensors, to_numpy
from raymlops.recipe import RecipeBase, call_recipe, model_of, to_device
from raymlops.recipe_import import resolve
from raymlops.signature import Signature
from raymlops.storage.filesystem import join

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from torch import nn

    from raymlops.arrays import Column, Columns
    from raymlops.storage.filesystem import Location

Array = npt.NDArray[Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model loaded from a verified bundle, in evaluation mode."""

    uri: str
    digest: str
    recipe: RecipeBase
    model: nn.Module
    signature: Signature
    example: list[dict[str, Any]]
    config_yaml: str
    evaluation: dict[str, Any]
    lineage: dict[str, Any]
    row_hashes: npt.NDArray[np.uint64]
    """A sketch of the training rows; see ``sketch``."""
    hashed_share: float = 1.0
    """Share of the training rows that ``row_hashes`` is of."""
    device: str = "cpu"
    """Where the model runs; ``encode`` and ``decode`` always see CPU tensors."""
    loss: AnswerLoss | None = None
    """How its answers are compared with labels."""

    def predict(self, columns: Columns) -> dict[str, Array]:
        """Return the output columns, typed by the signature, for input columns of n rows.

        Raises:
            NonFiniteError: an output is NaN or infinite.
            RecipeError: the recipe's code raises, or its outputs do not fit the signature.
        """
        outputs = self.compute(columns)
        self.require_finite(outputs)
        return outputs

    def compute(self, columns: Columns) -> dict[str, Array]:
        """Return the output columns as ``predict``, NaN and infinity included: others' rows may be in the same batch.

        Raises:
            RecipeError: as ``predict``.
        """
        return answer(self.recipe, self.model, columns, signature=self.signature, device=self.device, finite=False)

    def require_finite(self, outputs: Columns, first_row: int = 0) -> None:
        """Check what ``compute`` returned, or some rows of it; ``first_row`` is the number of their first in a request.

        Raises:
            NonFiniteError: an output is NaN or infinite.
        """
        where = f"{type(self.recipe).__name__}.decode()"
        require_finite(outputs, self.signature, where=where, first_row=first_row)

    def predict_rows(self, rows: Any) -> list[dict[str, Any]]:
        """Return one JSON row of outputs for each JSON row of inputs.

        Raises:
            InvalidRowsError: naming row and field of what does not fit the signature.
            NonFiniteError, RecipeError: as ``predict``.
        """
        return self.signature.rows(self.predict(self.signature.parse_rows(rows)))


def answer(
    recipe: RecipeBase,
    model: nn.Module,
    columns: Columns,
    *,
    signature: Signature,
    device: str = "cpu",
    finite: bool = True,
) -> dict[str, Array]:
    """Return the output columns, typed by the signature, for input columns of n rows: the path of every request.

    ``model`` is in evaluation mode, on ``device``; ``encode`` and ``decode`` always see CPU tensors.

    Raises:
        NonFiniteError: ``finite`` is set, and an output is NaN or infinite.
        RecipeError: the recipe's code raises, or its outputs do not fit the signature.
    """
    import torch

    name = type(recipe).__name__
    rows = len(next(iter(columns.values())))
    with torch.inference_mode():
        batch = call_recipe(f"{name}.encode()", lambda: recipe.encode(columns))
        if device != "cpu":
            batch = to_device(batch, device)
        output = call_recipe(f"{name}.predict()", lambda: recipe.predict(model, batch))
        if device != "cpu":
            output = map_tensors(output, lambda tensor: tensor.cpu())
        decoded = call_recipe(f"{name}.decode()", lambda: recipe.decode(output))
    return typed_outputs(decoded, signature, rows=rows, where=f"{name}.decode()", finite=finite)


def load(
    uri: Location,
    digest: str,
    *,
    exclusive: bool = False,
    device: str = "cpu",
    cache: str | os.PathLike[str] = names.DEFAULT_CACHE,
) -> LoadedModel:
    """Verify a bundle against a trusted digest, then import its code and load its weights.

    ``exclusive`` is for a process that serves this bundle alone: its modules keep their own names. Otherwise any
    number of bundles load side by side, also versions of one module; see ``imports`` for what the code must observe.

    Raises:
        BundleError: the files are not what the digest vouches for.
        RecipeImportError: the recipe's code does not import here.
        RecipeError: its ``model()`` raises, or the weights do not fit it.
        StorageError: the storage cannot be read.
    """
    from safetensors.numpy import load as load_arrays

    folder = names.fetch(uri, digest, cache=cache)
    # Files may change after they were verified: each small file is verified again as it is read.
    files = names.BundleFiles(folder, digest)
    recipe = _recipe(files, exclusive=exclusive)
    trained_rows = load_arrays(files.read(names.ROWS))
    return LoadedModel(
        uri=join(uri),
        digest=digest,
        recipe=recipe,
        model=_model(recipe, folder / names.WEIGHTS).to(device),
        signature=Signature.from_dict(files.json(names.SIGNATURE)),
        example=files.json(names.EXAMPLE),
        config_yaml=files.read(names.CONFIG).decode(),
        evaluation=files.json(names.EVALUATION),
        lineage=files.json(names.LINEAGE),
        row_hashes=trained_rows["row_hashes"].view(np.uint64),
        hashed_share=float(trained_rows["hashed_share"][0]) if "hashed_share" in trained_rows else 1.0,
        device=device,
        loss=loss_in(files),
    )


def loss_in(files: names.BundleFiles) -> AnswerLoss:
    """Return how a bundle's answers are compared with labels; the default for its signature where it does not say."""
    if names.LOSS in files.manifest:
        return AnswerLoss.from_dict(files.json(names.LOSS))
    return declared(Signature.from_dict(files.json(names.SIGNATURE)))


def load_recipe(uri: Location, digest: str, *, cache: str | os.PathLike[str] = names.DEFAULT_CACHE) -> RecipeBase:
    """Verify a bundle and return its recipe without its model, isolated from other bundles in this process.

    Raises:
        BundleError, RecipeImportError, RecipeError, StorageError: as ``load``.
    """
    return _recipe(names.BundleFiles(names.fetch(uri, digest, cache=cache), digest), exclusive=False)


def typed_outputs(
    decoded: Any, signature: Signature, *, rows: int, where: str, finite: bool = True
) -> dict[str, Array]:
    """Return the result of ``decode`` as the arrays of the signature's outputs.

    Raises:
        NonFiniteError: ``finite`` is set, and an output is NaN or infinite.
        RecipeError: the outputs do not match the signature. ``where`` names their origin.
    """
    wanted = [column.name for column in signature.outputs]
    if not isinstance(decoded, dict) or decoded.keys() != set(wanted):
        got = ", ".join(map(str, decoded)) if isinstance(decoded, dict) else f"a {type(decoded).__name__}"
        raise RecipeError(f"{where} returned {got}; the signature's outputs are {', '.join(wanted)}")
    outputs = {
        column.name: _output(column, decoded[column.name], rows=rows, where=f"{where}: output {column.name!r}")
        for column in signature.outputs
    }
    if finite:
        require_finite(outputs, signature, where=where)
    return outputs


def require_finite(outputs: Columns, signature: Signature, *, where: str, first_row: int = 0) -> None:
    """Check typed outputs, of which a nullable number may be NaN; the first row is called ``first_row``.

    Raises:
        NonFiniteError: one is NaN or infinite. ``where`` names their origin.
    """
    for column in signature.outputs:
        array = outputs[column.name]
        if array.dtype.kind == "f":
            _check_finite(column, array, where=f"{where}: output {column.name!r}", first_row=first_row)
        elif None in column.shape:
            for row, item in enumerate(array, first_row):
                _check_finite(column, item, where=f"{where}: output {column.name!r}, row {row}")


def _recipe(files: names.BundleFiles, *, exclusive: bool) -> RecipeBase:
    entry, state = files.json(names.RECIPE), files.json(names.STATE)
    reference = str(entry["import"])
    if other := list(differing(entry.get("requirements", {}))):
        _log.warning("bundle %s was made with %s", files.digest[:12], "; ".join(other))
    if entry["code"] == "installed":
        if entry["raymlops_version"] != own_version():
            _log.warning(
                "bundle %s was written with %s of raymlops %s; it runs with that of the installed %s",
                files.digest[:12],
                reference,
                entry["raymlops_version"],
                own_version(),
            )
        recipe_class = resolve(reference)
    else:
        module_name, _, attribute = reference.partition(":")
        found: Any = import_module(files, module_name, exclusive=exclusive)
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise RecipeImportError(f"the bundle's module {module_name} has no {attribute}")
        recipe_class = resolve(found)

    def build() -> RecipeBase:
        # Validated as JSON, where strict types accept a list for a tuple and text for a path.
        config = recipe_class.Config.model_validate_json(json.dumps(entry["config"]))
        return recipe_class(config, state=state, seed=int(entry["seed"]))

    built: RecipeBase = call_recipe(f"{recipe_class.__name__} with the bundle's config", build)
    return built


def _model(recipe: RecipeBase, weights: Path) -> nn.Module:
    import torch

    from raymlops.bundle.weights import read_into

    # Initial weights are drawn and discarded; the caller's random state is preserved.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = model_of(recipe)
    try:
        read_into(model, weights)
    except RuntimeError as error:
        raise RecipeError(
            f"the bundle's weights do not fit {type(recipe).__name__}.model(): {error}",
            hint="The recipe builds a different model from the one that was trained.",
        ) from error
    return model.eval().requires_grad_(requires_grad=False)


def _output(column: Column, values: Any, *, rows: int, where: str) -> Array:
    if hasattr(values, "detach"):
        values = to_numpy(values)
    if column.type == "datetime":
        values = _times(column, values, where=where)
    one_by_one = None in column.shape or column.type == "bytes"
    several = isinstance(values, list | tuple) or getattr(values, "ndim", 0) > 0
    array = _objects(values) if one_by_one and several else np.asarray(values)
    if array.ndim == 0 or len(array) != rows:
        got = "a single value" if array.ndim == 0 else f"{len(array)} values"
        raise RecipeError(f"{where}: {got} for {rows} rows")
    if None in column.shape:
        array = _objects([np.asarray(item.detach().cpu() if hasattr(item, "detach") else item) for item in array])
        for row, item in enumerate(array):
            _check(column, item, shape=item.shape, where=f"{where}, row {row}")
        return array
    if column.info.dtype == object:
        return _scalars(column, array, where=where)
    if array.dtype == object:
        # Numbers with gaps may come as objects.
        array = np.array([np.nan if value is None else value for value in array.tolist()])
    _check(column, array, shape=array.shape[1:], where=where)
    return array.astype(column.dtype)


def _check(column: Column, array: Array, *, shape: tuple[int, ...], where: str) -> None:
    fits = len(shape) == len(column.shape) and all(
        want in (None, got) for want, got in zip(column.shape, shape, strict=True)
    )
    if not fits:
        raise RecipeError(f"{where}: values of shape {shape}; the signature says {column.shape}")
    kinds = column.info.kinds + ("f" if column.nullable else "")
    if array.dtype.kind not in kinds or (column.type == "image" and array.dtype != np.uint8):
        raise RecipeError(f"{where}: an array of {array.dtype}; the signature says {column.type}")
    if column.type == "bool" and (bad := misfits(column, array)) is not None and bad.any():
        raise RecipeError(f"{where}: {array[bad][0]}; the signature says {column.type}, 0, 1 or NaN where nullable")


def _check_finite(column: Column, array: Array, *, where: str, first_row: int = 0) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.isinf(array) if column.nullable else ~np.isfinite(array)
    if bad.any():
        first = tuple(np.argwhere(bad)[0].tolist())
        place = (first[0] + first_row, *first[1:])
        raise NonFiniteError(
            f"{where} is {array[first]} at {place}; {int(bad.sum())} of its {array.size} values are not finite",
            hint="The model's weights or its inputs are out of range.",
        )


def _scalars(column: Column, array: Array, *, where: str) -> Array:
    """Return texts or bytes, which are objects."""
    objects = array.astype(object)
    kind = str if column.type == "string" else bytes
    wrong = [value for value in objects.ravel() if not (type(value) is kind or (value is None and column.nullable))]
    if array.ndim != 1 or wrong:
        got = repr(wrong[0])[:80] if wrong else "values"
        raise RecipeError(f"{where}: {got} in an array of shape {array.shape}; the signature says {column.type}")
    return objects


def _times(column: Column, values: Any, *, where: str) -> Array:
    """Return times as datetime64, of such an array or of ``datetime`` objects."""
    array = np.asarray(values)
    try:
        times = array if array.dtype.kind == "M" else np.array([_time(value) for value in array.tolist()], dtype=TIME)
    except (ValueError, TypeError, OverflowError) as error:
        raise RecipeError(f"{where}: an array of {array.dtype}; the signature says datetime") from error
    if np.isnat(times).any() and not column.nullable:
        raise RecipeError(f"{where}: NaT; the signature says datetime, not nullable")
    return times.astype(TIME)


def _time(value: Any) -> np.datetime64:
    return np.datetime64("NaT", "us") if value is None else read_time(value)


def _objects(values: Any) -> Array:
    """Return an array of objects, which numpy would otherwise stack, or shorten where bytes end in zeros."""
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        if hasattr(value, "detach"):
            array[index] = to_numpy(value)
        else:
            array[index] = value.item() if isinstance(value, np.bytes_) else value
    return array
