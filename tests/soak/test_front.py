"""Thousands of damaged requests to the front as an ASGI application, from a seed that a failure names."""

import json
import random

import pytest
from serving_fakes import ROW, make_front, predict

pytestmark = pytest.mark.soak

VALUES = [
    None,
    True,
    "",
    "x" * 5000,
    "\ud800",
    0,
    -0.0,
    1e300,
    1e999,
    2**63,
    10**400,
    [],
    {},
    [[]],
    [ROW],
    float("nan"),
]


def damaged(rng):
    """Return the bytes of one request body: valid rows changed in one of several ways."""
    rows = [dict(ROW) for _ in range(rng.randint(0, 4))]
    for row in rows:
        if rng.random() < 0.7:
            row[rng.choice([*ROW, "new", "", "__class__"])] = rng.choice(VALUES)
    data = rng.choice(
        [{"rows": rows}, {"rows": rows, "extra": 1}, rows, {"rows": rng.choice(VALUES)}, rng.choice(VALUES)]
    )
    text = bytearray(json.dumps(data).encode("utf-8", "replace"))
    for _ in range(rng.choice([0, 0, 0, 1, 5])):
        text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text[: rng.randrange(len(text) + 1)] if rng.random() < 0.1 else text)


@pytest.mark.parametrize("seed", range(20))
def test_no_body_is_answered_5xx(seed):
    """1,000 damaged bodies a seed: each is answered 200 or 4xx, errors in the one form."""
    rng = random.Random(seed)
    front = make_front()
    for index in range(1000):
        answer = predict(front, damaged(rng))
        assert answer.status_code < 500, f"seed {seed}, request {index}"
        assert answer.status_code == 200 or answer.json()["error"]["code"]
