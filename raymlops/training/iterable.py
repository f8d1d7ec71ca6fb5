"""A split that can only be read from its start: an iterable torch dataset, drawn by growing row numbers.

An epoch is one pass. The order is the dataset's own: nothing is shuffled here, and a dataset that shuffles has a
method ``set_epoch(epoch)``, which is called before each pass. Every rank reads all rows and keeps its share. Going
back, and going on in mid-epoch after a restart, means to start over and let rows go by; ``state_dict`` and
``load_state_dict``, where a dataset has them, are not used yet.

Owns the position in the pass and the count. Knows nothing of ranks: row numbers are what it is asked for.
"""

from __future__ import annotations

import logging
import time
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import default_collate

from raymlops.errors import RecipeError
from raymlops.recipe import call_recipe
from raymlops.training.columns import hash_columns
from raymlops.training.encoding import leaves
from raymlops.training.split import SplitData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt
    import torch

    from raymlops.recipe import Batch, RecipeBase

_HASH_ROWS = 1024
_NOTICE_S = 60.0
_END = object()
_LOG = logging.getLogger(__name__)


class IterableSplit(SplitData):
    """Items of an iterable dataset. Where ``rows`` and ``digest`` are not known, one pass counts and hashes."""

    kind = "iterable"

    def __init__(
        self, dataset: Any, *, name: str, recipe: RecipeBase, rows: int | None = None, digest: str | None = None
    ) -> None:
        super().__init__(name=name, rows=0, recipe=recipe)
        self._dataset = dataset
        self._epoch = 1
        if rows is None or digest is None:
            rows, digest = self._counted()
        self._digest = digest
        self.rows = rows
        self._cursor = _Cursor(self._pass, rows, where=self._where)

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the items at ``indices`` (int64) as one batch, in that order.

        Raises:
            RecipeError: the dataset raises, or yields another number of rows than was counted.
        """
        return default_collate(self._cursor.items(indices.tolist()))

    def global_batches(self, *, batch_size: int, seed: int, epoch: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield the row indices of each global batch of an epoch but the first ``skip``: in order, as they are read.

        The first rows that are asked for after ``skip`` cost the reading of all before them. ``seed`` has no effect.
        """
        import torch

        del seed
        self._epoch = epoch
        self._cursor.start_over()
        for start in range(skip * batch_size, self.rows, batch_size):
            end = min(start + batch_size, self.rows)
            self._cursor.keep = range(start, end)
            yield torch.arange(start, end)
        self._cursor.keep = range(0)

    def hashes(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield a 64-bit hash for each row, in the order of a pass."""
        items = self._pass()
        while chunk := self._call(lambda: list(islice(items, _HASH_ROWS))):
            yield hash_columns(leaves(default_collate(chunk)))

    def fingerprint(self) -> Iterator[bytes]:
        """Yield what the split's part of the data's fingerprint is made of: known from the count."""
        yield self._digest.encode()

    def digest(self) -> str:
        """Return the SHA-256 of all rows' hashes, in the order of the first epoch: known from the count."""
        return self._digest

    def for_recipe(self, recipe: RecipeBase) -> IterableSplit:
        """Return the same items: no recipe encodes them."""
        return IterableSplit(self._dataset, name=self.name, recipe=recipe, rows=self.rows, digest=self._digest)

    def describe(self) -> dict[str, Any]:
        """Return as JSON data what spares another process the count."""
        return {**super().describe(), "digest": self._digest}

    @property
    def _where(self) -> str:
        return f"{type(self.recipe).__name__}.datasets(): the {self.name} split, an iterable dataset,"

    def _pass(self) -> Iterator[Any]:
        """Begin a pass of the epoch that was set last."""
        if hasattr(self._dataset, "set_epoch"):
            self._call(lambda: self._dataset.set_epoch(self._epoch))
        iterator: Iterator[Any] = self._call(lambda: iter(self._dataset))
        return iterator

    def _counted(self) -> tuple[int, str]:
        rows, digest, noticed = 0, sha256(), time.monotonic()
        for chunk in self.hashes():
            rows += len(chunk)
            digest.update(chunk.astype("<u8").tobytes())
            if time.monotonic() - noticed > _NOTICE_S:
                noticed = time.monotonic()
                _LOG.warning("counting the %s split: %d rows so far; its iterator has to end", self.name, rows)
        return rows, digest.hexdigest()

    def _call(self, function: Callable[[], Any]) -> Any:
        return call_recipe(self._where, function)


class _Cursor:
    """Items of passes by number, cheap as long as numbers grow.

    Besides those of the last call, items in ``keep`` stay at hand, so that they may be asked for again.
    """

    def __init__(self, begin: Callable[[], Iterator[Any]], rows: int, *, where: str) -> None:
        self.keep = range(0)
        self._begin = begin
        self._rows = rows
        self._where = where
        self.start_over()

    def start_over(self) -> None:
        """Forget the pass: the next item that is asked for begins one."""
        self._iterator: Iterator[Any] | None = None
        self._position = 0
        self._held: dict[int, Any] = {}

    def items(self, numbers: list[int]) -> list[Any]:
        """Return the items of these numbers, in that order."""
        wanted = set(numbers)
        ahead = wanted - self._held.keys()
        if ahead and min(ahead) < self._position:
            self.start_over()
            ahead = wanted
        while ahead and self._position <= max(ahead):
            item = self._next()
            if self._position in wanted or self._position in self.keep:
                self._held[self._position] = item
            self._position += 1
        if self._position == self._rows and self._iterator is not None:
            if self._take() is not _END:
                raise self._miscounted(f"goes on after {self._rows} rows")
            self._iterator = None
        self._held = {number: item for number, item in self._held.items() if number in wanted or number in self.keep}
        return [self._held[number] for number in numbers]

    def _next(self) -> Any:
        if self._iterator is None:
            self._iterator = self._begin()
        item = self._take()
        if item is _END:
            raise self._miscounted(f"ended after {self._position} rows")
        return item

    def _take(self) -> Any:
        iterator = self._iterator
        assert iterator is not None
        return call_recipe(self._where, lambda: next(iterator, _END))

    def _miscounted(self, what: str) -> RecipeError:
        return RecipeError(
            f"{self._where} {what}, but {self._rows} were counted before the start",
            hint="Every pass must yield the same number of rows, in every epoch and in every process.",
        )
