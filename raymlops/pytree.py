"""Nested containers of tensors: a batch, or the output of a model.

Owns which containers are walked and how each is rebuilt, so that ``loss`` and ``decode`` see the same type on the CPU
and on a GPU. Every other value is a leaf. Knows nothing of recipes; torch is imported only where tensors are looked at.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch


def map_tensors(tree: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return the tree with ``function`` applied to every tensor; containers keep their type, other leaves are kept.

    Walked are mappings (Hugging Face's ``ModelOutput`` too), lists, tuples, named tuples, dataclasses and packed
    sequences, of which ``batch_sizes`` is left on the CPU, where torch wants it.
    """
    import torch

    if isinstance(tree, torch.Tensor):
        return function(tree)
    children = named_children(tree)
    if children is None:
        return tree
    return rebuilt(tree, [map_tensors(value, function) for _, value in children])


def named_children(tree: Any) -> list[tuple[Any, Any]] | None:
    """Return what a container holds, each with its key, position or field; None for a leaf."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    return None


def rebuilt(tree: Any, values: Sequence[Any]) -> Any:
    """Return a container like ``tree`` with other ``values``, in the order of ``named_children``.

    Constructors are not called where that can be avoided: they may check, or count.
    """
    from torch.nn.utils.rnn import PackedSequence

    if isinstance(tree, PackedSequence):
        data, _, sorted_indices, unsorted_indices = values
        return PackedSequence(data, tree.batch_sizes, sorted_indices, unsorted_indices)
    if isinstance(tree, tuple | list):
        return type(tree)._make(values) if hasattr(tree, "_make") else type(tree)(values)
    if type(tree) is dict or (isinstance(tree, Mapping) and not isinstance(tree, MutableMapping)):
        return dict(zip(tree, values, strict=True))
    clone = copy.copy(tree)
    if isinstance(clone, MutableMapping):
        for key, value in zip(tree, values, strict=True):
            clone[key] = value
    else:
        for field, value in zip(fields(tree), values, strict=True):
            object.__setattr__(clone, field.name, value)  # a frozen dataclass too
    return clone


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf with the keys that lead to it; a list of texts is one leaf."""
    children = named_children(tree)
    if children is None or (isinstance(tree, tuple | list) and all(isinstance(value, str) for value in tree)):
        yield path, tree
        return
    for key, value in children:
        yield from leaves(value, f"{path}/{key}")


def batch_rows(batch: Any) -> int:
    """Return the number of rows of a batch: the first dimension of its ``label``, else of most of its values.

    A single number has no rows, and neither has a matrix as high as it is wide, such as a mask over positions, beside
    values of another form. Of two first dimensions that are equally frequent, the first one counts.

    Raises:
        TypeError: no value has rows.
    """
    label = batch.get("label") if isinstance(batch, Mapping) else None
    found = first_dimensions(label) or first_dimensions(batch, but_square=True) or first_dimensions(batch)
    if not found:
        msg = f"a {type(batch).__name__} without rows"
        raise TypeError(msg)
    return Counter(found).most_common(1)[0][0]


def first_dimensions(tree: Any, *, but_square: bool = False) -> list[int]:
    """Return the first dimension of each leaf that has one; of a list of texts, its length."""
    shapes = [
        (len(leaf),) if isinstance(leaf, list | tuple) else tuple(getattr(leaf, "shape", ()))
        for _, leaf in leaves(tree)
    ]
    return [shape[0] for shape in shapes if shape and not (but_square and len(shape) > 1 and len(set(shape)) == 1)]


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    """Return a tensor as an array; numpy has no bfloat16 and no 8-bit floats, which float32 holds exactly."""
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_floating_point() and tensor.dtype not in {torch.float16, torch.float32, torch.float64}:
        tensor = tensor.float()
    found: npt.NDArray[np.generic] = tensor.numpy()
    return found
