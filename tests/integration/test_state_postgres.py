"""The state database on a Postgres of its own: the same behaviour as on SQLite, where the two differ in the driver."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from killed_judge import AT_ONCE, STEPS, DiedError, dying_at, errors_of_three, raised, rows
from older_state import OLD_DEPLOYMENTS, OLD_EVENTS, TAKEN_OVER, digests_in, write_older
from postgres import NEEDS_POSTGRES, postgres
from retrained import HOUR, NOW, begun_at_once, frozen, history
from stored import put

from raymlops.errors import LeaseLostError, RefusedError, UnreachableError
from raymlops.records import BundleRef
from raymlops.state import locks
from raymlops.state.engine import open_engine
from raymlops.state.freezes import freeze, freeze_of
from raymlops.state.lease import holder_of, lease
from raymlops.state.loop import retrainings_of
from raymlops.state.store import Deployment, State, deployments_in

pytestmark = [pytest.mark.integration, NEEDS_POSTGRES]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Return the URL of an empty database."""
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def end_session(url, purpose):
    """Let the server end the session that holds a lease for a purpose."""
    engine = open_engine(url)
    query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE :name"
    with engine.connect() as connection:
        assert connection.execute(sa.text(query), {"name": f"%: {purpose}%"}).scalars().all() == [True]
    engine.dispose()


def deployment(version: int, role: str) -> Deployment:
    return Deployment("flights", version, BundleRef(f"/b/{version}", "d" * 64), f"run{version}", role, {})


def test_a_change_and_its_audit_are_one(url):
    """Rows, roles, times with zone and JSON come back as they went in."""
    with State.open(url) as state:
        wanted = [deployment(6, "warm"), deployment(7, "champion")]
        put(state, "flights", wanted, actor="ada")
        assert state.deployments("flights") == wanted
        (event,) = state.events("flights")
        assert [Deployment.from_dict(item) for item in event.after] == wanted
        assert event.ts.tzinfo is not None


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("UPDATE deployments SET role = 'champion' WHERE version = 6", "deployments_one_champion"),
        ("DELETE FROM audit", "append-only"),
        ("TRUNCATE audit", "append-only"),
    ],
)
def test_the_database_keeps_its_guarantees(url, statement, refusal):
    """One champion a name, and an audit that is only added to, whoever writes."""
    refused = pytest.raises(sa.exc.DBAPIError, match=refusal)
    with State.open(url) as state, state._engine.connect() as connection, refused:
        connection.execute(sa.text(statement))


def test_versions_of_an_older_state_are_taken_over(url):
    """From its own audit, as on SQLite."""
    with State.open(url) as state, state._engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("CREATE DATABASE older"))
    older = url.removesuffix("postgres") + "older"
    write_older(older, events=OLD_EVENTS, deployments=OLD_DEPLOYMENTS)
    with State.open(older) as state:
        assert digests_in(state) == TAKEN_OVER


