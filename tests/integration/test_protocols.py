"""The same rows in every protocol on a real Serve, over HTTP and gRPC: one answer, one error, one set of rights."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asking_forms as forms
import bad_requests
import grpc
import httpx
import pytest
from serve_apply import apply
from serve_proxy import start_proxy
from serving_bundles import MIXED_ROWS, mixed_bundle

from raymlops.bundle.load import load
from raymlops.cluster.ports import free_port
from raymlops.serving.control.rest_api import ServeApi
from raymlops.serving.names import INDEX_APP, app_name
from raymlops.serving.protocols.grpc_messages import request_class
from raymlops.state.keys import KeyRecord
from raymlops.state.store import Deployment, Desired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raymlops.records import BundleRef

pytestmark = pytest.mark.integration

SECRET = "rk_abc_" + "x" * 43
INDEX = {"application": INDEX_APP}
OWN = {"application": app_name("mixed", 3)}
BAD_ROWS = [MIXED_ROWS[0], {**MIXED_ROWS[1], "origin": "XXX"}]


class Served(NamedTuple):
    """A Serve of its own with one model."""

    host: str
    url: str
    grpc_port: int
    rows: list[dict[str, Any]]
    """What the bundle itself answers to ``MIXED_ROWS``."""
    change: Callable[..., None]
    """Deploy the same version with other settings or keys."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> BundleRef:
    return mixed_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def served(ray_local, bundle) -> Iterator[Served]:
    from ray import serve

    token = Path(ray_local.token_path).read_text(encoding="utf-8").strip() if ray_local.token_path else None
    grpc_port = free_port()
    start_proxy(grpc_port=grpc_port)
    api = ServeApi(ray_local.dashboard_url, token)

    def change(*, keys: tuple[KeyRecord, ...] = (), **settings: Any) -> str:
        options = {"max_replicas": 1, "cpus_per_replica": 0.1, "log": {"enabled": False}, **settings}
        deployment = Deployment("mixed", 3, bundle, "run3", "champion", options)
        return apply(Desired((deployment,), keys), api=api, wait_s=300, grpc_port=grpc_port).listens.base_url

    host = change()
    yield Served(
        host, f"{host}/models/mixed", grpc_port, load(bundle.uri, bundle.digest).predict_rows(MIXED_ROWS), change
    )
    serve.shutdown()


def infer(served: Served, rows, metadata, *, raw: bool = True, name: str = "mixed", version: str = ""):
    """Ask over gRPC and return rows, the response and its metadata."""
    request = forms.message(rows, raw=raw, name=name, version=version)
    response, trailing = forms.call(served.grpc_port, "ModelInfer", request, metadata)
    return forms.rows_of_message(response), response, trailing


def refused(
    served: Served, method: str, request: Any, metadata: dict[str, str]
) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """Return status and error of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        forms.call(served.grpc_port, method, request, metadata)
    return caught.value.code(), json.loads(caught.value.details())


def error_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return the error of an answer; below ``/v2`` its message stands alone, with the rest beside it."""
    if isinstance(body["error"], dict):
        return body["error"]
    assert body["error"] == body["message"]
    return {key: body[key] for key in ("code", "message", "field", "problems")}


def test_http_forms_give_the_numbers_of_the_bundle(served):
    """Native, MLflow's and the Open Inference Protocol in JSON and in bytes: equal to the last bit."""
    assert httpx.post(f"{served.url}/predict", json={"rows": MIXED_ROWS}).json()["outputs"] == served.rows
    for body in (
        {"dataframe_records": MIXED_ROWS},
        {"dataframe_split": forms.split(MIXED_ROWS)},
        {"inputs": MIXED_ROWS},
    ):
        assert httpx.post(f"{served.url}/invocations", json=body).json() == {"predictions": served.rows}
    body, headers = forms.binary(MIXED_ROWS)
    for base in (
        f"{served.url}/v2/models/mixed",
        f"{served.url}/v2/models/mixed/versions/3",
        f"{served.host}/v2/models/mixed",
    ):
        spelled = httpx.post(f"{base}/infer", json={"id": "its-own", "inputs": forms.tensors(MIXED_ROWS)}).json()
        assert forms.rows_of_tensors(spelled["outputs"]) == served.rows
        assert (spelled["model_name"], spelled["model_version"], spelled["id"]) == ("mixed", "3", "its-own")
        answer = httpx.post(f"{base}/infer", content=body, headers=headers)
        assert json.loads(answer.content[: int(answer.headers[forms.HEADER])])["id"] == "its-own"
        assert forms.rows_of_binary(answer.content, int(answer.headers[forms.HEADER])) == served.rows


