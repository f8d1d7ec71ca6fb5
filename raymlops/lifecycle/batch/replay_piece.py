"""One piece of a replay: an hour of logged requests, answered by a challenger in a worker, and compared.

Owns what is summed of it. The champion's answers are those of the log; it answers again only to be timed beside the
challenger, in the same process. A row that fails keeps no other row from being answered.
"""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.errors import NotFoundError, RaymlopsError
from raymlops.monitor.replayed import Replayed, decisions, known_ranges, neighbours
from raymlops.predictions.labelled_rows import COLUMNS, Rows, are_answers, labelled_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import pyarrow as pa

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Columns
    from raymlops.bundle.load import LoadedModel
    from raymlops.predictions.labelled import Labels
    from raymlops.profiles.layout import Layout
    from raymlops.profiles.profile import Profile
    from raymlops.records import BundleRef

MAX_LABEL_BYTES = 32 * 2**20
_ONE_BY_ONE = 256
"""Failed rows of a piece that are looked for among the others of their batch; a later batch that fails counts whole."""


@dataclass(frozen=True)
class Piece:
    """A span of time, in seconds since 1970."""

    since: float
    until: float
    labelled: float = 0.0
    """How many of its rows with a label that counts are answered, and no others; 0: all rows."""


@dataclass(frozen=True)
class TrainedUntil:
    """Up to when the challenger knew rows and their labels, in seconds since 1970."""

    rows: float
    labels: float


@dataclass(frozen=True)
class ReplayJob:
    """The arguments of every worker."""

    uri: str
    """The storage with the log."""
    name: str
    version: int
    """The champion's."""
    champion: BundleRef
    challenger: BundleRef
    since: float
    """Since when labels came in that count."""
    trained_until: TrainedUntil | None = None
    """Only rows asked, and labelled, afterwards are compared by their labels; None: all of them."""
    batch_rows: int = 256
    labelled_only: bool = False
    """Whether rows without a label are left out, and nothing but losses is compared."""


