"""Run a recipe's callbacks on the first rank, so that neither their errors nor what they draw reach the training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from raymlops.callback import Callback
from raymlops.data.random_streams import Stream
from raymlops.errors import RaymlopsError, RecipeError
from raymlops.recipe import call_recipe, described

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.callback import CallbackContext
    from raymlops.recipe import RecipeBase

Hook = Literal["on_step", "on_evaluation", "on_end"]


def callbacks_of(recipe: RecipeBase) -> list[Callback]:
    """Return a recipe's callbacks.

    Raises:
        RecipeError: ``callbacks()`` raises or does not return a list of ``Callback``.
    """
    where = f"{type(recipe).__name__}.callbacks()"
    found: Any = call_recipe(where, recipe.callbacks)
    if not isinstance(found, list | tuple):
        raise RecipeError(f"{where} returned {described(found)}; return a list of raymlops.Callback")
    for each in found:
        if not isinstance(each, Callback):
            raise RecipeError(f"{where} returned {described(each)} in its list; return instances of raymlops.Callback")
    return list(found)


class Callbacks:
    """The callbacks of a rank: those of the recipe on rank 0, none on the others. ``tell`` writes a notice."""

    def __init__(self, recipe: RecipeBase, *, rank: int, device: torch.device, tell: Callable[[str], None]) -> None:
        found = callbacks_of(recipe) if rank == 0 else []
        self.on_step = _overriding(found, "on_step")
        self.on_evaluation = _overriding(found, "on_evaluation")
        self.on_end = _overriding(found, "on_end")
        self._device = device
        self._stream = Stream(recipe.seed)
        self._tell = tell
        self._told: set[tuple[type, ...]] = set()
        self._logged: tuple[int, set[str]] = (-1, set())

    def logged_at(self, step: int) -> set[str]:
        """Return the names of what callbacks have logged for a step, which they add to."""
        if self._logged[0] != step:
            self._logged = (step, set())
        return self._logged[1]

    def run(self, hook: Hook, ctx: CallbackContext) -> None:
        """Run one hook of all callbacks that have it.

        Raises:
            RaymlopsError: one that is strict raises.
        """
        for callback in getattr(self, hook):
            where = f"{type(callback).__name__}.{hook}()"
            try:
                with self._stream.drawn_from(), self._device_draws(), torch.no_grad():
                    call_recipe(where, partial(getattr(callback, hook), ctx))
            except RaymlopsError as error:
                if callback.strict:
                    raise
                kind = (type(callback), type(error.__cause__ or error))
                if kind not in self._told:
                    self._told.add(kind)
                    what = error.message if where in error.message else f"{where}: {error.message}"
                    self._tell(f"{what}; the training continues, and further errors of this kind are not reported")
            finally:
                ctx.close()

    def _device_draws(self) -> AbstractContextManager[None]:
        """Return the context that restores the generator of this rank's GPU."""
        if self._device.type != "cuda":
            return nullcontext()
        return torch.random.fork_rng(devices=[torch.cuda.current_device()])


def _overriding(callbacks: list[Callback], hook: Hook) -> list[Callback]:
    return [each for each in callbacks if getattr(type(each), hook) is not getattr(Callback, hook)]