@pytest.mark.parametrize("metadata", [INDEX, OWN], ids=["index", "own"])
@pytest.mark.parametrize("raw", [True, False])
def test_grpc_gives_the_numbers_of_the_bundle(served, metadata, raw):
    """Through the application that stays, and through the champion's own; raw and typed contents."""
    rows, response, trailing = infer(served, MIXED_ROWS, {**metadata, "x-request-id": "mine"}, raw=raw)
    assert rows == served.rows
    assert (response.model_name, response.model_version, response.id) == ("mixed", "3", "mine")
    assert (trailing["x-request-id"], trailing["x-model-version"]) == ("mine", "3")
    assert bool(response.raw_output_contents) == raw


@pytest.mark.parametrize("metadata", [INDEX, OWN], ids=["index", "own"])
def test_grpc_tells_health_and_metadata(served, metadata):
    """The five other methods, by either application; metadata is the same as over HTTP."""
    port = served.grpc_port
    assert forms.call(port, "ServerLive", b"", metadata)[0].live
    assert forms.call(port, "ServerReady", b"", metadata)[0].ready
    assert forms.call(port, "ModelReady", request_class("ModelReady")(name="mixed"), metadata)[0].ready
    assert forms.call(port, "ServerMetadata", b"", metadata)[0].name == "raymlops"
    told, _ = forms.call(port, "ModelMetadata", request_class("ModelMetadata")(name="mixed"), metadata)
    over_http = httpx.get(f"{served.host}/v2/models/mixed").json()
    assert [(item.name, item.datatype, list(item.shape)) for item in told.inputs] == [
        (item["name"], item["datatype"], item["shape"]) for item in over_http["inputs"]
    ]


def test_one_wrong_value_is_one_error_in_every_protocol(served):
    """Row, field and message are the same, whoever asks; over gRPC they are the details of INVALID_ARGUMENT."""
    body, headers = forms.binary(BAD_ROWS)
    infer_url = f"{served.url}/v2/models/mixed/infer"
    answers = [
        httpx.post(f"{served.url}/predict", json={"rows": BAD_ROWS}),
        httpx.post(f"{served.url}/invocations", json={"dataframe_records": BAD_ROWS}),
        httpx.post(f"{served.url}/invocations", json={"dataframe_split": forms.split(BAD_ROWS)}),
        httpx.post(infer_url, json={"inputs": forms.tensors(BAD_ROWS)}),
        httpx.post(infer_url, content=body, headers=headers),
        httpx.post(f"{served.host}/v2/models/mixed/infer", content=body, headers=headers),
    ]
    assert {answer.status_code for answer in answers} == {422}
    errors = [error_of(answer.json()) for answer in answers]
    for metadata in (INDEX, OWN):
        for raw in (True, False):
            request = forms.message(BAD_ROWS, raw=raw, name="mixed")
            status, error = refused(served, "ModelInfer", request, {**metadata, "x-request-id": "mine"})
            assert (status, error["request_id"]) == (grpc.StatusCode.INVALID_ARGUMENT, "mine")
            errors.append(error["error"])
    assert errors == [errors[0]] * len(errors)
    assert (errors[0]["code"], errors[0]["field"]) == ("invalid_rows", "origin")
    assert errors[0]["problems"] == [
        {"row": 1, "field": "origin", "message": "unknown category 'XXX'; known: EWR, JFK, LGA"}
    ]


