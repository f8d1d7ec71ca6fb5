"""References of a model's inputs and answers, against which drift is measured later.

Owns which rows they are of, how many are predicted, and what their times are. Beside the features stands how much the
answers depend on each.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.bundle.slices import slices_of
from raymlops.display import some_of
from raymlops.lifecycle.registration.influence import influence
from raymlops.monitor.contrasts import NULLS
from raymlops.monitor.drift import judge
from raymlops.monitor.outcome import FEWEST_ROWS, fewest_own
from raymlops.monitor.own_windows import most_own
from raymlops.monitor.profiled import column_counts
from raymlops.profiles.learn import PRIVATE_ROWS
from raymlops.profiles.profile import Profile
from raymlops.profiles.reference import Chunk, Reference, reference_of
from raymlops.recipe import times_of
from raymlops.training.split_predictions import answered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from torch import nn

    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.monitor.own_windows import OwnWindows
    from raymlops.profiles.profile import Blocks
    from raymlops.profiles.slices import Value
    from raymlops.recipe import RecipeBase

    Array = npt.NDArray[Any]

ANSWERED_ROWS = 10_000
"""About as many validation rows are predicted, evenly spread."""
FEATURES, PREDICTIONS = "features", "predictions"
_TIMES = "\0times"

_log = logging.getLogger(__name__)


def references(
    prepared: Prepared,
    model: nn.Module,
    *,
    batch_size: int,
    device: str,
    slices: Mapping[str, Sequence[Value]] | None = None,
    window_h: float | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, Reference]:
    """Return the references of the training split's features and of the answers to validation rows, of tables alone.

    ``model`` is in evaluation mode, on ``device``. A prediction may be NaN or infinite: that is for the gate to judge.
    ``slices`` are values of inputs. It is logged which of them, and whether windows of ``window_h`` hours, cannot be
    judged against the splits.

    Raises:
        RecipeError: ``row_times`` raises, or returns anything but a time for each row.
        UsageError: a slice is of no input, or its value is of another type.
    """
    chosen = slices_of(slices or {}, prepared.signature)
    recipe, order = prepared.recipe, prepared.recipe.row_order
    inputs = [column.name for column in prepared.signature.inputs]
    train, validation = prepared.splits["train"], prepared.splits["validation"]
    found: dict[str, Reference] = {}
    matters: dict[str, float] = {}
    if validation.is_table:
        rows, answers = answered(
            recipe,
            model,
            _sample(validation, recipe, inputs),
            batch_size=batch_size,
            device=device,
            finite=False,
            before_batch=before_batch,
        )
        number = len(next(iter(answers.values())))
        chunk = Chunk(answers, number, rows.get(_TIMES), chosen_by=rows)
        found[PREDICTIONS] = reference_of(lambda: [chunk], rows=number, row_order=order, slices=chosen)
        if train.is_table:
            matters = influence(
                recipe, model, rows, answers, batch_size=batch_size, device=device, before_batch=before_batch
            )
    if train.is_table:
        features = reference_of(
            lambda: _chunks(train, recipe, inputs),
            rows=train.rows,
            row_order=order,
            slices=chosen,
            scored=sorted(inputs, key=lambda name: -matters.get(name, 0.0)),
        )
        found[FEATURES] = replace(features, influence=matters)
        if features.blocks is None:
            _log.warning("drift of what this model is asked cannot be judged: %s", features.note)
        for doubt in doubts(found[FEATURES], answers=found.get(PREDICTIONS), window_h=window_h):
            _log.warning("%s", doubt)
    return found


def doubts(features: Reference, *, answers: Reference | None = None, window_h: float | None) -> list[str]:
    """Return what cannot be judged against the splits, in sentences: slices, windows of so many hours, dates."""
    found = []
    for each, rows in features.few.items():
        have = [name for series in features.layout.series if series.column == each.column for name in series.categories]
        there = f"; the values of {each.column} are {some_of(have, 10)}" if have else ""
        found.append(f"the slice {each.name} is not judged: {rows} training rows, {PRIVATE_ROWS} are needed{there}")
    own = _own(features, window_h)
    if own is not None and (few := _few(own, "training", window_h)):
        found.append(f"{few}; as it is, drift is judged once as many windows have been served")
    elif own is not None:
        for each, blocks in features.slice_blocks.items():
            if (usual := float(np.median(own.sums(blocks.rows)))) < FEWEST_ROWS:
                few = f"{usual:.0f} rows in the median window of {window_h:g} h, {FEWEST_ROWS} are needed"
                found.append(f"the slice {each.name} is not judged against training: {few}")
        found += _slips(features, own)
    own = None if answers is None else _own(answers, window_h)
    if own is not None and (few := _few(own, "validation", window_h)):
        found.append(f"{few}; as it is, drift of outputs is not judged against it")
    if features.blocks is not None and not features.independent:
        found += [
            f"{name} has none of the values at the end of training that it has at the beginning: where it is a date, a "
            "release or the like, every window has new ones and is an alarm; give the model what of it comes again"
            for name in _moving_on(features.blocks)
        ]
    return found


def _own(reference: Reference, window_h: float | None) -> OwnWindows | None:
    """Return the own windows of a reference whose rows have times; None of others, whose windows are of rows."""
    blocks = reference.blocks
    if window_h is None or blocks is None or blocks.times is None or reference.independent:
        return None
    return most_own(blocks.rows, blocks.times[:-1], blocks.times[1:], length_s=window_h * 3600)


def _slips(features: Reference, own: OwnWindows) -> Iterator[str]:
    """Yield which columns move so steadily within training that nothing but a slip is seen in them."""
    assert features.blocks is not None
    newest = Profile(features.layout, own.sums(features.blocks.counts)[-1])
    verdict = judge(column_counts(features.blocks, [newest], influence=features.influence)[0], own)
    if verdict.outcome == "insufficient" and newest.rows >= FEWEST_ROWS:
        yield f"drift is judged once enough windows have been served: training has {verdict.reason}"
    names = [
        column.column if column.influence is None else f"{column.column} (influence {column.influence:.2f})"
        for column in sorted(verdict.columns, key=lambda column: -(column.influence or 0.0))
        if {*column.unjudged} - {NULLS}
    ]
    if names:
        yield (
            f"judged for slips alone, since they move from window to window of training: {some_of(names, 10)}; a unit "
            "whose values stay within their range is not seen: set monitor.quality bounds, or take longer windows"
        )


def _few(own: OwnWindows, split: str, window_h: float | None) -> str:
    count, needed = len(own.ranges), fewest_own(len(set(own.phases)))
    told = f"{split} has {count} windows of {window_h:g} h (monitor.window_h), {needed} are needed: {own.why_few}"
    return told if count < needed else ""


def _moving_on(blocks: Blocks) -> Iterator[str]:
    """Yield the columns of texts whose last quarter has, but for rare ones, no text of the first."""
    quarter = np.cumsum(blocks.rows) * 4 // max(1, int(blocks.rows.sum()))
    for series, cells in blocks.layout.placed():
        if series.measure == "category":
            counts = blocks.counts[:, cells][:, : len(series.categories)]
            first, last = counts[quarter == 0].sum(axis=0), counts[quarter >= 3].sum(axis=0)
            if first.any() and last.any() and not first[last > 0].any():
                yield series.column


def _chunks(split: SplitData, recipe: RecipeBase, inputs: list[str]) -> Iterator[Chunk]:
    for columns in split.chunks():
        times = times_of(recipe, columns)
        yield Chunk({name: columns[name] for name in inputs}, len(columns[inputs[0]]), times)


def _sample(split: SplitData, recipe: RecipeBase, inputs: list[str]) -> dict[str, Array]:
    """Return about ``ANSWERED_ROWS`` rows of a split, with their times where they have some."""
    parts: dict[str, list[Array]] = {}
    start, drawn = 0, None
    for columns in split.chunks():
        rows = len(columns[inputs[0]])
        some = {name: columns[name] for name in inputs}
        if drawn is None:
            drawn = split.sampled_rows({name: some[name][:64] for name in some}, about_rows=ANSWERED_ROWS)
        if (times := times_of(recipe, columns)) is not None:
            some[_TIMES] = times
        begin, end = np.searchsorted(drawn, [start, start + rows])
        for name, values in some.items():
            parts.setdefault(name, []).append(values[drawn[begin:end] - start])
        start += rows
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