class ReplayWorker:
    """Replays pieces in its own process; bundles and labels are loaded once, at the first piece."""

    def __init__(self, job: ReplayJob) -> None:
        self._job = job
        self._tried = 0
        """Failed rows that were looked for one by one."""

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Replay the one piece of a Ray Data batch; return its sums, and its error, as pickles."""
        piece = Piece(**{name: float(values[0]) for name, values in rows.items()})
        try:
            return {"replayed": [pickle.dumps(self.replay(piece))], "error": [b""]}
        except RaymlopsError as error:
            return {"replayed": [b""], "error": [pickle.dumps(error)]}

    def replay(self, piece: Piece) -> Replayed:
        """Return what the challenger makes of a piece.

        Raises:
            BundleError, RecipeError, RecipeImportError: a bundle does not load.
            StorageError: the log cannot be read.
        """
        from raymlops.predictions.read import Reading

        job, found = self._job, Replayed()
        try:
            reading = Reading(
                job.uri,
                job.name,
                since=_moment(piece.since),
                until=_moment(piece.until),
                version=job.version,
                columns=(*COLUMNS, "features", "output"),
                labels=False,
            )
        except NotFoundError:  # nothing was logged yet
            return found
        assert self._models  # one that does not load is an error, and no row that fails
        left = piece.labelled
        for batch in reading:
            part = self._batch(batch, labelled=int(left) if piece.labelled else None)
            found, left = found + part, left - part.read
            if piece.labelled and left < 1:
                break
        return found

    @cached_property
    def _models(self) -> tuple[LoadedModel, LoadedModel]:
        from raymlops.bundle.load import load

        champion, challenger = (load(each.uri, each.digest) for each in (self._job.champion, self._job.challenger))
        return champion, challenger

    @cached_property
    def _labels(self) -> Labels:
        return labels_of(self._job)

    @cached_property
    def _reference(self) -> Profile | None:
        """Return the answers that the champion was registered with; None where its bundle has none."""
        from raymlops.bundle.profiles import references_of

        try:
            found = references_of(self._job.champion.uri, self._job.champion.digest).get("predictions")
        except NotFoundError:
            return None
        return None if found is None else found.profile

    @cached_property
    def _layout(self) -> Layout | None:
        """Return the layout on which answers are counted."""
        return None if self._reference is None else self._reference.layout.widened

    @cached_property
    def _known(self) -> Mapping[str, tuple[float, float]]:
        return {} if self._reference is None else known_ranges(self._reference)

    @property
    def _rule(self) -> AnswerLoss:
        rule = self._models[0].loss
        assert rule is not None  # of every bundle that is loaded
        return rule

    def _batch(self, batch: pa.RecordBatch, *, labelled: int | None) -> Replayed:
        """Return what the challenger makes of some rows, or of as many of them with a label that counts."""
        import pyarrow as pa

        from raymlops.predictions.hourly import by_weight

        found, mine = Replayed(), batch.filter(pa.array(are_answers(batch)))
        timed = labelled is None and not self._job.labelled_only
        if not timed:
            mine = mine.take(pa.array(counted(mine, self._labels, self._job.trained_until)[0][:labelled]))
        for weight, part in by_weight(mine):
            for start in range(0, part.num_rows, self._job.batch_rows):
                found += self._part(part.slice(start, self._job.batch_rows), weight, timed=timed and start == 0)
        return found

    def _part(self, part: pa.RecordBatch, weight: float, *, timed: bool) -> Replayed:
        """Return what the challenger makes of a few rows that stand for ``weight`` each."""
        answered, answers, failures = self._answers(part)
        rows = part.num_rows
        found = Replayed(
            read=rows, rows=weight * rows, failed=weight * (rows - len(answered)), failures=tuple(failures)
        )
        if not len(answered):
            return found
        kept = part if len(answered) == rows else part.take(answered)
        found += self._compared(kept, answers, weight)
        if timed and len(answered) == rows:
            ours, theirs = self._timed(part)
            found += Replayed(seconds=np.array([ours / rows]), champion_seconds=np.array([theirs / rows]))
        return found

    def _answers(self, part: pa.RecordBatch) -> tuple[Any, Columns, list[str]]:
        """Return which rows were answered, the answers, and why others were not."""
        try:
            return np.arange(part.num_rows), self._answer(1, part), []
        except RaymlopsError as error:
            why = [_short(error)]
        if self._tried >= _ONE_BY_ONE or part.num_rows == 1:
            self._tried += part.num_rows
            return np.arange(0), {}, why
        places, parts = [], []
        for place in range(part.num_rows):
            try:
                parts.append(self._answer(1, part.slice(place, 1)))
                places.append(place)
            except RaymlopsError as error:
                self._tried += 1
                why.append(_short(error))
        joined = {name: np.concatenate([each[name] for each in parts]) for name in parts[0]} if parts else {}
        return np.array(places, dtype=np.int64), joined, why[1:] or why

    def _answer(self, which: int, part: pa.RecordBatch) -> Columns:
        import pyarrow.compute as pc

        model = self._models[which]
        features = part["features"] if "features" in part.schema.names else None
        there = set() if features is None else {field.name for field in features.type}
        names = [column.name for column in model.signature.inputs if column.name in there]
        rows = {name: pc.struct_field(features, name).to_pylist() for name in names}
        columns = model.signature.parse_columns(rows) if rows else model.signature.parse_rows([{}] * part.num_rows)
        return model.predict(columns)

    def _timed(self, part: pa.RecordBatch) -> tuple[float, float]:
        """Return the seconds that the challenger and the champion take, each for the better of two times."""
        seconds = []
        for which in (1, 0):
            best = float("inf")
            for _ in range(2):
                began = time.perf_counter()
                self._answer(which, part)
                best = min(best, time.perf_counter() - began)
            seconds.append(best)
        return seconds[0], seconds[1]

    def _compared(self, part: pa.RecordBatch, answers: Columns, weight: float) -> Replayed:
        from raymlops.predictions.hourly import columns_on
        from raymlops.profiles.count import profile_of
        from raymlops.profiles.profile import Profile

        if "output" not in part.schema.names:  # all of it is redacted
            return Replayed(notes=("The log has no answers: serve.log.redact leaves them out.",))
        logged = part["output"]
        at, rows, trained_on = counted(part, self._labels, self._job.trained_until)
        found = Replayed(labelled=self._labelled(part, answers, rows, at=at), trained_on=trained_on)
        if self._job.labelled_only:
            return found
        said = _arrays(logged)
        same = said.keys() & answers.keys()
        theirs, ours = ({name: side[name] for name in same} for side in (said, answers))
        found += Replayed(neighbours=neighbours(theirs, ours, self._rule))
        before, after = decisions(said, self._rule), decisions(answers, self._rule)
        if before is not None and after is not None:
            flipped = int(np.count_nonzero(np.asarray(before != after)))
            found += Replayed(compared=weight * part.num_rows, flipped=weight * flipped)
        if self._layout is not None:
            layout, rows = self._layout, part.num_rows
            sides = (columns_on(logged, layout), {name: answers[name] for name in layout.by_column if name in answers})
            profiles = [Profile.weighted({weight: profile_of(side, layout, rows=rows)}, layout) for side in sides]
            found += Replayed(before=profiles[0], after=profiles[1], known=self._known)
        return found

    def _labelled(self, part: pa.RecordBatch, answers: Columns, rows: Rows, *, at: npt.NDArray[np.int64]) -> Rows:
        """Return the losses of both on the rows ``at``, where their label fits their answers."""
        import pyarrow as pa

        from raymlops.lifecycle.quality.answers import as_json

        if not len(at) or self._rule.kind == "none":
            return Rows()
        theirs = [as_json(output) for output in part["output"].take(pa.array(at)).to_pylist()]
        ours = self._models[1].signature.rows({name: values[at] for name, values in answers.items()})
        labels = [json.loads(text) for text in self._labels.of(rows["places"]).to_pylist()]
        losses = [
            np.array([self._loss(output, truth) for output, truth in zip(side, labels, strict=True)], dtype=np.float64)
            for side in (theirs, ours)
        ]
        found = Rows({**rows.columns, "champion": losses[0], "challenger": losses[1]})
        return found.where(np.isfinite(losses[0]) & np.isfinite(losses[1]))

    def _loss(self, output: Mapping[str, Any], label: Any) -> float | None:
        """Return the loss of an answer by the champion's rule; None where its recipe fails at it."""
        from raymlops.bundle.loss import own_loss

        if self._rule.kind != "recipe":
            return self._rule.of(output, label)
        try:
            return own_loss(self._models[0].recipe, output, label)
        except RaymlopsError:
            return None


