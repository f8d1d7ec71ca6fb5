"""An iterable torch dataset as a split: read from its start, by ascending row numbers.

An epoch is one pass, in the dataset's own order: nothing is shuffled here. A dataset that shuffles may draw from the
global generators of torch's CPU, ``random`` and ``numpy.random``: each pass has its own random stream, seeded by seed
and epoch, so that it is the same on every rank and after a restart, and does not affect the training's draws. Or it
shuffles by ``set_epoch(epoch)``, which is called before each pass. Not covered: generators that the dataset keeps
between passes, unseeded ones, and draws in its own threads.

Every rank reads all rows and keeps its share. Seeking back, and resuming in mid-epoch, restart the pass and skip rows;
``state_dict`` and ``load_state_dict`` of a dataset are not used yet. Each pass is compared with the number of rows that
were counted, and each process's first rows with the driver's. All rows' hashes are not compared: hashing takes 1 us
for a row of 4 numbers and 45 us for 784, on every rank.

Owns the position in the pass, its random stream and the count. Knows nothing of ranks.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from raymlops.data.dataset_split import hash_items, items_to_hash
from raymlops.data.order import derived_seed
from raymlops.data.random_streams import Stream
from raymlops.data.row_hashes import digest_of
from raymlops.data.split import SAMPLE_ROWS, Identity, SplitData
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, call_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt

    from raymlops.recipe import Batch

_RUN_ITEMS = 100
"""Items read at a time: switching the random stream takes 30 us, and slow items must not look like a hang."""
_NOTICE_S = 60.0
_LOG = logging.getLogger(__name__)


class IterableSplit(SplitData):
    """Items of an iterable dataset, which one pass counts and hashes if neither ``len()`` nor ``known`` says more."""

    kind = "iterable"
    in_turn = True

    def __init__(self, dataset: Any, *, name: str, recipe: RecipeBase, known: Mapping[str, Any] | None = None) -> None:
        super().__init__(name=name, rows=0, recipe=recipe)
        self._dataset = dataset
        # Until an epoch is set, as in a count or an evaluation, all passes draw the same, whatever the run's seed.
        self.seeds = (0, 1)
        length = _length(dataset)
        self._sized = length is not None
        if known is None or "digest" not in known:  # of another kind of split, which the caller rejects
            known = {"rows": length, "digest": None} if self._sized else self._counted()
        self.rows = known["rows"]
        self._digest: str | None = known["digest"]
        self._head: str | None = known.get("head")
        self._cursor = _Cursor(
            lambda: self._pass(seed=self.seeds[0], epoch=self.seeds[1]),
            self.rows,
            where=self._where,
            on_progress=lambda: self.on_progress(),  # noqa: PLW0108 - it is set later
        )

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(IterableSplit, self._dataset, name=self.name, recipe=self.recipe, known=self.describe())
        return again, ()

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the items at ``indices`` (int64) as one batch, in that order.

        Raises:
            RecipeError: the dataset raises, or yields another number of rows than was counted.
        """
        items = self._cursor.items(indices.tolist())
        if type(self.recipe).collate is RecipeBase.collate:
            return self._collated(items)
        with self.drawn_by(indices):
            return self._collated(items)

    def start_epoch(self, *, seed: int, epoch: int) -> None:
        """Let what the dataset draws in a pass depend on the epoch's number and the run's seed, from the next pass."""
        super().start_epoch(seed=seed, epoch=epoch)
        self._cursor.start_over()

    def keep(self, rows: range) -> None:
        """Keep these rows once they are read: more of them will be asked for."""
        self._cursor.keep = rows

    def global_batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield the row indices of each global batch of an epoch but the first ``skip``: in order, as they are read.

        The dataset's random draws in the pass depend on ``seed`` and ``epoch`` alone. The first batch after ``skip``
        reads all rows before it.
        """
        self.start_epoch(seed=seed, epoch=epoch)
        for start in range(skip * batch_size, self.rows, batch_size):
            end = min(start + batch_size, self.rows)
            self.keep(range(start, end))
            yield torch.arange(start, end)
        self.keep(range(0))

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row, in the order of the pass that counts, whatever epoch is set."""
        counting = self._pass(seed=0, epoch=1)
        chunk: list[Any] = []
        size = SAMPLE_ROWS
        while counting.read(size, chunk.append):
            self.on_progress()
            size = items_to_hash(self.recipe, chunk)
            yield hash_items(self.recipe, chunk)
            chunk.clear()

    def digest(self) -> str:
        """Return the SHA-256 of all rows' hashes, in the order of a pass that counts them."""
        if self._digest is None:
            self._digest = self._counted()["digest"]
        return self._digest

    def identity(self) -> Identity:
        """Return what identifies the items: all of them if they had to be counted, else their number and the first."""
        if not self._sized:
            return super().identity()
        found = f"{self.rows} items, {self.mark('head')}"
        return Identity(sha256(found.encode()).hexdigest(), f"length, first {min(SAMPLE_ROWS, self.rows)} items")

    def mark(self, kind: str) -> str | None:
        """Return ``digest``, or ``head``: a digest of the first rows, which starts a pass."""
        if kind != "head":
            return super().mark(kind)
        rows: list[Any] = []
        self._pass(seed=0, epoch=1).read(min(SAMPLE_ROWS, self.rows), rows.append)
        return digest_of([hash_items(self.recipe, rows)])

    def is_repeatable(self) -> bool:
        """Return whether another pass over the first rows yields them again."""
        return self.mark("head") == self.mark("head")

    def for_recipe(self, recipe: RecipeBase) -> IterableSplit:
        """Return the same items: no recipe encodes them."""
        known = {"rows": self.rows, "digest": self._digest, "head": self._head}
        return IterableSplit(self._dataset, name=self.name, recipe=recipe, known=known)

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what another process needs to skip the count."""
        head = self.mark("head") if self._head is None else self._head
        return {**super().describe(), "digest": self._digest, "head": head}

    def _collated(self, items: list[Any]) -> Batch:
        return call_recipe(f"{type(self.recipe).__name__}.collate()", lambda: self.recipe.collate(items))

    @property
    def _where(self) -> str:
        return f"{type(self.recipe).__name__}.datasets(): the {self.name} split, an iterable dataset,"

    def _pass(self, *, seed: int, epoch: int) -> _Pass:
        return _Pass(self._dataset, epoch=epoch, stream=Stream(derived_seed(seed, epoch)), where=self._where)

    def _counted(self) -> dict[str, Any]:
        rows, digest, head, noticed = 0, sha256(), "", time.monotonic()
        for chunk in self.hashes():
            head = head or digest_of([chunk[:SAMPLE_ROWS]])
            rows += len(chunk)
            digest.update(chunk.astype("<u8").tobytes())
            if time.monotonic() - noticed > _NOTICE_S:
                noticed = time.monotonic()
                _LOG.warning("counting the %s split: %d rows so far; its iterator must be finite", self.name, rows)
        return {"rows": rows, "digest": digest.hexdigest(), "head": head}


def _length(dataset: Any) -> int | None:
    """Return ``len()`` of a dataset; None where it has none, or raises, as for a pipeline of unknown length."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


