"""Where studies are kept: one SQL database for all sweeps, which optuna-dashboard reads as it is.

Owns the address of that database, how a study is created in it and how its connections are closed. Knows nothing of
Ray; a credential in the address never leaves this module (``without_credentials``).
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raymlops.config.credentials import resolve
from raymlops.config.paths import local_path
from raymlops.errors import StorageError, UnreachableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.schema import ProjectSpec, SweepSection


def optuna_url(spec: ProjectSpec) -> str:
    """Return the SQL URL of the studies: ``storage.optuna``, else a SQLite file under ``storage.path``.

    The folder is made where it is missing.

    Raises:
        UsageError: ``storage.path`` is no local folder and ``storage.optuna`` is not set.
        ConfigError: the credential cannot be read.
        StorageError: the folder cannot be made.
    """
    if spec.storage.optuna is not None:
        return resolve(spec.storage.optuna, "storage.optuna")
    folder = local_path(spec.storage.path)
    if folder is None:
        raise UsageError(
            f"storage.path {spec.storage.path} is no local folder, so there is no place for Optuna's SQLite file",
            hint="Set storage.optuna to a SQL URL such as postgresql+psycopg://host/optuna ({env: NAME} for one "
            "with a password).",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"storage.path {folder} cannot be made: {error}") from error
    return f"sqlite:///{folder / 'optuna.db'}"


def without_credentials(url: str) -> str:
    """Return a SQL URL without user, password and options, as records and logs may hold it."""
    from sqlalchemy import URL, make_url

    parts = make_url(url)
    return URL.create(parts.drivername, host=parts.host, port=parts.port, database=parts.database).render_as_string()


@contextmanager
def open_storage(url: str) -> Iterator[Any]:
    """Yield Optuna's storage at a SQL URL, its tables made or checked; its connections are closed at the end.

    Raises:
        StorageError: the SQLite file cannot be opened or written, or the tables are of another Optuna.
        UnreachableError: the database does not answer.
        UsageError: the URL is none that SQLAlchemy reads, or its driver is not installed.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        # SQLite: another sweep or the dashboard may hold the file's lock for a moment.
        options = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        with quiet_optuna():
            storage = RDBStorage(url, engine_kwargs=options)
            if url.startswith("sqlite"):
                _write_ahead(storage.engine)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UsageError(f"storage.optuna is no usable SQL URL: {type(error).__name__}: {error}") from error
    except SQLAlchemyError as error:
        place, cause = without_credentials(url), str(getattr(error, "orig", None) or error).splitlines()[0]
        if url.startswith("sqlite"):
            raise StorageError(
                f"Optuna's file {place} cannot be used: {cause}", hint="Check storage.path and the disk."
            ) from error
        raise UnreachableError(f"Optuna's database {place} does not answer: {cause}") from error
    except RuntimeError as error:
        raise StorageError(
            f"Optuna's tables at {without_credentials(url)} were written by another version of Optuna: {error}",
            hint=f"`optuna storage upgrade --storage {without_credentials(url)}` brings old ones up to date.",
        ) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _write_ahead(engine: Any) -> None:
    """Let SQLite append to a log: readers do not wait, and a trial's dozen commits wait for no disk.

    A process that dies loses nothing; a machine that loses its power may lose the last commits, never the file.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute("PRAGMA synchronous=NORMAL").close()

    engine.dispose()  # connections made before know nothing of it


def create_study(storage: Any, name: str, *, sweep: SweepSection, mode: str) -> Any:
    """Create a new Optuna study with the sampler that the sweep asks for, seeded.

    TPE is multivariate, which sees parameters that matter together, and grouped, which is what makes that
    possible when some parameters exist only under a condition. It treats running trials as poor ones, so that
    trials drawn at the same time differ.
    """
    import optuna

    with quiet_optuna():
        sampler: Any
        if sweep.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed=sweep.seed)
        else:
            sampler = optuna.samplers.TPESampler(
                seed=sweep.seed,
                n_startup_trials=sweep.startup_trials,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        # No pruner of Optuna's: Tune's scheduler decides, and the study records what it decided.
        return optuna.create_study(
            storage=storage,
            study_name=name,
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),
            direction="minimize" if mode == "min" else "maximize",
        )


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's notices of experimental arguments and its progress log off the user's screen, for a while."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"optuna\..*")
            warnings.filterwarnings("ignore", message=".*experimental.*")
            yield
    finally:
        logger.setLevel(level)
