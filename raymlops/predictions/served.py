"""One request as it was answered: the value that metrics, access log, traces and prediction log are all made from.

Owns its fields. It is made on the request path, once a request, and holds references: whoever turns it into text or
Arrow does so in another thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from raymlops.arrays import Columns

Route = Literal["champion", "canary", "shadow", "pinned"]


class Served(NamedTuple):
    """One request and its answer. Refused ones have no ``columns``, failed ones no ``outputs``."""

    request_id: str
    ts: float
    """When it arrived, in seconds since 1970."""
    version: int
    """The version that answered, or that failed to."""
    route: Route
    protocol: str
    """``native``, ``oip``, ``mlflow``, ``grpc``."""
    status: int
    """HTTP status; gRPC answers have the one that fits."""
    code: str
    """Why it was refused, ``""`` where it was answered."""
    rows: int
    body_bytes: int
    seconds: float
    """From its arrival in the replica to its answer."""
    model_seconds: float
    """In the model: waiting for it and running, 0 where it was not reached."""
    key_id: str | None = None
    fallback_from: int | None = None
    """The canary that erred or was late, where the champion answered in its place."""
    columns: Columns | None = None
    outputs: Columns | None = None
    difference: float | None = None
    """Of a shadow: the largest absolute difference of a number to the champion's answer; infinite for other texts."""
    traceparent: str | None = None
    """The caller's W3C trace context."""
    fallback_code: str | None = None
    """Why the champion stood in for the canary: ``late``, the code with which it refused, else ``error``."""
    epoch: str = ""
    """Of the traffic, when the request was shared out; empty where it never came that far."""
