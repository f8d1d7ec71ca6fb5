"""A driver's prepared data, as what every process of a node can map instead of preparing it again.

Owns the form: numbers lie in numpy arrays, which Ray keeps once a node and gives to each process without a copy and
read-only; text and other objects are pickled, and come to life in a process that asks for them. Nobody may write into
such data: training draws rows from it, which copies them. Whether it is the data that a trial would prepare is decided
by ``cache``. Knows nothing of Ray.

One value in Ray's object store for every process of a node, for as long as whoever lent it keeps it.

Owns the reference. Ray pins an object whose reference is pickled into a class, as a trainable's is, until the driver
ends: a notebook that sweeps ten times would hold the data of ten sweeps. Knows nothing of what is lent.
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


class Lent:
    """A value in the object store. It may be pickled into classes; a process maps the value with ``get``."""

    def __init__(self, value: Any) -> None:
        self._reference: Any = ray.put(value)

    def get(self) -> Any:
        """Return the value; its arrays are views of the node's memory."""
        return ray.get(self._reference)

    def release(self) -> None:
        """Let go of it: Ray frees it once no process has it mapped."""
        self._reference = None

    def __reduce__(self) -> tuple[Any, ...]:
        # What Ray (2.60) does for a reference, but for pinning it.
        reference = self._reference
        worker = ray._private.worker.global_worker  # noqa: SLF001 - no public call
        _, owner, status = worker.core_worker.serialize_object_ref(reference)
        return _borrowed, (reference.binary(), owner, status, reference.tensor_transport())


def _borrowed(reference_id: bytes, owner: bytes, status: bytes, transport: str) -> Lent:
    from ray._private.serialization import _object_ref_deserializer

    lent = Lent.__new__(Lent)
    lent._reference = _object_ref_deserializer(reference_id, "", owner, status, transport)  # noqa: SLF001
    return lent


_SMALL_BYTES = 16 << 20
"""A dataset of other kinds is unpickled in each process; of a larger one each had better load its own."""
_DRAWN = ("train", "validation")
"""The splits that a trial draws from: they are encoded once for all."""


@dataclass(frozen=True)
class _Numbers:
    """A tensor as an array; ``dtype`` is the tensor's where numpy has none like it."""

    values: Array
    dtype: str = ""


@dataclass(frozen=True)
class _Table:
    rows: int
    numbers: dict[str, Array]
    objects: Array
    """Columns of objects, pickled; as an array of bytes, so that those too lie once on a node."""
    order: tuple[str, ...]
    encoded: Any
    """The batch of all rows, its tensors as ``_Numbers``; None where rows are encoded when they are drawn."""
    asked: bool
    """Whether ``encoded`` says anything."""


@dataclass(frozen=True)
class _Tensors:
    tensors: tuple[_Numbers, ...]


@dataclass(frozen=True)
class _Pickled:
    data: Array


@dataclass(frozen=True)
class SharedData:
    """All splits of a recipe, with what ``fit`` learnt. ``key`` says which configurations would prepare the same."""

    key: dict[str, Any]
    sources: dict[str, Any]
    state: dict[str, Any]
    parts: dict[str, Any]
    host: str
    """Where it was made."""

    @property
    def fits_here(self) -> bool:
        """Return whether this machine can use it: a dataset of another kind may name files of the one that made it."""
        return self.host == platform.node() or not any(isinstance(part, _Pickled) for part in self.parts.values())

    @property
    def size_bytes(self) -> int:
        """Return what it takes once a node."""
        return sum(array.nbytes for array in _arrays(self.parts))

    def prepared(self, recipe: RecipeBase) -> Prepared:
        """Return the splits for a recipe that was made with ``state``."""
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
    """A table whose columns are elsewhere until somebody asks for them; its batches come from what is encoded."""

    def __init__(self, packed: _Table, *, name: str, recipe: RecipeBase, known: Mapping[str, Any]) -> None:
        SplitData.__init__(self, name=name, rows=packed.rows, recipe=recipe)
        self._packed = packed
        whole = stands_alone(known)
        self._files = ParquetFiles.from_dict(known) if whole else None
        self._written = whole and bool(known["written"])
        if packed.asked:
            # In the place of the cached property: nothing is encoded again.
            vars(self)["_encoded"] = None if packed.encoded is None else _map(packed.encoded, _Numbers, _tensor)

    @cached_property
    def columns(self) -> dict[str, Array]:  # type: ignore[override]
        """Return the columns."""
        packed = self._packed
        objects = pickle.loads(packed.objects.data) if packed.objects.size else {}  # noqa: S301 - our driver's
        return {name: packed.numbers[name] if name in packed.numbers else objects[name] for name in packed.order}


def pack(splits: Mapping[str, SplitData], *, sources: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the splits as what can be shared, by name; None where a process has to call ``datasets()`` in any case.

    Files that are streamed are not among them: their ``sources`` say all.
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
        split.batch(torch.arange(min(1, split.rows)))  # encodes all rows where they can be
        encoded = vars(split)["_encoded"]
        encoded = None if encoded is None else _map(encoded, torch.Tensor, _numbers)
    numbers = {name: np.ascontiguousarray(values) for name, values in split.columns.items() if values.dtype != object}
    objects = {name: values for name, values in split.columns.items() if name not in numbers}
    data = _pickled(objects) if objects else np.empty(0, dtype=np.uint8)
    if data is None or any(isinstance(leaf, torch.Tensor) for _, leaf in leaves(encoded)):
        return None
    return _Table(split.rows, numbers, data, tuple(split.columns), encoded, asked=encodes)


def _pickled(value: Any) -> Array | None:
    try:
        return np.frombuffer(pickle.dumps(value, protocol=5), dtype=np.uint8)
    except Exception:  # a lock, an open file, a class that was made in a function
        return None


def _numbers(tensor: torch.Tensor) -> _Numbers | torch.Tensor:
    """Return a tensor as an array, or as it is where it is none of plain numbers in host memory."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return tensor
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    try:
        return _Numbers(plain.numpy())
    except TypeError:  # numpy has no bfloat16
        return _Numbers(plain.view(torch.uint8).numpy(), str(plain.dtype).removeprefix("torch."))


def _tensor(numbers: _Numbers) -> torch.Tensor:
    with warnings.catch_warnings():
        # It warns that writing into a read-only array is undefined; nobody does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(numbers.values)
    return tensor.view(getattr(torch, numbers.dtype)) if numbers.dtype else tensor


def _map(batch: Any, kind: type, function: Any) -> Any:
    """Return a batch with ``function`` applied to what is of a kind."""
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
