"""A model and ways to ask a front that need neither Serve nor a bundle."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np

from raymlops.serving.front import Front, Identity
from raymlops.signature import Column, Signature

PREFIX = "/models/flights"
SIGNATURE = Signature(
    inputs=(
        Column("distance", "float", description="miles"),
        Column("wind", "float", nullable=True),
        Column("origin", "string", categories=("EWR", "JFK"), unknown="reject"),
    ),
    outputs=(Column("late", "float"),),
)
ROW = {"distance": 2.0, "wind": None, "origin": "JFK"}


class FakeModel:
    """Answers the distance doubled, raises at 666, and remembers how many rows each call had."""

    signature = SIGNATURE
    example = [ROW]  # noqa: RUF012

    def __init__(self) -> None:
        self.calls: list[int] = []

    def predict(self, columns):
        distance = columns["distance"]
        self.calls.append(len(distance))
        if 666.0 in distance:
            msg = "the devil is in the data"
            raise ArithmeticError(msg)
        return {"late": np.where(distance == 0, np.nan, distance * 2)}


def make_front(limits=None) -> Front:
    front = Front(FakeModel(), identity=Identity("flights", 7, "d" * 64, "run-7"), limits=limits)
    front.warm_up()
    return front


def ask(front, method: str, path: str = "", **request) -> httpx.Response:
    """Send one request under the route prefix, as Serve would."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(front, root_path=PREFIX)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, PREFIX + path, **request)

    return asyncio.run(send())


def predict(front, content, **headers) -> httpx.Response:
    if isinstance(content, list):
        return ask(front, "POST", "/predict", json={"rows": content}, headers=headers)
    return ask(front, "POST", "/predict", content=content, headers=headers)
