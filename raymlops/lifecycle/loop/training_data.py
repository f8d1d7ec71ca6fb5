"""What a retraining trains on, as the ``train`` section of its run: a window of time, or tables of the log.

Owns the window: it ends when the retraining was decided, so that whoever asks gets the same.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from raymlops.config.durations import read_moment
from raymlops.config.retrain import RetrainSection
from raymlops.config.stored import read_stored
from raymlops.data.windowed import TAKES, takes_window
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase
from raymlops.splits import Window

if TYPE_CHECKING:
    from raymlops.lifecycle.loop.log_tables import LogTables
    from raymlops.project import Project
    from raymlops.state.loop import Retraining
    from raymlops.state.store import Deployment, State

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


def training_window(one: Retraining) -> Window:
    """Return the window of a retraining: the days before it began, or all since a growing window's start.

    It begins with its decision, or where that was proposed with the answer of a person, which may take weeks.
    """
    section = read_stored(RetrainSection, one.settings).window
    begun = (datetime.fromisoformat(entry["at"]) for entry in one.stages if entry["stage"] == "checking")
    until = next(begun, one.made_at)
    trailing = until - timedelta(days=section.days)
    if section.kind == "trailing":
        return Window(trailing, until)
    start = _FIRST if section.since is None else read_moment(section.since)
    return Window(min(start, trailing), until)


def windowed(one: Retraining) -> dict[str, Any]:
    """Return fields of ``train`` by which a run is trained on the rows of the recipe; empty for those of the log."""
    if read_stored(RetrainSection, one.settings).data == "log":
        return {}
    window = training_window(one)
    return {"window": {"start": window.start.isoformat(), "stop": window.stop.isoformat()}}


def check_recipe(recipe: type[RecipeBase], *, later_rows: bool | None) -> None:
    """Refuse a recipe that cannot be retrained on newer rows of its own, or whose gate would reject each version.

    Raises:
        RecipeError: its ``datasets`` takes no window, or it has no ``row_times``, which ``gate.later_rows`` needs.
    """
    if not takes_window(recipe):
        raise RecipeError(
            f"retrain.data is recipe, and {recipe.__name__}.datasets() takes no window: it would train on what it was "
            "trained on before",
            hint=f"{TAKES} Or train on the labelled prediction log: retrain.data: log.",
        )
    if later_rows is not False and recipe.row_times is RecipeBase.row_times:
        raise RecipeError(
            f"{recipe.__name__} has no row_times(): the gate would reject each version that is retrained, whose test "
            "rows have to be later than its training rows",
            hint="Define row_times(columns), or set gate.later_rows: false.",
        )


def unretrainable(project: Project) -> str | None:
    """Return why a project that is to be retrained by itself cannot be; None where it can, or is not to be."""
    section = project.spec.retrain
    if not section.triggers.any:
        return None
    if section.data == "log":
        return _unlabelled(project.recipe_class)
    try:
        check_recipe(project.recipe_class, later_rows=project.spec.gate.later_rows)
    except RecipeError as error:
        return error.message
    return None


def tables_of(state: State, one: Retraining, champion: Deployment, recipe: type[RecipeBase]) -> LogTables:
    """Return the tables of the log that a retraining is trained on, for ``train.tables``; written unless they were.

    Raises:
        RecipeError: the recipe has no label, so that there is nothing to train on.
        DataRefusedError, BundleError, StorageError, UnreachableError: as ``log_tables``.
    """
    from raymlops.lifecycle.loop.log_tables import log_tables

    if recipe.label is None:
        hint = "Name it: label = 'late'. Or retrain.data: recipe, with datasets(window)."
        raise RecipeError(_unlabelled(recipe) or "", hint=hint)
    return log_tables(
        state,
        one,
        champion,
        policy=read_stored(RetrainSection, one.settings),
        window=training_window(one),
        label=recipe.label,
        label_type=recipe.label_type,
    )


def _unlabelled(recipe: type[RecipeBase]) -> str | None:
    if recipe.label is not None:
        return None
    return f"retrain.data is log, and {recipe.__name__} has no label: rows of the log have one in that column"
