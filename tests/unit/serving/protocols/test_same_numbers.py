"""One model, every protocol: the same numbers to the last bit; and whatever bytes come, a refusal or an answer."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pandas as pd
import pytest
from protocol_fakes import PROTOCOLS, RESPONDER, ROWS, SIGNATURE, answer, binary_body, message, predict, tensors

from raymlops.bundle.pyfunc import PyfuncModel
from raymlops.serving.protocols.binary import HEADER
from raymlops.serving.protocols.grpc_messages import response_class
from raymlops.serving.refusal import Refusal

REQUESTS = {
    "native": ("native", json.dumps({"rows": ROWS}).encode(), {}),
    "oip": ("oip", json.dumps({"inputs": tensors()}).encode(), {}),
    "oip binary": ("oip", *binary_body()),
    "mlflow": ("mlflow", json.dumps({"dataframe_records": ROWS}).encode(), {}),
    "mlflow csv": ("mlflow", b"x,n\n1,2\n", {b"content-type": b"text/csv"}),
    "grpc raw": ("grpc", message().SerializeToString(), {}),
    "grpc typed": ("grpc", message(raw=False).SerializeToString(), {}),
}


class Loaded:
    """What the pyfunc model needs of a bundle."""

    signature = SIGNATURE

    def predict(self, columns):
        return predict(columns)


def outputs_of(kind, encoded) -> dict[str, list]:
    """Return an answer's flat values by output, with None for what is missing."""
    if kind in {"native", "mlflow"}:
        rows = json.loads(encoded.body)[{"native": "outputs", "mlflow": "predictions"}[kind]]
        return {name: np.array([row[name] for row in rows], dtype=object).reshape(-1).tolist() for name in rows[0]}
    if kind == "oip":
        return {tensor["name"]: tensor["data"] for tensor in json.loads(encoded.body)["outputs"]}
    types = {"FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_}
    if kind == "oip binary":
        length = int(dict(encoded.headers)[HEADER])
        items = json.loads(encoded.body[:length])["outputs"]
        found = [(item["name"], item["datatype"]) for item in items]
        ends = np.cumsum([length, *(item["parameters"]["binary_data_size"] for item in items)]).tolist()
        raw = [encoded.body[start:end] for start, end in itertools.pairwise(ends)]
    else:
        response = response_class("ModelInfer").FromString(encoded.body)
        found = [(tensor.name, tensor.datatype) for tensor in response.outputs]
        raw = list(response.raw_output_contents)
        if not raw:
            return {t.name: _typed(t) for t in response.outputs}
    return {
        name: _texts(part) if datatype == "BYTES" else _plain(np.frombuffer(part, dtype=types[datatype]))
        for (name, datatype), part in zip(found, raw, strict=True)
    }


def _typed(tensor) -> list:
    ((_, values),) = tensor.contents.ListFields()
    return [value.decode() for value in values] if tensor.datatype == "BYTES" else _plain(np.array(values))


def _plain(array) -> list:
    return [None if value != value else value for value in array.tolist()]  # noqa: PLR0124


def _texts(raw) -> list[str]:
    texts = []
    while raw:
        size = 4 + int.from_bytes(raw[:4], "little")
        texts.append(raw[4:size].decode())
        raw = raw[size:]
    return texts


@pytest.mark.parametrize("kind", ["oip", "oip binary", "mlflow", "grpc raw", "grpc typed"])
def test_every_protocol_gives_the_numbers_of_the_native_one(kind):
    """Bit for bit, with what is missing in the same places."""
    native = outputs_of("native", answer(PROTOCOLS["native"], *REQUESTS["native"][1:]))
    name, body, headers = REQUESTS[kind]
    assert outputs_of(kind, answer(PROTOCOLS[name], body, headers)) == native
    assert None in native["maybe"]


def test_they_are_the_numbers_of_mlflow_pyfunc():
    """Which reads a DataFrame of the same rows."""
    frame = PyfuncModel(Loaded()).predict(pd.DataFrame(ROWS))
    native = json.loads(answer(PROTOCOLS["native"], REQUESTS["native"][1]).body)["outputs"]
    assert frame["y"].tolist() == [row["y"] for row in native]
    assert frame["count"].tolist() == [row["count"] for row in native]
    assert [list(both) for both in frame["both"]] == [row["both"] for row in native]
    assert str(frame["open"].tolist()) == str([row["open"] for row in native]) == "[False, True, True, None]"


@pytest.mark.parametrize("kind", list(REQUESTS))
def test_damaged_requests_are_answered_or_refused(kind):
    """Bytes changed, cut, doubled or inserted at random: never anything but an answer or a Refusal of 4xx."""
    rng = random.Random(f"damage {kind}")
    name, body, headers = REQUESTS[kind]
    protocol = PROTOCOLS[name]
    refusals = []
    for _ in range(400):
        damaged = bytearray(body)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = rng.randrange(len(damaged)) if damaged else 0
            match rng.randrange(4):
                case 0:
                    damaged[place : place + 1] = rng.randbytes(1)
                case 1:
                    del damaged[place : place + rng.choice((1, 8, 1000))]
                case 2:
                    damaged[place:place] = damaged[place : place + rng.choice((1, 9, 40))]
                case _:
                    damaged[place:place] = rng.choice(
                        (b"null", b"-", b"[", b"1e999", b"NaN", b'""', b"9" * 30, b"\x00")
                    )
        try:
            asked = protocol.parse(bytes(damaged), headers, signature=SIGNATURE, max_rows=100)
            protocol.encode(predict(asked.columns), asked, RESPONDER, signature=SIGNATURE)
        except Refusal as refusal:
            refusals.append(refusal)
    assert len(refusals) > 100
    assert all(400 <= refusal.status < 500 and len(refusal.message) < 1000 for refusal in refusals)
