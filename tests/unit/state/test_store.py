from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from stored import put

from raymlops.config.paths import sqlite_path
from raymlops.config.schema import ProjectSpec
from raymlops.errors import ConfigError, RefusedError, StorageError, UnreachableError, UsageError
from raymlops.records import BundleRef
from raymlops.state.audit import add_event, changes_of
from raymlops.state.database import state_url
from raymlops.state.engine import database_path
from raymlops.state.rollouts import Rollout
from raymlops.state.store import Change, Deployment, Model, State
from raymlops.state.transitions import Transition, newest_transition

URL_WITH_PASSWORD = "postgresql://someone:hunter2@127.0.0.1:1/raymlops"


def deployment(version: int, role: str, *, name: str = "flights") -> Deployment:
    return Deployment(name, version, BundleRef(f"/b/{version}", "d" * 64), f"run{version}", role, {"min_replicas": 1})


def transition(version: int) -> Transition:
    at = datetime(2026, 1, 1, version, tzinfo=UTC)
    return Transition(
        f"t{version}", "flights", version, {"role": "champion"}, "deploy", "deploy.start", "", "ada", at, 60.0
    )


def test_what_is_put_is_what_is_read(state):
    """Every field comes back, the time with its zone."""
    champion, warm = deployment(7, "champion"), deployment(6, "warm")
    put(state, "flights", [champion, warm])
    assert state.deployments() == [warm, champion]
    assert state.deployments()[1].created_at == champion.created_at


def test_a_version_that_stays_keeps_its_date(state):
    """Becoming champion again does not make a version look newly deployed."""
    first = deployment(7, "champion")
    put(state, "flights", [first])
    put(state, "flights", [deployment(7, "warm")], action="demote")
    assert state.deployments()[0].created_at == first.created_at
    assert state.events()[0].after == [state.deployments()[0].to_dict()]


def test_the_audit_says_who_what_and_why(state):
    """Before and after are the whole deployments, and rebuild to equal ones."""
    put(state, "flights", [deployment(7, "champion")], actor="ada", action="deploy", why="it is better")
    (event,) = state.events("flights")
    assert (event.actor, event.action, event.subject, event.why) == ("ada", "deploy", "flights", "it is better")
    assert event.before == []
    assert [Deployment.from_dict(item) for item in event.after] == [deployment(7, "champion")]
    assert event.ts.tzinfo is not None


def test_other_models_are_left_alone(state):
    """A change of one model touches no other, and an empty list removes it."""
    put(state, "flights", [deployment(7, "champion")])
    put(state, "digits", [deployment(1, "champion", name="digits")])
    put(state, "flights", [], action="delete")
    assert [item.name for item in state.deployments()] == ["digits"]


def test_changes_are_all_there_however_many_questions_the_gate_was_asked(state):
    """Two changes behind 150 gate events: no limit hides them, and the gate's are none of them."""
    put(state, "flights", [deployment(6, "champion")])
    put(state, "flights", [deployment(7, "champion")])
    for version in range(150):
        state.record(action="gate.refuse", subject=f"flights/{version}")
    state.record(action="restore", subject="flights")
    assert [event.after[0]["version"] for event in changes_of(state, "flights")] == [7, 6]
    assert len(state.events()) == 153


def test_changes_are_read_newest_first_in_pages(state):
    """Of 120 none is missing or comes twice where one page ends."""
    with state.writing() as connection:
        for number in range(120):
            add_event(connection, action="deploy", subject="flights", before=[], after=[number])
    assert [event.after[0] for event in changes_of(state, "flights")] == list(range(119, -1, -1))
    assert next(changes_of(state, "flights")).after == [119]
    assert [*changes_of(state, "flights", ("rollback", "remove"))] == []


def test_one_change_at_a_time(url, state):
    """Who comes second is told who is first and for what; afterwards the lock is free."""
    with state.exclusive("deploy of another model, in more words", wait_s=0):
        pass
    with (
        State.open(url) as other,
        state.exclusive("deploy flights", wait_s=0),
        pytest.raises(RefusedError, match=rf"process {os.getpid()}: deploy flights\) since .* UTC holds the lock"),
        other.exclusive("deploy digits", wait_s=0),
    ):
        pass
    with State.open(url) as other, other.exclusive("deploy digits", wait_s=0):
        pass


