from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
from serving_fakes import PREFIX, ROW, make_front
from serving_fakes import ask as ask_front

from raymlops.errors import ClusterError, InvalidRowsError, NotFoundError, RaymlopsError
from raymlops.serving.client import describe, predict

URL = f"http://test{PREFIX}/predict"


def to_front(request: httpx.Request) -> httpx.Response:
    """Answer with a real front, so that both sides are held to the same form."""
    path = request.url.path.removeprefix(PREFIX)
    answer = ask_front(make_front(), request.method, path, content=request.content, headers=request.headers)
    return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)


def ask(rows, handle=to_front, **options):
    return predict(URL, rows, transport=httpx.MockTransport(handle), **options)


def test_an_answer_has_outputs_version_and_request_id():
    """What the front sends is what the caller gets."""
    answer = ask([ROW], request_id="mine")
    assert (answer.outputs, answer.model_version, answer.request_id) == ([{"late": 4.0}], "7", "mine")


def test_numbers_of_numpy_are_sent():
    """Rows cut from a frame hold numpy's numbers, and NaN for what is missing."""
    answer = ask([{"distance": np.float64(3), "wind": np.float64("nan"), "origin": "JFK"}])
    assert answer.outputs == [{"late": 6.0}]


def test_rows_that_do_not_fit_are_named():
    """The server's list of problems is the exception's."""
    with pytest.raises(InvalidRowsError) as caught:
        ask([ROW, {**ROW, "distance": "far"}])
    assert (caught.value.problems[0].row, caught.value.problems[0].field) == (1, "distance")


def test_a_model_is_described():
    """The route itself says which version answers there."""
    described = describe(f"http://test{PREFIX}", transport=httpx.MockTransport(to_front))
    assert described["model_version"] == "7"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, {"error": {"code": "not_found", "message": "no route", "problems": []}}, NotFoundError),
        (503, "Request dropped due to backpressure", ClusterError),
        (504, {"error": {"code": "timeout", "message": "late", "problems": []}}, ClusterError),
        (500, {"error": {"code": "model_error", "message": "it raised", "problems": []}}, RaymlopsError),
        (200, {"hello": "world"}, RaymlopsError),
        (200, "<html>", RaymlopsError),
    ],
)
def test_other_answers_are_typed(status, body, error):
    """Whoever answers at the URL, the caller gets an error that says what was answered."""
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(error, match=str(status) if status != 404 else "no model answers at"):
        ask([ROW], handle=lambda request: httpx.Response(status, text=text))


def test_a_broken_connection_is_tried_once_more():
    """A prediction changes nothing, so asking twice is safe."""
    calls = []

    def handle(request):
        calls.append(request)
        if len(calls) == 1:
            raise httpx.ReadError("broken", request=request)
        return to_front(request)

    assert ask([ROW], handle=handle).outputs == [{"late": 4.0}]
    assert len(calls) == 2


def test_nobody_listening_is_a_cluster_error():
    """Port 1 answers nobody."""
    with pytest.raises(ClusterError, match="nothing listens"):
        predict("http://127.0.0.1:1/models/x/predict", [ROW])
