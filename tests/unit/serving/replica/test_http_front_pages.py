"""What can be read about a model at its route: description, health, OpenAPI, docs."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256

import jsonschema
from serving_fakes import SIGNATURE, FakeModel, ask, front_of, make_front

from raymlops.serving.auth import Access, KeyEntry
from raymlops.serving.settings import Settings


def test_the_description_names_version_digest_run_and_signature():
    """GET on the route itself says what answers there."""
    described = ask(make_front(), "GET").json()
    assert (described["model"], described["model_version"]) == ("flights", "7")
    assert (described["digest"], described["run_id"]) == ("d" * 64, "run-7")
    assert described["signature"] == json.loads(json.dumps(SIGNATURE.to_dict()))
    assert described["links"]["predict"] == "/models/flights/predict"


def test_health_and_readiness():
    """Alive from the start, ready once the example was answered."""
    cold = front_of(FakeModel())
    assert ask(cold, "GET", "/healthz").status_code == 200
    assert ask(cold, "GET", "/readyz").status_code == 503
    cold.warm_up()
    assert ask(cold, "GET", "/readyz").status_code == 200
    assert ask(cold, "HEAD", "/readyz").status_code == 200


def test_health_of_the_open_inference_protocol_is_in_its_words():
    """KServe's client reads them, and takes every other body for a no."""
    front = make_front()
    assert ask(front, "GET", "/v2/health/live").json() == {"live": True}
    assert ask(front, "GET", "/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/flights/ready", "/v2/models/flights/versions/7/ready"):
        assert ask(front, "GET", path).json() == {"name": "flights", "ready": True}
        assert ask(front_of(FakeModel()), "GET", path).status_code == 503


def test_health_and_readiness_need_no_key():
    """Whoever watches the endpoint has none; the document says for each route whether it asks for one."""
    front = make_front(settings=Settings(access=Access(required=True)))
    for path in ("/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready", "/v2/models/flights/ready"):
        assert ask(front, "GET", path).status_code == 200
    assert ask(front, "GET", "/openapi.json").status_code == 401
    open_document = ask(make_front(), "GET", "/openapi.json").json()
    assert {} in open_document["security"]
    assert {} not in front._document("/x")["security"]


def test_live_versions_are_listed_to_callers_with_a_key():
    """By the refusal of another one, although readiness itself needs no key."""
    path = "/v2/models/flights/versions/99/ready"
    assert ask(make_front(settings=Settings(access=Access(required=True))), "GET", path).status_code == 401
    answer = ask(make_front(), "GET", path)
    assert (answer.status_code, "live versions: 7" in answer.text) == (404, True)


def test_the_openapi_example_works_and_fits_its_schema():
    """What the document shows can be sent as it stands, and is answered as it says."""
    front = make_front()
    document = ask(front, "GET", "/openapi.json").json()
    operation = document["paths"]["/predict"]["post"]
    media = operation["requestBody"]["content"]["application/json"]
    schemas = document["components"]["schemas"]
    assert list(schemas["Row"]["properties"]) == ["distance", "wind", "origin"]
    assert schemas["Row"]["required"] == ["distance", "origin"]
    jsonschema.validate(media["example"], {**media["schema"], "components": document["components"]})
    answer = ask(front, "POST", "/predict", json=media["example"]).json()
    shown = operation["responses"]["200"]["content"]["application/json"]["example"]
    assert answer["outputs"] == shown["outputs"]


def test_the_docs_page_needs_no_network():
    """The page shows the fields and loads nothing from elsewhere."""
    response = ask(make_front(), "GET", "/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "distance" in response.text
    assert "EWR, JFK" in response.text
    assert "//" not in response.text.replace("http://test", "")


def test_a_page_runs_its_own_scripts_alone_and_is_kept_nowhere():
    """By their hashes, the same on the page that takes a key, which the docs replace; no other page frames it."""
    front = make_front(settings=Settings(access=Access(required=True)))
    pages = [ask(make_front(), "GET", "/docs"), ask(front, "GET", "/docs", headers={"accept": "text/html"})]
    policy, other = (page.headers["content-security-policy"] for page in pages)
    assert policy == other
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    for page in pages:
        for script in re.findall("<script>(.*?)</script>", page.text, re.DOTALL):
            assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy
    for page in (*pages, ask(make_front(), "GET", "/openapi.json"), ask(make_front(), "GET")):
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"


def test_a_browser_without_a_key_gets_a_page_that_takes_one():
    """It says nothing of the model; with the key the docs are there, whose form sends it too."""
    secret = "rk_k1_" + "s" * 43
    key = KeyEntry("k1", sha256(secret.encode()).hexdigest(), frozenset({"predict"}))
    front = make_front(settings=Settings(access=Access(required=True, keys=(key,))))
    page = ask(front, "GET", "/docs", headers={"accept": "text/html,*/*"})
    assert (page.status_code, page.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert 'type="password"' in page.text
    assert "distance" not in page.text
    assert "flights" not in page.text
    assert ask(front, "GET", "/docs").json()["error"]["code"] == "unauthenticated"
    docs = ask(front, "GET", "/docs", headers={"x-api-key": secret})
    assert docs.status_code == 200
    assert 'id="key"' in docs.text


def test_the_docs_page_says_how_labels_are_sent():
    """With the body that the document has as its example."""
    page = ask(make_front(), "GET", "/docs").text
    assert "POST /models/flights/feedback" in page
    assert "&#34;labels&#34;" in page
