"""Where a replica writes, by whose log is in the storage of its bundle."""

from __future__ import annotations

from raymlops.predictions.owner import KEPT_S, Place, mark_owner, own_storage


def test_a_replica_follows_the_mark_and_looks_at_it_once_a_minute(store):
    """Nobody's log is written in place, as its own is; another state's is not."""
    clock = [0.0]
    place = Place("m", clock=lambda: clock[0])
    assert place.of(store.uri, "") == store.uri
    assert place.of(store.uri, "me") == store.uri
    mark_owner(store, "m", "somebody")
    assert place.of(store.uri, "me") == store.uri
    clock[0] = KEPT_S
    assert place.of(store.uri, "me") == own_storage(store.uri, "me") == f"{store.uri}/states/me"
    assert place.of(store.uri, "somebody") == store.uri
    assert Place("other").of(store.uri, "me") == store.uri


def test_a_replica_of_a_state_with_a_log_of_its_own_writes_there_although_nobody_marked_the_other(store):
    """An earlier release wrote that one."""
    mark_owner(type(store)(own_storage(store.uri, "me")), "m", "me")
    assert Place("m").of(store.uri, "me") == f"{store.uri}/states/me"
