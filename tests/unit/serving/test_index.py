from __future__ import annotations

import asyncio

import httpx
import pytest

from raymlops.serving.index import Index

MODEL = {"name": "flights", "version": "7", "digest": "d" * 64, "path": "/models/flights"}


def ask(method: str, path: str, **headers) -> httpx.Response:
    index = Index()
    index.configure([MODEL])

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(index), base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


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


def test_the_host_is_alive():
    """Liveness of the host as such."""
    assert ask("GET", "/healthz").json() == {"status": "alive"}


def test_an_unknown_model_is_not_found_and_the_known_are_named():
    """A misspelt name in the URL ends here."""
    response = ask("POST", "/models/fligths/predict")
    assert response.status_code == 404
    assert "/models/flights" in response.json()["error"]["message"]
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_a_wrong_method_is_refused():
    """Nothing can be posted to the list."""
    response = ask("POST", "/models")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
