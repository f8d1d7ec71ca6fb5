from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import make_url

from raymlops.errors import LeaseLostError, RefusedError, StorageError, UsageError
from raymlops.state import locks
from raymlops.state.lease import holder_of, lease, was_held
from raymlops.state.locks import refuse_shared_sessions, shortened

HOLD = """
import multiprocessing, sys, time
from raymlops.state.lease import lease
with lease(sys.argv[1], "run1", purpose="train"):
    if sys.argv[2] == "fork":
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
        print(multiprocessing.active_children()[0].pid)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(url, how="plain"):
    """A process that holds run1 until it is killed or the block ends."""
    command = [sys.executable, "-c", HOLD, url, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        while not lines or lines[-1] != "held":
            lines.append(process.stdout.readline().strip())
            assert lines[-1], "the holder died"
        try:
            yield process, lines
        finally:
            process.kill()


def test_a_second_holder_is_refused_and_told_who_is_first(url):
    """User, host, process, since when and for what: enough to find it."""
    with holding(url) as (process, _):
        who = rf".+@.+ \(process {process.pid}: train\) since .+ UTC"
        refused = pytest.raises(RefusedError, match=f"run1 is in use by {who}")
        with refused as caught, lease(url, "run1", purpose="train", wait_s=0):
            pass
        assert caught.value.exit_code == 4
        assert f"process {process.pid}:" in holder_of(url, "run1")


def test_a_killed_holder_gives_it_back(url):
    """kill -9 leaves nothing to clean up."""
    with holding(url) as (process, _):
        process.kill()
        process.wait()
        assert holder_of(url, "run1") is None
        with lease(url, "run1", purpose="train", wait_s=0):
            assert f"process {os.getpid()}:" in holder_of(url, "run1")


def test_a_child_that_outlives_a_killed_holder_does_not_hold_it(url):
    """A data loader's forked processes live on for seconds; their copy of the lock's descriptor must not count."""
    with holding(url, "fork") as (process, (child, _)):
        process.kill()
        process.wait()
        os.kill(int(child), 0)  # it lives
        try:
            with lease(url, "run1", purpose="train"):
                pass
        finally:
            os.kill(int(child), 9)


def test_it_is_given_back_at_the_end_also_of_a_failure(url):
    """Leaving the block is enough."""
    with pytest.raises(ZeroDivisionError), lease(url, "run1", purpose="train"):
        assert 1 / 0
    assert holder_of(url, "run1") is None
    with lease(url, "run1", purpose="train", wait_s=0):
        pass


def test_names_do_not_disturb_each_other(url):
    """Two runs of one database go on side by side."""
    with lease(url, "run1", purpose="train"), lease(url, "run2", purpose="train", wait_s=0):
        assert holder_of(url, "run3") is None


def test_what_was_held_here_is_known(url):
    """A lease that was never taken here may be taken elsewhere."""
    with lease(url, "run1", purpose="train"):
        pass
    assert (was_held(url, "run1"), was_held(url, "run2")) == (True, False)


def test_asking_makes_no_files(url, tmp_path):
    """Who only looks leaves nothing behind."""
    assert holder_of(url, "run1") is None
    assert not was_held(url, "run1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../run", "a/b", ".hidden", "x" * 201])
def test_a_name_is_no_path(url, name):
    """Whatever a user types after --resume stays in the folder of leases."""
    with pytest.raises(UsageError, match="cannot be the name of a lease"), lease(url, name, purpose="train"):
        pass


def test_a_database_in_memory_has_no_other_user():
    """There is nobody to be refused."""
    with lease("sqlite://", "run1", purpose="train"), lease("sqlite://", "run1", purpose="train"):
        assert holder_of("sqlite://", "run1") is None


def test_two_databases_in_one_folder_have_leases_of_their_own(tmp_path):
    """Two projects may keep their states side by side: a controller of one is none of the other's."""
    first, second = (f"sqlite:///{tmp_path}/{name}.db" for name in ("state", "other"))
    with lease(first, "controller", purpose="a test"):
        assert holder_of(second, "controller") is None
        with lease(second, "controller", purpose="a test"):
            assert holder_of(second, "controller") is not None
    assert (tmp_path / "leases" / "controller.lock").exists()


def test_a_lease_that_was_lost_is_taken_again_and_a_holder_is_told_who_has_it(url):
    """The file was removed by hand: another one can take the name now."""
    with lease(url, "run1", purpose="train", wait_s=0) as renew:
        renew()
        (file,) = Path(url.removeprefix("sqlite:///")).parent.glob("leases/run1.lock")
        file.unlink()
        renew()
        assert f"process {os.getpid()}:" in holder_of(url, "run1")
        file.unlink()
        with holding(url) as (process, _), pytest.raises(LeaseLostError, match=f"process {process.pid}"):
            renew()


class Server(locks._ServerLock):
    """Stands for the lock on a server: each connection is a session of its own, and ``holders`` has the lock."""

    sessions, holders = iter(()), None

    def __init__(self, *_):
        self.session, self.holders_session = next(Server.sessions), None

    def try_take(self):
        Server.holders = Server.holders or self.session
        return Server.holders == self.session

    def holder(self):
        self.holders_session = Server.holders
        return f"somebody, backend {Server.holders}"

    def held(self):
        return Server.holders == self.session

    def close(self):
        """As over a broken connection: the server does not notice."""


def test_a_lost_session_that_the_server_still_has_is_nobody_else(monkeypatch):
    """The lease is lost until the server ends it; only then can anybody have taken it."""
    monkeypatch.setattr(locks, "_ServerLock", Server)
    monkeypatch.setattr(Server, "sessions", iter((7, 8, 9, 10)))
    monkeypatch.setattr(Server, "holders", None)
    engine = SimpleNamespace(dialect=SimpleNamespace(name="postgresql"), url=make_url("postgresql://host/db"))
    held = locks.Hold(engine, file=None, key=1, me="me")
    held.take()
    assert (held.holder, held.lost()) == (None, False)
    held.close()
    held.take()
    assert (held.holder, held.lost()) == (None, True)
    Server.holders = None
    held.take()
    assert (held.holder, held.lost()) == (None, False)
    held.close()
    Server.holders = 11
    held.take()
    assert held.holder == "somebody, backend 11"


class Session:
    """A connection whose session of the server is another one at each question."""

    def __init__(self, *pids):
        self._pids = iter(pids)

    def scalar(self, _query):
        return next(self._pids)

    def begin(self):
        return nullcontext()


@pytest.mark.parametrize(("own", "others"), [((7, 7), (7,)), ((7, 8), (7,)), ((7, 8), (9,))])
def test_a_pooler_that_shares_sessions_is_refused(own, others):
    """PgBouncer gives a free session to whoever begins a transaction."""
    with pytest.raises(StorageError, match="pooler in transaction mode"):
        refuse_shared_sessions(Session(*own), Session(*others))
    refuse_shared_sessions(Session(7, 7), Session(8))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("raymlops me@here (process 1: train)", "raymlops me@here (process 1: train)"),
        (
            "raymlops engineer@ip-10-0-0-12.internal (process 4194304: controller 0.2.0+01234567)",
            "raymlops engineer@ (process 4194304: controller 0.2.0+01234567)",
        ),
        (f"raymlops me@here (process 1: {'x' * 60})", f"raymlops me@ (process 1: {'x' * 38}"),
    ],
)
def test_what_a_lock_is_held_for_is_said_whole_on_a_host_with_a_long_name(name, short):
    """Postgres cuts a name after 63 characters, and a controller is told by the end of its own."""
    assert shortened(name) == short
    assert len(short) <= 63
