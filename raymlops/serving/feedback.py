"""Labels that come later: ``POST feedback`` read, and answered once they are durable.

Owns the body of the request and of its answer. What a label is, and where it is kept, is the prediction log's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from raymlops.errors import StorageError
from raymlops.predictions.labels import parse_feedback
from raymlops.serving.protocols.jsonbody import read_json
from raymlops.serving.reading import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from raymlops.predictions.labels import Label
    from raymlops.serving.exchange import Exchange
    from raymlops.serving.parsing import Parsing


class Labels(Protocol):
    """Where labels are kept."""

    def add(self, labels: Sequence[Label], *, key_id: str | None = None) -> Future[None]:
        """Keep labels; the future is done once a kill would not lose them."""


async def accept(body: bytes, labels: Labels | None, exchange: Exchange, *, parsing: Parsing) -> dict[str, Any]:
    """Return the answer to a request with labels, which are durable by then. They are read beside the event loop.

    Raises:
        Refusal: they cannot be read, or none are kept here.
    """
    exchange.body_bytes = len(body)
    try:
        exchange.rows, kept = await parsing.run(_kept, body, labels, exchange.key_id)
        await asyncio.wrap_future(kept)
    except StorageError as error:
        raise Refusal(
            503, "storage_unavailable", f"the labels were not kept: {error.message}", retry_after_s=5
        ) from error
    return {"accepted": exchange.rows, "request_id": exchange.request_id}


def _kept(body: bytes, labels: Labels | None, key_id: str | None) -> tuple[int, Future[None]]:
    found = parse_feedback(read_json(body, keys=_keys, expected='{"labels": [{...}]}'))
    if labels is None:
        raise Refusal(409, "no_log", "this endpoint keeps no prediction log, so that labels would have no place")
    return len(found), labels.add(found, key_id=key_id)


def _keys(data: Any) -> int:
    """Return how many keys were read, by which ``read_json`` sees one that was given twice."""
    labels = data.get("labels") if isinstance(data, dict) else None
    inner = sum(len(label) for label in labels if isinstance(label, dict)) if isinstance(labels, list) else 0
    return inner + (len(data) if isinstance(data, dict) else 0)