def test_grpc_refuses_what_is_not_there(served):
    """Another model, another version, another application and bytes that are no message, by the fitting status."""
    not_found = grpc.StatusCode.NOT_FOUND
    assert refused(served, "ModelInfer", forms.message(MIXED_ROWS, raw=True, name="other"), INDEX)[0] == not_found
    assert refused(served, "ModelInfer", forms.message(MIXED_ROWS, raw=True, name="other"), OWN)[0] == not_found
    for metadata in (INDEX, OWN):
        request = forms.message(MIXED_ROWS, raw=True, name="mixed", version="9")
        status, error = refused(served, "ModelInfer", request, metadata)
        assert (status, error["error"]["code"]) == (not_found, "unknown_version")
        status, error = refused(
            served, "ModelMetadata", request_class("ModelMetadata")(name="mixed", version="9"), metadata
        )
        assert status == not_found
        status, error = refused(served, "ModelInfer", b"\xff\xff\xff", metadata)
        assert (status, error["error"]["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "not_protobuf")
    with pytest.raises(grpc.RpcError) as caught:
        forms.call(served.grpc_port, "ServerLive", b"", {"application": "nobody"})
    assert caught.value.code() == not_found


def test_no_bad_request_is_answered_with_an_error_of_ours(served):
    """Each of some seventy is refused as it should be, and the next good one has its answer."""
    answers = {
        bad.name: (bad_requests.send(bad, host=served.host, url=served.url, headers={}).status_code, bad.statuses)
        for bad in bad_requests.BAD
    }
    assert {name: given for name, given in answers.items() if given[0] not in given[1]} == {}
    assert httpx.post(f"{served.url}/predict", json={"rows": MIXED_ROWS}).json()["outputs"] == served.rows


def test_a_key_opens_every_protocol_and_a_wrong_one_none(served):
    """Asked for keys, HTTP answers 401 and gRPC UNAUTHENTICATED; a revoked key is one that is not there any more."""
    record = KeyRecord(
        id="abc",
        name="team",
        hash=sha256(SECRET.encode()).hexdigest(),
        models=("mixed",),
        scopes=("predict",),
        rate_per_s=None,
        created_at=datetime.now(UTC),
        expires_at=None,
        revoked_at=None,
    )
    served.change(keys=(record,), auth="keys")
    try:
        _only_with(served, {"x-api-key": SECRET})
        _only_with(served, {"authorization": f"Bearer {SECRET}"})
        assert httpx.get(f"{served.url}/readyz").status_code == 200
        forbidden = httpx.post(f"{served.url}/feedback", json={"labels": []}, headers={"x-api-key": SECRET})
        assert (forbidden.status_code, forbidden.json()["error"]["code"]) == (403, "forbidden")
        served.change(auth="keys")
        answer = httpx.post(f"{served.url}/predict", json={"rows": MIXED_ROWS}, headers={"x-api-key": SECRET})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    finally:
        served.change()


def _only_with(served: Served, key: dict[str, str]) -> None:
    body, headers = forms.binary(MIXED_ROWS)
    asks: list[tuple[str, dict[str, Any]]] = [
        (f"{served.url}/predict", {"json": {"rows": MIXED_ROWS}}),
        (f"{served.url}/invocations", {"json": {"dataframe_records": MIXED_ROWS}}),
        (f"{served.url}/v2/models/mixed/infer", {"json": {"inputs": forms.tensors(MIXED_ROWS)}}),
        (f"{served.host}/v2/models/mixed/infer", {"content": body}),
    ]
    forged = {name: value[:-1] + "y" for name, value in key.items()}
    for given, expected in ((key, 200), (forged, 401), ({}, 401)):
        for url, options in asks:
            more = headers if "content" in options else {}
            assert httpx.post(url, headers={**more, **given}, **options).status_code == expected, url
    for metadata in (INDEX, OWN):
        assert infer(served, MIXED_ROWS, {**metadata, **key})[0] == served.rows
        for given in (forged, {}):
            request = forms.message(MIXED_ROWS, raw=True, name="mixed")
            status, error = refused(served, "ModelInfer", request, {**metadata, **given})
            assert (status, error["error"]["code"]) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
