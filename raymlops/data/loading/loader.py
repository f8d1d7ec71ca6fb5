"""Read the batches of splits: in this process, or ahead in loader processes, with the same bits.

What is read depends on rows, seed and epoch alone, so that it does not matter which process reads it. Loaders read
what takes time: items of torch datasets, streamed files, and what ``encode`` pads. Tables in memory are read here: to
gather rows takes less time than to send them.

Owns which splits are read ahead, and the tasks of a pass in their order. ``pool`` owns the processes.
"""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymlops.data.batches import join, select
from raymlops.data.loading.pool import LoaderPool
from raymlops.data.loading.process import Task
from raymlops.errors import UsageError
from raymlops.pytree import map_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.data.split import SplitData
    from raymlops.recipe import Batch, Progress

    Step = tuple[Progress, torch.Tensor]
    Pieces = Sequence[tuple[torch.Tensor, float]]
    """Rows that are read together, with their weights."""

_LOOK_AHEAD_ROWS = 1 << 22
"""Row numbers, 32 MB of them, among which tasks for idle loaders are looked for."""


class Loader:
    """Reads batches of ``splits`` by ``processes`` loaders, each of which is up to ``ahead`` batches ahead.

    Without processes it reads them when they are asked for. With ``pinned``, batches of loaders are in memory that is
    copied to a GPU without waiting.
    """

    def __init__(
        self,
        splits: Mapping[str, SplitData],
        *,
        processes: int,
        ahead: int,
        timeout_s: float,
        pinned: bool = False,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        if processes and sys.platform != "linux":
            raise UsageError(f"train.data_workers needs Linux, but this is {sys.platform}", hint="Set it to 0.")
        self._splits = {name: split for name, split in splits.items() if processes and split.read_ahead}
        self._processes, self._ahead, self._timeout_s = processes, ahead, timeout_s
        self._on_progress = on_progress
        self._pinning = ThreadPoolExecutor(1, "raymlops-pin") if pinned and self._splits else None
        self._pool: LoaderPool | None = None
        self._pass: _Pass | None = None

    def start(self) -> None:
        """Start the processes, if there are to be any, while something else is prepared."""
        if self._splits and self._pool is None:
            self._pool = LoaderPool(
                self._splits,
                processes=self._processes,
                ahead=self._ahead,
                timeout_s=self._timeout_s,
                on_progress=self._on_progress,
            )

    def steps(
        self, split: SplitData, steps: Iterator[Step], pieces_of: Callable[[torch.Tensor], Pieces]
    ) -> Iterator[Step]:
        """Yield steps, while the pieces of those that follow are read for ``batch``.

        Pieces may still turn out to be others: then they are read when they are asked for.
        """
        if split.name not in self._splits:
            yield from steps
            return
        self._pass = current = self._begin(split, steps, lambda rows: [piece for piece, _ in pieces_of(rows)])
        try:
            yield from current
        finally:
            if self._pass is current:  # a loop may leave one pass for the next before it closes the first
                self._pass = None
            current.close()

    def batch(self, split: SplitData, rows: torch.Tensor) -> Batch:
        """Return these rows, on the CPU.

        Raises:
            RecipeError: an item raised, or ``encode`` or ``collate`` did.
            TrainingError: the process that reads them died, or hangs.
        """
        current = self._pass
        if current is not None and current.is_next(split, rows):
            return current.take()
        return split.batch(rows)

    def batches(self, split: SplitData, rows: torch.Tensor, *, batch_size: int) -> Iterator[Batch]:
        """Yield batches of at most ``batch_size`` of these rows, in their order."""
        if split.name not in self._splits:
            yield from split.batches(rows, batch_size=batch_size)
            return
        parts = ((split.recipe.progress, part) for part in torch.split(rows, batch_size) if len(part))
        current = self._begin(split, parts, lambda part: [part])
        try:
            for _ in current:
                yield current.take()
        finally:
            current.close()

    def close(self) -> None:
        """End the processes."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop_waiting()
            if self._pinning is not None:
                self._pinning.shutdown()
            pool.close()

    def _begin(
        self, split: SplitData, steps: Iterator[Step], pieces_of: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    ) -> _Pass:
        self.start()
        assert self._pool is not None
        return _Pass(self._pool, split, steps, pieces_of, pinning=self._pinning)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Rows that are taken together: one task for a loader, or a part of them for each of several."""

    whole: tuple[int, Task]
    """The task that reads all rows, and its loader: it is sent where there are no parts, or where they do not join."""
    parts: tuple[tuple[int, Task, torch.Tensor], ...] = ()
    """The positions of each part among the rows."""

    @property
    def tasks(self) -> list[tuple[int, Task]]:
        """Return the tasks that are sent first."""
        return [(lane, task) for lane, task, _ in self.parts] or [self.whole]


class _Pass:
    """One pass over a split. Its steps are iterated over, and the pieces of each are taken in their order.

    Rows of one stretch of the split are read by one loader, and those of the next stretch by the next one at the same
    time, so that none reads what another has read; where there are no stretches, loaders take turns.
    """

    def __init__(
        self,
        pool: LoaderPool,
        split: SplitData,
        steps: Iterator[Step],
        pieces_of: Callable[[torch.Tensor], Sequence[torch.Tensor]],
        *,
        pinning: ThreadPoolExecutor | None,
    ) -> None:
        self._pool = pool
        self._split = split
        self._steps = steps
        self._pieces_of = pieces_of
        self._pinning = pinning
        self._due: deque[_Piece] = deque()
        self._groups: deque[tuple[Step, deque[_Piece]]] = deque()
        lanes = 1 if split.in_turn else len(pool)
        self._unsent: list[deque[Task]] = [deque() for _ in range(lanes)]
        self._in_flight = [0] * lanes
        self._turn = 0
        self._rows = 0
        self._pinned: tuple[_Piece, Any] | None = None

    def __iter__(self) -> Iterator[Step]:
        while True:
            self._send()
            if not self._groups:
                return
            step, self._due = self._groups.popleft()
            self._pin_next()
            yield step
            self._forget(self._due)

    def is_next(self, split: SplitData, rows: torch.Tensor) -> bool:
        """Return whether these rows are what is taken next."""
        return split is self._split and bool(self._due) and torch.equal(self._due[0].whole[1].rows, rows)

    def take(self) -> Batch:
        """Return the next piece of the step."""
        piece = self._due.popleft()
        if self._pinning is None:
            batch = self._receive(piece)
        else:
            self._pin(piece)
            assert self._pinned is not None
            (_, future), self._pinned = self._pinned, None
            batch = future.result()
        self._received(piece)
        self._send()
        self._pin_next()
        return batch

    def close(self) -> None:
        """Forget what was not taken."""
        self._forget(self._due)
        for _, pieces in self._groups:
            self._forget(pieces)
        self._groups.clear()

    def _send(self) -> None:
        """Send as many tasks as may be read ahead."""
        most, lanes = self._pool.ahead, range(len(self._in_flight))
        while self._rows < _LOOK_AHEAD_ROWS and any(
            self._in_flight[lane] + len(self._unsent[lane]) < most for lane in lanes
        ):
            step = next(self._steps, None)
            if step is None:
                break
            self._groups.append((step, deque(self._begun(step))))
        for lane in lanes:
            while self._unsent[lane] and self._in_flight[lane] < most:
                self._pool.send(lane, self._unsent[lane].popleft())
                self._in_flight[lane] += 1

    def _begun(self, step: Step) -> Iterator[_Piece]:
        progress, indices = step
        split, pieces = self._split, self._pieces_of(indices)
        span = range(int(indices.min()), int(indices.max()) + 1) if len(pieces) > 1 else range(0)

        def task(rows: torch.Tensor, *, part: bool = False) -> Task:
            return Task(self._pool.number(), split.name, rows, split.seeds, span, progress, part=part)

        for rows in pieces:
            stretches = split.stretches(rows) if len(self._unsent) > 1 else None
            lanes = np.asarray([self._turn] if stretches is None else stretches) % len(self._unsent)
            parts = []
            if (lanes != lanes[0]).any():
                positions = [
                    (lane, torch.from_numpy(np.flatnonzero(lanes == lane))) for lane in np.unique(lanes).tolist()
                ]
                parts = [(lane, task(rows[places], part=True), places) for lane, places in positions]
            self._turn += 1
            piece = _Piece((int(lanes[-1]), task(rows)), tuple(parts))
            for lane, each in piece.tasks:
                self._rows += len(each.rows)
                self._unsent[lane].append(each)
            yield piece

    def _receive(self, piece: _Piece) -> Batch:
        if piece.parts:
            parts = self._receive_parts(piece)
            joined = None if any(part is None for part in parts) else join(parts)
            if joined is not None:
                return select(joined, torch.cat([places for _, _, places in piece.parts]).argsort())
            self._pool.send(*piece.whole)
        return self._pool.receive(*piece.whole)

    def _receive_parts(self, piece: _Piece) -> list[Batch]:
        waiting = deque(piece.parts)
        try:
            return [self._pool.receive(*waiting.popleft()[:2]) for _ in piece.parts]
        finally:
            self._pool.drop(task for _, task, _ in waiting)

    def _received(self, piece: _Piece) -> None:
        for lane, task in piece.tasks:
            self._in_flight[lane] -= 1
            self._rows -= len(task.rows)

    def _forget(self, pieces: deque[_Piece]) -> None:
        dropped = []
        while pieces:
            piece = pieces.popleft()
            self._received(piece)
            for lane, task in piece.tasks:
                if task in self._unsent[lane]:
                    self._unsent[lane].remove(task)
                    self._in_flight[lane] += 1
                elif self._pinned is None or self._pinned[0] is not piece:
                    dropped.append(task)
            if self._pinned is not None and self._pinned[0] is piece:
                self._pinned = None
        if self._pinning is None:
            self._pool.drop(dropped)
        elif dropped:
            with suppress(RuntimeError):  # the loader is closed: nothing is received any more
                self._pinning.submit(self._pool.drop, dropped)

    def _pin_next(self) -> None:
        """Receive and pin what is taken next in a thread, while the GPU works."""
        following = self._due or (self._groups[0][1] if self._groups else None)
        if self._pinning is not None and following:
            self._pin(following[0])

    def _pin(self, piece: _Piece) -> None:
        assert self._pinning is not None
        if self._pinned is None or self._pinned[0] is not piece:
            self._pinned = piece, self._pinning.submit(self._receive_pinned, piece)

    def _receive_pinned(self, piece: _Piece) -> Batch:
        return map_tensors(self._receive(piece), torch.Tensor.pin_memory)
