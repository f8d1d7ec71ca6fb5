"""An exponential moving average of the weights, which is evaluated and registered in place of the weights themselves.

The decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run's average is not its first weights
(TensorFlow's ExponentialMovingAverage with num_updates). Buffers, such as running statistics, are the model's own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn


class Ema:
    """The averages of a model's trainable parameters: of a sharded one, of this rank's shards."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.names = list(named)
        self._parameters: list[torch.Tensor] = list(named.values())
        self.averages = [value.detach().clone() for value in self._parameters]
        self._sharded: list[Any] = [module for module in model.modules() if hasattr(module, "reshard")]

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(_local(self.averages), _local(self._parameters), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averages, and its own weights back at the end; ``averages`` holds these meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def named(self) -> dict[str, torch.Tensor]:
        """Return what ``averages`` holds, by the names of the parameters."""
        return dict(zip(self.names, self.averages, strict=True))

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the model's present weights as the averages, and ``weights`` as the model's."""
        with torch.no_grad():
            for name, average, parameter in zip(self.names, self.averages, self._parameters, strict=True):
                average.copy_(parameter)
                parameter.copy_(weights[name])

    def _exchange(self) -> None:
        # After an evaluation FSDP's root keeps its gathered weights, and the next pass would not gather the others.
        for module in self._sharded:
            module.reshard()
        with torch.no_grad():
            for average, parameter in zip(self.averages, self._parameters, strict=True):
                held: Any = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(held)


def _local(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return this rank's parts, which share the tensors' memory."""
    return [value.to_local() if hasattr(value, "to_local") else value for value in tensors]