def test_a_killed_holder_gives_the_lock_back(url, state):
    """The operating system does it, whatever way the process ends."""
    hold = f"""
import sys
from raymlops.state.audit import changes_of
from raymlops.state.store import State
with State.open({url!r}) as state, state.exclusive("deploy flights", wait_s=0):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RefusedError), state.exclusive("deploy digits", wait_s=0):
            pass
        process.kill()
        process.wait()
    with state.exclusive("deploy digits", wait_s=0):
        pass


def test_a_commit_survives_a_power_cut(slow_disk, state):
    """SQLite waits for the disk at each (synchronous = FULL, 2), whatever the default of its build."""
    with state.reading() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]


def test_events_of_one_model_include_its_versions(state):
    """Those of flights and of flights/7, not those of flights_eu."""
    for subject in ("flights", "flights/7", "flights_eu", "flightsX/1"):
        state.record(action="gate.pass", subject=subject, actor="ada")
    assert [event.subject for event in state.events("flights")] == ["flights/7", "flights"]
    assert len(state.events(limit=1)) == 1


def test_what_is_done_is_no_event_of_its_own_and_no_difference_is_none_at_all(state):
    """A version that comes up is one, with what is desired meanwhile; that it has come up is that of what it got."""
    item, came = deployment(7, "warm"), transition(7)
    before, after = state.change(
        "flights", lambda model: Change(replace(model, deployments=(item,), transitions=(came,)), "start", "it")
    )
    assert (before, after) == (Model("flights"), state.model("flights"))
    assert after.coming == state.desired().coming == (came,)
    assert state.change("flights", lambda model: Change(model, "nothing", "")) == (after, after)
    done = replace(came, status="done")
    state.change("flights", lambda model: Change(replace(model, transitions=(done,)), "never said", ""))
    assert newest_transition(state, "flights", 7) == done
    assert state.model("flights").transitions == ()
    state.change("flights", lambda model: Change(replace(model, transitions=(transition(8),)), "start", "another"))
    assert [(event.action, event.why) for event in state.events()] == [("start", "another"), ("start", "it")]


def test_a_rollout_begins_and_ends_with_the_change_that_says_so(state):
    """One event each; an end is final, also for a change that was decided before it."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    running = Rollout("r", "flights", 7, 6, (0.1, 1.0), 0, "running", {}, at, at)
    ended = replace(running, status="stopped", ended_at=at, reason="enough")
    for rollout in (running, ended):
        state.change(
            "flights", lambda model, rollout=rollout: Change(replace(model, rollout=rollout), rollout.status, "")
        )
    assert state.model("flights").rollout is None
    assert [event.action for event in state.events()] == ["stopped", "running"]


@pytest.mark.parametrize("fails", ["deployments", "rollouts", "transitions", "audit"])
def test_a_change_that_cannot_be_written_leaves_neither_state_nor_audit(state, fails):
    """Whichever of its rows is refused: all of it is undone."""
    put(state, "flights", [deployment(6, "champion")])
    before, at = state.model("flights"), datetime(2026, 1, 1, tzinfo=UTC)
    with state._engine.begin() as connection:
        connection.execute(
            sa.text(f"CREATE TRIGGER refuse BEFORE INSERT ON {fails} BEGIN SELECT RAISE(ABORT, 'not today'); END")
        )
    after = Model(
        "flights",
        (deployment(7, "champion"),),
        Rollout("r", "flights", 8, 7, (1.0,), 0, "running", {}, at, at),
        (transition(7),),
    )
    with pytest.raises(StorageError, match="not today"):
        state.change("flights", lambda _: Change(after, "deploy", ""))
    assert state.model("flights") == before
    assert len(state.events()) == 1


def test_a_change_that_is_refused_by_who_decides_changes_nothing(state):
    """What it read is what nobody else changes meanwhile."""

    def refuse(model):
        raise RefusedError(f"{model.name} is frozen")

    with pytest.raises(RefusedError, match="flights is frozen"):
        state.change("flights", refuse)
    assert state.events() == []


def test_the_schema_itself_allows_one_champion_a_name(state):
    """Even a row written by hand cannot make a second."""
    put(state, "flights", [deployment(6, "champion"), deployment(7, "warm")])
    with state._engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(sa.text("UPDATE deployments SET role = 'champion' WHERE version = 7"))


@pytest.mark.parametrize("statement", ["DELETE FROM audit", "UPDATE audit SET actor = 'nobody'"])
def test_the_audit_is_only_added_to(state, statement):
    """The database refuses to forget."""
    state.record(action="a", subject="s")
    with state._engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="append-only"):
        connection.execute(sa.text(statement))


@pytest.mark.parametrize(
    "wanted",
    [
        [deployment(6, "champion"), deployment(7, "champion")],
        [deployment(6, "champion"), deployment(6, "warm")],
        [deployment(6, "champion", name="digits")],
    ],
)
def test_impossible_states_are_refused_by_name(state, wanted):
    """Two champions, one version twice, and a stranger's version."""
    with pytest.raises(UsageError):
        put(state, "flights", wanted)


