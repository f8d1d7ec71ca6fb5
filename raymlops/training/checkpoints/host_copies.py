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
        RecipeError: it holds something other than tensors.
    """
    state: dict[str, Any] = model.state_dict()
    other = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise RecipeError(
            f"the model's state_dict() holds {', '.join(other)}, which is not a tensor",
            hint="Keep other values in fit()'s state or in the recipe's config; weights are stored without pickle.",
        )
    return state


def check_plain(value: Any, *, name: str) -> None:
    """Check that a value can be read back without pickle.

    Raises:
        RecipeError: it is neither a tensor, a plain value, nor a container of them.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_plain(inner, name=f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_plain(inner, name=f"{name}/{index}")
    elif not isinstance(value, (torch.Tensor, *_PLAIN)):
        raise RecipeError(
            f"{name} is a {type(value).__name__}, which a checkpoint cannot hold",
            hint="State must be tensors, numbers, text, and lists and dicts of them: it is read back without pickle.",
        )


Entries = Mapping[str, torch.Tensor]
"""Masks over entries of tensors, by name; of a shard, this rank's part."""


def entries_not_finite(state: Mapping[str, Any], *, besides: Entries | None = None) -> dict[str, torch.Tensor]:
    """Return which entries are NaN or infinite, those of ``besides`` included.

    At a run's start they are intended: a mask of minus infinity, an observer's minimum that has not seen a batch.
    """
    found = dict(besides or {})
    with torch.no_grad():
        for name, value in _floats(state).items():
            if torch.isfinite(_sum(value)):
                continue
            entries = ~torch.isfinite(value.double())
            if name in found and found[name].shape == entries.shape:
                entries |= found[name]
            if entries.any():
                found[name] = entries
    return found


def not_finite(state: Mapping[str, Any], *, except_for: Entries | None = None) -> str | None:
    """Return the name of a tensor with a NaN or infinite entry that is not in ``except_for``, or None.

    A tensor of ``except_for`` that has another shape now cannot be compared, and passes. A sum is finite only if each
    of its terms is, and costs half of what looking at each would; where one is not, which a sum of finite numbers may
    be too, each number is looked at. On a GPU the host waits once.
    """
    live, meant = _floats(state), except_for or {}
    suspects = [name for name in live if name in meant]
    with torch.no_grad():
        by_device: dict[torch.device, list[torch.Tensor]] = {}
        for name, value in live.items():
            if name not in meant:
                by_device.setdefault(value.device, []).append(_sum(value))
        if not all(bool(torch.isfinite(torch.stack(totals)).all()) for totals in by_device.values()):
            suspects = list(live)
        return next((name for name in suspects if _is_poisoned(live[name], meant.get(name))), None)


def _floats(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of floating-point numbers, of a shard this rank's part."""
    local = {name: value.to_local() if hasattr(value, "to_local") else value for name, value in state.items()}
    return {
        name: value
        for name, value in local.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()
    }


def _is_poisoned(value: torch.Tensor, meant: torch.Tensor | None) -> bool:
    poisoned = ~torch.isfinite(value.double())
    if meant is not None:
        if meant.shape != value.shape:
            return False
        poisoned &= ~meant.to(value.device)
    return bool(poisoned.any())


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
            RecipeError: it holds something that is neither a tensor nor a plain value.
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
        check_plain(node, name="/".join(map(str, path)))
        return node

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
