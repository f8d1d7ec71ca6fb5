"""Which live version answers a request: the champion, a canary, or the one that the caller pins.

Owns the order of these, what a pin may name, and the fallback to the champion for a canary that does not answer. The
shares are ``traffic``'s. Knows nothing of bodies, protocols, queues or Ray.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.errors import InvalidRowsError
from raymlops.serving.refusal import Refusal
from raymlops.serving.request import PIN_HEADER
from raymlops.serving.traffic import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.arrays import Columns
    from raymlops.predictions.served import Route
    from raymlops.serving.auth import Caller
    from raymlops.serving.protocols.base import Parsed
    from raymlops.serving.request import Exchange
    from raymlops.serving.traffic import Traffic

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log


class Peers(Protocol):
    """The other live versions of the same model."""

    async def ask(self, version: int, columns: Columns, *, rows: int) -> tuple[Columns, float]:
        """Return another version's output columns, and the seconds that its model took.

        Raises:
            Exception: what that version raised, or that it cannot be reached.
        """

    async def metadata(self, version: int, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
        """Return another version's metadata in the Open Inference Protocol, for the caller with these headers.

        Raises:
            Exception: as ``ask``.
        """


@dataclass(slots=True)
class Routing:
    """Choose the version that answers, by the traffic that is configured now."""

    version: int
    """This replica's own, which is the champion where it gets requests of callers."""
    traffic: Traffic
    draw: Callable[[], float]

    @property
    def up(self) -> list[int]:
        """Return the live versions: this one and its peers."""
        return sorted({self.version, *self.traffic.standing})

    def choose(self, exchange: Exchange, caller: Caller) -> tuple[int, Route]:
        """Return the version that shall answer, and why.

        A version that the caller names is pinned, also when it is this one: such a request counts for no share.

        Raises:
            Refusal: as ``pinned``.
        """
        traffic = self.traffic
        exchange.epoch = traffic.epoch
        pin = self.pinned(exchange, caller)
        if pin is not None:
            exchange.route = "pinned"
            return pin, "pinned"
        if traffic.canaries:
            canary = choose(traffic, sticky=_sticky(traffic, exchange), draw=self.draw())
            if canary is not None:
                return canary, "canary"
        return self.version, "champion"

    def pinned(self, exchange: Exchange, caller: Caller) -> int | None:
        """Return the version that the caller named; naming the champion in the protocol's own field needs no scope.

        Raises:
            Refusal: 403 without the scope ``pin``, 400 for several versions, 404 for a version that is not up.
        """
        header = exchange.headers.get(PIN_HEADER)
        text = exchange.named if header is None else header.decode("latin-1").strip(" \t")
        if text is None:
            return None
        if header is not None or text != str(self.version):
            caller.require("pin")
        if header is not None and "," in text:
            wanted = [item.strip(" \t") for item in text.split(",")]
            if len(set(wanted)) > 1:
                message = f"the header {PIN_HEADER.decode()} names several versions: {text[:80]!r}; name one"
                raise Refusal(400, "several_versions", message)
            text = wanted[0]
        return self.named(text)

    def named(self, text: str | None) -> int:
        """Return the number of a live version; this one for None.

        Raises:
            Refusal: 404, it is not up, or the text is not a number.
        """
        if text is None:
            return self.version
        up = self.up
        version = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
        if version is None or version not in up:
            known = ", ".join(map(str, up))
            raise Refusal(404, "unknown_version", f"version {text[:40]!r} is not up; live versions: {known}")
        return version


async def ask_canary(
    peers: Peers, exchange: Exchange, parsed: Parsed, *, version: int, limit_s: float
) -> Columns | None:
    """Return a canary's outputs; None for a fallback to the champion, which counts against the canary.

    Raises:
        InvalidRowsError: the canary's recipe refuses the rows, which is an answer.
    """
    try:
        async with asyncio.timeout(limit_s):
            outputs, exchange.model_seconds = await peers.ask(version, parsed.columns, rows=parsed.rows)
    except asyncio.CancelledError:
        # The client left, or the deadline passed, while the canary was busy: it was too late for this request.
        exchange.fallback_from, exchange.fallback_code = version, "late"
        raise
    except InvalidRowsError:
        exchange.version, exchange.route = version, "canary"
        raise
    except Exception as error:
        logger.warning("request %s: canary %d: %r", exchange.request_id, version, error)
        exchange.fallback_from, exchange.fallback_code = version, _code_of(error)
        return None
    exchange.version, exchange.route = version, "canary"
    return outputs


def _sticky(traffic: Traffic, exchange: Exchange) -> str | None:
    if traffic.sticky == "key":
        return exchange.key_id
    if traffic.sticky == "header":
        value = exchange.headers.get(traffic.sticky_header.encode())
        return None if value is None else value.decode("latin-1")
    return None


def _code_of(error: Exception) -> str:
    """Return why a canary did not answer; a model's own timeout counts as late, as a champion's is a 504."""
    if isinstance(error, Refusal):
        return error.code
    return "late" if isinstance(error, TimeoutError) else "error"
