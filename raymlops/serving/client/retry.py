"""When to ask an endpoint again: the deadline over all attempts, which answers pass by themselves, how long to wait.

Pure: it sends nothing, sleeps nowhere and knows no HTTP library. A client drives it, blocking or not, and tells it what
came of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import orjson

if TYPE_CHECKING:
    from random import Random

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
LEAST_ATTEMPT_S = 1.0
ATTEMPTS = 3
"""An attempt has this part of the deadline, so that a replica that hangs is left while there is time for others."""

_PASSING = frozenset({408, 429, 502, 503, 504})
_UNSIGNED = frozenset({404, 500})
"""What HAProxy answers in a text of its own for a replica that died with the request in it, and Serve (2.60) while a
proxy that has just started knows no route yet. From a model, in our own form, both are final."""


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP, whoever gave it. The names of ``headers`` are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    @cached_property
    def data(self) -> dict[str, Any]:
        """Return the JSON object that the body holds; empty for anything else."""
        try:
            data = orjson.loads(self.body)
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}

    @property
    def error(self) -> dict[str, Any]:
        """Return the error in our own form; empty where there is none. Below ``/v2`` its facts are beside a text."""
        error = self.data.get("error")
        facts = self.data if isinstance(error, str) else error
        return facts if isinstance(facts, dict) and "code" in facts else {}

    @property
    def retry_after_s(self) -> float | None:
        """Return the seconds that the answer asks to wait; a date, the header's other form, is passed over."""
        text = self.headers.get("retry-after", "").strip()
        return float(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer: nobody listens, the connection broke, it took too long, or it could not be sent as it was."""

    kind: Literal["refused", "broken", "late", "unsent"]
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request now; what is not answered within ``timeout_s`` is a failure of kind ``late``."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next attempt."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The last attempt's outcome, and how many there were."""

    outcome: Reply | Failure
    attempts: int


@dataclass(frozen=True, slots=True)
class Policy:
    """How often a request is repeated: ``retries`` times, None for as often as the deadline lets it.

    ``attempt_timeout_s`` is for one attempt, None for a third of the deadline and at least a second.
    """

    retries: int | None = None
    attempt_timeout_s: float | None = None

    def attempt_s(self, timeout_s: float) -> float:
        """Return how long one attempt of a request with this deadline may take."""
        if self.attempt_timeout_s is not None:
            return self.attempt_timeout_s
        return max(LEAST_ATTEMPT_S, timeout_s / ATTEMPTS)


Steps = Generator[Send | Pause, Reply | Failure | None, Ended]


def attempts(policy: Policy, *, timeout_s: float, clock: Callable[[], float], rng: Random) -> Steps:
    """Yield what to do next, take what came of a ``Send``, and return the outcome that counts.

    ``timeout_s`` bounds everything, pauses included: a pause that would leave no time is not begun, and the outcome
    before it counts. The request must be one that may safely arrive more than once.

    Pauses are drawn evenly from 0 to a bound that doubles from 0.1 to 2 s, so that clients which failed together do not
    come back together ("full jitter", M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015). What
    ``Retry-After`` asks for is added to that.
    """
    until = clock() + timeout_s
    number = 0
    while True:
        left = until - clock()
        outcome = yield Send(min(left, policy.attempt_s(timeout_s)))
        assert outcome is not None
        number += 1
        spent = policy.retries is not None and number > policy.retries
        if spent or not passes(outcome):
            return Ended(outcome, number)
        asked = outcome.retry_after_s if isinstance(outcome, Reply) else None
        bound = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(number - 1, 10))
        pause = (asked or 0.0) + rng.uniform(0.0, bound)
        if clock() + pause >= until:
            return Ended(outcome, number)
        yield Pause(pause)


def passes(outcome: Reply | Failure) -> bool:
    """Return whether another attempt may fare better."""
    if isinstance(outcome, Failure):
        return outcome.kind != "unsent"
    return outcome.status in _PASSING or (outcome.status in _UNSIGNED and not outcome.error)
