"""Bytes, times and images through every protocol, front and document: the same columns in, the same values out."""

from __future__ import annotations

import base64
import io
import json
import random
from datetime import datetime

import numpy as np
import orjson
import pandas as pd
import pytest
from mlflow.types import DataType
from PIL import Image
from protocol_fakes import PROTOCOLS, RESPONDER
from serving_fakes import Computes, ask, front_of

from raymlops.arrays import Column
from raymlops.bundle.pyfunc import PyfuncModel, _mlflow_signature
from raymlops.errors import InvalidRowsError
from raymlops.images import count_images, png_files
from raymlops.serving.client.calls import predict_call
from raymlops.serving.docs.openapi import openapi_document
from raymlops.serving.docs.page import docs_page
from raymlops.serving.protocols.binary import HEADER
from raymlops.serving.protocols.grpc_messages import request_class, response_class
from raymlops.serving.protocols.oip import metadata
from raymlops.serving.refusal import Refusal
from raymlops.signature import Signature

COLUMNS = (
    Column("blob", "bytes", nullable=True),
    Column("at", "datetime", nullable=True),
    Column("photo", "image", shape=(2, 2, 1)),
)
SIGNATURE = Signature(inputs=COLUMNS, outputs=COLUMNS)
PIXELS = np.array([[[0], [50]], [[100], [255]]], dtype=np.uint8)
PNG = png_files([PIXELS, PIXELS + 1])
ROWS = [
    {"blob": "AAE=", "at": "2026-11-27T08:30:00.000000Z", "photo": base64.b64encode(PNG[0]).decode()},
    {"blob": None, "at": None, "photo": base64.b64encode(PNG[1]).decode()},
]
RAW = {"blob": [b"\x00\x01", b""], "at": [b"2026-11-27T10:30:00+02:00", b"1970-01-01T00:00:00Z"], "photo": PNG}
"""As elements of BYTES tensors, which have no null."""


class Echo(Computes):
    """A model that answers what it is asked."""

    signature = SIGNATURE
    example = ROWS

    def predict(self, columns):
        return dict(columns)


def exchange(protocol, body, headers=None):
    """Return the columns of a request, and the answer that repeats them."""
    asked = PROTOCOLS[protocol].parse(body, headers or {}, signature=SIGNATURE, max_rows=10)
    return asked.columns, PROTOCOLS[protocol].encode(asked.columns, asked, RESPONDER, signature=SIGNATURE)


def check(columns, *, missing):
    assert columns["blob"].tolist() == [b"\x00\x01", None if missing else b""]
    assert columns["at"].dtype == np.dtype("datetime64[us]")
    assert columns["at"][0] == np.datetime64("2026-11-27T08:30:00")
    assert np.isnat(columns["at"][1]) == missing
    assert np.array_equal(columns["photo"], [PIXELS, PIXELS + 1])


@pytest.mark.parametrize(
    ("protocol", "form", "answered"),
    [
        ("native", "rows", "outputs"),
        ("mlflow", "dataframe_records", "predictions"),
        ("mlflow", "instances", "predictions"),
    ],
)
def test_rows_come_back_as_they_were_sent(protocol, form, answered):
    """Base64, ISO 8601 in UTC, and a PNG of the same pixels."""
    columns, encoded = exchange(protocol, json.dumps({form: ROWS}).encode())
    check(columns, missing=True)
    assert json.loads(encoded.body)[answered] == ROWS


def test_csv_holds_them_too():
    """Each is one text."""
    text = "blob,at,photo\n" + "".join(f"{r['blob'] or ''},{r['at'] or ''},{r['photo']}\n" for r in ROWS)
    columns, _ = exchange("mlflow", text.encode(), {b"content-type": b"text/csv"})
    check(columns, missing=True)


