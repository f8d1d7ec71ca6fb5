"""Which database it is, by its id and its newest change, and what it knows of its past."""

from __future__ import annotations

import shutil

import pytest
import sqlalchemy as sa
import stored

from raymlops.records import BundleRef
from raymlops.state.identity import NEVER, SELF, TAKEOVER, Revision
from raymlops.state.keys import create_key, revoke_key, rotate_key
from raymlops.state.store import Deployment, State


def put(state, version=1, digest="d" * 64):
    item = Deployment("m", version, BundleRef("/bundles", digest), "run", "champion", {})
    stored.put(state, "m", [item])


def test_an_id_is_kept_and_an_empty_database_at_the_same_place_has_another(url, tmp_path):
    """It is made once, by chance; a copy keeps it, wherever it is put."""
    with State.open(url) as state:
        first = state.owner()
    assert first.revision == NEVER
    assert "@" in first.made_by
    with State.open(url) as state:
        assert state.owner().id == first.id
    shutil.move(tmp_path / "state.db", tmp_path / "backup.db")
    with State.open(url) as state:
        assert state.owner().id != first.id
    with State.open(f"sqlite:///{tmp_path / 'backup.db'}") as state:
        assert state.owner().id == first.id


def test_there_is_one_row(state):
    """Whoever writes."""
    statement = "INSERT INTO identity (slot, id, made_by, made_at) SELECT 2, id, made_by, made_at FROM identity"
    with pytest.raises(sa.exc.IntegrityError), state._engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_every_change_of_what_is_desired_has_a_revision_of_its_own(state):
    """Deployments and keys: each is one further, in the transaction of the change."""
    seen = [state.owner().revision]

    def further():
        seen.append(state.desired().owner.revision)
        return seen[-1].number > seen[-2].number

    put(state)
    assert further()
    now = state.events()[0].ts
    key, _ = create_key(state, name="shop", models=["m"], now=now)
    assert further()
    _, _, old = rotate_key(state, key.id, grace_s=0, now=now)
    assert further()
    revoke_key(state, old.id, now=now)
    assert further()
    assert [state.owner().history.wrote(revision) for revision in seen[1:]] == [True] * 4


def test_a_copy_knows_what_was_written_before_it_alone(url, state, tmp_path):
    """Both go on counting from the same number, and neither takes the other's change for its own."""
    put(state)
    common = state.owner().revision
    with state._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(tmp_path / "state.db", tmp_path / "copy.db")
    with State.open(f"sqlite:///{tmp_path / 'copy.db'}") as copy:
        put(state, 2)
        put(copy, 3)
        mine, theirs = state.owner().revision, copy.owner().revision
        assert mine.number == theirs.number
        for one, other, own in ((state, copy, mine), (copy, state, theirs)):
            assert one.owner().history.wrote(common)
            assert one.owner().history.wrote(own)
            assert not other.owner().history.wrote(own)
        assert not copy.owner().history.wrote(Revision(mine.number + 1, mine.at))
        copy.record(action=TAKEOVER, subject=SELF, after={"revision": [*mine]})
        assert copy.owner().history.wrote(mine)


def test_what_was_deployed_is_known_by_version_and_digest(state):
    """Also what is live no more; not another bundle of the same number, nor another model's."""
    put(state, 1, "a" * 64)
    put(state, 2, "b" * 64)
    history = state.owner().history
    assert [history.deployed("m", 1, "a" * 64), history.deployed("m", 2, "b" * 64)] == [True, True]
    assert [history.deployed("m", 1, "b" * 64), history.deployed("n", 1, "a" * 64)] == [False, False]
