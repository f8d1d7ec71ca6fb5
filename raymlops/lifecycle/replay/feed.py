"""Send requests with chosen times to an endpoint, and their labels when they are due, by the clock of the replay.

Owns the clock: it stands still while a request is answered, and is set to the time of the next one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta
    from pathlib import Path

    from raymlops.lifecycle.replay.flights_asked import Request
    from raymlops.serving.client.client import Client

_AT_ONCE = 2000
"""Labels of one message."""


class Feed:
    """Everything that a model's callers send."""

    def __init__(self, client: Client, name: str, *, clock_file: Path, label_lag: timedelta) -> None:
        self._client = client
        self._name = name
        self._clock = clock_file
        self._lag = label_lag
        self._due: deque[tuple[datetime, str, list[int]]] = deque()
        self.labels = 0
        """Sent so far."""

    def until(self, moment: datetime) -> None:
        """Let time pass until a moment, with the labels that are due by then."""
        clock.set_replay(self._clock, moment)
        batch: list[dict[str, Any]] = []
        while self._due and self._due[0][0] <= moment:
            _, request_id, labels = self._due.popleft()
            batch += [{"request_id": request_id, "row": row, "label": label} for row, label in enumerate(labels)]
        for start in range(0, len(batch), _AT_ONCE):
            self._client.feedback(self._name, batch[start : start + _AT_ONCE])
        self.labels += len(batch)

    def send(self, request: Request, *, score: Callable[[dict[str, Any]], float]) -> tuple[str, list[float]]:
        """Send a request at its time; return the version that answered, and what ``score`` makes of each output."""
        clock.set_replay(self._clock, request.at)
        answer = self._client.predict(self._name, request.rows)
        self._due.append((request.at + self._lag, answer.request_id, request.labels))
        return answer.model_version, [score(output) for output in answer.outputs]
