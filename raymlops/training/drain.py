"""Events on their way from the workers to whoever writes and shows them, while the driver waits for the end.

Owns the thread and what becomes of its errors. Knows nothing of where events are taken from.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from raymlops.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from raymlops.training.progress import Event

EVERY_S = 0.25
LAST_TRIES = 3
AFTER_ERROR_S = 15.0


class Drain:
    """Passes events on from a thread while a block runs, and the last ones after it; what goes wrong is raised there.

    ``take`` returns the events since it last did; it may raise TimeoutError, and is asked again. ``emit`` gets every
    event, also after one that it failed at: each may hold metrics that are nowhere else.
    """

    def __init__(
        self, take: Callable[[], Iterable[Event]], emit: Callable[[Event], None], *, every_s: float = EVERY_S
    ) -> None:
        self._take = take
        self._emit = emit
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymlops-events", daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._done.set()
        # A block that failed is not kept waiting by a cluster that is gone.
        self._thread.join(timeout=None if error is None else AFTER_ERROR_S)
        if self.error is None:
            return
        if error is None:
            raise self.error
        error.add_note(f"Events of the workers were lost too: {type(self.error).__name__}: {self.error}")

    def _run(self) -> None:
        timeouts = 0
        while True:
            last = self._done.wait(self._every_s)
            try:
                events = self._take()
            except TimeoutError:
                # A busy cluster answers late, but the block's end is the end of its work.
                timeouts += 1
                if not last or timeouts < LAST_TRIES:
                    continue
                self._keep(TrainingError("the cluster does not hand over the last events, and the metrics in them"))
                return
            except Exception as error:
                # The mailbox is gone. The block most likely raises why.
                self._keep(TrainingError(f"the cluster has lost events, and the metrics in them: {error}"))
                return
            for event in events:
                try:
                    self._emit(event)
                except BaseException as error:
                    self._keep(error)
            if last and not timeouts:
                return
            timeouts = 0  # that answer was to an earlier question: it may not hold the last events

    def _keep(self, error: BaseException) -> None:
        self.error = self.error or error
