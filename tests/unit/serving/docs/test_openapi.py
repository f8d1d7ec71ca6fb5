from __future__ import annotations

import json
import re

import jsonschema
import pytest
from protocol_fakes import PROTOCOLS, RESPONDER, ROWS, SIGNATURE, answer, parse, predict, refused, tensors

from raymlops.errors import RowProblem
from raymlops.serving.docs.openapi import openapi_document
from raymlops.serving.docs.page import docs_page
from raymlops.serving.protocols.native import output_rows
from raymlops.serving.protocols.oip import metadata, server_metadata
from raymlops.serving.refusal import Refusal, error_body

EXAMPLE = ROWS[:2]
ANSWER = output_rows(predict(SIGNATURE.parse_rows(EXAMPLE)), SIGNATURE)


def document(**options):
    return openapi_document(
        SIGNATURE,
        identity={"name": "wide", "version": 7, "digest": "d" * 64, "run_id": "run-7"},
        prefix="/models/wide",
        example=EXAMPLE,
        answer=ANSWER,
        max_rows=100,
        **options,
    )


def operations(data):
    return {(method, path): item for path, methods in data["paths"].items() for method, item in methods.items()}


def fits(data, name: str) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(data)


def references(data):
    if isinstance(data, dict):
        yield from ([data["$ref"]] if "$ref" in data else [])
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from references(item)


def test_the_document_is_openapi_31():
    """Version, info and paths; ids that differ; every reference leads somewhere; every schema is one."""
    data = json.loads(json.dumps(document()))
    assert data["openapi"] == "3.1.0"
    assert {"title", "version"} <= data["info"].keys()
    assert data["servers"] == [{"url": "/models/wide"}]
    found = operations(data)
    ids = [operation["operationId"] for operation in found.values()]
    assert len(ids) == len(set(ids))
    assert all(path.startswith("/") and "{" not in path for _, path in found)
    for name in set(references(data)):
        assert name.removeprefix("#/components/schemas/") in data["components"]["schemas"]
    for schema in data["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for operation in found.values():
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[2-5]\d\d", status)
            assert response["description"]


def test_every_route_is_described_with_what_it_may_answer():
    """All three protocols, feedback and health; a refusal has one form everywhere but below `/v2`."""
    found = operations(document())
    posts = {path for method, path in found if method == "post"}
    model = "/v2/models/wide"
    assert posts == {"/predict", "/invocations", "/feedback", f"{model}/infer", f"{model}/versions/7/infer"}
    for key, operation in found.items():
        expected = {"400", "404", "405", "431", "503", "504"}
        if key[0] == "post":
            expected |= {"401", "403", "413", "415", "422", "429", "500"}
        assert expected <= operation["responses"].keys(), key
        for status, response in operation["responses"].items():
            if status >= "400":
                schema = response["content"]["application/json"]["schema"]
                forms = {part["$ref"].rpartition("/")[2] for part in schema.get("anyOf", [schema])}
                assert ("InferenceError" in forms) == key[1].startswith("/v2"), key
                assert forms <= {"Error", "InferenceError"}
    assert "retry-after" in found["post", "/predict"]["responses"]["429"]["headers"]
    assert "409" in found["post", "/feedback"]["responses"]


def test_keys_are_asked_for_where_they_are():
    """Two ways to send one; without `key_required` none is needed, and never for health."""
    assert document()["security"] == [{"bearer": []}, {"apiKey": []}, {}]
    guarded = document(key_required=True)
    assert guarded["security"] == [{"bearer": []}, {"apiKey": []}]
    found = operations(guarded)
    assert found["get", "/healthz"]["security"] == [{}]
    assert "security" not in found["post", "/predict"]


@pytest.mark.parametrize(
    ("path", "protocol"),
    [("/predict", "native"), ("/invocations", "mlflow"), ("/v2/models/wide/infer", "oip")],
)
def test_an_example_is_taken_as_it_stands(path, protocol):
    """And fits its own schema, as the answer does."""
    operation = operations(document())["post", path]
    shown = operation["requestBody"]["content"]["application/json"]
    name = shown["schema"]["$ref"].rpartition("/")[2]
    assert fits(shown["example"], name)
    encoded = answer(PROTOCOLS[protocol], json.dumps(shown["example"]).encode())
    described = operation["responses"]["200"]["content"]["application/json"]
    assert fits(json.loads(encoded.body), described["schema"]["$ref"].rpartition("/")[2])
    if "example" in described:
        assert json.loads(encoded.body).keys() == described["example"].keys()


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"w": None, "k": None}, True),
        ({"n": 2**63 - 1}, True),
        ({"n": 2**63}, False),
        ({"k": -(2**63) - 1}, False),
        ({"x": 10**400}, False),
        ({"x": 2**64}, True),
        ({"x": True}, False),
        ({"x": "1"}, False),
        ({"x": None}, False),
        ({"s": "LGA"}, False),
        ({"b": 0}, False),
        ({"image": [[1, 2]]}, False),
        ({"image": [[1, 2], [3, False]]}, False),
        ({"tokens": []}, True),
        ({"extra": 1}, False),
    ],
)
def test_schemas_say_what_the_parsers_take(change, good):
    """A row is valid in all JSON forms of both protocols, or in none, and so the parsers say."""
    row = {**ROWS[0], **change}
    names = list(row)
    split = {"columns": names, "data": [list(row.values())]}
    cases = [("native", "Request", {"rows": [row]})]
    cases += [
        ("mlflow", "Invocation", data)
        for data in ({"dataframe_records": [row]}, {"inputs": [row]}, {"dataframe_split": split})
    ]
    for protocol, name, data in cases:
        assert fits(data, name) is good, data
        body = json.dumps(data).encode()
        if good:
            parse(PROTOCOLS[protocol], body)
        else:
            assert refused(PROTOCOLS[protocol], body).status in {400, 422}


