"""Which labelled rows of the log count, for all that judge or train by them: rollouts, quality, replay, bake, training.

Owns the one set of rules. Rows are those that a version answered by the routes that are asked for. Of these do not
count: a later answer to a request id that its caller used again; a row whose labels contradict each other, or came
before its answer, or are of a class that nobody has seen; and, where callers are bounded and several have labels, those
by which one of them has more than its share. Which of these go depends on the request ids alone, so that it is the same
each time. Where many labels are not to be believed there is no verdict, since what remains is a choice of somebody's;
one caller among others loses its own labels instead. Pure, but for the log's batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.display import some_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy.typing as npt

    from raymlops.predictions.labelled import Labels

    Flags = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float64]

COLUMNS = ("request_id", "row", "caller", "ts", "route", "fallback_from", "weight", "model_version")
"""Of the log, that the rules need."""
SKEW_S = 600.0
"""By which the clock of a label's writer may be behind that of its answer's: as the prediction log allows."""
MOST_LEFT_OUT = 0.05
"""Of the labelled rows."""


@dataclass(frozen=True)
class Rows:
    """Arrays of the same rows, (rows,), by name."""

    columns: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def where(self, chosen: npt.NDArray[Any]) -> Rows:
        """Return some of them."""
        return Rows({name: values[chosen] for name, values in self.columns.items()})

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return all rows of parts, of which those with a row have the same columns."""
        parts = [part for part in parts if len(part)] or [*parts[:1]]
        return cls({name: np.concatenate([part[name] for part in parts]) for name in parts[0].columns} if parts else {})


@dataclass(frozen=True)
class Admitted:
    """The labels that count.

    Attributes:
        rows: Which rows they are, of shape (rows,).
        left_out: How many rows do not count, by reason; a row has its first reason alone.
        bounded: How many others are left out, of callers with more than their share.
        refused: Why there is no verdict; empty where there may be one.
        note: What was left out; empty where nothing was.
    """

    rows: Flags
    left_out: Mapping[str, int]
    bounded: int = 0
    refused: str = ""
    note: str = ""


def are_answers(batch: pa.RecordBatch, routes: Collection[str] = ()) -> Flags:
    """Return which rows a version answered by one of these routes, and for no other version.

    Without routes it is whatever a caller was answered: all but copies for shadows.
    """
    if not routes:
        return np.asarray(pc.fill_null(pc.not_equal(batch["route"], "shadow"), True), dtype=np.bool_)
    found = pc.and_(pc.is_in(batch["route"], value_set=pa.array([*routes])), pc.is_null(batch["fallback_from"]))
    return np.asarray(found, dtype=np.bool_)


def labelled_rows(
    batch: pa.RecordBatch, labels: Labels, routes: Collection[str] = ()
) -> tuple[npt.NDArray[np.int64], Rows]:
    """Return where in a batch answers have a label, and these rows, as ``rows_of`` does."""
    places = labels.places(batch)
    at = np.flatnonzero((places >= 0) & are_answers(batch, routes))
    return at, rows_of(batch.take(pa.array(at)), labels, places[at])


def rows_of(batch: pa.RecordBatch, labels: Labels, places: npt.NDArray[np.int64]) -> Rows:
    """Return rows of the log with what the rules need to know of them; ``places`` are those of their labels, or -1.

    ``requests`` is a number of each request id and caller, the same wherever it is read, and as good as drawn.
    ``asked``, ``received`` (of the first label) and ``known_at`` (of the one that counts) are in seconds, NaN without.
    """
    of_labels, has = pa.array(places, mask=places < 0), places >= 0
    contradicted = np.zeros(len(places), dtype=np.bool_)
    contradicted[has] = labels.contradicted[places[has]]
    callers = callers_of(batch).to_pylist()
    keys = zip(callers, batch["request_id"].to_pylist(), strict=True)
    requests = (blake2b(f"{caller}\0{text}".encode(), digest_size=8).digest() for caller, text in keys)
    return Rows(
        {
            "places": places,
            "asked": seconds(batch["ts"]),
            "received": seconds(labels.received.take(of_labels)),
            "known_at": seconds(labels.known_at.take(of_labels)),
            "callers": np.array(callers, dtype=object),
            "requests": np.array([int.from_bytes(each, signed=True) for each in requests], dtype=np.int64),
            "weights": weights_of(batch),
            "contradicted": contradicted,
        }
    )


def callers_of(batch: pa.RecordBatch) -> pa.Array:
    """Return whose requests rows are: a name, empty for anybody's."""
    return pc.fill_null(_or_null(batch, "caller", pa.string()), "")


def weights_of(batch: pa.RecordBatch) -> Floats:
    """Return for how many rows each one stands; for one in files of earlier releases."""
    return np.asarray(pc.fill_null(_or_null(batch, "weight", pa.float64()), 1.0), dtype=np.float64)


def seconds(times: pa.Array) -> Floats:
    """Return times in seconds since 1970, NaN for null."""
    return np.asarray(times.cast(pa.int64()).cast(pa.float64()).to_numpy(zero_copy_only=False) / 1e6)


