"""Requests of web pages to a model that is open to the programs of its machine."""

from __future__ import annotations

import pytest
from serving_fakes import ROW, ask, make_front

from raymlops.serving.auth import Access
from raymlops.serving.settings import Settings

OPEN = make_front(settings=Settings(access=Access(hosts=("models.local",))))
ROWS = {"rows": [ROW]}


def sent(method="POST", path="/predict", *, front=OPEN, **headers):
    content = {"json": ROWS} if method == "POST" else {}
    given = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return ask(front, method, path, headers=given, **content)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "127.8.8.8", "localhost", "LOCALHOST:80", "app.localhost:8000", "[::1]:8000", "models.local"],
)
def test_programs_of_this_machine_are_answered(host):
    """By every name of loopback, and by those that are allowed."""
    assert sent(host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8000", "10.0.0.1", "localhost.evil.example", "", "[", "::1"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/predict"), ("POST", "/feedback"), ("GET", ""), ("GET", "/docs")]
)
def test_another_name_for_loopback_is_refused(host, method, path):
    """A page whose own name resolves to this machine could read the answers; the message says what helps."""
    answer = sent(method, path, host=host)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_host")
    assert "serve.allowed_hosts" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({}, True),
        ({"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:8000"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "cross-site", "origin": "https://evil.example"}, False),
        ({"sec_fetch_site": "same-site", "origin": "http://127.0.0.1:3000"}, False),
        ({"origin": "http://127.0.0.1:8000"}, True),
        ({"origin": "http://127.0.0.1:3000"}, False),
        ({"origin": "null"}, False),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/flights/infer", "/feedback"])
def test_a_page_of_another_origin_sends_nothing(headers, good, path):
    """Whatever its content type; programs that are no browsers send neither header."""
    answer = sent(path=path, content_type="text/plain", **headers)
    assert (answer.status_code == 403) is not good
    if not good:
        assert "cross_origin" in answer.text


def test_a_link_may_lead_to_the_docs():
    """A request that only reads changes nothing, and another origin cannot see the answer."""
    assert sent("GET", "/docs", sec_fetch_site="cross-site").status_code == 200


def test_health_is_told_at_every_name():
    """To those that watch the endpoint by a name of its machine."""
    assert sent("GET", "/readyz", host="evil.example").status_code == 200


def test_elsewhere_pages_are_as_welcome_as_others():
    """With keys, which no page has, and where an endpoint was opened to others."""
    answer = sent(front=make_front(), host="models.example", sec_fetch_site="cross-site", origin="https://a.example")
    assert answer.status_code == 200
