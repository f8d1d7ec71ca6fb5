"""Containers of tensors keep their type when their tensors change, and say how many rows they hold."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from raymlops.pytree import batch_rows, leaves, map_tensors, to_numpy


class Pair(NamedTuple):
    """What a model with two heads returns."""

    logits: torch.Tensor
    hidden: torch.Tensor | None


class Output(OrderedDict):
    """An output of Hugging Face's kind: a mapping whose values are attributes too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor
    name: str = "x"
    kept: list = field(default_factory=list, init=False)


@dataclass
class Counting:
    logits: torch.Tensor

    def __post_init__(self):
        raise AssertionError("the constructor runs once")


def counting():
    made = object.__new__(Counting)
    made.logits = torch.ones(2)
    return made


def doubled(tree):
    return map_tensors(tree, lambda tensor: tensor * 2)


@pytest.mark.parametrize(
    "tree",
    [
        Pair(torch.ones(2), None),
        Output(logits=torch.ones(2)),
        Frozen(torch.ones(2)),
        counting(),
        [Pair(torch.ones(2), ())][0],
    ],
    ids=["named tuple", "mapping", "frozen dataclass", "dataclass", "nested"],
)
def test_an_output_is_read_by_attribute_whatever_its_device(tree):
    """What is mapped for a GPU alone must not be another type there."""
    found = doubled(tree)
    assert type(found) is type(tree)
    assert found.logits.tolist() == [2, 2]
    assert tree.logits.tolist() == [1, 1]


@pytest.mark.parametrize(
    "tree",
    [
        (torch.ones(1), "text", 3),
        [torch.ones(1), [None]],
        {"a": (torch.ones(1),)},
        defaultdict(list, a=torch.ones(1)),
        UserDict(a=torch.ones(1)),
        torch.max(torch.ones(2, 2), dim=1),
        torch.Size([2, 3]),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_containers_keep_their_type(tree):
    assert type(doubled(tree)) is type(tree)
    assert [path for path, _ in leaves(doubled(tree))] == [path for path, _ in leaves(tree)]


def test_a_mapping_that_cannot_be_changed_becomes_a_dict():
    assert doubled(MappingProxyType({"a": torch.ones(1)})) == {"a": torch.tensor([2.0])}


def test_a_packed_sequence_stays_one():
    """Its batch sizes are not mapped: torch wants them on the CPU."""
    packed = pack_sequence([torch.ones(1), torch.ones(3)], enforce_sorted=False)
    found = map_tensors(packed, lambda tensor: tensor * 1)
    assert found.batch_sizes is packed.batch_sizes
    assert [part.tolist() for part in pad_packed_sequence(found)] == [[[1, 1], [0, 1], [0, 1]], [1, 3]]


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.zeros(3, 2)},
        (torch.zeros(3), torch.zeros(1)),
        torch.zeros(3),
        {"scale": torch.tensor(2.0), "x": torch.zeros(3, 2)},
        {"mask": torch.zeros(5, 5), "x": torch.zeros(3, 5)},
        {"positions": torch.zeros(5), "x": torch.zeros(3, 5), "y": torch.zeros(3)},
        {"edges": torch.zeros(2, 9), "weights": torch.zeros(9), "more": torch.zeros(9), "label": torch.zeros(3)},
        {"label": {"boxes": torch.zeros(3, 4), "scale": torch.tensor(1.0)}, "x": torch.zeros(6)},
        Frozen(torch.zeros(3)),
        {"text": ["a", "b", "c"]},
        {"x": np.zeros((3, 4))},
        {"x": torch.zeros(3, 3)},
    ],
)
def test_rows_are_those_of_the_label_or_of_most_values(batch):
    """Neither a single number nor a mask over positions says how many rows there are."""
    assert batch_rows(batch) == 3


@pytest.mark.parametrize("batch", [{}, None, {"scale": torch.tensor(1.0)}, 7])
def test_a_batch_without_rows_is_a_type_error(batch):
    with pytest.raises(TypeError, match="without rows"):
        batch_rows(batch)


def test_numbers_that_numpy_lacks_become_float32():
    assert to_numpy(torch.tensor([1.5], dtype=torch.bfloat16)).dtype == np.float32
    assert to_numpy(torch.tensor([1.5], dtype=torch.float8_e4m3fn)).tolist() == [1.5]
    assert to_numpy(torch.tensor([1j]).conj()).tolist() == [-1j]
