"""The OpenAPI document against the front as an ASGI application: what it promises is what is answered."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import protocol_fakes
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_fuzzing import fuzz
from serving_fakes import Computes, ask, front_of

from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.refusal import Limits
from raymlops.serving.settings import Settings
from raymlops.signature import Signature

SECRET = "rk_abc_" + "x" * 43


class Wide(Computes):
    """Answers any row of a signature with columns of every kind, with finite numbers."""

    signature = protocol_fakes.SIGNATURE
    example = protocol_fakes.ROWS[:2]

    def predict(self, columns):
        y = np.tanh(columns["x"] / 9) + columns["b"]
        return {
            "y": y,
            "count": columns["n"] // 3,
            "maybe": np.trunc(columns["k"] / 2),
            "text": columns["s"],
            "both": np.stack([y, -y / 7], axis=1),
            "sure": ~columns["b"],
            "open": columns["o"],
        }


class Narrow(Computes):
    """Answers with one column of each kind, so that the document has fewer edges."""

    signature = Signature(
        tuple(column for column in Wide.signature.inputs if column.name in {"k", "s", "tokens"}),
        tuple(column for column in Wide.signature.outputs if column.name in {"maybe", "both"}),
    )
    example = [{"k": 1, "s": "JFK", "tokens": [1, 2]}]  # noqa: RUF012

    def predict(self, columns):
        k = columns["k"]
        return {"maybe": np.trunc(k / 2), "both": np.stack([np.tanh(np.nan_to_num(k)), np.ones(len(k))], axis=1)}


def front_for(model, access=None):
    limits = Limits(max_rows=20)  # the edges of the document are then small requests
    front = front_of(model, name="wide", settings=Settings(limits=limits, access=access or Access()))
    front.warm_up()
    return front


def test_every_answer_is_what_the_document_promises():
    """A thousand requests at and beyond each schema's edges, with a key, without one and with a wrong one."""
    key = KeyEntry("abc", sha256(SECRET.encode()).hexdigest(), frozenset({"predict", "feedback", "pin"}))
    fuzzed = fuzz("/openapi.json", app=front_for(Narrow(), Access(True, (key,))), examples=1, seed=7, secret=SECRET)
    assert not fuzzed.problems, str(fuzzed)
    assert fuzzed.cases > 1000
    assert {200, 401, 405, 409, 413, 415, 422} <= set(fuzzed.statuses)
    assert max(fuzzed.statuses) < 500


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**63), 2**63 - 1)
ROW = st.fixed_dictionaries(
    {
        "x": FLOATS | INTS,
        "n": INTS,
        "w": st.none() | FLOATS,
        "k": st.none() | st.integers(-(2**53), 2**53),
        "b": st.booleans(),
        "o": st.none() | st.booleans(),
        "s": st.sampled_from(["EWR", "JFK"]),
        "image": st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=2, max_size=2),
        "tokens": st.lists(INTS, min_size=2, max_size=2),
    }
)


@given(rows=st.lists(ROW, min_size=1, max_size=4))
@settings(max_examples=15, derandomize=True, deadline=None, database=None)
def test_rows_have_one_answer_in_every_form(rows):
    """Whatever fits the signature is answered, with the same numbers to the last bit, however it was sent."""
    front = front_for(Wide())
    given = ask(front, "POST", "/predict", json={"rows": rows})
    assert given.status_code == 200, given.text
    outputs = given.json()["outputs"]
    infer = "/v2/models/wide/infer"
    spelled = ask(front, "POST", infer, json={"inputs": protocol_fakes.tensors(rows)})
    for tensor in spelled.json()["outputs"]:
        values = np.array([row[tensor["name"]] for row in outputs], dtype=object).reshape(-1).tolist()
        assert tensor["data"] == values
    body, headers = protocol_fakes.binary_body(rows)
    binary = ask(front, "POST", infer, content=body, headers={key.decode(): value for key, value in headers.items()})
    size = int(binary.headers["inference-header-content-length"])
    y = json.loads(binary.content[:size])["outputs"][0]["parameters"]["binary_data_size"]
    assert np.frombuffer(binary.content[size : size + y]).tolist() == [row["y"] for row in outputs]
    split = {"columns": list(rows[0]), "data": [[row[name] for name in rows[0]] for row in rows]}
    for form in ({"dataframe_records": rows}, {"dataframe_split": split}, {"inputs": rows}, {"instances": rows}):
        assert ask(front, "POST", "/invocations", json=form).json() == {"predictions": outputs}
