"""Read the answers of one version to the requests of a window from the prediction log, and what labels say of them.

Owns which rows these are: what the champion answered to callers at random, not copies, pinned requests, or those that
it answered for a canary; of a shadow its copies. Of a request id that came twice the first answer counts. Memory is
bounded: labels are those of a sample of rows where all take more (``predictions.labelled``), and of all rows, labelled
or not, a sample is kept.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.errors import NotFoundError
from raymlops.lifecycle.quality.answers import as_json
from raymlops.lifecycle.quality.rows import Answers, Rows
from raymlops.monitor.skill.scored import Believed, believed, log_loss, score
from raymlops.predictions.labelled import key_hashes

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

COLUMNS = ("request_id", "row", "caller", "ts", "route", "fallback_from", "weight", "output")
MOST_ROWS = 40_000
"""Rows of the sample of all, about."""
_OTHER_BITS = 40
"""Of the hash of a request, than those by which labels are sampled."""
ANYBODY = ""
"""Name of the caller of requests without a key."""
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

        columns = (*COLUMNS, *dict.fromkeys(f"features.{each.column}" for each in self.slices))
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
        self._received = np.asarray(labels.received.cast(pa.int64())) / 1e6
        self._every = 1
        self._labelled: list[Rows] = []
        self._sample: list[Rows] = []
        self._kept = 0
        self._callers: dict[str, int] = {}
        self.rows = self._unlike = 0
        self.notes: list[str] = []
        if labels.every > 1:
            self.notes.append(f"labels are very many, so that those of one in {labels.every:,} rows are read")

    def add(self, batch: pa.RecordBatch) -> None:
        batch = batch.filter(pc.and_(pc.equal(batch["route"], self._by.route), pc.is_null(batch["fallback_from"])))
        if self._labels.every > 1:
            numbers = self._labels.hash_of(batch["request_id"], batch["row"])
            batch = batch.filter(pa.array(numbers & (self._labels.every - 1) == 0))
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        places = self._labels.places(batch)
        callers = self._caller_numbers(_or_null(batch, "caller", pa.string()))
        weights = np.asarray(pc.fill_null(_or_null(batch, "weight", pa.float64()), 1.0), dtype=np.float64)
        whole = Rows(
            {
                "places": places,
                "asked": np.asarray(batch["ts"].cast(pa.int64())) / 1e6,
                "received": np.where(places >= 0, self._received[places], np.nan) if len(self._received) else
                np.full(batch.num_rows, np.nan),
                "clusters": key_hashes(batch["request_id"], callers),
                "callers": callers,
                "weights": weights,
            }
        )  # fmt: skip
        thin = np.flatnonzero(self._chosen(whole))
        has = np.flatnonzero(places >= 0)
        wanted = np.union1d(thin, has)
        outputs = dict(
            zip(wanted.tolist(), map(as_json, batch["output"].take(pa.array(wanted)).to_pylist()), strict=True)
        )
        scores = np.full(batch.num_rows, np.nan)
        scores[wanted] = [score(self._by.rule, outputs[at]) for at in wanted.tolist()]
        whole.columns["scores"] = scores
        sample = whole.where(thin)
        if self._by.believes:
            said = [believed(self._by.rule, outputs[at]) or _UNSAID for at in thin.tolist()]
            columns = np.array(said, dtype=np.float64).reshape(-1, 3).T
            sample.columns.update(zip(("confidence", "if_true", "if_false"), columns, strict=True))
        self._add_sample(sample)
        if len(has):
            self._add_labelled(whole.where(has), [outputs[at] for at in has.tolist()], batch.take(pa.array(has)))

    def answers(self) -> Answers:
        sample = Rows.joined(self._sample)
        labelled = _first_answers(Rows.joined(self._labelled)) if self._labelled else Rows()
        return Answers(self.rows, labelled, sample, self._unlike, tuple(self._callers), tuple(self.notes))

    def _add_sample(self, rows: Rows) -> None:
        self._sample.append(rows)
        self._kept += len(rows)
        while self._kept > 2 * self._by.most_rows and self._every < 2**40:
            self._every *= 2
            whole = Rows.joined(self._sample)
            self._sample = [whole.where(self._chosen(whole))]
            self._kept = len(self._sample[0])

    def _chosen(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return which rows are in the sample, whole requests at a time; callers cannot know which."""
        return np.asarray((rows["clusters"] >> _OTHER_BITS) & (self._every - 1) == 0)

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
            "contradicted": self._labels.contradicted[rows["places"]],
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

    def _caller_numbers(self, names: pa.Array) -> npt.NDArray[np.int64]:
        coded = pc.dictionary_encode(pc.fill_null(names, ANYBODY))
        known = [self._callers.setdefault(name, len(self._callers)) for name in coded.dictionary.to_pylist()]
        return np.array(known, dtype=np.int64).take(np.asarray(coded.indices))


def _or_null(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """Return a column, which files of earlier releases lack."""
    return batch[name] if name in batch.schema.names else pa.nulls(batch.num_rows, kind)


def _first_answers(rows: Rows) -> Rows:
    """Return one row for each label: the first that was answered."""
    if not len(rows):
        return rows
    order = np.lexsort((rows["asked"], rows["places"]))
    places = rows["places"][order]
    return rows.where(np.sort(order[np.append(True, places[1:] != places[:-1])]))
