"""Optuna's SQL database, one for all sweeps; optuna-dashboard can read it.

Owns the database's URL, its connections, how a study is created and loaded, and how its errors are translated. A
credential in the URL never leaves this module (``without_credentials``).
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from raymlops.cluster.process_wide import SharedContext
from raymlops.config.base import resolve
from raymlops.config.paths import sqlite_path, sqlite_under
from raymlops.display import quiet
from raymlops.errors import NotFoundError, RaymlopsError, StorageError, UnreachableError, UsageError
from raymlops.state.sqlite import LOCKED, use_write_ahead_log, when_unlocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import Objective

T = TypeVar("T")
BUSY_S = 30.0
"""How long a write waits for a SQLite file that another process is writing to."""
CONNECT_S = 10
_PARTS = 10
"""Tables that Optuna creates one after the other, about."""
_CREATED_MEANWHILE = ("already exists", "alembic_version", "version_info")

_SQLITE_HINTS = {
    LOCKED: "Another process holds it: end that one, or set storage.optuna to another database.",
    "readonly database": "Let this user write to the file and to its folder, or set another storage.path.",
    "unable to open database file": "The folder must be there, and this user must be allowed to write to it.",
    "disk is full": "Make room on that disk, or set another storage.path.",
    "no such table": "It holds no studies of Optuna: name the database of one.",
    "file is not a database": "Another program wrote this file: move it away, or set another storage.path.",
}


def optuna_url(spec: ProjectSpec) -> str:
    """Return the SQL URL of the studies: ``storage.optuna``, else a SQLite file under ``storage.path``.

    Raises:
        ConfigError: ``storage.path`` is a URI and ``storage.optuna`` is not set, or the credential cannot be read.
    """
    if spec.storage.optuna is not None:
        return resolve(spec.storage.optuna, "storage.optuna")
    hint = "Set it to a SQL URL such as postgresql+psycopg://host/optuna, or {env: NAME} for one with a password."
    return sqlite_under(spec.storage.path, "optuna.db", instead="storage.optuna", hint=hint)


def without_credentials(url: str) -> str:
    """Return a SQL URL without user, password and options, as records and logs may hold it."""
    from sqlalchemy import URL, make_url

    parts = make_url(url)
    return URL.create(parts.drivername, host=parts.host, port=parts.port, database=parts.database).render_as_string()


@contextmanager
def open_storage(url: str, *, heartbeat_s: int = 60, busy_s: float = BUSY_S, read_only: bool = False) -> Iterator[Any]:
    """Yield Optuna's storage at a SQL URL, with its tables created or checked; close its connections at the end.

    ``heartbeat_s`` is the heartbeat interval of running trials. Optuna fails stale ones only in ``study.optimize``,
    which nothing here calls. A ``read_only`` database is left as it is, tables that are not there included.

    Raises:
        StorageError: the SQLite file is locked, cannot be opened or written, or has another Optuna version's tables.
        UnreachableError: the database does not answer.
        UsageError: SQLAlchemy cannot parse the URL, or its driver is not installed.
    """
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    from raymlops.tuning.study.bulk_read import Storage  # it loads Optuna

    try:
        place = without_credentials(url)
        with storage_errors(f"Optuna's database {place}"):
            storage = _opened(
                lambda: Storage(
                    (_read_only(url) if read_only else url).replace("{", "{{").replace("}", "}}"),  # Optuna's templates
                    engine_kwargs=_options(url, busy_s=busy_s),
                    heartbeat_interval=heartbeat_s,
                    grace_period=10 * heartbeat_s,
                    skip_table_creation=read_only,
                ),
                busy_s=busy_s,
            )
            if url.startswith("sqlite") and not read_only:
                _write_ahead(storage.engine, busy_s=busy_s)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            f"storage.optuna is not a usable SQL URL: {type(error).__name__}: {error}",
            hint="Write for example postgresql+psycopg://host/optuna, or leave it out for a SQLite file.",
        ) from error
    except ImportError as error:
        raise UsageError(
            f"the driver for storage.optuna {place} is not installed: {error.__cause__ or error}",
            hint="pip install 'raymlops[postgres]' and write postgresql+psycopg://host/optuna.",
        ) from error
    except RuntimeError as error:
        raise _other_schema(error, place) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _opened(open_it: Callable[[], T], *, busy_s: float) -> T:
    """Open a database; again for each part of it that another process created meanwhile, and while it is locked.

    Optuna 4 looks whether its tables and its row of versions are there, and then creates them: of two sweeps that are
    the first ones, one fails.
    """
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    until_s = time.monotonic() + busy_s
    for _ in range(_PARTS):
        try:
            return when_unlocked(open_it, until_s=until_s)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            if time.monotonic() >= until_s or not any(text in str(error.orig) for text in _CREATED_MEANWHILE):
                raise
    return when_unlocked(open_it, until_s=until_s)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Silence Optuna, and translate its errors and SQLAlchemy's, without URL, values and statement.

    Raises:
        StorageError: a SQLite file that cannot be read or written, or a statement that the database rejects.
        UnreachableError: a server that does not answer.
        NotFoundError: the study or trial was deleted.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        with quiet_optuna():
            yield
    except (ArgumentError, NoSuchModuleError):
        raise
    except (StorageInternalError, SQLAlchemyError) as error:
        raise _database_error(error, what) from error
    except KeyError as error:
        if "Record does not exist" not in str(error):
            raise
        raise NotFoundError(f"{what}: it was deleted while it was in use") from error


def _database_error(error: Exception, what: str) -> RaymlopsError:
    from sqlalchemy.exc import InterfaceError, OperationalError

    inner: Any = error.__cause__ if error.__cause__ is not None and not hasattr(error, "orig") else error
    cause = (str(getattr(inner, "orig", None) or inner).strip().splitlines() or [type(inner).__name__])[0]
    if type(getattr(inner, "orig", None)).__module__.startswith("sqlite3"):
        hint = next((hint for text, hint in _SQLITE_HINTS.items() if text in cause), "Check storage.path and the disk.")
        return StorageError(f"{what} cannot be used: {cause}", hint=hint)
    if isinstance(inner, OperationalError | InterfaceError):
        return UnreachableError(f"{what} does not answer: {cause}", hint="Check storage.optuna and that server.")
    return StorageError(f"{what} rejects a statement: {cause}", hint="Check the privileges of its user.")


def _other_schema(error: RuntimeError, place: str) -> StorageError:
    if "storage upgrade" in str(error):
        hint = f"Run `optuna storage upgrade --storage {place}` (with its user and password) after a backup."
        return StorageError(f"Optuna's tables at {place} were written by an older version of Optuna", hint=hint)
    return StorageError(
        f"Optuna's tables at {place} were written by another version of Optuna: {error}",
        hint="Install the version that wrote them, or set storage.optuna to another database.",
    )


def _options(url: str, *, busy_s: float) -> dict[str, Any]:
    if url.startswith("sqlite"):
        # Another sweep or the dashboard may hold the file's lock briefly.
        return {"connect_args": {"timeout": busy_s}}
    arguments: dict[str, Any] = {}
    if url.startswith("postgresql"):
        arguments["connect_timeout"] = CONNECT_S  # otherwise a host that drops packets blocks a sweep for minutes
    if url.startswith("postgresql+psycopg:"):
        # Behind a pooler in transaction mode another session may not know a statement that one has prepared.
        arguments["prepare_threshold"] = None
    return {"pool_pre_ping": True, "connect_args": arguments}


def _read_only(url: str) -> str:
    """Return the URL by which SQLite neither changes a file nor puts one beside it; any other URL as it is."""
    from sqlalchemy import URL

    if (file := sqlite_path(url)) is None:
        return url
    with file.open("rb") as opened:
        write_ahead = opened.read(20)[18:] == b"\2\2"
    # Without its log nobody has such a file open, and SQLite would create one.
    closed = write_ahead and not file.with_name(f"{file.name}-wal").exists()
    query = {"uri": "true", "immutable": "1"} if closed else {"uri": "true", "mode": "ro"}
    return URL.create("sqlite", database=f"file:{quote(str(file.absolute()))}", query=query).render_as_string()


def _write_ahead(engine: Any, *, busy_s: float) -> None:
    """Use SQLite's write-ahead log: readers do not wait, and commits do not wait for the disk.

    A crashed process loses nothing; a power failure may lose the last commits, never the file.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        if use_write_ahead_log(connection, wait_s=busy_s):
            connection.execute("PRAGMA synchronous=NORMAL").close()

    engine.dispose()  # existing connections lack the settings
    # A file that cannot be written is found here, not at the first trial.
    engine.connect().close()


