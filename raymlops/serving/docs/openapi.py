"""The OpenAPI 3.1 document of a model version.

Owns the description of the routes of ``http_front``, made from the signature, so that it names the model's real
fields. ``schemas`` has the schemas of the bodies, and ``page`` shows the document. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.serving.docs.schemas import ref, schemas_of
from raymlops.serving.protocols.binary import HEADER
from raymlops.serving.protocols.tensors import datatype_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.arrays import Column
    from raymlops.signature import Signature

_ERRORS = {
    "400": "the body is empty, not JSON, not UTF-8, repeats a key, or is not as long as declared",
    "401": "no valid API key, where the endpoint requires one",
    "403": "the key lacks the scope",
    "404": "no such route, or no such version is up",
    "405": "method not allowed; `allow` names the right one",
    "408": "headers or body arrived too slowly",
    "409": "the endpoint keeps no prediction log, so labels cannot be stored",
    "413": "more rows or bytes than one request may have",
    "415": "a compressed body, or one of another type",
    "422": "values that do not fit the signature; `problems` names row and field",
    "429": "rate limit of this key exceeded; `retry-after` says when to try again",
    "431": "more headers, or longer ones, than a request may have",
    "500": "the model raised",
    "503": "the queue is full or no replica is ready (`retry-after` says when to try again), or a replica was lost",
    "504": "no answer within the deadline",
}
_ALWAYS = ("400", "404", "405", "408", "431", "503", "504")
_GUARDED = ("401", "403", "429")
_POSTED = ("413", "415", "422", "500")
_REQUEST_HEADERS = {
    "x-request-id": "identifies this request in its answer, in logs and for feedback; 1 to 128 printable ASCII "
    "characters, others are replaced",
    "traceparent": "the caller's W3C trace context",
}
_TRAFFIC_HEADERS = {
    "x-raymlops-version": "the version that shall answer, given once; a key needs the scope `pin` for it",
    "x-session-id": "one version answers all requests of a session, where traffic is split by it",
}


def openapi_document(
    signature: Signature,
    *,
    identity: Mapping[str, Any],
    prefix: str,
    example: Sequence[Mapping[str, Any]],
    answer: Sequence[Mapping[str, Any]],
    max_rows: int,
    key_required: bool = False,
) -> dict[str, Any]:
    """Return the OpenAPI document of one model version.

    ``example`` are rows that the model accepts, ``answer`` its outputs for them.
    """
    name, version = str(identity["name"]), str(identity["version"])
    model, versioned = f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"
    predict = _post(
        "predict",
        f"Predict with {name} version {version}",
        _json_body("Request", {"rows": list(example)}),
        _json_answer("one output a row, in order", "Response", _answered(name, version, outputs=list(answer))),
    )
    invocations = _post(
        "invocations",
        "Predict in the protocol of MLflow's scoring server",
        _json_body("Invocation", {"dataframe_records": list(example)}, **{"text/csv": {"schema": {"type": "string"}}}),
        _json_answer("one prediction a row, in order", "Predictions", {"predictions": list(answer)}),
    )
    feedback = _post(
        "feedback",
        "Send true labels, by the request id of an answer",
        _json_body("Feedback", {"labels": [{"request_id": _EXAMPLE_ID, "row": 0, "label": 1}]}),
        _json_answer("the labels are stored", "Accepted", {"accepted": 1, "request_id": _EXAMPLE_ID}),
        status="202",
        more=("409",),
    )
    shown = _infer_example(signature, example)
    paths: dict[str, Any] = {
        "/predict": {"post": predict},
        "/invocations": {"post": invocations},
        "/feedback": {"post": feedback},
        f"{model}/infer": {"post": _infer("infer", shown)},
        f"{versioned}/infer": {"post": _infer("inferVersion", shown)},
    }
    metadata = _json_answer("names, types and shapes of its tensors", "ModelMetadata")
    for path, operation, summary, answered, guarded in (
        (
            "/",
            "describe",
            "Version, digest, run and signature",
            _object_answer("the model version behind this route"),
            True,
        ),
        ("/v2", "serverMetadata", "Server metadata", _json_answer("name and extensions", "ServerMetadata"), True),
        (model, "modelMetadata", "Model metadata", metadata, True),
        (versioned, "versionMetadata", "Model metadata", metadata, True),
        (f"{model}/ready", "modelReady", "The model is ready", _object_answer("yes"), False),
        (f"{versioned}/ready", "versionReady", "The model is ready", _object_answer("yes"), False),
        ("/v2/health/live", "live", "The process is alive", _object_answer("yes"), False),
        ("/v2/health/ready", "ready", "The model is ready", _object_answer("yes"), False),
        ("/ping", "ping", "The model is ready, in the form of MLflow's scoring server", _object_answer("yes"), False),
        ("/healthz", "healthz", "The process is alive", _object_answer("yes"), False),
        ("/readyz", "readyz", "The model is ready", _object_answer("yes"), False),
        ("/openapi.json", "openapi", "This document", _object_answer("this document"), True),
    ):
        paths[path] = {"get": _get(operation, summary, answered, guarded=guarded)}
    for path, operations in paths.items():
        if path.startswith("/v2"):
            _say_errors_as_text(operations)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": version,
            "description": f"Bundle {identity['digest']}, run {identity['run_id']}.",
        },
        "servers": [{"url": prefix or "/"}],
        "security": [{"bearer": []}, {"apiKey": []}, *([] if key_required else [{}])],
        "paths": paths,
        "components": {
            "schemas": schemas_of(signature, name=name, max_rows=max_rows),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, `rk_...`"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


_EXAMPLE_ID = "7f6f2c1e-0000-4000-8000-000000000000"


def _answered(name: str, version: str, **values: Any) -> dict[str, Any]:
    return {**values, "model": name, "model_version": version, "request_id": _EXAMPLE_ID}


def _post(
    operation: str,
    summary: str,
    body: dict[str, Any],
    answered: dict[str, Any],
    *,
    status: str = "200",
    more: Sequence[str] = (),
) -> dict[str, Any]:
    traffic = {} if operation == "feedback" else _TRAFFIC_HEADERS
    return {
        **_operation(operation, summary, answered, status=status, refusals=(*_GUARDED, *_POSTED, *more)),
        "parameters": _headers({**_REQUEST_HEADERS, **traffic}),
        "requestBody": {"required": True, **body},
    }


def _get(operation: str, summary: str, answered: dict[str, Any], *, guarded: bool) -> dict[str, Any]:
    described = _operation(operation, summary, answered, refusals=_GUARDED if guarded else ())
    return described if guarded else {**described, "security": [{}]}


def _operation(
    operation: str, summary: str, answered: dict[str, Any], *, status: str = "200", refusals: Sequence[str]
) -> dict[str, Any]:
    return {
        "summary": summary,
        "operationId": operation,
        "parameters": _headers(_REQUEST_HEADERS),
        "responses": {status: {**answered, "headers": _answer_headers()}, **_refusals([*_ALWAYS, *refusals])},
    }


def _say_errors_as_text(operations: Mapping[str, dict[str, Any]]) -> None:
    """Replace the errors of a route by those of the Open Inference Protocol."""
    for operation in operations.values():
        for status, response in operation["responses"].items():
            if status >= "400":
                # A request that is rejected before its path is read gets the form of all other routes.
                early = {"anyOf": [ref("InferenceError"), ref("Error")]} if status in {"400", "408", "431"} else None
                response["content"]["application/json"]["schema"] = early or ref("InferenceError")


def _infer(operation: str, shown: dict[str, Any]) -> dict[str, Any]:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    answered = _json_answer("one tensor an output", "InferenceResponse")
    answered["content"].update(binary)
    posted = _post(
        operation,
        "Predict in the Open Inference Protocol",
        _json_body("InferenceRequest", shown),
        answered,
    )
    text = "length of the JSON in bytes, where tensors follow it as bytes (the binary tensor extension)"
    posted["responses"]["200"]["headers"][HEADER.decode()] = {"description": text, "schema": {"type": "integer"}}
    posted["description"] = (
        f"Tensors may also follow the JSON as bytes: the request header `{HEADER.decode()}` is then the {text}."
    )
    return posted


def _infer_example(signature: Signature, example: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # A tensor cannot hold rows of different lengths: only the first row of such an example is shown.
    ragged = [column.name for column in signature.inputs if None in column.shape]
    rows = list(example)[: 1 if ragged else None]
    inputs = []
    for column in signature.inputs:
        values = [row.get(column.name) for row in rows]
        shape = [len(rows), *_lengths(values, column)]
        inputs.append({"name": column.name, "datatype": datatype_of(column), "shape": shape, "data": values})
    return {"inputs": inputs}


def _lengths(values: Any, column: Column) -> list[int]:
    lengths = []
    for _ in column.shape:
        values = values[0]
        lengths.append(len(values))
    return lengths


def _json_body(schema: str, example: Any, **others: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": ref(schema), "example": example}, **others}}


def _json_answer(description: str, schema: str, example: Any = None) -> dict[str, Any]:
    content = {"schema": ref(schema), **({} if example is None else {"example": example})}
    return {"description": description, "content": {"application/json": content}}


def _object_answer(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}


def _headers(described: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in described.items()
    ]


def _answer_headers() -> dict[str, Any]:
    return {
        "x-request-id": {"description": "identifies the request", "schema": {"type": "string"}},
        "x-model-version": {"description": "the version that answered", "schema": {"type": "string"}},
    }


def _refusals(statuses: Sequence[str]) -> dict[str, Any]:
    later = {"retry-after": {"description": "whole seconds", "schema": {"type": "integer", "minimum": 1}}}
    return {
        status: {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": ref("Error")}},
            **({"headers": later} if status in {"429", "503"} else {}),
        }
        for status in sorted(statuses)
    }
