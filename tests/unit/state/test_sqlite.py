"""Settings of SQLite files that several processes open at once."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize(
    ("mounted", "kind", "expected"),
    [
        (".", "nfs4", "delete"),
        ("..", "nfs4", "delete"),
        ("deeper", "nfs4", "wal"),
        (".", "fuse.sshfs", "delete"),
        (".", "ext4", "wal"),
    ],
)
def test_a_file_that_other_machines_may_open_has_no_write_ahead_log(tmp_path, mounted, kind, expected):
    """Its index is in shared memory. The filesystem is the innermost one that holds the file."""
    folder = tmp_path / "h ome"
    folder.mkdir()
    where = os.path.normpath(folder / mounted).replace(" ", "\\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"23 22 0:21 / {where} rw,relatime shared:2 - {kind} server:/home rw\n"
        "24 22 0:5 / /dev rw - tmpfs udev rw\n"
    )
    with closing(sqlite3.connect(folder / "new.db", isolation_level=None)) as connection:
        assert use_write_ahead_log(connection, wait_s=1, mounts=mounts) is (expected == "wal")
        assert connection.execute("PRAGMA journal_mode").fetchone() == (expected,)
