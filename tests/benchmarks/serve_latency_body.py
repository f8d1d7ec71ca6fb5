"""What a peer of ``serve_latency`` takes and gives, as pydantic models: as strict as raymlops' own reading."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


def answer_of(values: list[float]) -> Answer:
    return Answer(outputs=[Output(y=value) for value in values], model_version="1")


def plain(rows: list[Row]) -> list[dict]:
    return [row.__dict__ for row in rows]
