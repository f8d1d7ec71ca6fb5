"""What a run asks its recipe for: the splits of a window of time, all of them, or tables in their place.

Owns whether a recipe takes a window, and that rows of a window are of it. Knows nothing of how splits are read.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.config.durations import read_moment
from raymlops.errors import RecipeError
from raymlops.recipe import call_recipe, known_times_of, times_of
from raymlops.splits import Splits, Window
from raymlops.storage.filesystem import join

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.arrays import Columns
    from raymlops.config.train import TrainSection
    from raymlops.recipe import RecipeBase

PARTS = ("train", "validation", "test")
TAKES = "Let it take one: def datasets(self, window: Window | None = None), with Window of raymlops.recipe."


def window_of(section: TrainSection) -> Window | None:
    """Return the window that a run is trained on; None without one."""
    start, stop = section.window.start, section.window.stop
    return None if start is None or stop is None else Window(read_moment(start), read_moment(stop))


def table_file(part: str) -> str:
    """Return the name of the table of a split, below ``train.tables``."""
    return f"{part}.parquet"


def takes_window(recipe: type[RecipeBase]) -> bool:
    """Return whether a recipe's ``datasets`` takes a window."""
    return _parameter(recipe) is not None


def splits_of(recipe: RecipeBase, section: TrainSection) -> Any:
    """Return what a recipe's ``datasets`` returns for a run, or the tables that take its place.

    Raises:
        RecipeError: it raises, takes no window although ``train.window`` is set, or needs one that is not.
    """
    name, window = type(recipe).__name__, window_of(section)
    if section.tables is not None:
        return Splits(**{part: join(section.tables, table_file(part)) for part in PARTS})
    parameter = _parameter(type(recipe))
    if window is None:
        if parameter is not None and parameter.default is inspect.Parameter.empty:
            raise RecipeError(
                f"{name}.datasets(window) needs a window, and train.window is not set",
                hint="Set train.window: {start: '2026-01-01', stop: '2026-03-01'}, or let window be None by default.",
            )
        return call_recipe(f"{name}.datasets()", recipe.datasets)
    if parameter is None:
        raise RecipeError(f"train.window is {window}, and {name}.datasets() takes no window", hint=TAKES)
    asked: Any = recipe.datasets
    return call_recipe(f"{name}.datasets({window})", lambda: asked(window))


def check_window(recipe: RecipeBase, part: str, columns: Columns, *, window: Window) -> None:
    """Refuse rows of a table that are not of the window, by ``row_times``; where rows have no times nothing is known.

    Labels that were known only after its end, by ``label_times``, are from its future too.

    Raises:
        RecipeError: naming how many there are, and when the furthest one arose.
    """
    name, start, stop = type(recipe).__name__, _micros(window.start), _micros(window.stop)
    for what, times in (("arose", times_of(recipe, columns)), ("were labelled", known_times_of(recipe, columns))):
        if times is None:
            return
        at = _as_micros(times)
        if unknown := int(np.count_nonzero(np.isnat(times) if times.dtype.kind == "M" else np.isnan(times))):
            raise RecipeError(
                f"{name}.datasets({window}): {unknown:,} of {len(at):,} rows of the {part} split have no time at which "
                f"they {what}",
                hint="Leave out rows without a label, and give each row a time.",
            )
        early, late = at < start, at >= stop
        early = early & (what == "arose")
        for wrong, which, furthest in ((late, "after its end", np.max), (early, "before it", np.min)):
            if wrong.any():
                moment = np.datetime64(int(furthest(at[wrong])), "us").astype("datetime64[s]")
                raise RecipeError(
                    f"{name}.datasets({window}): {int(wrong.sum()):,} of {len(at):,} rows of the {part} split {what} "
                    f"{which}, such as at {moment} UTC",
                    hint="Return rows of the window alone: from window.start on, before window.stop.",
                )


def _parameter(recipe: type[RecipeBase]) -> inspect.Parameter | None:
    """Return the parameter of ``datasets`` that gets the window."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = list(inspect.signature(recipe.datasets).parameters.values())[1:]
    return next((each for each in found if each.kind in kinds), None)


def _micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def _as_micros(times: Any) -> Any:
    array = np.asarray(times)
    if array.dtype.kind == "M":
        return array.astype("datetime64[us]").astype(np.int64)
    return np.round(array.astype(np.float64) * 1e6).astype(np.int64)
