"""A peer of ``serve_latency``: the same weights behind FastAPI on Ray Serve, written as its documentation advises."""

import serve_latency_net as net
from fastapi import FastAPI
from ray import serve
from serve_latency_body import Answer, Body, answer_of, plain

app = FastAPI()


@serve.deployment
@serve.ingress(app)
class Peer:
    def __init__(self, weights: str) -> None:
        self.net = net.load(weights)

    @app.post("/predict")
    async def predict(self, body: Body) -> Answer:
        return answer_of(net.answer(self.net, plain(body.rows)))
