"""What is told of what is live, from a state database written by hand."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from waiting import told_of_waiting

from raymlops.config.serve import RolloutSection
from raymlops.errors import NotFoundError
from raymlops.lifecycle.overview import follow_rollout, overview, wanted
from raymlops.lifecycle.rollout.policy import begin
from raymlops.records import BundleRef
from raymlops.state.aliases import add_pending_alias
from raymlops.state.rollouts import resume_rollout, start_rollout, update_rollout
from raymlops.state.store import Deployment, State

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROLLOUT = begin(rollout_id="r1", name="m", version=3, champion=2, settings=RolloutSection(steps=(10.0, 50.0)), now=NOW)


def version(number, role="warm", **shares):
    return Deployment("m", number, BundleRef("file:///b", "d" * 64), "run", role, **shares)


@pytest.fixture
def root(tmp_path):
    """Return a folder whose state holds a champion, a canary, a shadow, and two that stand warm."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        state.put_deployments({"m": [version(1, "champion")]}, action="deploy", why="first", actor="ann@here")
        after = [
            version(1),
            version(2, "champion"),
            version(3, weight=0.1),
            version(4, shadow=0.5),
            version(5),
        ]
        state.put_deployments({"m": after}, action="promote", why="better", actor="bob@here")
        state.put_deployments({"m": after[:-1]}, action="deploy.beside", why="", actor="eve@here")
        with state.writing() as connection:
            start_rollout(connection, ROLLOUT)
    return tmp_path


@pytest.fixture
def config(root):
    return {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "storage": {"path": str(root)}}


def test_who_is_live_since_when_and_by_whom(root, config):
    """The champion is the one that bob promoted, whoever changed something else since."""
    (model,) = overview(root=str(root))
    assert (model.name, model.champion, model.by, model.why) == ("m", 2, "bob@here", "better")
    assert (model.canaries, model.shadows) == ({3: 0.1}, {4: 0.5})
    assert datetime.fromisoformat(model.warm[1]) > datetime.fromisoformat(model.since)
    assert model.rollout["id"] == "r1"
    assert not model.keys
    assert overview(config) == [model]


def test_whether_callers_need_a_key_is_told(root):
    """By the champion's settings, whatever those beside it say."""
    items = [version(1, serve={"auth": "open"}), version(2, "champion", serve={"auth": "keys"})]
    items = [replace(item, name="closed") for item in items]
    with State.open(f"sqlite:///{root}/state.db") as state:
        state.put_deployments({"closed": items}, action="deploy", why="")
    assert {model.name: model.keys for model in overview(root=str(root))} == {"closed": True, "m": False}


def test_asking_makes_no_database(tmp_path):
    """Where there is none, nothing should be live."""
    assert overview(root=str(tmp_path)) == []
    assert wanted(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_what_should_be_live_are_only_read(root, tmp_path):
    """A file that is no state of this version is left as it is."""
    assert wanted(root) == ["m"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "state.db").write_bytes(b"something else")
    assert wanted(other) == []
    assert (other / "state.db").read_bytes() == b"something else"


def test_a_wait_tells_each_decision_once(root, config):
    """Two steps begin; how it ended is returned, for the caller to tell."""
    second = replace(ROLLOUT, step=1, reason="step 1 passed")
    course = [second, second, replace(second, status="promoted", reason="all passed", ended_at=NOW)]
    lines = []

    def sleep(_seconds):
        with State.open(f"sqlite:///{root}/state.db") as state, state.writing() as connection:
            update_rollout(connection, course.pop(0))

    ended = follow_rollout(config, "r1", on_line=lines.append, sleep=sleep, clock=lambda: 0.0)
    assert ended.status == "promoted"
    assert [line.partition("version 3: ")[2] for line in lines] == [
        "step 1 of 2 at 10 percent begins",
        "step 1 passed",
    ]


def test_a_promotion_is_told_once_serve_has_taken_it(root, config):
    """It is written before, under the lock; here the version falls, so that the rollout runs again and is aborted."""
    promoted = replace(ROLLOUT, status="promoted", reason="all passed", ended_at=NOW)
    results, url = [], f"sqlite:///{root}/state.db"

    def sleep(_seconds):
        with State.open(url) as state, state.writing() as connection:
            update_rollout(connection, replace(ROLLOUT, status="aborted", reason="it fell", ended_at=NOW))

    def follow():
        results.append(follow_rollout(config, "r1", on_line=lambda _line: None, sleep=sleep, clock=lambda: 0.0))

    thread = threading.Thread(target=follow)
    with State.open(url) as state, told_of_waiting() as waits:
        with state.exclusive("rollout.promote m", wait_s=0):
            with state.writing() as connection:
                update_rollout(connection, promoted)
            thread.start()
            assert waits.wait(30)
            with state.writing() as connection:
                resume_rollout(connection, ROLLOUT)
        thread.join(30)
    assert [(ended.status, ended.reason) for ended in results] == [("aborted", "it fell")]


def test_a_promotion_is_told_with_its_alias(root, config):
    """Two looks later MLflow has it."""
    looks = []
    url = f"sqlite:///{root}/state.db"
    with State.open(url) as state, state.writing() as connection:
        update_rollout(connection, replace(ROLLOUT, status="promoted", ended_at=NOW))
        add_pending_alias(connection, "m", 3)

    def sleep(_seconds):
        looks.append(len(looks))
        with State.open(url) as state, state.writing() as connection:
            add_pending_alias(connection, "m", 3 if len(looks) < 2 else 4)

    assert follow_rollout(config, "r1", on_line=print, sleep=sleep).status == "promoted"
    assert looks == [0, 1]


def test_an_alias_that_does_not_follow_is_not_waited_for(root, config):
    """MLflow is away: the controller sets it later."""
    with State.open(f"sqlite:///{root}/state.db") as state, state.writing() as connection:
        update_rollout(connection, replace(ROLLOUT, status="promoted", ended_at=NOW))
        add_pending_alias(connection, "m", 3)
    looks = []
    assert follow_rollout(config, "r1", on_line=print, sleep=looks.append).status == "promoted"
    assert len(looks) == 12


def test_no_such_rollout(config):
    """By its id."""
    with pytest.raises(NotFoundError, match="no rollout r9"):
        follow_rollout(config, "r9", on_line=print)
