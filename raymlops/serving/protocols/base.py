"""What every protocol turns a request into, and an answer from: columns, and what goes with them.

Owns the shape of a protocol. Knows nothing of any one of them, nor of HTTP, Serve or models.
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
class Asked:
    """One request, read: ``rows`` rows of input columns."""

    columns: Columns
    rows: int
    request_id: str | None = None
    """The protocol's own id, where it gave one that can stand in a header; the header ``x-request-id`` wins over it."""
    options: Any = None
    """What ``encode`` of the same protocol needs to know of the request."""
    version: str | None = None
    """The version that the request itself names, where the protocol has a place for it."""


@dataclass(frozen=True, slots=True)
class Answering:
    """Who answers."""

    name: str
    version: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """The body of an answer with its type, and the headers that belong to it."""

    body: bytes
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Protocol(typing.Protocol):
    """One way to ask a model. ``headers`` have lower-case names."""

    name: str

    def parse(self, body: bytes, headers: Mapping[bytes, bytes], *, signature: Signature, max_rows: int) -> Asked:
        """Return what was asked.

        Raises:
            Refusal: 4xx; nothing else is ever raised for what a client sent.
        """

    def encode(self, outputs: Columns, asked: Asked, answering: Answering, *, signature: Signature) -> Encoded:
        """Return the answer.

        Raises:
            Refusal: these outputs have no form in this protocol.
        """


def usable_id(text: str) -> str | None:
    """Return an id of 1 to 128 printable ASCII characters, None for others: they could split a header or a log line."""
    return text if 0 < len(text) <= 128 and text.isascii() and text.isprintable() else None
