"""What a state records of versions, with the audit, and what it takes over from a state that had no such records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from older_state import OLD_DEPLOYMENTS, OLD_EVENTS, TAKEN_OVER, digests_in, write_older
from stored import put

from raymlops.errors import RefusedError, StorageError
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.state.store import Deployment, State
from raymlops.state.versions import VersionRecord, record_verdict, record_version, recorded

A, B = "a" * 64, "b" * 64
START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = START + timedelta(hours=1)


def ref(digest=A, *, uri="/bundles/a", run_id="run7"):
    return ModelVersionRef("m", 7, run_id, BundleRef(uri, digest), ("candidate",))


def judge(state, version, *, seen, passed=True, now=LATER):
    record_verdict(state, version, seen=seen, passed=passed, decision={"passed": passed}, why="1 check", now=now)


def actions(state):
    return [event.action for event in state.events("m")][::-1]


def test_a_version_is_recorded_with_its_event(state):
    """Digest, place and run, without a verdict; the same again is no news."""
    assert recorded(state, "m", 7) is None
    for _ in range(2):
        record_version(state, ref(), why="run run7 asked for", now=START)
    assert recorded(state, "m", 7) == VersionRecord("m", 7, "run7", BundleRef("/bundles/a", A), START)
    (event,) = state.events("m")
    assert (event.action, event.subject, event.after["bundle"]["digest"]) == ("register", "m/7", A)


def test_what_cannot_be_told_is_not_recorded(state):
    """The record and its event are one transaction: an event that the database refuses leaves no record."""
    with state.writing() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(StorageError, match="disk full"):
        record_version(state, ref(), why="", now=START)
    with pytest.raises(StorageError, match="disk full"):
        judge(state, ref(), seen=None)
    assert recorded(state, "m", 7) is None


def test_the_newest_verdict_counts(state):
    """It passes, then it is refused; the digest that was gated is in the event."""
    record_version(state, ref(), why="", now=START)
    judge(state, ref(), seen=recorded(state, "m", 7))
    passed = recorded(state, "m", 7)
    assert (passed.verdict, passed.decided_at, passed.recorded_at) == ("passed", LATER, START)
    judge(state, ref(), seen=passed, passed=False)
    assert recorded(state, "m", 7).verdict == "refused"
    assert actions(state) == ["register", "gate.pass", "gate.refuse"]
    assert state.events("m")[0].after == {"passed": False, "digest": A}


def test_a_bundle_that_moved_keeps_its_verdict(state):
    """A lost bundle was written again in another place: the same files."""
    record_version(state, ref(), why="", now=START)
    judge(state, ref(), seen=recorded(state, "m", 7))
    record_version(state, ref(uri="/elsewhere/a"), why="", now=LATER)
    found = recorded(state, "m", 7)
    assert (found.bundle.uri, found.verdict, found.recorded_at) == ("/elsewhere/a", "passed", START)


def test_another_bundle_under_the_number_has_passed_nothing(state):
    """The model was deleted in MLflow and registered anew, so that its numbers begin again."""
    record_version(state, ref(), why="", now=START)
    judge(state, ref(), seen=recorded(state, "m", 7))
    record_version(state, ref(B, run_id="run8"), why="", now=LATER)
    assert recorded(state, "m", 7) == VersionRecord("m", 7, "run8", BundleRef("/bundles/a", B), LATER)
    assert state.events("m")[0].before["bundle"]["digest"] == A


def test_a_bundle_is_adopted_with_its_verdict(state):
    """The gate was told a digest that this state has not recorded: both events, and the record of before in one."""
    judge(state, ref(), seen=None)
    first = recorded(state, "m", 7)
    assert (first.bundle, first.verdict, first.recorded_at) == (ref().bundle, "passed", LATER)
    judge(state, ref(B), seen=first, passed=False)
    assert actions(state) == ["adopt", "gate.pass", "adopt", "gate.refuse"]
    assert state.events("m")[1].before["bundle"]["digest"] == A
    assert (recorded(state, "m", 7).bundle.digest, recorded(state, "m", 7).verdict) == (B, "refused")


def test_a_verdict_on_what_was_exchanged_meanwhile_is_none(state):
    """The gate loaded one bundle, and somebody recorded another one while it was asked."""
    record_version(state, ref(), why="", now=START)
    seen = recorded(state, "m", 7)
    record_version(state, ref(B, run_id="run8"), why="", now=START)
    for before in (None, seen):
        with pytest.raises(RefusedError, match="recorded by another process"):
            judge(state, ref(), seen=before)
    assert recorded(state, "m", 7).verdict is None


def test_a_number_that_is_deployed_keeps_its_bundle(state):
    """Replicas of two bundles under one number would be one version to everybody."""
    live = Deployment("m", 7, BundleRef("/bundles/a", A), "run7", "champion")
    put(state, "m", [live])
    refused = rf"version 7 of m is deployed here with digest {A}, not {B}"
    with pytest.raises(RefusedError, match=refused):
        judge(state, ref(B), seen=None)
    with pytest.raises(RefusedError, match=refused):
        record_version(state, ref(B), why="", now=START)
    assert recorded(state, "m", 7) is None


def test_versions_of_a_state_without_such_records_are_taken_over_once(url):
    """From its own audit: where they came from, and the newest verdict since."""
    write_older(url, events=OLD_EVENTS, deployments=OLD_DEPLOYMENTS)
    for _ in range(2):
        with State.open(url) as state:
            assert digests_in(state) == TAKEN_OVER
            found = recorded(state, "m", 2)
    assert found == VersionRecord(
        "m", 2, "run2", BundleRef("/b/2", A), START + timedelta(seconds=1), "passed", START + timedelta(seconds=3)
    )
