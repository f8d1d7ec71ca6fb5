"""Two peers of ``serve_latency`` on one uvicorn worker: FastAPI with a pydantic body, and the least that can be done.

The second parses JSON, runs the model and writes JSON, without a router, a check or an error: no Python server with
this model is faster. ``SERVE_LATENCY_WEIGHTS`` names the weights.
"""

import os

import orjson
import serve_latency_net as net
from fastapi import FastAPI
from serve_latency_body import Answer, Body, answer_of, plain

model = net.load(os.environ["SERVE_LATENCY_WEIGHTS"])
api = FastAPI()


@api.post("/predict")
async def predict(body: Body) -> Answer:
    return answer_of(net.answer(model, plain(body.rows)))


async def raw(scope, receive, send) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    values = net.answer(model, orjson.loads(body)["rows"])
    answer = orjson.dumps({"outputs": [{"y": value} for value in values], "model_version": "1"})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
