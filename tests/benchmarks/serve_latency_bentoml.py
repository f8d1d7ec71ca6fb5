"""A peer of ``serve_latency``: the same weights behind BentoML; served by ``bentoml serve`` in its own environment.

``SERVE_LATENCY_WEIGHTS`` names the weights.
"""

import os

import bentoml
import serve_latency_net as net
from serve_latency_body import Output, Row, plain


@bentoml.service(
    workers=1,
    traffic={"timeout": 30, "max_concurrency": 128},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Bench:
    def __init__(self) -> None:
        self.net = net.load(os.environ["SERVE_LATENCY_WEIGHTS"])

    @bentoml.api
    async def predict(self, rows: list[Row]) -> list[Output]:
        return [Output(y=value) for value in net.answer(self.net, plain(rows))]
