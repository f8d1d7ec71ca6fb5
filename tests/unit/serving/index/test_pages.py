from __future__ import annotations

import asyncio
from hashlib import sha256

import httpx
import pytest

from raymlops.serving.asgi import send_reply
from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.index.gateway import Gateway

MODEL = {"name": "flights", "version": "7", "digest": "d" * 64, "path": "/models/flights"}


SECRET = "rk_k1_" + "s" * 43
KEY = KeyEntry("k1", sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}))
GUARDED = {**MODEL, "name": "digits", "path": "/models/digits", "access": Access(required=True, keys=(KEY,)).to_dict()}


def ask(method: str, path: str, *, models=(MODEL,), **headers) -> httpx.Response:
    index = Gateway()
    index.configure(models)

    async def app(scope, receive, send):
        await send_reply(await index.reply(scope, receive), send)

    async def sent():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(sent())


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


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_what_differs_by_key_is_kept_nowhere(accept):
    """Nor framed, nor taken for another type."""
    headers = ask("GET", "/", accept=accept).headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert ("content-security-policy" in headers) == (accept == "text/html")


@pytest.mark.parametrize(("host", "count"), [("127.0.0.1:8000", 2), ("[::1]", 2), ("evil.example", 1), ("a.b:1", 2)])
def test_a_name_of_another_host_shows_no_model_that_is_open_to_this_machine(host, count):
    """A page whose name resolves to loopback; a model that is open to all is listed there too."""
    local = {**MODEL, "name": "digits", "access": Access(hosts=("a.b",)).to_dict()}
    assert len(ask("GET", "/models", models=(MODEL, local), host=host).json()["models"]) == count


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
    """Liveness and the names of the models."""
    assert ask("GET", path).json() == data


def test_the_host_says_what_it_speaks():
    """Server metadata of the Open Inference Protocol."""
    assert ask("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]


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
        asked = {"models": [MODEL, GUARDED], "accept": accept}
        without = ask("GET", path, **asked)
        forged = ask("GET", path, **asked, **{"x-api-key": SECRET[:-1]})
        known = ask("GET", path, **asked, authorization=f"Bearer {SECRET}")
        assert "digits" not in without.text + forged.text
        assert "digits" in known.text
        assert KEY.hash not in known.text


@pytest.mark.parametrize("path", ["/models/{}/predict", "/models/{}", "/v2/models/{}/ready"])
def test_a_hidden_model_and_an_unknown_one_are_refused_alike(path):
    """Without a key by 401, whether its version is away or not; with its key an unknown one is not found."""
    for away in (True, False):
        models = (MODEL, {**GUARDED, "away": away})
        hidden, unknown = (ask("GET", path.format(name), models=models) for name in ("digits", "nope"))
        assert [hidden.status_code, unknown.status_code] == [401, 401]
        assert hidden.json()["error"] == unknown.json()["error"]
        known = ask("GET", path.format("nope"), models=models, authorization=f"Bearer {SECRET}")
        assert known.status_code == 404


def test_an_equal_path_in_other_bytes_is_not_found():
    """Serve's proxies compare bytes, so that it would be no use to send it again."""
    for path in ("/models/flight%73/docs", "/models/flights%2fdocs"):
        assert ask("GET", path).status_code == 404
    assert ask("GET", "/models/flights/docs").status_code == 503


@pytest.mark.parametrize("path", ["/models/flights/predict", "/models/flights", "/v2/models/flights/infer"])
def test_a_model_whose_version_is_being_replaced_is_away_for_a_while(path):
    """Its route is nobody's, so that requests arrive here; they are to be sent again, and wait for nothing."""
    away = ask("POST", path, models=({**MODEL, "away": True},))
    assert (away.status_code, away.headers["retry-after"]) == (503, "5")
    assert "no version of flights answers now" in away.text
    assert ask("POST", "/models/flightsx", models=({**MODEL, "away": True},)).status_code == 404
