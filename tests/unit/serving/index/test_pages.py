from __future__ import annotations

import asyncio
from hashlib import sha256

import httpx
import pytest

from raymlops.serving.asgi import make_reply
from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.index.pages import Index, Target, target_of
from raymlops.serving.refusal import Refusal

MODEL = {"name": "flights", "version": "7", "digest": "d" * 64, "path": "/models/flights"}


SECRET = "rk_k1_" + "s" * 43
KEY = KeyEntry("k1", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}))
GUARDED = {**MODEL, "name": "digits", "path": "/models/digits", "access": Access(required=True, keys=(KEY,)).to_dict()}


def ask(method: str, path: str, *, forward=None, models=(MODEL,), **headers) -> httpx.Response:
    index = Index(forward)
    index.configure(models)

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(index), base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


async def echo(target: Target, scope, receive):
    """Answer with the path that the model's front would see."""
    inner = target.scope(scope)
    return make_reply(200, f"{target.name} {inner['root_path']} {inner['path']}".encode(), "id-1")


@pytest.mark.parametrize("path", ["/", "/models"])
def test_the_models_are_listed_with_links(path):
    """Each champion comes with the way to ask it and to read about it."""
    (model,) = ask("GET", path).json()["models"]
    assert model["version"] == "7"
    assert model["links"]["docs"] == "/models/flights/docs"


def test_a_browser_gets_a_page():
    """Who asks for HTML is given links to click."""
    response = ask("GET", "/", accept="text/html,*/*")
    assert 'href="/models/flights/docs"' in response.text


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/healthz", {"status": "alive"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models", {"models": ["flights"]}),
    ],
)
def test_the_host_answers_for_itself(path, data):
    """Liveness and the names of the models, with a hook for models or without."""
    assert ask("GET", path).json() == data
    assert ask("GET", path, forward=echo).json() == data


def test_the_host_says_what_it_speaks():
    """Server metadata of the Open Inference Protocol."""
    assert ask("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/flights/infer"),
        ("POST", "/v2/models/flights/versions/7/infer"),
        ("GET", "/v2/models/flights"),
        ("GET", "/v2/models/flights/ready"),
    ],
)
def test_what_is_for_a_model_is_handed_on(method, path):
    """With the path that its own front knows."""
    response = ask(method, path, forward=echo)
    assert response.text == f"flights /models/flights /models/flights{path}"


def test_a_model_that_does_not_answer_is_a_refusal():
    """What the hook refuses, the host answers, with the time after which to try again."""

    async def busy(target, scope, receive):
        raise Refusal(503, "version_unavailable", "no replica", retry_after_s=0.2)

    response = ask("POST", "/v2/models/flights/infer", forward=busy, **{"x-request-id": "abc"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["code"] == "version_unavailable"
    assert (response.json()["error"], response.json()["request_id"]) == ("no replica", "abc")


@pytest.mark.parametrize("path", ["/v2/models/fligths/infer", "/v2/models/flights2", "/v2/models//infer"])
def test_a_model_that_is_not_there_is_not_found(path):
    """And those that are there are named."""
    response = ask("POST", path, forward=echo)
    assert response.status_code == 404
    assert "/models/flights" in response.json()["error"]


def test_other_paths_are_for_no_model():
    """Only what is below ``/v2/models/`` is handed on."""
    assert target_of("/v2", [MODEL]) is None
    assert target_of("/models/flights/predict", [MODEL]) is None


def test_an_unknown_model_is_not_found_and_the_known_are_named():
    """A misspelt name in the URL ends here."""
    response = ask("POST", "/models/fligths/predict")
    assert response.status_code == 404
    assert "/models/flights" in response.json()["error"]["message"]
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/models", "/v2", "/v2/health/live"])
def test_a_wrong_method_is_refused(path):
    """Nothing can be posted to the host's own pages."""
    response = ask("POST", path)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/models", "/v2/models", "/nope", "/v2/models/nope/infer"])
def test_a_model_that_asks_for_a_key_is_named_to_callers_with_one_alone(path):
    """In lists and in refusals, to browsers too; no key, and no hash of one, is ever shown."""
    for accept in ("application/json", "text/html"):
        asked = {"models": [MODEL, GUARDED], "forward": echo, "accept": accept}
        without = ask("GET", path, **asked)
        forged = ask("GET", path, **asked, **{"x-api-key": SECRET[:-1]})
        known = ask("GET", path, **asked, authorization=f"Bearer {SECRET}")
        assert "digits" not in without.text + forged.text
        assert "digits" in known.text
        assert KEY.hash not in known.text


def test_a_failure_of_the_hook_is_an_answer():
    """Whatever it raises."""

    async def broken(target, scope, receive):
        raise ArithmeticError

    answer = ask("POST", "/v2/models/flights/infer", forward=broken)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")


def test_an_answer_to_head_has_no_body():
    """Neither the index' own nor a refusal."""
    for path in ("/models", "/nope"):
        scope = {"type": "http", "method": "HEAD", "path": path, "headers": []}
        reply = asyncio.run(Index().answer(scope, None))
        assert reply.body == b""
        assert int(dict(reply.headers)[b"content-length"]) > 0
