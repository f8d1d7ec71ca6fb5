"""Dynamic batching: requests that arrive together run through the model as one batch.

Owns the queue in front of the model, the size of batches, the choice of inline or worker thread, and the split of the
outputs. Knows nothing of HTTP or torch: it concatenates columns and calls a function.

Where rows differ in length, such as texts, a model pads them to the longest one. The size of a batch is then its number
of padded elements: rows times the longest row.

It never delays a request to fill a batch. The first request in a turn of the event loop that finds the model idle runs
at once, without yielding (which behind Serve's Python proxy also saves a remote call); others that become ready in the
same turn are one batch in the next. While a batch runs in the thread, others queue up for the batch after it.

Requests that fill an eighth of a batch or more take turns with the others, so that a small one waits for one batch of
them at most, and not for all that came before it. One that is larger than a batch is several to the queue.

Answers that are not finite fail the requests whose rows they are; the others of the same batch have theirs. A batch
that raises is run again in two parts, and so on: the rows that the error names and the others, or else halves. Each
part is a batch of its own, in turn with what waits and in the thread, so that one row that the model cannot answer
delays nobody for long. An error names rows by their places in the request.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from raymlops.errors import InvalidRowsError
from raymlops.serving.replica.batch import Batch, Entry, merge, moved, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.arrays import Column, Columns

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

LARGE_SHARE = 8
INLINE_BUDGET_S = 0.002
"""A batch that is expected to take longer runs in the worker thread, so that the event loop stays free.

