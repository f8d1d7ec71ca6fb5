"""Copies of tensors in host memory, so that a step waits for the copy and not for the disk.

Owns the buffers and the check that the numbers are finite. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""What ``torch.load(weights_only=True)`` reads back beside tensors and containers."""


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's state, live.

    Raises:
        RecipeError: it holds something else than tensors.
    """
    state: dict[str, Any] = model.state_dict()
    other = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise RecipeError(
            f"the model's state_dict() holds {', '.join(other)}, which is no tensor",
            hint="Keep other values in fit()'s state or in the recipe's config; weights are stored without pickle.",
        )
    return state


def not_finite(state: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of a tensor with NaN or infinity in it, or None.

    A sum is finite only if each of its terms is, and costs half of what looking at each would; where one is not, which
    a sum of finite numbers may be too, each number is looked at. On a GPU the host waits once.
    """
    live = {
        name: value.to_local() if hasattr(value, "to_local") else value
        for name, value in state.items()
        if value.is_floating_point() and value.numel()
    }
    if not live:
        return None
    with torch.no_grad():
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for value in live.values():
            by_device.setdefault(value.device, []).append(_sum(value))
        if all(bool(torch.isfinite(torch.stack(totals)).all()) for totals in by_device.values()):
            return None
        return next((name for name, value in live.items() if not torch.isfinite(value.double()).all()), None)


class HostCopies:
    """Copies trees of tensors into host memory that it keeps for the next time: one tree of a kind at a time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._from_gpu = False
        self.size_bytes = 0
        """Of all buffers."""

    def copy(self, tree: Any, *, of: str) -> Any:
        """Return a tree of dicts, lists and tuples with each tensor copied; ``of`` names the tree.

        The next call of the same name overwrites the copy.

        Raises:
            RecipeError: it holds something that is neither tensor nor plain value.
        """
        with torch.no_grad():
            copied = self._copied(tree, (of,))
        if self._from_gpu:
            torch.cuda.synchronize()
        self.size_bytes = sum(buffer.nbytes for buffer in self._buffers.values())
        return copied

    def _copied(self, node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, torch.Tensor):
            return self._buffer(node, path).copy_(node.detach(), non_blocking=node.is_cuda)
        if isinstance(node, Mapping):
            return {key: self._copied(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list | tuple):
            items = [self._copied(value, (*path, index)) for index, value in enumerate(node)]
            return tuple(items) if isinstance(node, tuple) else items
        if isinstance(node, _PLAIN):
            return node
        raise RecipeError(
            f"{'/'.join(map(str, path))} is of {type(node).__name__}, which no checkpoint can hold",
            hint="State must be tensors, numbers, text, and lists and dicts of them: it is read back without pickle.",
        )

    def _buffer(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> torch.Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[path] = buffer
            self._from_gpu |= tensor.is_cuda
        return buffer


def _sum(value: torch.Tensor) -> torch.Tensor:
    if value.element_size() == 1:  # torch sums no 8-bit floats
        value = value.float()
    return value.sum(dtype=torch.float64 if value.dtype == torch.float64 else torch.float32).double()
