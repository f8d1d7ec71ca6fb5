"""Who is admitted, who is refused, and what a refusal tells."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from raymlops.serving.auth import ANONYMOUS, SCOPES, Access, Caller, Guard, KeyEntry, access_of, secret_of
from raymlops.serving.refusal import Refusal
from raymlops.state import keys

SECRET = "rk_00112233aabb_" + "s" * 43
FORGED = "rk_00112233aabb_" + "t" * 43
KEY = KeyEntry("00112233aabb", hashlib.sha256(SECRET.encode()).hexdigest(), frozenset({"predict"}))


class Clock:
    """A time that stands until it is moved."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def guard(*keys, required=True, clock=None, now=None):
    return Guard(Access(required, keys), clock=clock or Clock(), now=now or Clock())


def refusal(guard, secret, scope="predict"):
    with pytest.raises(Refusal) as caught:
        guard.admit(secret, scope=scope)
    return caught.value


def test_a_good_key_is_admitted():
    """The caller is known by its key."""
    caller = guard(KEY).admit(SECRET, scope="predict")
    assert (caller.key_id, caller.key) == ("00112233aabb", KEY)


@pytest.mark.parametrize(
    "secret",
    [
        FORGED,
        "rk_ffffffffffff_" + "s" * 43,
        "rk_00112233aabb_",
        "rk_00112233aabb",
        "rk__" + "s" * 43,
        SECRET + "s",
        SECRET.upper(),
        "",
        "rk_",
        "password",
        "_" * 59,
        "é\udce9\x00",
        "rk_00112233aabb_" + "s" * 100_000,
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_what_is_no_key_is_refused_in_one_way(secret, required):
    """Forged, unknown, malformed, endless: one answer, the same where no key is needed, and no secret in it."""
    answer = refusal(guard(KEY, required=required), secret)
    assert (answer.status, answer.code) == (401, "unauthenticated")
    assert answer.message == refusal(guard(), SECRET).message


def test_without_a_key_an_open_endpoint_lets_all():
    """And one with keys lets nobody."""
    assert guard(KEY, required=False).admit(None, scope="pin") is ANONYMOUS
    assert refusal(guard(KEY), None).status == 401


def test_a_key_expires_while_the_replica_runs():
    """Nobody needs to tell the replica: from its last second on the key is as unknown as any other."""
    now = Clock()
    watch = guard(replace(KEY, expires_at=1010.0), now=now)
    now.time = 1009.9
    watch.admit(SECRET, scope="predict")
    now.time = 1010.0
    assert refusal(watch, SECRET).message == refusal(guard(), SECRET).message


@pytest.mark.parametrize("token", ["eyJhbGciOiJSUzI1NiJ9.e30.c2ln", "", "ya29.token", "\u00e9"])
def test_a_token_of_a_gateway_is_no_key(token):
    """An identity-aware proxy passes its own along: an open model answers, one with keys asks for one."""
    assert secret_of({b"authorization": b"Bearer " + token.encode("latin-1")}) is None
    assert secret_of({b"authorization": b"Bearer token", b"x-api-key": SECRET.encode()}) == SECRET


def test_a_revoked_key_is_refused_from_the_next_request_on():
    """Its entry is gone from the access, and nothing of it is kept."""
    watch = guard(KEY)
    watch.admit(SECRET, scope="predict")
    watch.configure(Access(required=True))
    assert refusal(watch, SECRET).status == 401


def test_a_scope_that_a_key_has_not_is_forbidden():
    """403, with the scope's name; asking costs nothing of the rate."""
    watch = guard(replace(KEY, rate_per_s=1.0))
    for _ in range(3):
        answer = refusal(watch, SECRET, scope="feedback")
        assert (answer.status, answer.code) == (403, "forbidden")
        assert "'feedback'" in answer.message
    caller = watch.admit(SECRET, scope="predict")
    with pytest.raises(Refusal, match="'pin'"):
        caller.require("pin")


def test_a_rate_is_a_bucket_that_fills_again():
    """At 2 a second: two at once, then one each half second, and the wait is said."""
    clock = Clock()
    watch = guard(replace(KEY, rate_per_s=2.0), clock=clock)
    for _ in range(2):
        watch.admit(SECRET, scope="predict")
    answer = refusal(watch, SECRET)
    assert (answer.status, answer.code, answer.retry_after_s) == (429, "rate_limited", 0.5)
    clock.time += 0.25
    assert refusal(watch, SECRET).retry_after_s == 0.25
    clock.time += 0.25
    watch.admit(SECRET, scope="predict")
    clock.time += 3600  # an hour of quiet saves up no more than a second's worth
    for _ in range(2):
        watch.admit(SECRET, scope="predict")
    assert refusal(watch, SECRET).status == 429


def test_a_slow_rate_still_lets_one_through():
    """One request in ten seconds: the bucket holds one."""
    watch = guard(replace(KEY, rate_per_s=0.1))
    watch.admit(SECRET, scope="predict")
    assert refusal(watch, SECRET).retry_after_s == pytest.approx(10.0)


def test_a_change_of_keys_gives_no_fresh_bucket():
    """Creating a key for somebody else lets nobody ask more often; a new rate counts from what is left."""
    clock = Clock()
    limited = replace(KEY, rate_per_s=2.0)
    watch = guard(limited, clock=clock)
    for _ in range(2):
        watch.admit(SECRET, scope="predict")
    watch.configure(Access(True, (limited, KeyEntry("other", "0" * 64, frozenset()))))
    assert refusal(watch, SECRET).status == 429
    watch.configure(Access(True, (replace(KEY, rate_per_s=100.0),)))
    assert refusal(watch, SECRET).status == 429
    watch.configure(Access(True, (KEY,)))
    watch.admit(SECRET, scope="predict")


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ({}, None),
        ({b"authorization": b"Bearer rk_a_b"}, "rk_a_b"),
        ({b"authorization": b"bearer   rk_a_b "}, "rk_a_b"),
        ({b"authorization": b"Basic dTpw"}, None),
        ({b"authorization": b"Bearer"}, None),
        ({b"x-api-key": b" rk_a_b"}, "rk_a_b"),
        ({b"x-api-key": b"rk_a_b", b"authorization": b"Bearer a-gateways-own"}, "rk_a_b"),
        ({b"x-api-key": b""}, ""),
        ({b"x-api-key": b"\xff"}, "ÿ"),
    ],
)
def test_a_key_is_found_in_headers(headers, secret):
    """In either header; an empty one is a key that is wrong, not none."""
    assert secret_of(headers) == secret


