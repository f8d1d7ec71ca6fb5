"""Leases: one name held by one process for as long as it lives, such as a run by its driver.

Owns the names of these locks and what others see of the holder. The operating system, or the server, releases a lease
when its holder dies; a Postgres that restarts releases all of them, so that a holder renews its lease.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from raymlops.errors import LeaseLostError, RefusedError, UnreachableError, UsageError
from raymlops.state import locks
from raymlops.state.engine import database_path, open_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

FOLDER = "leases"
DEFAULT = "state.db"
WAIT_S = 1.0
"""Long enough for another process that checks who holds it, and for a server to notice that a holder was killed."""


@contextmanager
def lease(url: str, name: str, *, purpose: str, wait_s: float = WAIT_S) -> Iterator[Callable[[], bool]]:
    """Hold ``name`` for the block, beside the state database at ``url``. It cannot be taken twice by the same caller.

    Yield a function that takes the lease again where it was lost, and returns whether it was, so that somebody else may
    have had it. It raises ``LeaseLostError`` if somebody else has it now.

    Raises:
        RefusedError: somebody else holds it; the message names user, host and process, since when and for what.
        StorageError, UnreachableError: it cannot be queried.
    """
    with (
        _engine(url) as engine,
        locks.hold(engine, file=_file(engine, name), key=_key(name), purpose=purpose, wait_s=wait_s) as held,
    ):
        if held.holder is not None:
            raise RefusedError(
                f"{name} is in use by {held.holder}", hint="Let it finish, or end that process, then try again."
            )
        held.check_session()

        def renew() -> bool:
            if not held.lost():
                return False
            held.close()
            with suppress(UnreachableError):  # nobody else can take it meanwhile, either
                held.take()
            if held.holder is not None:
                raise LeaseLostError(f"this process has lost {name}, which is in use by {held.holder} now")
            return True

        yield renew


def holder_of(url: str, name: str) -> str | None:
    """Return who holds ``name`` now; None if nobody does.

    Raises:
        StorageError, UnreachableError: that cannot be found out.
    """
    with _engine(url) as engine:
        return locks.holder_of(engine, file=_file(engine, name), key=_key(name))


def was_held(url: str, name: str) -> bool:
    """Return whether ``name`` may ever have been held beside this database."""
    with _engine(url) as engine:
        file = _file(engine, name)
        return file is None or file.exists()


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _file(engine: Engine, name: str) -> Path | None:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", name):
        raise UsageError(f"{name!r} cannot be the name of a lease", hint="Letters, digits, _ . and - only.")
    database = database_path(engine)
    if database is None:
        return None
    # The default name keeps the folder that earlier releases lock in.
    folder = FOLDER if database.name == DEFAULT else f"{FOLDER}-{database.name}"
    return database.parent / folder / f"{name}.lock"


def _key(name: str) -> int:
    """Return the key of a name in Postgres, whose advisory locks are numbers: 63 bits."""
    return int.from_bytes(hashlib.sha256(f"raymlops lease {name}".encode()).digest()[:8]) >> 1