def test_json_tensors_hold_the_texts_of_rows():
    """One element a row, an image included; nulls too."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [2], "data": [row[name] for row in ROWS]} for name in ROWS[0]
    ]
    columns, encoded = exchange("oip", json.dumps({"inputs": inputs}).encode())
    check(columns, missing=True)
    outputs = json.loads(encoded.body)["outputs"]
    assert [(tensor["datatype"], tensor["shape"]) for tensor in outputs] == [("BYTES", [2])] * 3
    assert [tensor["data"] for tensor in outputs] == [[row[name] for row in ROWS] for name in ROWS[0]]
    assert metadata(SIGNATURE, "m", ["1"])["inputs"] == [
        {"name": name, "datatype": "BYTES", "shape": [-1]} for name in ROWS[0]
    ]


def raw(elements):
    return b"".join(len(item).to_bytes(4, "little") + item for item in elements)


def test_binary_tensors_hold_the_bytes_themselves():
    """Without base64, in both directions."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw(elements))}}
        for name, elements in RAW.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(map(raw, RAW.values()))
    columns, encoded = exchange("oip", body, {HEADER: str(len(head)).encode()})
    check(columns, missing=False)
    length = int(dict(encoded.headers)[HEADER])
    times = raw([b"2026-11-27T08:30:00.000000Z", b"1970-01-01T00:00:00.000000Z"])
    assert encoded.body[length:] == raw(RAW["blob"]) + times + raw(PNG)


@pytest.mark.parametrize("typed", [True, False])
def test_grpc_holds_the_bytes_themselves(typed):
    """As typed and as raw contents."""
    request = request_class("ModelInfer")(model_name="m")
    for name, elements in RAW.items():
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[2])
        if typed:
            tensor.contents.bytes_contents.extend(elements)
        else:
            request.raw_input_contents.append(raw(elements))
    columns, encoded = exchange("grpc", request.SerializeToString())
    check(columns, missing=False)
    response = response_class("ModelInfer").FromString(encoded.body)
    if typed:
        assert list(response.outputs[2].contents.bytes_contents) == PNG
    else:
        assert list(response.raw_output_contents)[2] == raw(PNG)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"blob": "A"}, "blob"), ({"at": "2026-11-27T08:30:00"}, "at"), ({"photo": "AAE="}, "photo")],
)
def test_what_does_not_fit_is_a_4xx_of_row_and_field(change, field):
    """In every protocol; no 5xx."""
    rows = [ROWS[0], ROWS[0] | change]
    inputs = [{"name": n, "datatype": "BYTES", "shape": [2], "data": [row[n] for row in rows]} for n in ROWS[0]]
    for protocol, body in (("native", {"rows": rows}), ("mlflow", {"instances": rows}), ("oip", {"inputs": inputs})):
        with pytest.raises(Refusal) as caught:
            exchange(protocol, json.dumps(body).encode())
        assert caught.value.status == 422
        assert [(problem.row, problem.field) for problem in caught.value.problems] == [(1, field)]


def test_a_front_answers_and_parses_images_beside_its_event_loop():
    """However small the body: decoding takes milliseconds."""
    front = front_of(Echo(), name="echo")
    front.warm_up()
    ran, pool = [], front.handler.parsing

    def noted(do):
        return lambda function, *given, **named: ran.append(function) or do(function, *given, **named)

    pool.hold, pool.finish = noted(pool.hold), noted(pool.finish)
    response = ask(front, "POST", "/models/echo/predict", content=json.dumps({"rows": ROWS}).encode())
    assert response.json()["outputs"] == ROWS
    assert len(ran) == 2
    front.handler.close()


def test_images_are_counted_before_they_are_parsed():
    """In each form of a body, however JSON spells them; neither short texts nor numbers are any."""
    many = [ROWS[place % 2] for place in range(6)]
    texts = [row["photo"] for row in many]
    tensor = {"name": "photo", "datatype": "BYTES", "shape": [6], "data": texts}
    spelled = json.dumps({"rows": many}).replace("/", "\\/").replace("iVBOR", "\\u0069VBOR")
    bodies = [
        json.dumps({"rows": many}),
        json.dumps({"rows": many}, indent=1),
        spelled,
        json.dumps({"dataframe_split": {"columns": list(many[0]), "data": [list(row.values()) for row in many]}}),
        json.dumps({"inputs": [tensor]}),
        "photo\n" + "\n".join(texts),
        "blob,at,photo\r" + "\r".join(f"{row['blob'] or ''},{row['at'] or ''},{row['photo']}" for row in many),
    ]
    assert json.loads(spelled) == {"rows": many}
    assert [count_images(body.encode()) for body in bodies] == [6] * len(bodies)
    raw = b"".join(len(file).to_bytes(4, "little") + file for file in PNG * 3)
    assert count_images(raw) == count_images(b'{"inputs":[' + b"1.5," * 99 + b"]}" + raw) == 6
    assert count_images(json.dumps({"rows": [ROWS[0]], "raw": "x"}).encode() + raw) == 7
    assert count_images(b"") == count_images(b'{"rows":[{"a":1,"b":"c"}]}') == 0


