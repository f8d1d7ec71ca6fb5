"""Retry policy of the clients: which outcomes are transient, how long to back off, when the deadline is reached.

Owns the policy alone; tenacity runs the loop, blocking or not. Pure: sends nothing, sleeps nowhere and knows no HTTP
library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import orjson
from tenacity import retry_if_result, wait_exponential

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from tenacity import RetryCallState

BACKOFF = wait_exponential(multiplier=0.1, max=2.0)
LEAST_ATTEMPT_S = 1.0
ATTEMPTS = 3
"""By default an attempt gets this part of the deadline, so that a request leaves a replica that hangs."""

RETRIES, PER_ANSWER = 100, 0.1
"""Tokens of a new client, each for a retry, and what an answer adds: one call alone never uses up its client's."""

_TRANSIENT = frozenset({408, 429, 502, 503, 504})
_UNSIGNED = frozenset({404, 500})
"""What HAProxy answers in a text of its own for a replica that died with the request in it, and Serve (2.60) while a
proxy that has just started knows no route yet. From a model, in our own form, both are final."""


@dataclass(frozen=True)
class Reply:
    """An HTTP response, from a model or from a proxy. The names of ``headers`` are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    @cached_property
    def data(self) -> dict[str, Any]:
        """Return the JSON object in the body; empty for anything else."""
        try:
            data = orjson.loads(self.body)
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}

    @property
    def error(self) -> dict[str, Any]:
        """Return the error in our own form, or an empty one. Below ``/v2`` its facts are beside a text."""
        error = self.data.get("error")
        facts = self.data if isinstance(error, str) else error
        return facts if isinstance(facts, dict) and "code" in facts else {}

    @property
    def retry_after_s(self) -> float | None:
        """Return the seconds of ``Retry-After``; its other form, a date, is ignored."""
        text = self.headers.get("retry-after", "").strip()
        return float(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a response; one that is ``invalid`` cannot be sent at all."""

    kind: Literal["unreachable", "disconnected", "timeout", "invalid"]
    reason: str


class Tokens:
    """The retries that one client may send: each takes a token, and ten answers bring one back.

    An endpoint that is overloaded for all of a client's calls gets a tenth more requests, and not ten times as many
    (retry throttling, gRPC proposal A6). For any number of threads: an update that is lost is a token.
    """

    def __init__(self, most: int = RETRIES) -> None:
        self._most = self._left = float(most)

    def take(self) -> bool:
        """Return whether there is a token, which is taken."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def give(self) -> None:
        """Add the part of a token that an answer brings."""
        self._left = min(self._most, self._left + PER_ANSWER)


class Budget:
    """The attempts and the time that one call may use: ``retries`` None allows as many as fit into the deadline.

    An attempt may take ``attempt_timeout_s``, by default a third of the deadline and at least a second. The request
    must be safe to send more than once.

    Pauses are drawn evenly from 0 to a bound that doubles from 0.1 to 2 s, so that clients which failed together do not
    come back together ("full jitter", M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015).
    ``Retry-After`` is added to that. A pause that would leave no time is not begun, and the last outcome counts.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        retries: int | None = None,
        attempt_timeout_s: float | None = None,
        clock: Callable[[], float],
        rng: Random,
        tokens: Tokens | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._retries = retries
        self._attempt_s = attempt_timeout_s or max(LEAST_ATTEMPT_S, timeout_s / ATTEMPTS)
        self._clock = clock
        self._rng = rng
        self._tokens = tokens or Tokens()
        self._until = clock() + timeout_s

    def attempt_s(self) -> float:
        """Return the timeout of an attempt that starts now."""
        return max(0.001, min(self._attempt_s, self._until - self._clock()))  # 0 would make a socket non-blocking

    def options(self) -> dict[str, Any]:
        """Return the options of tenacity's ``Retrying`` and ``AsyncRetrying``, which then return the last outcome."""
        return {
            "retry": retry_if_result(self._has_failed),
            "wait": self._pause_s,
            "stop": self._is_spent,
            "retry_error_callback": _outcome,
        }

    def _has_failed(self, outcome: Reply | Failure) -> bool:
        failed = is_transient(outcome)
        if not failed:
            self._tokens.give()
        return failed

    def _pause_s(self, state: RetryCallState) -> float:
        outcome = _outcome(state)
        requested_s = outcome.retry_after_s if isinstance(outcome, Reply) else None
        return (requested_s or 0.0) + self._rng.uniform(0.0, BACKOFF(state))

    def _is_spent(self, state: RetryCallState) -> bool:
        if self._retries is not None and state.attempt_number > self._retries:
            return True
        return self._clock() + state.upcoming_sleep >= self._until or not self._tokens.take()


def is_transient(outcome: Reply | Failure) -> bool:
    """Return whether another attempt may succeed."""
    if isinstance(outcome, Failure):
        return outcome.kind != "invalid"
    return outcome.status in _TRANSIENT or (outcome.status in _UNSIGNED and not outcome.error)


def _outcome(state: RetryCallState) -> Reply | Failure:
    assert state.outcome is not None
    outcome: Reply | Failure = state.outcome.result()
    return outcome