def labels_of(job: ReplayJob) -> Labels:
    """Return the labels that count, of all since the job's time; of a random part of the rows where they are many.

    Raises:
        StorageError: the storage cannot be used.
    """
    from raymlops.predictions.labelled import load_labels
    from raymlops.predictions.partition import Faults
    from raymlops.storage.store import Store

    return load_labels(Store(job.uri), job.name, Faults(), since=_moment(job.since), max_bytes=MAX_LABEL_BYTES)


def counted(
    batch: pa.RecordBatch, labels: Labels, trained_until: TrainedUntil | None
) -> tuple[npt.NDArray[np.int64], Rows, int]:
    """Return where the champion's own answers have a label, these rows, and how many others the challenger may know."""
    at, rows = labelled_rows(batch, labels, ["champion"])
    if trained_until is None:
        return at, rows, 0
    old = (rows["asked"] < trained_until.rows) | (rows["received"] < trained_until.labels)
    return at[~old], rows.where(~old), int(old.sum())


def _arrays(struct: pa.StructArray) -> dict[str, Any]:
    import pyarrow.compute as pc

    return {field.name: _array(pc.struct_field(struct, field.name).to_pylist()) for field in struct.type}


def _array(values: list[Any]) -> Any:
    try:
        found = np.asarray(values)
    except ValueError:  # lists of different lengths
        found = None
    if found is None or (found.dtype != object and found.dtype.kind not in "iufbU"):
        found = np.empty(len(values), dtype=object)
        found[:] = values
    return found


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _short(error: RaymlopsError) -> str:
    text = f"{type(error).__name__}: {error.message}"
    return text if len(text) <= 300 else f"{text[:297]}..."
