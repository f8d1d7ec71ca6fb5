"""Runs in an MLflow database on Postgres: what is the same whichever way they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from postgres import NEEDS_POSTGRES, postgres
from written_runs import differences

from raymlops.tracking.client import Tracker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, NEEDS_POSTGRES]


def test_a_run_is_the_same_whichever_way_it_is_written(tmp_path: Path) -> None:
    """In everything that MLflow's client reads, and in each table, as on SQLite."""
    (tmp_path / "postgres").mkdir()
    with postgres(tmp_path / "postgres") as url:
        server = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(sa.text("CREATE DATABASE mlflow"))
        uri = server.url.set(database="mlflow").render_as_string(hide_password=False)
        server.dispose()
        try:
            assert differences(Tracker(uri, artifacts=str(tmp_path / "artifacts"))) == {}
        finally:
            SqlAlchemyStore(uri, ".").engine.dispose()  # the server waits for its clients