def test_writers_wait_for_each_other(url):
    """Twenty changes by two connections at once: each saw what the one before it left."""
    states = [State.open(url) for _ in range(2)]

    def work(state, start):
        for version in range(start, start + 10):
            put(state, "flights", [deployment(version, "champion")], action="race")

    threads = [threading.Thread(target=work, args=(state, 100 * index)) for index, state in enumerate(states, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [event for event in states[0].events() if event.action == "race"][::-1]
    for state in states:
        state.close()
    assert len(events) == 20
    assert all(event.before == earlier.after for earlier, event in itertools.pairwise(events))


def test_who_keeps_writers_waiting_is_named(url):
    """By its backend and its own name; nothing was written, and how to end it is said."""
    with State.open(url) as state, State.open(url) as other:
        sa.event.listen(state._engine, "before_cursor_execute", _impatient, retval=True)
        with other.writing() as connection:
            connection.execute(sa.text("SET application_name = 'psql of bob'"))
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            with pytest.raises(UnreachableError, match=rf"is locked by backend {pid} \(psql of bob\)") as caught:
                state.record(action="a test", subject="flights")
    assert "Nothing was written" in caught.value.hint
    assert "pg_terminate_backend" in caught.value.hint


def test_judges_at_once_write_each_verdict_once(url, tmp_path):
    """Three of them, after some that failed at each statement of the first verdict: the same rows as on SQLite."""
    with State.open(url) as state, state._engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("CREATE DATABASE judged"))
    judged, single = url.removesuffix("postgres") + "judged", f"sqlite:///{tmp_path}/state.db"
    with State.open(single) as state:
        for step in AT_ONCE:
            step(state)
    State.open(judged).close()
    for number in range(6):
        with State.open(judged) as state:
            dying_at(state, number, raised)
            with pytest.raises(DiedError):
                STEPS[0](state)
    assert errors_of_three(judged) == []
    assert rows(judged) == rows(single)


def _impatient(_connection, _cursor, statement, parameters, _context, _many):
    return statement.replace("30s", "50ms"), parameters


def test_retrainings_and_freezes_are_kept_as_in_a_file(url):
    """One open retraining a model, also of four that begin at once, and one freeze, the newest."""
    with State.open(url) as state:
        history(state)
        (stopped,) = retrainings_of(state)
        assert (stopped.stage, stopped.made_at, stopped.settings) == ("stopped", NOW + HOUR, {"autonomy": "act"})
        assert (begun_at_once(state, 4), len(retrainings_of(state))) == (3, 2)
        freeze(state, frozen("digits", until=NOW + HOUR))
        freeze(state, frozen("digits", why="longer"))
        assert freeze_of(state, "digits", now=NOW + 2 * HOUR).why == "longer"


def test_a_reading_is_one_snapshot(url):
    """A change that is committed between two statements of it is not half of what is read."""
    with State.open(url) as state, State.open(url) as other:
        put(state, "flights", [deployment(7, "champion")])
        with state.reading() as connection:
            before = deployments_in(connection, "flights")
            put(other, "flights", [])
            assert deployments_in(connection, "flights") == before
        assert state.deployments("flights") == []


def test_one_change_at_a_time(url):
    """Who comes second is told who is first and for what; the lock ends with its holder's connection."""
    with State.open(url) as state, State.open(url) as other:
        with (
            state.exclusive("deploy flights", wait_s=0),
            pytest.raises(RefusedError, match=r"since .+ UTC, backend \d+ holds the lock"),
            other.exclusive("deploy digits", wait_s=0),
        ):
            pass
        with other.exclusive("deploy digits", wait_s=0):
            pass


def test_times_are_those_of_the_server(url, monkeypatch):
    """Whatever the clock of this machine says: of what is recorded, and of what is decided by it."""
    monkeypatch.setattr("raymlops.storage.clock.now", lambda: datetime(1999, 1, 1, tzinfo=UTC))
    with State.open(url) as state:
        before = state.now()
        state.record(action="a test", subject="flights")
        assert datetime(2026, 1, 1, tzinfo=UTC) < before <= state.events()[0].ts <= state.now()


def test_a_lease_ends_with_its_holder(url):
    """Who holds it is known by name, also while a forked child lives on; kill -9 gives it back."""
    hold = """
import multiprocessing, sys, time
from raymlops.state.lease import lease
with lease(sys.argv[1], "run1", purpose="train"):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
"""
    assert holder_of(url, "run1") is None
    command = [sys.executable, "-c", hold, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        try:
            assert f"process {process.pid}:" in holder_of(url, "run1")
            with pytest.raises(RefusedError, match="run1 is in use by"), lease(url, "run1", purpose="train", wait_s=0):
                pass
            with lease(url, "run2", purpose="train", wait_s=0):
                pass
        finally:
            process.kill()
        process.wait()
        try:
            with lease(url, "run1", purpose="train", wait_s=5):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, 9)


def test_a_renewal_is_not_since_when(url, monkeypatch):
    """Each asks the server, which knows when a session asked last; told to the microsecond here."""
    monkeypatch.setattr(locks, "_since", lambda name, since: f"{name} since {since}")
    with lease(url, "renewed", purpose="train", wait_s=0) as renew:
        taken = holder_of(url, "renewed")
        renew()
        assert holder_of(url, "renewed") == taken


def test_a_lease_whose_session_the_server_ended_is_taken_again_unless_another_one_was_faster(url):
    """An administrator, a failover or a time limit for idle sessions ends it; its holder lives on."""

    with lease(url, "ended", purpose="train", wait_s=0) as renew:
        renew()
        end_session(url, "train")
        assert holder_of(url, "ended") is None
        renew()
        assert f"process {os.getpid()}: train" in holder_of(url, "ended")
        end_session(url, "train")
        with lease(url, "ended", purpose="other", wait_s=0), pytest.raises(LeaseLostError, match="other"):
            renew()


def test_a_lost_connection_whose_session_the_server_still_has_does_not_end_its_holder(url, monkeypatch):
    """The network broke: the server notices within two minutes, until which nobody else can take the lease."""
    kept = []

    def keep(lock):
        kept.append(lock)

    monkeypatch.setattr(locks._ServerLock, "close", keep)
    monkeypatch.setattr(locks._ServerLock, "held", lambda _lock: False)
    try:
        with lease(url, "cut", purpose="train", wait_s=0) as renew:
            renew()
            renew()
            kept[0]._connection.close()
            renew()
            refused = pytest.raises(RefusedError, match="cut is in use by")
            with refused, lease(url, "cut", purpose="other", wait_s=0):
                pass
    finally:
        for each in kept:
            each._connection.close()


def test_a_database_has_an_id_and_knows_what_it_wrote(url):
    """Times come back as they were written, whatever zone the session has; a second opening makes no second id."""
    with State.open(url) as state:
        state.record(action="a", subject="s")
        owner = state.owner()
        assert owner.history.wrote(owner.revision)
        assert not owner.history.wrote(owner.revision._replace(at="2026-01-01T00:00:00+00:00"))
    with State.open(url) as state:
        assert (state.owner().id, state.owner().revision) == (owner.id, owner.revision)