def first_answers(rows: Rows) -> Flags:
    """Return which rows are of the first answer to their request id: later ones may be about other rows."""
    _, of = np.unique(rows["requests"], return_inverse=True)
    first = np.full(int(of.max(initial=-1)) + 1, np.inf)
    np.minimum.at(first, of, rows["asked"])
    return np.asarray(rows["asked"] == first[of])


def admit(rows: Rows, *, most: float | None, seen: Any = True, within: Any = None) -> Admitted:
    """Decide which of the labelled rows count.

    Args:
        rows: ``asked``, ``received``, ``contradicted``, ``callers``, ``requests`` and ``weights``.
        most: The largest share of the labels' weight of one caller, those without a key together; None: any.
        seen: Which rows have a label of a class that the reference has rows of.
        within: A number of each row; no caller has more than its share of the rows of one number.
    """
    if not len(rows):
        return Admitted(np.zeros(0, dtype=np.bool_), {})
    first, left_out = first_answers(rows), dict[str, int]()
    kept = first
    reasons = {
        "contradict each other": rows["contradicted"],
        "came before their answer": rows["received"] < rows["asked"] - SKEW_S,
        "are of another kind, or of a class that the reference has no row of": ~np.asarray(seen, dtype=np.bool_),
    }
    for reason, found in reasons.items():
        left_out[reason] = int((found & kept).sum())
        kept = kept & ~found
    if _too_many(first, kept):
        names, of = np.unique(rows["callers"].astype(str), return_inverse=True)
        worst = int(np.bincount(of[first & ~kept]).argmax())
        others = of != worst
        if 2 * int((first & others).sum()) > int(first.sum()) and not _too_many(first & others, kept & others):
            reason = f"are others of {_who(names[worst])}, too many of which do not count"
            left_out[reason] = int((kept & ~others).sum())
            first, kept = first & others, kept & others
    told = [f"{count:,} labels {reason}" for reason, count in left_out.items() if count]
    refused, note = [], f"left out: {some_of(told, 3)}" if told else ""
    if _too_many(first, kept):
        out = int((first & ~kept).sum()) / int(first.sum())
        refused.append(f"{out:.0%} of the labels do not count, at most {MOST_LEFT_OUT:.0%} may: {note}")
    chosen = kept.copy()
    if most is not None and len(set(rows["callers"][kept])) > 1:
        groups = np.zeros(len(kept)) if within is None else np.asarray(within)
        for group in np.unique(groups[kept]):
            places = np.flatnonzero(kept & (groups == group))
            chosen[places], why = _bounded(rows.where(places), most)
            refused += [why] if why else []
    if bounded := int(kept.sum() - chosen.sum()):
        said = f"{bounded:,} labels of callers with more than {most:.0%} of all are left out"
        note = "; ".join(filter(None, (note, said)))
    return Admitted(chosen, left_out, bounded, refused[0] if refused else "", note)


def _too_many(labelled: Flags, kept: Flags) -> bool:
    return int((labelled & ~kept).sum()) > MOST_LEFT_OUT * int(labelled.sum())


def _who(name: str) -> str:
    return f"the key {name}" if name else "callers without a key"


def _bounded(rows: Rows, most: float) -> tuple[Flags, str]:
    """Return which rows are left where no caller gives more than its share, and why there is no verdict, or nothing.

    The largest callers are brought down to one level, the others keep their rows. Where there are too few callers for
    any to stay below ``most``, there is no verdict.
    """
    names, place = np.unique(rows["callers"].astype(str), return_inverse=True)
    given: Floats = np.bincount(place, rows["weights"]).astype(np.float64)
    every = np.ones(len(place), dtype=np.bool_)
    if given.max() <= most * given.sum():
        return every, ""
    top = int(given.argmax())
    if len(given) * most < 1:
        said = f"{_who(names[top])} sent {given[top] / given.sum():.0%} of the labels, and one may send at most"
        return every, f"{said} {most:.0%}, which {len(given)} keys cannot keep to"
    level = _level(np.sort(given)[::-1], most)
    order = np.lexsort((rows["requests"], place))
    running = np.cumsum(rows["weights"][order]) - np.append(0.0, np.cumsum(given))[place[order]]
    every[order] = running <= np.where(given > level, level * (1 + 1e-9), np.inf)[place[order]]
    return every, ""


def _level(given: Floats, most: float) -> float:
    """Return what the largest keys are brought down to; ``given`` is in falling order."""
    rest = given.sum() - np.cumsum(given)
    for bounded in range(1, len(given) + 1):
        # The level L of the first ones, with L = most (bounded L + rest).
        room = 1 - most * bounded
        if room <= 1e-12:
            break
        level = most * rest[bounded - 1] / room
        if bounded == len(given) or given[bounded] <= level:
            return float(level)
    return float(given[-1])


def _or_null(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """Return a column, which files of earlier releases lack."""
    return batch[name] if name in batch.schema.names else pa.nulls(batch.num_rows, kind)
