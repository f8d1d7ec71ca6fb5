"""Thousands of requests from the OpenAPI document to a real endpoint over HTTP, behind either proxy."""

from __future__ import annotations

import time

import pytest
from endpoints import SECRETS, endpoint
from schema_fuzzing import fuzz

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("proxy", ["python", "haproxy"])
def test_an_endpoint_keeps_every_promise_of_its_document(proxy):
    """5,000 requests: statuses, types, schemas and headers as promised; bad ones refused, good ones taken."""
    with endpoint(proxy) as served:
        served.change(keys=("good",), auth="keys", max_rows=200)
        start = time.monotonic()
        fuzzed = fuzz("/openapi.json", base_url=served.url, examples=180, seed=1, secret=SECRETS["good"])
        print(f"\n{proxy}: {fuzzed.cases} cases in {time.monotonic() - start:.0f} s, {dict(fuzzed.statuses)}")
    assert not fuzzed.problems, str(fuzzed)
    assert fuzzed.cases >= 5000
    assert max(fuzzed.statuses) < 500
