"""Places for the requests that one replica of the index forwards: a few of each model's own, the others shared.

Owns the rule by which no model can block another. Pure. The models that have requests in flight share what is shared
evenly, with one share left for the next one; an idle model's share is not kept from those that are busy.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_FLIGHT = 80
"""Shared places."""
OWN_PLACES = 4
"""Places of each model that no other takes, whatever hangs."""


class Places:
    """The requests in flight, by model. For one event loop."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, model: str) -> Iterator[None]:
        """Hold a place for a request to a model.

        Raises:
            Refusal: 503, it has none left.
        """
        held, others = self.taken[model], len(self.taken.keys() - {model})
        shared = sum(max(0, count - OWN_PLACES) for count in self.taken.values())
        if held >= OWN_PLACES and (shared >= IN_FLIGHT or held - OWN_PLACES >= IN_FLIGHT // (others + 2)):
            busy = f"{held} requests to {model} are in flight by this route; try again, or use /models/{model}"
            raise Refusal(503, "overloaded", busy, retry_after_s=1.0)
        self.taken[model] += 1
        try:
            yield
        finally:
            self.taken[model] -= 1
            if not self.taken[model]:
                del self.taken[model]
