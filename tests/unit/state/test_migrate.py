from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from raymlops.errors import StorageError
from raymlops.state.migrate import SCRIPTS
from raymlops.state.schema import HEAD, metadata
from raymlops.state.store import State


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


def test_the_head_is_the_newest_script():
    """Who adds a migration raises HEAD, or every opening would run alembic."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_the_migrations_make_the_tables_that_the_code_uses(url):
    """Alembic finds no difference between a migrated database and the schema."""
    with State.open(url) as state, state._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_opening_again_changes_nothing(url):
    """The second opening finds the schema up to date and the rows in place."""
    with State.open(url) as state:
        state.record(action="a", subject="s")
    with State.open(url) as state:
        assert len(state.events()) == 1


def test_a_newer_schema_is_refused_and_left_alone(url):
    """An old raymlops says so before it touches a row."""
    with State.open(url) as state, state._engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=f"has schema 9999.*knows up to {HEAD}"):
        State.open(url)
