"""The processes that train one model together, and the collectives that they run outside of a step.

Knows nothing of models, steps or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; ``control`` is a gloo group that never waits for a GPU."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    node: int = 0
    """Which of the run's nodes this rank is on, counted from 0."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor summed over all ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on some rank."""
        if self.world_size == 1:
            return flag
        found = torch.tensor(float(flag))
        torch.distributed.all_reduce(found, group=self.control)
        return bool(found)

    def gathered(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def per_node(self) -> int | None:
        """Return the number of ranks on each node; None unless all nodes have as many, one node's in a row."""
        nodes = self.gathered(self.node)
        size = nodes.count(nodes[0])
        in_a_row = all(node == nodes[at - at % size] for at, node in enumerate(nodes))
        return size if in_a_row and len(set(nodes)) * size == len(nodes) else None

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Fill tensors with those of rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                # A collective takes as many numbers as a tensor has, which an expanded one has not in memory.
                held = tensor.detach()[tuple(slice(None if stride else 1) for stride in tensor.stride())]
                whole = held.contiguous()
                torch.distributed.broadcast(whole, src=0)
                if whole.data_ptr() != held.data_ptr():
                    held.copy_(whole)

    def from_first(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        box = [value]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(box, src=0, group=self.control)
        return box[0]
