"""The peer of ``serve_latency``: the same weights behind FastAPI on Ray Serve, written as its documentation advises."""

from typing import Literal

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

app = FastAPI()


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float
    g: float | None = None
    colour: Literal["red", "green", "blue"]


class Body(BaseModel):
    rows: list[Row] = Field(min_length=1, max_length=5000)


class Output(BaseModel):
    y: float


class Answer(BaseModel):
    outputs: list[Output]
    model_version: str


@serve.deployment
@serve.ingress(app)
class Peer:
    def __init__(self, args: dict) -> None:
        from raymlops.bundle.load import load

        torch.set_num_threads(1)
        self.model = load(args["uri"], args["digest"], exclusive=True).model
        self.colours = {"red": 1, "green": 2, "blue": 3}

    @app.post("/predict")
    async def predict(self, body: Body) -> Answer:
        numbers = torch.tensor([[r.a, r.b, r.c, r.d, r.e, r.f, 0.0 if r.g is None else r.g] for r in body.rows])
        colour = torch.tensor([self.colours[r.colour] for r in body.rows])
        with torch.inference_mode():
            values = self.model(numbers, colour).tolist()
        return Answer(outputs=[Output(y=value) for value in values], model_version="1")
