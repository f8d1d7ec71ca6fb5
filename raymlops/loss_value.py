"""What a recipe's ``loss`` may return, read as one value, and the rows of all workers that it may compare.

See ``training.loop.loop`` for how values of several ranks are put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


_STEP: ContextVar[bool | None] = ContextVar("raymlops_gathered", default=None)
"""In a training step, whether this rank's rows count; None elsewhere."""


@contextmanager
def training_step(*, counts: bool) -> Iterator[None]:
    """Enter a part of a training step that all ranks take; rows of a rank that only fill it do not count."""
    token = _STEP.set(counts)
    try:
        yield
    finally:
        _STEP.reset(token)


def gathered(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the rows of all workers, ``(all rows, ...)``, and where this worker's begin; gradients flow back.

    For ``loss`` in the default loop, called equally often on every worker: a row's loss against all returned rows,
    averaged over this worker's rows, is the loss of one worker with the whole batch. Workers may hold different numbers
    of rows. In evaluations, in checks before the training and on one worker, returns ``rows`` and 0.
    """
    import torch
    import torch.distributed as dist

    counts = _STEP.get()
    if counts is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    from torch.distributed.nn.functional import all_gather

    rank, world = dist.get_rank(), dist.get_world_size()
    own = torch.tensor([len(rows), len(rows) if counts else 0], device=rows.device)
    sizes = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(sizes, own)
    held, counted = (torch.stack(sizes).T).tolist()
    padded = torch.cat([rows, rows.new_zeros(max(held) - len(rows), *rows.shape[1:])])
    kept = [held[each] if each == rank else counted[each] for each in range(world)]
    parts: tuple[torch.Tensor, ...] = all_gather(padded)  # type: ignore[no-untyped-call]
    found = [part[:size] for part, size in zip(parts, kept, strict=True)]
    return torch.cat(found), sum(kept[:rank])
