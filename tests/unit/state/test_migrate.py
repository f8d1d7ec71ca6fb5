from __future__ import annotations

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from older_state import OLD_DEPLOYMENTS, OLD_EVENTS, write_older

from raymlops.errors import StorageError
from raymlops.state.conditions import conditions
from raymlops.state.engine import open_engine
from raymlops.state.migrate import SCRIPTS
from raymlops.state.schema import HEAD, metadata
from raymlops.state.store import State
from raymlops.state.watch.incidents import incidents_of

pytestmark = pytest.mark.usefixtures("real_migration")


def test_the_head_is_the_newest_script():
    """Who adds a migration raises HEAD, or every opening would run alembic."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


@pytest.mark.parametrize("older", [False, True])
def test_a_new_and_a_migrated_database_have_the_tables_that_the_code_uses(url, older):
    """Alembic finds no difference between them and the schema; a migrated one keeps its rows and has an id."""
    if older:
        write_older(url, events=OLD_EVENTS, deployments=OLD_DEPLOYMENTS)
    with State.open(url) as state, state._engine.connect() as connection:
        assert (
            compare_metadata(
                MigrationContext.configure(connection, opts={"version_table": "raymlops_version"}), metadata
            )
            == []
        )
        assert state.owner().id
        assert len(state.deployments()) == (len(OLD_DEPLOYMENTS) if older else 0)
        state.record(action="a", subject="s")
    with open_engine(url).begin() as connection, pytest.raises(sa.exc.DatabaseError, match="append-only"):
        connection.execute(sa.text("DELETE FROM audit"))


def test_what_owed_an_alias_is_deployed_as_before(url):
    """Aliases are compared with what is live from then on; nothing is on its way."""
    aliases = [{"name": "m", "version": 3}, {"name": "gone", "version": 1}]
    write_older(url, schema="0005", events=OLD_EVENTS, deployments=OLD_DEPLOYMENTS, aliases=aliases)
    with State.open(url) as state, state._engine.connect() as connection:
        assert [item.version for item in state.deployments("m")] == [3, 5, 6]
        assert len(state.events()) == len(OLD_EVENTS)
        assert (state.model("m").transitions, conditions(state)) == ((), {})
        assert "alias_debts" not in sa.inspect(connection).get_table_names()


def test_what_is_on_its_way_keeps_the_time_that_it_may_take(url):
    """Fifteen minutes, which were written as a deadline; it is counted anew."""
    write_older(url, schema="0006", transitions=[{"name": "m", "version": 2, "until": "2026-01-01 00:15:00"}])
    with State.open(url) as state:
        (one,) = state.model("m").transitions
    assert (one.version, one.timeout_s, one.started_at) == (2, 900.0, None)


def test_incidents_of_several_columns_become_one_a_column(url):
    """What an open one may have hidden is untold; what was closed, or is of skew, was told."""
    write_older(url, schema="0010")
    values = ":id, 'm', 'inputs', :kind, :version, :at, :at, 2, :columns, {}, NULL, NULL, NULL"
    at = "2026-01-01 00:00:00.000000"
    with open_engine(url).begin() as connection:
        for id_, kind, version, closed in (
            ("a", "drift", 0, "NULL"),
            ("b", "skew", 3, "NULL"),
            ("c", "drift", 0, ":at"),
        ):
            row = {"id": id_, "kind": kind, "version": version, "at": at, "columns": '["hour", "day"]'}
            connection.execute(sa.text(f"INSERT INTO incidents VALUES ({values.format(closed)})"), row)
    with State.open(url) as state:
        found = {(one.id, one.column): (one.thread, one.told) for one in incidents_of(state)}
        assert {one.opened_at for one in incidents_of(state)} == {datetime(2026, 1, 1, tzinfo=UTC)}
    assert found == {
        ("a", "hour"): ("a", "opened"),
        ("a-1", "day"): (None, ""),
        ("b", "hour"): ("b", "opened"),
        ("b-1", "day"): ("b", "opened"),
        ("c", "hour"): ("c", "closed"),
        ("c-1", "day"): ("c", "closed"),
    }


def test_opening_again_changes_nothing(url):
    """The second opening finds the schema up to date and the rows in place."""
    with State.open(url) as state:
        state.record(action="a", subject="s")
    with State.open(url) as state:
        assert len(state.events()) == 1


@pytest.mark.parametrize("table", ["raymlops_version", "alembic_version"])
def test_a_newer_schema_is_refused_and_left_alone(url, table):
    """An old raymlops says so before it touches a row, whichever table holds the revision."""
    with State.open(url) as state, state._engine.begin() as connection:
        if table != "raymlops_version":
            connection.execute(sa.text(f"ALTER TABLE raymlops_version RENAME TO {table}"))
        connection.execute(sa.text(f"UPDATE {table} SET version_num = '9999'"))
    with pytest.raises(StorageError, match=f"has schema 9999.*knows up to {HEAD}"):
        State.open(url)
    with open_engine(url).connect() as connection:
        assert connection.scalar(sa.text(f"SELECT version_num FROM {table}")) == "9999"


def test_optuna_may_share_the_database(url):
    """Each keeps its own revision: neither takes the other's for a newer release of its own."""
    from raymlops.tuning.study.storage import open_storage

    for _ in range(2):
        with State.open(url) as state, open_storage(url):
            assert state.owner().id


def test_the_shared_name_of_earlier_releases_is_given_up(url):
    """The revision moves to the table of our own, so that Optuna may use the old one from then on."""
    with State.open(url) as state, state._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE raymlops_version RENAME TO alembic_version"))
    with State.open(url) as state, state.reading() as connection:
        tables = set(sa.inspect(connection).get_table_names())
    assert "raymlops_version" in tables
    assert "alembic_version" not in tables


def test_an_up_to_date_database_is_opened_while_somebody_writes(url):
    """Opening only reads then, so that ``status`` and ``audit`` need no permission to write."""
    with State.open(url) as state, state.writing(), State.open(url) as other:
        assert other.deployments() == []


def test_a_table_of_another_program_is_not_taken_for_ours(url):
    """Its columns are others: nothing is created beside it."""
    with open_engine(url).begin() as connection:
        connection.execute(sa.text("CREATE TABLE audit (x INTEGER)"))
    with pytest.raises(StorageError, match="audit already exists"):
        State.open(url)
    with open_engine(url).connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["audit"]
