"""A driver's prepared data in Ray's object store: once on each node, mapped by every process there without a copy.

Numbers are numpy arrays, which Ray maps read-only; text and other objects are pickled, and unpickled in a process that
reads them. Training copies the rows that it draws, so nothing writes into the arrays. ``cache`` decides whether a trial
would prepare the same data.

``ray.put`` alone, and ``tune.with_parameters`` on top of it, keep the object until the driver ends, because Ray (2.60)
pins an object whose reference is pickled into a class: a notebook that sweeps ten times would hold the data of ten
sweeps. ``StoredObject`` can be released.
"""

from __future__ import annotations

import pickle
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from torch.utils.data import TensorDataset

from raymlops.data.batches import leaves
from raymlops.data.parquet_files import ParquetFiles
from raymlops.data.prepare import SPLITS, Memory, Prepared
from raymlops.data.sources import open_source, stands_alone
from raymlops.data.split import DatasetSplit, SplitData, TableSplit

if TYPE_CHECKING:
    import numpy.typing as npt

    from raymlops.recipe import RecipeBase

    Array = npt.NDArray[Any]


class StoredObject:
    """A value in the object store. It may be pickled into classes, and is freed once it is released."""

    def __init__(self, value: Any) -> None:
        self._reference: Any = ray.put(value)

    def get(self) -> Any:
        """Return the value; its arrays are views of shared memory."""
        return ray.get(self._reference)

    def release(self) -> None:
        """Drop the reference: Ray frees the value once no process maps it."""
        self._reference = None

    def __reduce__(self) -> tuple[Any, ...]:
        # As Ray (2.60) pickles a reference, without pinning it.
        reference = self._reference
        worker = ray._private.worker.global_worker  # noqa: SLF001 - no public call
        _, owner, status = worker.core_worker.serialize_object_ref(reference)
        return _borrowed, (reference.binary(), owner, status, reference.tensor_transport())


def _borrowed(reference_id: bytes, owner: bytes, status: bytes, transport: str) -> StoredObject:
    from ray._private.serialization import _object_ref_deserializer

    stored = StoredObject.__new__(StoredObject)
    stored._reference = _object_ref_deserializer(reference_id, "", owner, status, transport)  # noqa: SLF001
    return stored


_SMALL_BYTES = 16 << 20
"""A dataset of another kind is unpickled in each process; a larger one is better loaded there."""
_DRAWN = ("train", "validation")
"""The splits that a trial draws from: the driver encodes them once."""


@dataclass(frozen=True)
class _Numbers:
    """A tensor as an array; ``dtype`` is the tensor's where numpy has no such type."""

    values: Array
    dtype: str = ""


@dataclass(frozen=True)
class _Table:
    rows: int
    numbers: dict[str, Array]
    objects: Array
    """Columns of objects, pickled into an array of bytes, which is shared too."""
    order: tuple[str, ...]
    encoded: Any
    """The batch of all rows, its tensors as ``_Numbers``; None where rows are encoded when they are drawn."""
    encodes: bool
    """Whether ``encoded`` was computed."""


@dataclass(frozen=True)
class _Tensors:
    tensors: tuple[_Numbers, ...]


@dataclass(frozen=True)
class _Pickled:
    data: Array


@dataclass(frozen=True)
class SharedData:
    """All splits of a recipe, and the state that ``fit`` returned. ``key`` says which configurations share them."""

    key: dict[str, Any]
    sources: dict[str, Any]
    state: dict[str, Any]
    parts: dict[str, Any]
    host: str
    """The machine that made it."""

    @property
    def fits_here(self) -> bool:
        """Return whether this machine can use it: a pickled dataset may name files of the machine that made it."""
        return self.host == platform.node() or not any(isinstance(part, _Pickled) for part in self.parts.values())

    @property
    def size_bytes(self) -> int:
        """Return the size on each node."""
        return sum(array.nbytes for array in _arrays(self.parts))

    def prepared(self, recipe: RecipeBase) -> Prepared:
        """Return the splits for a recipe made with ``state``."""
        splits = {part: self._split(part, recipe) for part in SPLITS}
        return Prepared(recipe, splits, dict(self.state))

    def _split(self, part: str, recipe: RecipeBase) -> SplitData:
        packed, known = self.parts.get(part), self.sources[part]
        if isinstance(packed, _Table):
            return _SharedTable(packed, name=part, recipe=recipe, known=known)
        if isinstance(packed, _Tensors):
            return DatasetSplit(TensorDataset(*map(_tensor, packed.tensors)), name=part, recipe=recipe)
        if isinstance(packed, _Pickled):
            return DatasetSplit(pickle.loads(packed.data.data), name=part, recipe=recipe)  # noqa: S301 - our driver's
        source = open_source(None, part, name=type(recipe).__name__, known=known, data_uri="", memory=Memory())
        return source.split(recipe)


