"""What a recipe's ``loss`` may return, read as one value.

Knows nothing of batches over several ranks: see ``training.loop.loop`` for how values are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.errors import RecipeError

if TYPE_CHECKING:
    import torch

    Values = torch.Tensor | Mapping[str, torch.Tensor]
    LossReturned = Values | tuple[Values, torch.Tensor | float]

_ALLOWED = (
    "return the mean over the batch, a tensor of one element; or (sum, weight), such as the sum over tokens and their "
    "number; or a dict of named parts in place of the mean or the sum"
)


_TAKEN = {"loss": "their sum", "lr": "the learning rate", "count": "what metrics are divided by"}
"""Names that no part can have: each part is logged by its name beside these."""


class LossValue(NamedTuple):
    """A loss of some rows: ``value`` is their mean, or, where there is a ``weight``, a sum to be divided by it.

    Value and weight are float32 scalars. ``parts`` are the named summands of the value, without gradient.
    """

    value: torch.Tensor
    weight: torch.Tensor | None
    parts: dict[str, torch.Tensor]

    def mean(self) -> torch.Tensor:
        """Return the loss of these rows alone: 0 where the weight is, as of a batch without a token that counts."""
        return self.value if self.weight is None else self.value / self.weight.clamp(min=_TINY)


_TINY = 1e-12


def loss_value(returned: Any, *, where: str) -> LossValue:
    """Read what ``loss`` returned; ``where`` names it in errors.

    Raises:
        RecipeError: it is of another kind.
    """
    import torch

    found, weight = returned, None
    if isinstance(returned, tuple):
        if len(returned) != 2:
            raise RecipeError(f"{where} returned a tuple of {len(returned)}; {_ALLOWED}")
        found, weight = returned
        weight = _scalar(torch.as_tensor(weight), where=f"{where}: the weight", of=weight).detach()
    parts: dict[str, torch.Tensor] = {}
    if isinstance(found, torch.Tensor) or not isinstance(found, Mapping):
        value = _scalar(found, where=where, of=found)
    elif not found:
        raise RecipeError(f"{where} returned an empty dict of parts; {_ALLOWED}")
    else:
        if taken := [name for name in found if name in _TAKEN]:
            raise RecipeError(
                f"{where} returned a part named {taken[0]!r}, which is the name of {_TAKEN[taken[0]]}",
                hint="Give the part another name.",
            )
        parts = {str(name): _scalar(part, where=f"{where}[{name!r}]", of=part) for name, part in found.items()}
        value = torch.stack(list(parts.values())).sum()
    weight = None if weight is None else weight.to(value.device)
    return LossValue(value, weight, {name: part.detach() for name, part in parts.items()})


def _scalar(tensor: Any, *, where: str, of: Any) -> torch.Tensor:
    import torch

    if isinstance(tensor, torch.Tensor) and tensor.numel() == 1:
        # A view and a cast that change nothing would still be steps of the backward pass.
        return (tensor.reshape(()) if tensor.ndim else tensor).float()
    got = "None" if of is None else f"a {type(of).__name__}"
    if isinstance(tensor, torch.Tensor):
        got = f"a tensor of shape {tuple(tensor.shape)}"
    raise RecipeError(f"{where} returned {got}; {_ALLOWED}")