Below it, the thread hand-over (50 to 100 microseconds, more under load) costs more than it frees.
"""


class Batcher:
    """Run requests through one model, one batch at a time.

    ``run`` takes columns of n rows, at most ``max_rows`` and, of rows that differ in length (``varying`` is their
    columns), at most ``max_elements`` when padded, or one row; it returns columns of n rows and is never called twice
    at once. ``check`` raises for outputs that nobody may get, of any number of rows, the first of which has the given
    number in its request. Use from one event loop only.
    """

    def __init__(
        self,
        run: Callable[[Columns], Columns],
        *,
        check: Callable[[Columns, int], None] = lambda _outputs, _first_row: None,
        max_rows: int,
        max_elements: int = 2**18,
        varying: Sequence[Column] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.max_rows = max_rows
        self.max_elements = max_elements
        self._run = run
        self._check = check
        self._now = clock
        self._varying = tuple((column.name, bool(column.shape)) for column in varying)
        self._small: deque[Entry] = deque()
        self._large: deque[Entry] = deque()
        self._again: deque[list[Entry]] = deque()
        self._large_next = False
        self._again_next = True
        self._busy = False
        self._alone = False
        self._inline_rows = 0
        self._inline_elements = 0
        self._started: float | None = None
        self.waiting_rows = 0
        self.observed: deque[tuple[int, int]] = deque(maxlen=10_000)
        """Rows and requests of the latest batches, for metrics."""
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @property
    def running_s(self) -> float:
        """Return how long the current call of the model has been running in the thread, in seconds; 0 when idle."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    async def submit(self, columns: Columns, *, rows: int) -> Columns:
        """Return the model's output columns for these rows.

        Raises:
            Exception: whatever the model raised on these rows. Others of the same batch are unharmed.
        """
        loop = asyncio.get_running_loop()
        longest = self._longest(columns)
        if rows > 1 and not self._fits(rows, longest):
            entries = [
                self._queue(piece, count, self._longest(piece), loop, first_row=start)
                for piece, start, count in self._pieces(columns, rows)
            ]
            try:
                return merge(await asyncio.gather(*[entry.answer for entry in entries]))
            finally:
                for entry in entries:  # where one raised, nobody wants the others
                    entry.answer.cancel()
                    self._drop(entry)
        if not self._busy and not self._alone and self._is_quick(rows, longest):
            self._alone = True
            loop.call_soon(self._turn)
            self.observed.append((rows, 1))
            outputs = self._timed(columns, rows, longest)
            self._check(outputs, 0)
            return outputs
        entry = self._queue(columns, rows, longest, loop)
        try:
            return await entry.answer
        except asyncio.CancelledError:  # the client left, or the deadline passed
            self._drop(entry)
            raise

    def measure(self, columns: Columns, *, rows: int) -> Columns:
        """Run rows in this thread, as batches, and measure their time; while nothing else runs."""
        outputs = self._in_pieces(columns, rows)
        self._check(outputs, 0)
        return outputs

    def largest(self, columns: Columns) -> int:
        """Return how many rows the largest batch of rows like these has."""
        longest = self._longest(columns)
        return max(1, min(self.max_rows, self.max_elements // longest) if longest else self.max_rows)

    def in_worker(self, prepare: Callable[[], object]) -> None:
        """Call something in the worker thread before its next batch, without waiting for it."""
        self._pool.submit(prepare)

    def close(self) -> None:
        """Stop the worker thread; queued requests are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _turn(self) -> None:
        self._alone = False

    def _queue(
        self, columns: Columns, rows: int, longest: int, loop: asyncio.AbstractEventLoop, *, first_row: int = 0
    ) -> Entry:
        entry = Entry(columns, rows, longest, loop.create_future(), first_row)
        (self._small if self._fits(LARGE_SHARE * rows, longest) else self._large).append(entry)
        self._count(entry)
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next, loop)
        return entry

    def _count(self, entry: Entry) -> None:
        entry.counted = True
        self.waiting_rows += entry.rows

    def _discount(self, entry: Entry) -> None:
        if entry.counted:
            entry.counted = False
            self.waiting_rows -= entry.rows

    def _drop(self, entry: Entry) -> None:
        """Make room for the rows of others; what is left of the entry leaves the queue with the next batch."""
        if entry.counted:
            self._discount(entry)
            entry.columns = {}

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
        if not batch.entries:
            self._busy = False
            return
        self.observed.append((batch.rows, len(batch.entries)))
        if not batch.again and self._is_quick(batch.rows, batch.longest):
            self._settle(batch, self._attempt(batch))
            loop.call_soon(self._next, loop)
            return
        self._started = time.monotonic()
        running = loop.run_in_executor(self._pool, self._attempt, batch)
        running.add_done_callback(lambda done: self._after(done, batch, loop))

    def _settle(self, batch: Batch, found: Sequence[Columns | Exception] | Exception) -> None:
        if not isinstance(found, Exception):
            batch.deliver(found)
        elif len(batch.entries) == 1:
            batch.deliver([moved(found, batch.entries[0].first_row)])
        else:
            if not batch.again:
                logger.warning(
                    "a batch of %d requests raised %s; running it again in parts",
                    *(len(batch.entries), type(found).__name__),
                )
            parts = batch.parts(found)
            for entry in batch.entries:
                if not entry.answer.done():
                    self._count(entry)
            if batch.again:
                self._again.extendleft(reversed(parts))
            else:  # behind what has waited for longer
                self._again.extend(parts)

    def _take(self) -> Batch:
        if not self._again:
            self._again_next = True
            return self._take_waiting()
        one, other = (
            (self._take_again, self._take_waiting) if self._again_next else (self._take_waiting, self._take_again)
        )
        batch = one()
        if not batch.entries:
            batch = other()
        self._again_next = not batch.again
        return batch

    def _take_again(self) -> Batch:
        batch = Batch([], again=True)
        while self._again and not batch.entries:
            for entry in self._again.popleft():
                self._discount(entry)
                if not entry.answer.done():
                    batch.add(entry)
        return batch

    def _take_waiting(self) -> Batch:
        batch = Batch([])
        turns = (self._large, self._small) if self._large_next else (self._small, self._large)
        self._large_next = True
        for waiting in turns:
            while waiting:
                entry = waiting[0]
                gone = entry.answer.done()  # the client disconnected, or the deadline passed
                if (
                    not gone
                    and batch.entries
                    and not self._fits(batch.rows + entry.rows, max(batch.longest, entry.longest))
                ):
                    break
                waiting.popleft()
                self._discount(entry)
                if not gone:
                    batch.add(entry)
                    if waiting is self._large:
                        self._large_next = False
        return batch

    def _longest(self, columns: Columns) -> int:
        return max(self._lengths(columns)) if self._varying else 0

    def _lengths(self, columns: Columns) -> list[int]:
        """Return the length of each row: the elements of its arrays and the characters of its texts."""
        each = [
            [value.size for value in columns[name]] if shaped else [len(value or ()) for value in columns[name]]
            for name, shaped in self._varying
        ]
        return each[0] if len(each) == 1 else [sum(row) for row in zip(*each, strict=True)]

    def _fits(self, rows: int, longest: int) -> bool:
        return rows <= self.max_rows and rows * longest <= self.max_elements

    def _is_quick(self, rows: int, longest: int) -> bool:
        return rows <= self._inline_rows and rows * longest <= self._inline_elements

    def _attempt(self, batch: Batch) -> Sequence[Columns | Exception] | Exception:
        """Run a batch once; return what each request gets, or what was raised on all of them together."""
        rows = [entry.rows for entry in batch.entries]
        try:
            columns = merge([entry.columns for entry in batch.entries])
            if self._fits(batch.rows, batch.longest):
                outputs = self._timed(columns, batch.rows, batch.longest)
            else:  # one row, or a bound was lowered while they waited
                outputs = self._in_pieces(columns, batch.rows)
        except Exception as error:
            return error
        first = batch.entries[0].first_row
        try:
            self._check(outputs, first)
        except Exception as error:
            found = [
                self._checked(part, entry.first_row)
                for part, entry in zip(split(outputs, rows), batch.entries, strict=True)
            ]
            # Where no request has an answer, one's rows may have spoiled those of the others, as by a common scale.
            return error if all(isinstance(one, Exception) for one in found) else found
        return split(outputs, rows)

    def _checked(self, outputs: Columns, first_row: int) -> Columns | Exception:
        try:
            self._check(outputs, first_row)
        except Exception as error:
            return error
        return outputs

    def _in_pieces(self, columns: Columns, rows: int) -> Columns:
        return merge([self._piece(*piece) for piece in self._pieces(columns, rows)])

    def _piece(self, columns: Columns, start: int, rows: int) -> Columns:
        try:
            return self._timed(columns, rows, self._longest(columns))
        except InvalidRowsError as error:
            raise moved(error, start) from error

    def _timed(self, columns: Columns, rows: int, longest: int) -> Columns:
        start = self._now()
        if self._started is not None:  # each piece is a call of its own
            self._started = time.monotonic()
        try:
            outputs = self._run(columns)
        except Exception:
            if self._now() - start > INLINE_BUDGET_S:
                self._lower(rows, longest)
            raise
        seconds = self._now() - start
        for name, array in outputs.items():
            if len(array) != rows:
                msg = f"the model answered {rows} rows with a column {name!r} of {len(array)}"
                raise ValueError(msg)
        # The largest batch known to fit the budget: it doubles after one that took less than half of it and halves
        # after one that took more, so that a single delay on a busy machine is soon forgotten.
        if seconds > INLINE_BUDGET_S:
            self._lower(rows, longest)
        elif seconds < INLINE_BUDGET_S / 2:
            if rows >= self._inline_rows:
                self._inline_rows = 2 * rows
            if rows * longest >= self._inline_elements:
                self._inline_elements = 2 * rows * longest
        return outputs

    def _lower(self, rows: int, longest: int) -> None:
        if self._is_quick(rows, longest):
            self._inline_rows, self._inline_elements = rows // 2, rows * longest // 2

    def _pieces(self, columns: Columns, rows: int) -> list[tuple[Columns, int, int]]:
        """Return pieces of columns that fit into a batch each, or are one row: with their first row and length."""
        lengths = self._lengths(columns) if self._varying else [0] * rows
        cuts, longest = [0], 0
        for row, length in enumerate(lengths):
            longest = max(longest, length)
            if row > cuts[-1] and not self._fits(row + 1 - cuts[-1], longest):
                cuts.append(row)
                longest = length
        ends = itertools.pairwise([*cuts, rows])
        return [
            ({name: array[start:end] for name, array in columns.items()}, start, end - start) for start, end in ends
        ]

    def _after(
        self,
        done: asyncio.Future[Sequence[Columns | Exception] | Exception],
        batch: Batch,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._started = None
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._settle(batch, done.result())
        else:  # not an Exception: the thread itself was stopped
            batch.deliver([RuntimeError(f"the model's thread ended: {error!r}")] * len(batch.entries))
        self._next(loop)
