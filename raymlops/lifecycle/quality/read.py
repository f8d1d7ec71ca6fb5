"""Read the answers of one version to the requests of a window from the prediction log, and what labels say of them.

Owns what is read of them; which of the labelled ones count says ``predictions.labelled_rows``. They are what the
champion answered to callers at random, or of a shadow its copies. Memory is bounded: labels are those of a sample of
rows where all take more (``predictions.labelled``), and of all rows, labelled or not, a sample is kept.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raymlops.errors import NotFoundError
from raymlops.lifecycle.quality.answers import as_json
from raymlops.lifecycle.quality.measure import Answers
from raymlops.monitor.skill.scored import Believed, believed, log_loss, score
from raymlops.predictions.labelled import key_hashes
from raymlops.predictions.labelled_rows import COLUMNS, Rows, are_answers, callers_of, rows_of, seconds, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import numpy.typing as npt

    from raymlops.answer_loss import AnswerLoss
    from raymlops.bundle.loss import OwnLosses, Pair
    from raymlops.monitor.skill.label_classes import LabelClasses
    from raymlops.monitor.skill.scored import Metric
    from raymlops.predictions.labelled import Labels
    from raymlops.profiles.slices import Slice

MOST_ROWS = 40_000
"""Rows of the sample of all, about."""
_OTHER_BITS = 40
"""Of the hash of a request, than those by which labels are sampled."""
_UNSAID = Believed(math.nan, math.nan, math.nan)


@dataclass
class Reader:
    """How the answers of one version are read."""

    rule: AnswerLoss
    classes: LabelClasses
    metric: Metric
    slices: Sequence[Slice] = ()
    ask: Callable[[Sequence[Pair]], OwnLosses] | None = None
    """Returns the losses by the recipe's own ``loss_of``."""
    route: str = "champion"
    most_rows: int = MOST_ROWS
    believes: bool = False
    """Whether the sample has what answers say of themselves too: ``confidence``, ``if_true``, ``if_false``; or NaN."""

    def window(
        self, root: str, name: str, labels: Labels, *, version: int, since: datetime, until: datetime
    ) -> Answers | None:
        """Return the answers to requests from ``since`` until before ``until``; None where there are none.

        Raises:
            StorageError: the log cannot be read.
            RaymlopsError: the recipe's ``loss_of`` cannot be asked.
        """
        from raymlops.predictions.read import Reading

        columns = (*COLUMNS, "output", *dict.fromkeys(f"features.{each.column}" for each in self.slices))
        found = _Found(self, labels)
        with suppress(NotFoundError):  # nothing was logged yet
            reading = Reading(root, name, since=since, until=until, version=version, columns=columns, labels=False)
            for batch in reading:
                found.add(batch)
            if reading.damaged:
                found.notes.append(f"damaged and left out: {len(reading.damaged)} files, such as {reading.damaged[0]}")
        return found.answers() if found.rows else None


class _Found:
    def __init__(self, by: Reader, labels: Labels) -> None:
        self._by, self._labels = by, labels
        self._every = 1
        self._labelled: list[Rows] = []
        self._sample: list[Rows] = []
        self._kept = 0
        self.rows = self._unlike = 0
        self.notes: list[str] = []
        if labels.every > 1:
            self.notes.append(f"labels are very many, so that those of one in {labels.every:,} rows are read")

    def add(self, batch: pa.RecordBatch) -> None:
        batch = batch.filter(pa.array(are_answers(batch, [self._by.route])))
        if self._labels.every > 1:
            numbers = self._labels.hash_of(batch["request_id"], batch["row"])
            batch = batch.filter(pa.array(numbers & (self._labels.every - 1) == 0))
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        places = self._labels.places(batch)
        has = np.flatnonzero(places >= 0)
        clusters = key_hashes(batch["request_id"], key_hashes(callers_of(batch), np.zeros(batch.num_rows)))
        thin = np.flatnonzero(self._chosen(clusters))
        wanted = np.union1d(thin, has)
        outputs = dict(
            zip(wanted.tolist(), map(as_json, batch["output"].take(pa.array(wanted)).to_pylist()), strict=True)
        )
        scores = np.full(batch.num_rows, np.nan)
        scores[wanted] = [score(self._by.rule, outputs[at]) for at in wanted.tolist()]
        sample = {
            "asked": seconds(batch["ts"])[thin],
            "received": seconds(self._labels.received.take(pa.array(places[thin], mask=places[thin] < 0))),
            "clusters": clusters[thin],
            "weights": weights_of(batch)[thin],
            "scores": scores[thin],
        }
        if self._by.believes:
            said = [believed(self._by.rule, outputs[at]) or _UNSAID for at in thin.tolist()]
            columns = np.array(said, dtype=np.float64).reshape(-1, 3).T
            sample |= zip(("confidence", "if_true", "if_false"), columns, strict=True)
        self._add_sample(Rows(sample))
        if len(has):
            some = batch.take(pa.array(has))
            rows = Rows({**rows_of(some, self._labels, places[has]).columns, "scores": scores[has]})
            self._add_labelled(rows, [outputs[at] for at in has.tolist()], some)

    def answers(self) -> Answers:
        labelled, sample = Rows.joined(self._labelled), Rows.joined(self._sample)
        return Answers(self.rows, labelled, sample, self._unlike, tuple(self.notes))

    def _add_sample(self, rows: Rows) -> None:
        self._sample.append(rows)
        self._kept += len(rows)
        while self._kept > 2 * self._by.most_rows and self._every < 2**40:
            self._every *= 2
            whole = Rows.joined(self._sample)
            self._sample = [whole.where(self._chosen(whole["clusters"]))]
            self._kept = len(self._sample[0])

    def _chosen(self, clusters: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which rows are in the sample, whole requests at a time; callers cannot know which."""
        return np.asarray((clusters >> _OTHER_BITS) & (self._every - 1) == 0)

    def _add_labelled(self, rows: Rows, outputs: Sequence[dict[str, Any]], batch: pa.RecordBatch) -> None:
        labels = [json.loads(text) for text in self._labels.of(rows["places"]).to_pylist()]
        losses = self._losses(outputs, labels)
        compared = np.array([one is not None for one in losses], dtype=np.bool_)
        self._unlike += int((~compared).sum())
        rule = self._by.rule
        truths = [rule.class_of(label) for label in labels] if rule.kind == "number" else ()
        columns = {
            **rows.columns,
            "codes": self._by.classes.codes(rule, labels),
            "losses": np.array([math.nan if one is None else one for one in losses], dtype=np.float64),
            "numbers": np.array(truths, dtype=np.float64) if truths else np.zeros(len(labels)),
        }
        features = batch["features"] if "features" in batch.schema.names else None
        for each in self._by.slices:
            mask = None
            if features is not None and features.type.get_field_index(each.column) >= 0:
                mask = each.rows({each.column: features.field(each.column)})
            columns[each.name] = np.zeros(len(labels), dtype=np.bool_) if mask is None else mask
        self._labelled.append(Rows(columns).where(compared))

    def _losses(self, outputs: Sequence[dict[str, Any]], labels: Sequence[Any]) -> list[float | None]:
        rule, pairs = self._by.rule, list(zip(outputs, labels, strict=True))
        if self._by.metric == "log_loss":
            return [log_loss(rule, output, label) for output, label in pairs]
        if rule.kind != "recipe":
            return [rule.of(output, label) for output, label in pairs]
        assert self._by.ask is not None
        found = self._by.ask(pairs)
        if found.failure and found.failure not in self.notes:
            self.notes.append(found.failure)
        return [1.0 if one is not None and math.isnan(one) else one for one in found.values]
