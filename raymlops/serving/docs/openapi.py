"""The OpenAPI 3.1 document of a model version.

Owns the description of the routes of ``http_front``, made from the signature, so that it names the model's real
fields. ``schemas`` has the schemas of the bodies, and ``page`` shows the document. Pure.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from raymlops.serving.docs.schemas import ref, schemas_of
from raymlops.serving.protocols.binary import HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.arrays import Column
    from raymlops.signature import Signature

    _Route = tuple[str, dict[str, dict[str, Any]]]
    """A path and the operations at it, by method."""

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
_ANSWER_HEADERS = {
    "x-request-id": {"description": "identifies the request", "schema": {"type": "string"}},
    "x-model-version": {"description": "the version that answered", "schema": {"type": "string"}},
}
_TENSOR_HEADER = {
    HEADER.decode(): {
        "description": "length of the JSON in bytes, where tensors follow it as bytes (the binary tensor extension)",
        "schema": {"type": "integer"},
    }
}
_RETRY_AFTER = {"retry-after": {"description": "whole seconds", "schema": {"type": "integer", "minimum": 1}}}
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_CSV = {"text/csv": {"schema": {"type": "string"}}}
_EXAMPLE_ID = "7f6f2c1e-0000-4000-8000-000000000000"


def openapi_document(
    signature: Signature,
    *,
    identity: Mapping[str, Any],
    prefix: str,
    example: Sequence[Mapping[str, Any]],
    answer: Sequence[Mapping[str, Any]],
    max_rows: int,
    label_schema: Mapping[str, Any] | None = None,
    label: Any = 1,
    key_required: bool = False,
) -> dict[str, Any]:
    """Return the OpenAPI document of one model version.

    ``example`` are rows that the model accepts, ``answer`` its outputs for them, ``label`` a label of one of these.
    """
    name, version = str(identity["name"]), str(identity["version"])
    model, versioned = f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"
    rows, outputs = list(example), list(answer)
    answered = {"outputs": outputs, "model": name, "model_version": version, "request_id": _EXAMPLE_ID}
    accepted = {"accepted": 1, "unmatched": [], "request_id": _EXAMPLE_ID}
    tensors = _json("InferenceRequest", _infer_example(signature, example))
    routes = (
        _post("/predict", "predict", "Predict rows", _json("Request", {"rows": rows}), _json("Response", answered)),
        _post(
            "/invocations",
            "invocations",
            "Predict in the protocol of MLflow's scoring server",
            _json("Invocation", {"dataframe_records": rows}) | _CSV,
            _json("Predictions", {"predictions": outputs}),
        ),
        _post(
            "/feedback",
            "feedback",
            "Send true labels, by the request id of an answer",
            _json("Feedback", {"labels": [{"request_id": _EXAMPLE_ID, "row": 0, "label": label}]}),
            _json("Accepted", accepted),
            status="202",
            refusals=("409",),
            headers=_REQUEST_HEADERS,
        ),
        _infer(f"{model}/infer", "infer", tensors),
        _infer(f"{versioned}/infer", "inferVersion", tensors),
        _get("/", "describe", "Version, digest, run and signature"),
        _get("/openapi.json", "openapi", "This document"),
        _get("/v2", "serverMetadata", "Server metadata", _json("ServerMetadata")),
        _get(model, "modelMetadata", "Model metadata", _json("ModelMetadata")),
        _get(versioned, "versionMetadata", "Model metadata", _json("ModelMetadata")),
        _health(f"{model}/ready", "modelReady", "The model is ready"),
        _health(f"{versioned}/ready", "versionReady", "The model is ready"),
        _health("/v2/health/live", "live", "The process is alive"),
        _health("/v2/health/ready", "ready", "The model is ready"),
        _health("/ping", "ping", "The model is ready, in the form of MLflow's scoring server"),
        _health("/healthz", "healthz", "The process is alive"),
        _health("/readyz", "readyz", "The model is ready"),
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": version,
            "description": f"Bundle {identity['digest']}, run {identity['run_id']}.",
        },
        "servers": [{"url": prefix or "/"}],
        "security": [{"bearer": []}, {"apiKey": []}, *([] if key_required else [{}])],
        "paths": dict(routes),
        "components": {
            "schemas": schemas_of(signature, name=name, max_rows=max_rows, label=label_schema),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, `rk_...`"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _json(schema: str, example: Any = None) -> dict[str, Any]:
    """Return a body of JSON, by its content type."""
    return {"application/json": {"schema": ref(schema), **({} if example is None else {"example": example})}}


_ANY_OBJECT = {"application/json": {"schema": {"type": "object"}}}


def _post(
    path: str,
    operation: str,
    summary: str,
    body: dict[str, Any],
    answer: dict[str, Any],
    *,
    status: str = "200",
    refusals: Sequence[str] = (),
    headers: Mapping[str, str] = _REQUEST_HEADERS | _TRAFFIC_HEADERS,
) -> _Route:
    refusals = [*_GUARDED, *_POSTED, *refusals]
    described = _operation(path, operation, summary, answer, refusals=refusals, headers=headers, status=status)
    return path, {"post": {**described, "requestBody": {"required": True, "content": body}}}


def _infer(path: str, operation: str, body: dict[str, Any]) -> _Route:
    answer = _json("InferenceResponse") | _BINARY
    _, described = _post(path, operation, "Predict in the Open Inference Protocol", body, answer)
    described["post"]["responses"]["200"]["headers"] = _ANSWER_HEADERS | _TENSOR_HEADER
    described["post"]["description"] = f"Tensors may also follow the JSON as bytes, as `{HEADER.decode()}` says."
    return path, described


def _get(path: str, operation: str, summary: str, answer: dict[str, Any] = _ANY_OBJECT) -> _Route:
    return path, {"get": _operation(path, operation, summary, answer, refusals=_GUARDED)}


def _health(path: str, operation: str, summary: str) -> _Route:
    return path, {"get": {**_operation(path, operation, summary, _ANY_OBJECT), "security": [{}]}}


def _operation(
    path: str,
    operation: str,
    summary: str,
    answer: dict[str, Any],
    *,
    refusals: Sequence[str] = (),
    headers: Mapping[str, str] = _REQUEST_HEADERS,
    status: str = "200",
) -> dict[str, Any]:
    answered = {"description": HTTPStatus(int(status)).phrase, "content": answer, "headers": _ANSWER_HEADERS}
    return {
        "summary": summary,
        "operationId": operation,
        "parameters": [
            {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        ],
        "responses": {status: answered, **{code: _error(code, path) for code in sorted([*_ALWAYS, *refusals])}},
    }


def _error(status: str, path: str) -> dict[str, Any]:
    """Return the description of an error, which has the form of the Open Inference Protocol at its paths."""
    forms = [ref("InferenceError")] if path.startswith("/v2") else [ref("Error")]
    if path.startswith("/v2") and status in {"400", "408", "431"}:
        forms.append(ref("Error"))  # a request that is rejected before its path is read has the form of other routes
    schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
    described = {"description": _ERRORS[status], "content": {"application/json": {"schema": schema}}}
    return described | ({"headers": _RETRY_AFTER} if status in {"429", "503"} else {})


def _infer_example(signature: Signature, example: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # A tensor cannot hold rows of different lengths: only the first row of such an example is shown.
    ragged = [column.name for column in signature.inputs if None in column.sent_shape]
    rows = list(example)[: 1 if ragged else None]
    inputs = []
    for column in signature.inputs:
        values = [row.get(column.name) for row in rows]
        shape = [len(rows), *_lengths(values, column)]
        inputs.append({"name": column.name, "datatype": column.info.tensor, "shape": shape, "data": values})
    return {"inputs": inputs}


def _lengths(values: Any, column: Column) -> list[int]:
    lengths = []
    for _ in column.sent_shape:
        values = values[0]
        lengths.append(len(values))
    return lengths
