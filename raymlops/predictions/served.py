"""An answered request: the one value from which metrics, access log, traces and prediction log are made.

It is created on the request path, once a request, and holds references: conversion to text or Arrow happens in other
threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from raymlops.arrays import Columns

Route = Literal["champion", "canary", "shadow", "pinned"]


class RequestRecord(NamedTuple):
    """One request and its answer. Refused ones have no ``columns``, failed ones no ``outputs``."""

    request_id: str
    ts: float
    """When it arrived, in seconds since 1970."""
    version: int
    """The version that answered or failed."""
    route: Route
    protocol: str
    """``native``, ``oip``, ``mlflow``, ``grpc``."""
    status: int
    """HTTP status, also for gRPC."""
    code: str
    """Why it was refused; ``""`` where it was answered."""
    rows: int
    body_bytes: int
    seconds: float
    """From arrival in the replica to the answer."""
    model_seconds: float
    """Waiting for the model and running it; 0 where it was not reached."""
    key_id: str | None = None
    caller: str | None = None
    """Who asked, by the name of the key, which stays when the key is rotated."""
    client: str | None = None
    """The addresses of ``x-forwarded-for``: the last is the caller's as the proxy saw it."""
    fallback_from: int | None = None
    """The canary that failed or timed out, where the champion answered instead."""
    columns: Columns | None = None
    outputs: Columns | None = None
    difference: float | None = None
    """Of a shadow: the largest absolute difference of a number to the champion's answer; infinite for other texts."""
    traceparent: str | None = None
    """The caller's W3C trace context."""
    fallback_code: str | None = None
    """Why the champion answered for the canary: ``late``, the code with which it refused, else ``error``."""
    epoch: str = ""
    """Of the traffic, when the request was assigned; empty where it was not."""
    weight: float = 1.0
    """For how many requests it stands in the prediction log, of which a sample may be written."""