class _Cursor:
    """Reads items of passes by number, efficiently while numbers ascend.

    Items of the last call and those in ``keep`` are cached.
    """

    def __init__(self, begin: Callable[[], _Pass], rows: int, *, where: str, on_progress: Callable[[], None]) -> None:
        self.keep = range(0)
        self._begin = begin
        self._rows = rows
        self._where = where
        self._on_progress = on_progress
        self.start_over()

    def start_over(self) -> None:
        """Drop the pass: the next read starts a new one."""
        self._pass: _Pass | None = None
        self._position = 0
        self._held: dict[int, Any] = {}

    def items(self, numbers: list[int]) -> list[Any]:
        """Return the items of these numbers, in that order."""
        wanted = set(numbers)
        ahead = wanted - self._held.keys()
        if ahead and min(ahead) < self._position:
            self.start_over()
            ahead = wanted
        end = max(ahead) + 1 if ahead else 0
        while self._position < end:
            self._read(min(_RUN_ITEMS, end - self._position), wanted)
            self._on_progress()
        if self._position == self._rows and self._pass is not None:
            if self._pass.read(1, lambda _item: None):
                raise self._miscounted(f"continues after {self._rows} rows")
            self._pass = None
        self._held = {number: item for number, item in self._held.items() if number in wanted or number in self.keep}
        return [self._held[number] for number in numbers]

    def _read(self, count: int, wanted: set[int]) -> None:
        if self._pass is None:
            self._pass = self._begin()
        if self._pass.read(count, lambda item: self._take(item, wanted)) < count:
            raise self._miscounted(f"ended after {self._position} rows")

    def _take(self, item: Any, wanted: set[int]) -> None:
        if self._position in wanted or self._position in self.keep:
            self._held[self._position] = item
        self._position += 1

    def _miscounted(self, what: str) -> RecipeError:
        return RecipeError(
            f"{self._where} {what}, but {self._rows} were counted before the start, or returned by its __len__",
            hint="Every pass must yield the same number of rows, in every epoch and in every process. If __len__ is an "
            "estimate, omit it: then a pass before the start counts the rows.",
        )


class _Pass:
    """A pass in progress. Only the dataset's code runs within ``stream``."""

    def __init__(self, dataset: Any, *, epoch: int, stream: Stream, where: str) -> None:
        self._stream = stream
        self._where = where

        def begin() -> Iterator[Any]:
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
            return iter(dataset)

        with stream.drawn_from():
            self._iterator: Iterator[Any] = call_recipe(where, begin)

    def read(self, count: int, take: Callable[[Any], None]) -> int:
        """Pass up to ``count`` items to ``take``, one by one; return how many there were."""

        def read() -> int:
            for done in range(count):
                try:
                    item = next(self._iterator)
                except StopIteration:
                    return done
                take(item)
            return count

        with self._stream.drawn_from():
            found: int = call_recipe(self._where, read)
        return found