def create_study(storage: Any, name: str, *, objectives: Sequence[Objective]) -> Any:
    """Create a new Optuna study.

    Its sampler and pruner are unused: each trial gets its own sampler, and Tune's scheduler stops trials.

    Raises:
        UsageError: a study of this name exists.
        StorageError, UnreachableError: the database rejects it or does not answer.
    """
    import optuna

    with storage_errors(f"Optuna's study {name}"):
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=["minimize" if objective.mode == "min" else "maximize" for objective in objectives],
            )
        except optuna.exceptions.DuplicatedStudyError as error:
            raise UsageError(f"the study {name} exists", hint="Resume its sweep instead.") from error
        study.set_metric_names([objective.metric for objective in objectives])  # as the dashboard shows them
        return study


def load_study(storage: Any, name: str) -> Any:
    """Return the Optuna study of this name.

    Raises:
        NotFoundError: it is not in this database.
        StorageError, UnreachableError: the database cannot be read.
    """
    import optuna

    with storage_errors(f"Optuna's study {name}"):
        try:
            return optuna.load_study(storage=storage, study_name=name)
        except KeyError as error:
            raise _no_study(name, "in this database") from error


@contextmanager
def open_recorded(url: str, name: str, *, read_only: bool = False) -> Iterator[Any]:
    """Yield the study of this name, which was created before; create no database in place of one that is not there.

    Raises:
        NotFoundError: it is not in this database, or there is no such SQLite file on this machine.
        StorageError, UnreachableError, UsageError: the database cannot be opened or read.
    """
    file = sqlite_path(url)
    if file is not None and not file.exists():
        raise _no_study(name, f"here: {file} does not exist")
    with open_storage(url, read_only=read_only) as storage:
        yield load_study(storage, name)


def _no_study(name: str, where: str) -> NotFoundError:
    return NotFoundError(
        f"there is no study {name} {where}",
        hint="It was deleted, or storage.optuna or storage.path differ from those that its sweep started with.",
    )


def quiet_optuna() -> AbstractContextManager[None]:
    """Silence Optuna's warnings about experimental arguments and its progress log, for all threads of the process."""
    return _silence.entered(_silenced)


_silence = SharedContext()
"""Threads overlap here, and neither filters of warnings nor the level of a logger belong to one of them."""


@contextmanager
def _silenced() -> Iterator[None]:
    with quiet("optuna", level=logging.ERROR), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"optuna\..*")
        warnings.filterwarnings("ignore", message=".*experimental.*")
        yield