class _SharedTable(TableSplit):
    """A table whose batches come from shared tensors; its columns are unpickled when they are read."""

    def __init__(self, packed: _Table, *, name: str, recipe: RecipeBase, known: Mapping[str, Any]) -> None:
        SplitData.__init__(self, name=name, rows=packed.rows, recipe=recipe)
        self._packed = packed
        whole = stands_alone(known)
        self._files = ParquetFiles.from_dict(known) if whole else None
        self._written = whole and bool(known["written"])
        if packed.encodes:
            # Fill the cached property, so that nothing is encoded again.
            vars(self)["_encoded"] = None if packed.encoded is None else _map(packed.encoded, _Numbers, _tensor)

    @cached_property
    def columns(self) -> dict[str, Array]:  # type: ignore[override]
        """Return the columns."""
        packed = self._packed
        objects = pickle.loads(packed.objects.data) if packed.objects.size else {}  # noqa: S301 - our driver's
        return {name: packed.numbers[name] if name in packed.numbers else objects[name] for name in packed.order}


def pack(splits: Mapping[str, SplitData], *, sources: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the splits in a form that can be shared, by name; None where each process must call ``datasets()``.

    Streamed files are left out: ``sources`` describes them.
    """
    parts: dict[str, Any] = {}
    for part, split in splits.items():
        packed = _packed(split, encodes=part in _DRAWN)
        if packed is not None:
            parts[part] = packed
        elif not stands_alone(sources[part]):
            return None
    return parts


def _packed(split: SplitData, *, encodes: bool) -> _Table | _Tensors | _Pickled | None:
    if isinstance(split, TableSplit):
        return _table(split, encodes=encodes)
    if not isinstance(split, DatasetSplit):
        return None
    dataset = vars(split)["_dataset"]
    if type(dataset) is TensorDataset:
        tensors = [_numbers(tensor) for tensor in dataset.tensors]
        arrays = tuple(tensor for tensor in tensors if isinstance(tensor, _Numbers))
        if len(arrays) == len(tensors):
            return _Tensors(arrays)
    data = _pickled(dataset)
    return None if data is None or data.nbytes > _SMALL_BYTES else _Pickled(data)


def _table(split: TableSplit, *, encodes: bool) -> _Table | None:
    encoded = None
    if encodes:
        split.batch(torch.arange(min(1, split.rows)))  # encodes all rows where that is possible
        encoded = vars(split)["_encoded"]
        encoded = None if encoded is None else _map(encoded, torch.Tensor, _numbers)
    numbers = {name: np.ascontiguousarray(values) for name, values in split.columns.items() if values.dtype != object}
    objects = {name: values for name, values in split.columns.items() if name not in numbers}
    data = _pickled(objects) if objects else np.empty(0, dtype=np.uint8)
    if data is None or any(isinstance(leaf, torch.Tensor) for _, leaf in leaves(encoded)):
        return None
    return _Table(split.rows, numbers, data, tuple(split.columns), encoded, encodes=encodes)


def _pickled(value: Any) -> Array | None:
    try:
        return np.frombuffer(pickle.dumps(value, protocol=5), dtype=np.uint8)
    except Exception:  # a lock, an open file, a class that was made in a function
        return None


def _numbers(tensor: torch.Tensor) -> _Numbers | torch.Tensor:
    """Return a tensor as an array; a sparse tensor or one on a device unchanged."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return tensor
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    try:
        return _Numbers(plain.numpy())
    except TypeError:  # numpy has no bfloat16
        return _Numbers(plain.view(torch.uint8).numpy(), str(plain.dtype).removeprefix("torch."))


def _tensor(numbers: _Numbers) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch warns about writes into a read-only array; there are none.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(numbers.values)
    return tensor.view(getattr(torch, numbers.dtype)) if numbers.dtype else tensor


def _map(batch: Any, kind: type, function: Any) -> Any:
    """Return a batch with ``function`` applied to its values of a type."""
    if isinstance(batch, kind):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, kind, function) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_map(value, kind, function) for value in batch]
    return batch


def _arrays(parts: Any) -> list[Array]:
    found: list[Array] = []
    for _, leaf in leaves(parts):
        if isinstance(leaf, _Table):
            found += [*leaf.numbers.values(), leaf.objects, *_arrays(leaf.encoded)]
        elif isinstance(leaf, _Tensors):
            found += [numbers.values for numbers in leaf.tensors]
        elif isinstance(leaf, _Pickled):
            found.append(leaf.data)
        elif isinstance(leaf, _Numbers):
            found.append(leaf.values)
    return found