def test_the_document_says_how_values_are_written():
    """Schema, example and page; the example is a valid request."""
    document = openapi_document(
        SIGNATURE,
        identity={"name": "m", "version": 7, "digest": "d" * 64, "run_id": "r"},
        prefix="/models/m",
        example=ROWS,
        answer=ROWS,
        max_rows=10,
    )
    row = document["components"]["schemas"]["Row"]["properties"]
    assert row["photo"]["contentEncoding"] == "base64"
    assert row["at"] == {"type": ["string", "null"], "format": "date-time"}
    example = document["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"]["application/json"]["example"]
    check(exchange("oip", json.dumps(example).encode())[0], missing=True)
    page = docs_page(document, SIGNATURE)
    assert "image of shape (2, 2, 1) (a PNG or JPEG image in base64)" in page
    assert "datetime (a time in ISO 8601 with its offset" in page


def test_mlflow_knows_their_types_and_pyfunc_takes_them():
    """``binary`` and ``datetime``; a frame holds bytes and times, and so does the answer."""
    schema = _mlflow_signature(SIGNATURE)
    assert [spec.type for spec in schema.inputs.inputs] == [DataType.binary, DataType.datetime, DataType.binary]
    assert schema.outputs == schema.inputs
    frame = pd.DataFrame(
        {"blob": [b"\x00\x01", None], "at": pd.to_datetime(["2026-11-27T08:30:00", None]), "photo": PNG}
    )
    answer = PyfuncModel(Echo()).predict(frame)
    assert answer["blob"].tolist() == [b"\x00\x01", None]
    assert answer["at"][0] == pd.Timestamp("2026-11-27T08:30:00")
    assert answer["photo"].tolist() == PNG


def test_mlflow_leaves_flags_that_may_be_missing_to_the_signature():
    """Its ``boolean`` has no missing value; as an answer they are objects."""
    signature = Signature((Column("flag", "bool", nullable=True), Column("sure", "bool")), SIGNATURE.outputs)
    assert [spec.to_dict()["type"] for spec in _mlflow_signature(signature).inputs.inputs] == ["any", "boolean"]


def test_the_client_sends_bytes_and_times():
    """As Python has them, and as the columns of a frame or a table; a time without an offset is UTC."""
    at = datetime(2026, 11, 27, 8, 30)  # noqa: DTZ001
    rows = [
        {"blob": bytearray(b"\x00\x01"), "at": at, "photo": PNG[0]},
        {"blob": None, "at": None, "photo": memoryview(PNG[1])},
    ]
    frame = pd.DataFrame({"blob": [b"\x00\x01", None], "at": pd.to_datetime([at, None]), "photo": PNG})
    for given in (
        rows,
        frame,
        frame.assign(at=frame["at"].dt.tz_localize("UTC")),
        [rows[0] | {"at": np.datetime64(at)}],
    ):
        sent = orjson.loads(predict_call("m", given, request_id=None, session=None, version=None).body)
        columns, _ = exchange("native", json.dumps({"rows": [*sent["rows"], *ROWS[1:]][:2]}).encode())
        check(columns, missing=True)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_images_are_answered_or_refused(kind):
    """Bytes changed, cut and doubled at random: pixels, or a problem of the row; whatever Pillow raises."""
    rng = random.Random(kind)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, kind)
    signature = Signature((Column("photo", "image", shape=(None, None, 3)),), (Column("y", "float"),))
    refused = []
    for _ in range(150):
        damaged = bytearray(sink.getvalue())
        for _ in range(rng.choice((1, 2, 5))):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.choice((0, 1, 4))] = rng.randbytes(rng.choice((0, 1, 4)))
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            pixels = signature.parse_rows([{"photo": base64.b64encode(damaged).decode()}])["photo"][0]
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
        except InvalidRowsError as error:
            refused.append(error)
    assert 20 < len(refused) < 150
    assert all(error.problems[0].field == "photo" and len(str(error)) < 500 for error in refused)
