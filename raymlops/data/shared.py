"""A driver's prepared data in Ray's object store: once on each node, mapped by every process there without a copy.

Splits are pickled with the memory of their numbers and tensors out of band (protocol 5), which Ray maps read-only; text
and other objects are unpickled in a process that reads them. Training copies the rows that it draws, so nothing writes
into the mapped memory. ``cache`` decides whether a trial would prepare the same data.

``ray.put`` alone, and ``tune.with_parameters`` on top of it, keep the object until the driver ends, because Ray (2.60)
pins an object whose reference is pickled into a class: a notebook that sweeps ten times would hold the data of ten
sweeps. ``StoredObject`` can be released.
"""

from __future__ import annotations

import io
import pickle
import platform
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from torch.utils.data import TensorDataset

from raymlops.data.dataset_split import DatasetSplit
from raymlops.data.prepare import SPLITS, Memory, Prepared
from raymlops.data.sources import open_source, stands_alone
from raymlops.data.split import SplitData, TableSplit

if TYPE_CHECKING:
    from collections.abc import Mapping

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
"""Limit on what each process unpickles of a dataset; a larger one is better loaded there."""
_DRAWN = ("train", "validation")
"""The splits that a trial draws from: the driver encodes them once."""


@dataclass(frozen=True)
class _Packed:
    """A pickled value; ``buffers`` is the memory of its arrays and tensors, which ``load`` maps without a copy."""

    data: Array
    buffers: tuple[Array, ...] = ()

    @property
    def size_bytes(self) -> int:
        return self.data.nbytes + sum(buffer.nbytes for buffer in self.buffers)

    def load(self) -> Any:
        return pickle.loads(self.data.data, buffers=self.buffers)  # noqa: S301 - our driver's


@dataclass(frozen=True)
class _Table:
    rows: int
    columns: _Packed
    encoded: _Packed | None
    """The batch of all rows, or a packed None if rows are encoded when they are drawn; None: not computed."""

    @property
    def size_bytes(self) -> int:
        return self.columns.size_bytes + (self.encoded.size_bytes if self.encoded else 0)


@dataclass(frozen=True)
class _Dataset:
    packed: _Packed
    portable: bool
    """Whether another machine can use it; an arbitrary dataset may name files of the machine that made it."""

    @property
    def size_bytes(self) -> int:
        return self.packed.size_bytes


@dataclass(frozen=True)
class SharedData:
    """All splits of a recipe, and the state that ``fit`` returned. ``key`` says which configurations share them."""

    key: dict[str, Any]
    sources: dict[str, Any]
    state: dict[str, Any]
    parts: dict[str, _Table | _Dataset]
    host: str
    """The machine that made it."""

    @property
    def fits_here(self) -> bool:
        """Return whether this machine can use it."""
        portable = all(isinstance(part, _Table) or part.portable for part in self.parts.values())
        return portable or self.host == platform.node()

    @property
    def size_bytes(self) -> int:
        """Return the size on each node."""
        return sum(part.size_bytes for part in self.parts.values())

    def prepared(self, recipe: RecipeBase) -> Prepared:
        """Return the splits for a recipe made with ``state``."""
        splits = {part: self._split(part, recipe) for part in SPLITS}
        return Prepared(recipe, splits, dict(self.state))

    def _split(self, part: str, recipe: RecipeBase) -> SplitData:
        packed, known = self.parts.get(part), self.sources[part]
        if isinstance(packed, _Table):
            return _SharedTable(packed, name=part, recipe=recipe, known=known)
        if isinstance(packed, _Dataset):
            return DatasetSplit(packed.packed.load(), name=part, recipe=recipe)
        source = open_source(
            None, part, call=f"{type(recipe).__name__}.datasets()", known=known, root_uri="", memory=Memory()
        )
        return source.split(recipe)


class _SharedTable(TableSplit):
    """A table whose batches come from shared tensors; its columns are unpickled when they are read."""

    def __init__(self, packed: _Table, *, name: str, recipe: RecipeBase, known: Mapping[str, Any]) -> None:
        SplitData.__init__(self, name=name, rows=packed.rows, recipe=recipe)
        self._packed = packed
        self._known = known
        if packed.encoded is not None:
            self.encoded = packed.encoded.load()  # fills the cached property, so that nothing is encoded again

    @cached_property
    def columns(self) -> dict[str, Array]:  # type: ignore[override]
        """Return the columns."""
        return dict(self._packed.columns.load())

    def describe(self) -> dict[str, Any]:
        """Return the description that the driver made."""
        return dict(self._known)


def pack(splits: Mapping[str, SplitData], *, sources: Mapping[str, Any]) -> dict[str, _Table | _Dataset] | None:
    """Return the splits in a form that can be shared, by name; None if each process must call ``datasets()``.

    Streamed files are left out: ``sources`` describes them.
    """
    parts: dict[str, _Table | _Dataset] = {}
    for part, split in splits.items():
        packed: _Table | _Dataset | None = None
        if isinstance(split, TableSplit):
            packed = _table(split, encodes=part in _DRAWN)
        elif isinstance(split, DatasetSplit):
            packed = _dataset(split.dataset)
        if packed is not None:
            parts[part] = packed
        elif not stands_alone(sources[part]):
            return None
    return parts


def _table(split: TableSplit, *, encodes: bool) -> _Table | None:
    encoded = _pack(split.encoded) if encodes else None
    columns = _pack({name: np.ascontiguousarray(values) for name, values in split.columns.items()})
    if columns is None or (encodes and encoded is None):
        return None
    return _Table(split.rows, columns, encoded)


def _dataset(dataset: Any) -> _Dataset | None:
    # The items of any other dataset may be written to, so that its memory is not mapped.
    portable = type(dataset) is TensorDataset
    packed = _pack(dataset, mapped=portable)
    return None if packed is None or packed.data.nbytes > _SMALL_BYTES else _Dataset(packed, portable)


def _pack(value: Any, *, mapped: bool = True) -> _Packed | None:
    """Return a value pickled; None if that is impossible."""
    stream = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler = _Pickler(stream, protocol=5, buffer_callback=buffers.append) if mapped else pickle.Pickler(stream)
    try:
        pickler.dump(value)
    except Exception:  # a lock, an open file, a class that was made in a function
        return None
    arrays = tuple(np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers)
    return _Packed(np.frombuffer(stream.getbuffer(), dtype=np.uint8), arrays)


class _Pickler(pickle.Pickler):
    """Leaves the memory of numbers and CPU tensors out of band, but not that of objects, which are drawn uncopied."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype == object:
            return pickle.loads, (pickle.dumps(value, protocol=5),)
        if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu":
            return NotImplemented
        plain = value.detach().resolve_conj().resolve_neg().contiguous()
        try:
            return _tensor, (plain.numpy(), None)
        except TypeError:  # numpy has no bfloat16
            return _tensor, (plain.view(torch.uint8).numpy(), plain.dtype)


def _tensor(values: Array, dtype: torch.dtype | None) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch warns about writes into a read-only array; there are none.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(values)
    return tensor if dtype is None else tensor.view(dtype)