def test_writers_wait_for_each_other(url):
    """Forty changes by four connections at once: none fails, and each saw what the one before it left."""
    states = [State.open(url) for _ in range(4)]

    def work(state, start):
        for version in range(start, start + 10):
            put(state, "flights", [deployment(version, "champion")])

    threads = [threading.Thread(target=work, args=(state, 100 * index)) for index, state in enumerate(states, start=1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = states[0].events()[::-1]
    for state in states:
        state.close()
    assert len(events) == 40
    assert all(event.before == earlier.after for earlier, event in itertools.pairwise(events))


def test_a_folder_that_cannot_be_made_is_a_storage_error():
    """/proc takes no folders, whoever asks."""
    with pytest.raises(StorageError, match="/proc"):
        State.open("sqlite:////proc/none/state.db")


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path):
    """Something else lies there, and stays as it is."""
    (tmp_path / "state.db").write_text("these are my notes, " * 100)
    with pytest.raises(StorageError, match="not a database"):
        State.open(f"sqlite:///{tmp_path / 'state.db'}")


def test_a_server_that_is_down_is_named_without_its_password():
    """Port 1 answers nobody; the message has the host and no password."""
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1") as caught:
        State.open(URL_WITH_PASSWORD)
    assert "hunter2" not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize("url", ["not a url", "mysql://u:hunter2@host/db", "postgresql://u:hunter2@host:port/db"])
def test_a_url_that_cannot_be_used_is_a_usage_error(url):
    """And is not printed: it may hold a password."""
    with pytest.raises(UsageError) as caught:
        State.open(url)
    assert "hunter2" not in str(caught.value)


def spec(**storage) -> ProjectSpec:
    return ProjectSpec.model_validate({"project": {"name": "flights"}, "recipe": {"import": "a:B"}, "storage": storage})


def test_the_url_defaults_to_a_file_under_the_storage(tmp_path):
    """Without storage.state it is SQLite, beside the bundles."""
    assert state_url(spec(path=str(tmp_path))) == f"sqlite:///{tmp_path}/state.db"


def test_the_url_can_come_from_the_environment(monkeypatch):
    """A password is in a variable, never in the configuration."""
    monkeypatch.setenv("STATE_URL", URL_WITH_PASSWORD)
    assert state_url(spec(state={"env": "STATE_URL"})) == URL_WITH_PASSWORD
    monkeypatch.delenv("STATE_URL")
    with pytest.raises(ConfigError, match=r"storage\.state: the environment variable STATE_URL is not set"):
        state_url(spec(state={"env": "STATE_URL"}))


def test_a_bucket_holds_no_sqlite_file():
    """With storage.path on an object store the state needs a database of its own."""
    with pytest.raises(ConfigError, match=r"storage\.state: is required"):
        state_url(spec(path="s3://bucket/raymlops"))


@pytest.mark.parametrize("name", ["per%cent", "a%2Fb", "ques?tion", "with space", "n#1", "grün"])
def test_any_folder_name_holds_the_state(tmp_path, name):
    """The file lies where the path says, and those who look for it find it there."""
    spec = ProjectSpec.model_validate(
        {"project": {"name": "m"}, "recipe": {"import": "a:B"}, "storage": {"path": str(tmp_path / name)}}
    )
    with State.open(state_url(spec)):
        assert (tmp_path / name / "state.db").exists()
    assert sqlite_path(state_url(spec)) == tmp_path / name / "state.db"


@pytest.mark.parametrize(("folder", "file"), [(0o2775, 0o660), (0o755, 0o600), (0o700, 0o600), (0o777, 0o666)])
def test_who_may_write_in_the_folder_may_use_the_state(tmp_path, folder, file):
    """And nobody else, whatever the umask: several users of a group share the database, its key hashes and its lock."""
    tmp_path.chmod(folder)
    with State.open(f"sqlite:///{tmp_path}/state.db") as state, state.exclusive("test", wait_s=1):
        state.record(action="a", subject="s")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(modes, file)
    assert {"state.db", "state.db.lock", "state.db-wal"} <= modes.keys()


def test_a_folder_that_is_made_for_the_state_is_its_users_alone(tmp_path):
    """Whatever is kept beside it."""
    with State.open(f"sqlite:///{tmp_path}/home/state.db"):
        assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"garbage" * 1000, None])
def test_a_damaged_file_is_said_to_need_a_backup(url, state, damage):
    """Not that a disk may be full: what helps is a copy of the file."""
    path = database_path(state._engine)
    for version in range(200):
        state.record(action="a", subject=f"s{version}", why="x" * 500)
    state.close()
    whole = path.read_bytes()
    path.write_bytes(damage or whole[: len(whole) // 3])
    for left in ("-wal", "-shm"):
        path.with_name(path.name + left).unlink(missing_ok=True)
    with pytest.raises(StorageError) as caught, State.open(url) as again:
        again.events()
    assert "deploy --restore --takeover" in caught.value.hint
