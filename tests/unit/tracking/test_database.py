import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from raymlops.errors import TrackingError
from raymlops.tracking.client import Tracker
from raymlops.tracking.copies import save_tracking
from raymlops.tracking.database import database_file, ensure_database

KILLED = """
import os, signal, sys
from pathlib import Path
import mlflow.store.db.utils

from raymlops.tracking.database import ensure_database

def killed(engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE half (x)")
    os.kill(os.getpid(), signal.SIGKILL)

mlflow.store.db.utils._initialize_tables = killed
ensure_database(Path(sys.argv[1]), artifacts=sys.argv[2])
"""


def test_a_killed_first_start_leaves_no_half_database(tmp_path):
    """kill -9 while MLflow makes its tables: the next process makes them whole."""
    path = tmp_path / "mlflow.db"
    first = subprocess.run(
        [sys.executable, "-c", KILLED, path, tmp_path / "artifacts"], check=False, capture_output=True
    )
    assert first.returncode == -signal.SIGKILL, first.stderr.decode()[-2000:]
    assert not path.exists()
    tracker = Tracker(f"sqlite:///{path}", artifacts=str(tmp_path / "artifacts"))
    tracker.check()
    assert tracker.start_run("x", name="x", tags={})
    assert [left.name for left in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:////data/mlflow.db", Path("/data/mlflow.db")),
        ("sqlite+pysqlite:////data/mlflow.db?timeout=30", Path("/data/mlflow.db")),
        ("sqlite:///mlflow.db", Path.cwd() / "mlflow.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("postgresql://db/mlflow", None),
        ("http://mlflow:5000", None),
    ],
)
def test_the_file_of_a_url(uri, file):
    """Only a SQLite URL has one, and not that of a database in memory."""
    assert database_file(uri) == file


def test_a_database_that_is_there_is_left_alone(tmp_path):
    """An existing file is not touched, whatever it holds."""
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.stat().st_mtime_ns
    ensure_database(path, artifacts=str(tmp_path))
    assert path.stat().st_mtime_ns == before


@pytest.fixture
def begun(tmp_path):
    """Return the URL of a database with the tables that MLflow begins with: a server's, where it was killed then."""
    from mlflow.store.tracking.dbmodels.initial_models import Base

    url = f"sqlite:///{tmp_path}/mlflow.db"
    Base.metadata.create_all(engine := sa.create_engine(url))
    engine.dispose()
    return url


def test_tables_that_mlflow_has_only_begun_are_none_yet(begun, tmp_path):
    """The next client makes the rest, and no backup has any."""
    assert save_tracking(begun, tmp_path / "copy.db") is None
    Tracker(begun, artifacts=str(tmp_path / "artifacts")).check()
    assert save_tracking(begun, tmp_path / "copy.db") is not None


def test_those_that_are_used_are_another_mlflows(begun, tmp_path):
    """One row, by an MLflow of before its migrations, and nothing is changed."""
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("INSERT INTO experiments (name, artifact_location) VALUES ('mine', '/x')")
    connection.close()
    with pytest.raises(TrackingError, match="has the schema unknown"):
        Tracker(begun).check()