@pytest.mark.parametrize(
    ("data", "good"),
    [
        ({"inputs": tensors()}, True),
        ({"inputs": tensors(drop=("w",)), "id": "a", "parameters": {"any": 1}, "outputs": [{"name": "y"}]}, True),
        ({"inputs": tensors(), "id": None, "outputs": None, "parameters": None}, True),
        ({"inputs": tensors(change={"x": {"shape": [4, 1]}})}, True),
        ({"inputs": []}, False),
        ({"inputs": tensors(), "extra": 1}, False),
        ({"inputs": tensors(), "id": 1}, False),
        ({"inputs": tensors(), "outputs": [{"name": "z"}]}, False),
        ({"inputs": tensors(), "parameters": {"binary_data_output": "yes"}}, False),
        ({"inputs": tensors(change={"x": {"datatype": "INT64"}})}, False),
        ({"inputs": tensors(change={"x": {"shape": [4, 2]}})}, False),
        ({"inputs": tensors(change={"x": {"shape": [0]}})}, False),
        ({"inputs": tensors(change={"x": {"name": "z"}})}, False),
        ({"inputs": tensors(change={"x": {"extra": 1}})}, False),
        ({"inputs": tensors(change={"x": {"data": {}}})}, False),
        ({"inputs": tensors(change={"image": {"shape": [4, 2, 3]}})}, False),
    ],
)
def test_the_schema_of_tensors_says_what_the_parser_takes(data, good):
    """As far as a schema can: not that a list is as long as a shape says."""
    assert fits(data, "InferenceRequest") is good
    body = json.dumps(data).encode()
    if good:
        parse(PROTOCOLS["oip"], body)
    else:
        assert refused(PROTOCOLS["oip"], body).status == 422


def test_answers_and_metadata_fit_their_schemas():
    """Also the one error, with and without a field."""
    assert fits(metadata(SIGNATURE, "wide", ["7"]), "ModelMetadata")
    assert fits(server_metadata(), "ServerMetadata")
    refusal = Refusal(422, "invalid_rows", "no", problems=[RowProblem(0, "x", "bad"), RowProblem(None, None, "bad")])
    assert fits(json.loads(error_body(refusal, "a")), "Error")
    assert fits(json.loads(error_body(Refusal(503, "overloaded", "later"), "a")), "Error")
    assert not fits({"error": "text"}, "Error")
    assert fits(json.loads(error_body(refusal, "a", path="/v2/models/wide/infer")), "InferenceError")
    asked = parse(PROTOCOLS["oip"], json.dumps({"inputs": tensors()}).encode())
    encoded = PROTOCOLS["oip"].encode(predict(asked.columns), asked, RESPONDER, signature=SIGNATURE)
    assert fits(json.loads(encoded.body), "InferenceResponse")


def test_the_page_shows_the_document():
    """Fields, their types, the example and what may go wrong."""
    page = docs_page(document(), SIGNATURE)
    assert "float of shape (2, 2)" in page
    assert "EWR, JFK" in page
    assert "<td>429</td>" in page
