"""Settings of SQLite files that several processes open at once."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest

from raymlops.state.sqlite import use_write_ahead_log


@pytest.fixture
def two(tmp_path):
    """Two connections to a new file; the first one may be used by any thread."""
    with (
        closing(sqlite3.connect(tmp_path / "new.db", isolation_level=None, check_same_thread=False)) as first,
        closing(sqlite3.connect(tmp_path / "new.db", isolation_level=None)) as second,
    ):
        first.execute("CREATE TABLE t (x)")
        first.execute("BEGIN IMMEDIATE")  # for which SQLite's own timeout does not wait here
        yield first, second


def test_the_switch_waits_for_a_writer(two):
    first, second = two
    release = threading.Timer(0.2, first.execute, ["COMMIT"])
    release.start()
    use_write_ahead_log(second, wait_s=30)
    release.join()
    assert second.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_wait_has_an_end(two):
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        use_write_ahead_log(two[1], wait_s=0.1)
