"""Keys in the state database: made, replaced, ended, and on the record without their secrets."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from raymlops.errors import NotFoundError, RefusedError, UsageError
from raymlops.state.keys import create_key, keys_in, list_keys, revoke_key, rotate_key
from raymlops.state.store import State

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def create(state, name="shop", **options):
    return create_key(state, **{"name": name, "models": ["flights"], "now": NOW, **options})


def good(state, now=NOW):
    with state.reading() as connection:
        return [key.id for key in keys_in(connection, now=now)]


def test_a_key_is_read_as_it_was_made(state):
    """Every field comes back, and its hash is that of the whole secret, which has the id in it."""
    made, secret = create(state, scopes=["pin", "predict"], rate_per_s=2.5, expires_at=NOW + DAY)
    assert list_keys(state) == [made]
    assert made.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert secret.split("_", 2)[:2] == ["rk", made.id]
    assert len(secret) == 59
    assert (made.models, made.scopes, made.rate_per_s) == (("flights",), ("predict", "pin"), 2.5)


def test_neither_secret_nor_hash_is_on_the_record(state):
    """The audit says who may do what, and nothing that a key could be made or checked with."""
    made, secret = create(state)
    new, second, _ = rotate_key(state, made.id, grace_s=60, now=NOW)
    revoke_key(state, new.id, now=NOW, actor="ops@host", why="leaked")
    events = state.events()
    assert [event.action for event in events] == ["key.revoke", "key.create", "key.rotate", "key.create"]
    assert (events[0].actor, events[0].why, events[0].subject) == ("ops@host", "leaked", f"api-key:{new.id}")
    assert events[0].after["revoked_at"] == NOW.isoformat()
    written = json.dumps([event.to_dict() for event in events])
    assert not [text for text in (secret, second, secret[16:], made.hash, new.hash) if text in written]


def test_what_cannot_be_written_is_neither_kept_nor_recorded(state):
    """Key and audit event are one transaction."""
    with state.writing() as connection:
        connection.execute(sa.text("DROP TABLE audit"))
    with pytest.raises(Exception, match="audit"):
        create(state)
    assert list_keys(state) == []


def test_a_key_is_good_until_it_expires_or_is_revoked(state):
    """To the second, and only one of the reasons is told."""
    first, _ = create(state, expires_at=NOW + DAY)
    second, _ = create(state, name="other")
    assert good(state, NOW + DAY - timedelta(seconds=1)) == sorted([first.id, second.id])
    assert good(state, NOW + DAY) == [second.id]
    assert revoke_key(state, "other", now=NOW).status(NOW) == "revoked"
    assert good(state) == [first.id]
    assert first.status(NOW + DAY) == "expired"


def test_revoking_again_changes_nothing(state):
    """By its id; the time stays, and there is no second event."""
    made, _ = create(state)
    revoked = revoke_key(state, made.id, now=NOW)
    assert revoke_key(state, made.id, now=NOW + DAY) == revoked
    assert len(state.events()) == 2


def test_a_leaked_secret_is_revoked_as_it_was_found(state):
    """Nobody needs to look for the id in it; a strange one is not repeated in the message."""
    made, secret = create(state)
    assert revoke_key(state, secret, now=NOW).id == made.id
    with pytest.raises(NotFoundError) as caught:
        revoke_key(state, "rk_" + "0" * 12 + "x" + secret[16:], now=NOW)
    assert secret[16:] not in str(caught.value)


def test_a_rotation_lets_both_work_for_a_while(state):
    """The new key has the rights and the length of life of the old one, which ends after the grace."""
    made, _ = create(state, scopes=["predict"], rate_per_s=3.0, expires_at=NOW + 30 * DAY)
    later = NOW + 10 * DAY
    new, secret, old = rotate_key(state, "shop", grace_s=3600, now=later)
    assert new.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert (new.models, new.scopes, new.rate_per_s) == (made.models, made.scopes, made.rate_per_s)
    assert (new.expires_at, old.expires_at) == (later + 30 * DAY, later + timedelta(hours=1))
    assert good(state, later) == sorted([made.id, new.id])
    assert good(state, later + DAY) == [new.id]


def test_a_rotation_never_lengthens_the_old_key(state):
    """A grace of a week for a key that ends tomorrow: it ends tomorrow."""
    made, _ = create(state, expires_at=NOW + DAY)
    assert rotate_key(state, made.id, grace_s=7 * 86400, now=NOW)[2].expires_at == NOW + DAY


def test_a_name_with_two_good_keys_is_ambiguous(state):
    """During a rotation; the message has the ids to choose from."""
    made, _ = create(state)
    new, _, _ = rotate_key(state, "shop", grace_s=3600, now=NOW)
    with pytest.raises(UsageError) as caught:
        revoke_key(state, "shop", now=NOW)
    assert made.id in str(caught.value)
    assert new.id in str(caught.value)


def test_what_is_over_is_not_rotated(state):
    """A revoked key must not come back under another id."""
    made, _ = create(state)
    revoke_key(state, made.id, now=NOW)
    with pytest.raises(RefusedError, match="is revoked"):
        rotate_key(state, made.id, grace_s=0, now=NOW)
    with pytest.raises(NotFoundError, match="shop"):
        rotate_key(state, "shop", grace_s=0, now=NOW)


def test_a_name_is_one_good_keys_at_a_time(state):
    """And free again when that has ended."""
    made, _ = create(state)
    with pytest.raises(UsageError, match=made.id):
        create(state)
    revoke_key(state, made.id, now=NOW)
    create(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "says who holds it"),
        ({"name": "a\nb"}, "says who holds it"),
        ({"name": " shop"}, "says who holds it"),
        ({"name": "00112233aabb"}, "could be a key's id"),
        ({"name": "rk_00112233aabb_" + "s" * 43}, "starts like a secret"),
        ({"models": []}, "one model at least"),
        ({"models": ["Flights"]}, "got 'Flights'"),
        ({"models": ["flights", "**"]}, "got '\\*\\*'"),
        ({"scopes": ["predict", "admin"]}, "got admin"),
        ({"scopes": []}, "got none"),
        ({"rate_per_s": 0.0}, "above 0"),
        ({"rate_per_s": float("nan")}, "above 0"),
        ({"rate_per_s": float("inf")}, "above 0"),
        ({"expires_at": NOW}, "before it is made"),
    ],
)
def test_what_cannot_be_is_refused(state, options, message):
    """Each with what was got and what is allowed; a secret in the wrong place is not repeated."""
    with pytest.raises(UsageError, match=message) as caught:
        create(state, **options)
    assert "s" * 43 not in str(caught.value)
    assert list_keys(state) == []
    assert state.events() == []


def test_two_who_create_the_same_name_at_once(state, tmp_path):
    """One of them is told of the other: who writes waits for who is writing, and looks again."""
    with State.open(f"sqlite:///{tmp_path / 'state.db'}") as other:
        create(other)
        with pytest.raises(UsageError, match="has a key already"):
            create(state)
