"""The interface of an inference protocol: requests are parsed into columns, answers encoded from columns.

Knows nothing of a particular protocol, nor of HTTP, Serve or models.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Columns
    from raymlops.signature import Signature

JSON = b"application/json"
BINARY = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class Parsed:
    """One parsed request: ``rows`` rows of input columns."""

    columns: Columns
    rows: int
    request_id: str | None = None
    """The id in the protocol's own field, if a header can carry it; the header ``x-request-id`` takes precedence."""
    options: Any = None
    """What ``encode`` of the same protocol needs of the request."""
    version: str | None = None
    """The version that the request names, where the protocol has a field for it."""


@dataclass(frozen=True, slots=True)
class Responder:
    """The model version that answers, and the id of the request."""

    name: str
    version: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """The body of an answer with its content type and headers."""

    body: bytes
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Protocol(typing.Protocol):
    """One inference protocol. ``headers`` have lower-case names."""

    name: str

    def parse(self, body: bytes, headers: Mapping[bytes, bytes], *, signature: Signature, max_rows: int) -> Parsed:
        """Parse a request.

        Raises:
            Refusal: 4xx; nothing else is ever raised for a client's request.
        """

    def encode(self, outputs: Columns, parsed: Parsed, responder: Responder, *, signature: Signature) -> Encoded:
        """Encode an answer.

        Raises:
            Refusal: the protocol cannot represent these outputs.
        """