def test_access_survives_json():
    """It reaches a replica as part of Serve's user_config; what a newer version adds is left out."""
    access = Access(True, (replace(KEY, rate_per_s=2.5, expires_at=1.0),))
    data = json.loads(json.dumps(access.to_dict()))
    assert Access.from_dict(data) == access
    data["keys"][0]["colour"] = "green"
    assert Access.from_dict(data) == access
    assert Access.from_dict({}) == Access()


def test_a_model_gets_its_own_keys_only():
    """By name or by *, in the order of their ids, so that the same keys are the same config."""

    def record(key_id, *models):
        rights = {"scopes": ("pin", "predict"), "rate_per_s": None, "expires_at": datetime(2030, 1, 1, tzinfo=UTC)}
        return SimpleNamespace(id=key_id, name=f"of {key_id}", hash="0" * 64, models=models, **rights)

    keys = [record("c", "*"), record("b", "digits"), record("a", "digits", "flights")]
    access = access_of("flights", keys, required=True)
    assert [entry.id for entry in access.keys] == ["a", "c"]
    assert access.keys[0] == KeyEntry("a", "0" * 64, frozenset({"pin", "predict"}), None, 1893456000.0, "of a")
    assert access_of("flights", keys[::-1], required=True) == access


def test_a_scope_is_a_scope_everywhere():
    """What can be given to a key is what can be asked for."""
    assert set(keys.SCOPES) == SCOPES


def test_new_rights_are_in_force_in_one_step():
    """While they are being put together, callers are judged by the old ones; from another thread, say."""
    watch = guard(KEY)
    seen = []

    class Slow(tuple):
        __slots__ = ()

        def __iter__(self):
            for entry in super().__iter__():
                yield entry
                seen.append(watch.admit(SECRET, scope="predict").key_id)

    watch.configure(Access(True, Slow((KEY, replace(KEY, id="ffffffffffff")))))
    assert seen == [KEY.id, KEY.id]


def test_a_bucket_goes_on_while_rights_change():
    """What is taken meanwhile counts, as it is the same bucket."""
    limited = replace(KEY, rate_per_s=1.0)
    watch = guard(limited)
    watch.admit(SECRET, scope="predict")
    watch.configure(Access(True, (limited,)))
    assert refusal(watch, SECRET).status == 429


def test_to_know_a_caller_costs_nothing_of_its_rate():
    """And needs no right but a good key."""
    watch = guard(replace(KEY, rate_per_s=1.0, scopes=frozenset()))
    assert [watch.identify(SECRET).key_id for _ in range(5)] == [KEY.id] * 5
    for secret in (None, FORGED):
        with pytest.raises(Refusal) as caught:
            watch.identify(secret)
        assert caught.value.status == 401


@pytest.mark.parametrize(
    ("scopes", "labels_of"), [({"predict", "feedback"}, "shop"), ({"feedback"}, None), ({"predict", "pin"}, "shop")]
)
def test_a_key_that_asks_labels_its_own_requests(scopes, labels_of):
    """One that may not ask has none: it labels everybody's, as a caller without a key does."""
    caller = Caller(replace(KEY, scopes=frozenset(scopes), name="shop"))
    assert (caller.name, caller.labels_of) == ("shop", labels_of)
    assert (Caller(None).name, Caller(None).labels_of) == (None, None)
    assert Caller(KEY).name is None  # rendered by an earlier release
