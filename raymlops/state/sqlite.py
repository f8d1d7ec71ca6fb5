"""What every SQLite file of ours needs, Optuna's too; without SQLAlchemy."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

LOCKED = "database is locked"
_LOOK_S = 0.02


def use_write_ahead_log(connection: Any, *, wait_s: float) -> None:
    """Switch the file of a DB-API connection to the write-ahead log: readers and the writer do not wait for each other.

    SQLite does not apply its busy timeout where two processes switch a new file at once: one of them gets an error.

    Raises:
        sqlite3.OperationalError: the file is locked for ``wait_s``, or cannot be written.
    """
    until_s = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            if LOCKED not in str(error) or time.monotonic() >= until_s:
                raise
            time.sleep(_LOOK_S)
        else:
            return
