"""``restore``: bring what a backup holds to an empty machine.

Everything is checked before anything is written. What is referred to comes before what refers to it, the state last,
each database in one transaction: killed at any point, nothing is live that lacks something, and the same command goes
on.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import local_path
from raymlops.display import number_of
from raymlops.errors import BundleError, RefusedError, StorageError
from raymlops.lifecycle.backup import place
from raymlops.lifecycle.backup.artifacts import is_reachable, restore_artifacts, restore_models
from raymlops.lifecycle.backup.contents import MLFLOW, OPTUNA, STATE, Contents, Move, Saved, check_schema
from raymlops.lifecycle.backup.databases import databases_of
from raymlops.lifecycle.sources import Source, stores_of
from raymlops.records import BundleRef, Record
from raymlops.storage import filesystem
from raymlops.storage.tables import moved_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from raymlops.lifecycle.backup.databases import Databases
    from raymlops.storage.tables import TableSet


@dataclass(frozen=True)
class RestoreRecord(Record):
    """A backup that was restored, or with ``dry_run`` could be."""

    id: str
    made_at: str
    state_id: str | None
    """Of the restored state; another one than the backup's for a copy."""
    databases: dict[str, Saved]
    bundles: int
    new_bundles: int
    artifacts: int
    """Files that were not there before."""
    seconds: float
    left_out: tuple[str, ...]
    """What the backup lacks."""
    unfinished: tuple[str, ...]
    """Backups in the same place that were cut off."""
    dry_run: bool


def restore_backup(
    source: Source | None = None,
    *,
    uri: str,
    backup_id: str | None = None,
    as_copy: bool = False,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
    on_step: Callable[[str], None] = lambda _text: None,
) -> RestoreRecord:
    """Restore a backup into the empty databases and the storage of a configuration.

    By default it is the newest, or that of which a restore that was killed has written a part.
    Bundles and artifacts go under ``storage.path``, and what names them is written so. With ``as_copy`` the state gets
    an id of its own, for use beside the original. ``dry_run`` reads and checks all of it, and writes nothing.

    Raises:
        NotFoundError: there is no such backup, or it is unfinished.
        RefusedError: something is not empty, the message says what is there; a file of the backup is not what was
            written; its tables are of another MLflow or Optuna. Nothing was changed.
        BundleError: a bundle is missing from the backup, or damaged; nothing was changed.
        StorageError, UnreachableError, UsageError, ConfigError: something cannot be read or written.
    """
    began = time.monotonic()
    uri = place.checked(uri)
    databases = databases_of(stores_of(source, overrides=overrides, env=env))
    chosen = backup_id or _begun(databases, uri)
    unfinished: list[str] = []
    if chosen is None:
        chosen, unfinished = place.newest(uri)
    with place.opened(uri, chosen) as (folder, contents):
        _check_schemas(contents)
        count = number_of(len(contents.by_digest), "bundle")
        on_step(f"backup {chosen}: checking {count}, and that nothing is in the way")
        bundles = _checked_bundles(contents, uri)
        _refuse_used(databases, contents, chosen)
        write = _Writing(databases, contents, folder, on_step)
        write.check(bundles)
        added, files, state_id = 0, 0, contents.state_id
        if not dry_run:
            came = {"backup": chosen, "made_at": contents.made_at, "roots": contents.roots}
            why = f"{chosen} of {contents.made_at[:19].replace('T', ' ')} UTC"
            added, files = write.files(bundles)
            state_id = write.databases(came=came, why=why, as_copy=as_copy)
        return RestoreRecord(
            id=chosen,
            made_at=contents.made_at,
            state_id=state_id,
            databases=contents.databases,
            bundles=len(bundles),
            new_bundles=added,
            artifacts=files,
            seconds=time.monotonic() - began,
            left_out=contents.left_out,
            unfinished=tuple(unfinished),
            dry_run=dry_run,
        )


class _Writing:
    """Writes a checked backup to where a configuration says."""

    def __init__(self, databases: Databases, contents: Contents, folder: Path, on_step: Callable[[str], None]) -> None:
        self._databases, self._contents, self._folder, self._on_step = databases, contents, folder, on_step
        self._storage = databases.roots["storage"]
        moved = {
            bundle.uri: filesystem.join(self._storage, filesystem.FOLDER, bundle.digest) for bundle in contents.bundles
        }
        self._move = Move(moved, [(old, databases.roots[name]) for name, old in contents.roots.items()])

    def check(self, bundles: Sequence[BundleRef]) -> None:
        """Make sure that nothing is in the way of files: each byte of the bundles that are there already.

        Raises:
            BundleError: one is damaged.
            StorageError: a folder cannot be made.
        """
        from raymlops.bundle.publish import check_copy, is_there

        for source in bundles:
            copy = BundleRef(uri=filesystem.join(self._storage, filesystem.FOLDER, source.digest), digest=source.digest)
            if is_there(copy.uri):
                check_copy(copy, source.uri, every_byte=True)
        for uri in (*self._databases.roots.values(), *map(self._move, self._contents.artifacts.values())):
            if is_reachable(uri):
                _check_makeable(uri)

    def files(self, bundles: Sequence[BundleRef]) -> tuple[int, int]:
        """Write bundles and artifacts; return how many of each were not there before."""
        from raymlops.bundle.publish import copy_bundle

        self._on_step(f"bundles: {len(bundles)}")
        copied = [copy_bundle(bundle, self._storage) for bundle in bundles]
        self._on_step("artifacts of versions and sweeps")
        artifacts = {run_id: self._move(uri) for run_id, uri in self._contents.artifacts.items()}
        models = {self._move(uri): digest for uri, digest in self._contents.models.items()}
        files = restore_artifacts(self._folder, artifacts)
        files += restore_models(models, {bundle.digest: bundle for bundle, _ in copied})
        return sum(new for _, new in copied), files

    def databases(self, *, came: dict[str, Any], why: str, as_copy: bool) -> str | None:
        """Write the databases, the state last; return the id of that."""
        from raymlops.state.copies import restore_state
        from raymlops.tracking.copies import restore_tracking
        from raymlops.tuning.copies import restore_studies

        def change(_table: str, value: Any) -> Any:
            return moved_in(value, self._move)

        urls, saved = self._databases.urls, self._contents.databases
        if OPTUNA in saved:
            self._on_step("Optuna's database")
            restore_studies(self._folder / f"{OPTUNA}.db", urls[OPTUNA], backup=came["backup"], change=change)
        if MLFLOW in saved:
            self._on_step("MLflow's database")
            artifacts = filesystem.join(self._databases.roots["mlflow"], "mlartifacts")
            file = self._folder / f"{MLFLOW}.db"
            disowned = self._contents.state_id if as_copy else None
            restore_tracking(
                file, urls[MLFLOW], artifacts=artifacts, backup=came["backup"], change=change, disowned=disowned
            )
        state_id = None
        if STATE in saved:
            self._on_step("the state")
            file = self._folder / f"{STATE}.db"
            state_id = restore_state(file, urls[STATE], change=change, came=came, why=why, as_copy=as_copy)
        for name, tables in _table_sets().items():
            if name in saved:
                tables.settle(urls[name])
        return state_id


def _check_makeable(uri: str) -> None:
    """Make sure, writing nothing, that a local folder is there or can be made; another filesystem is not asked.

    Raises:
        StorageError: a file is in its place, or this user may not write where it would be.
    """
    if (folder := local_path(uri)) is None:
        return
    with filesystem.errors(uri):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        why = "is a file" if not there.is_dir() else "is not this user's to write"
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise StorageError(f"the folder {str(folder)!r} cannot be made: {str(there)!r} {why}")


def _begun(databases: Databases, uri: str) -> str | None:
    """Return the backup that a restore has begun with and not ended: there may be newer ones since; else None."""
    from raymlops.state.copies import state_there

    if databases.may_exist(STATE) and state_there(databases.urls[STATE]) is not None:
        return None
    for name, tables in _table_sets().items():
        found = tables.restored_from(databases.urls[name]) if databases.may_exist(name) else None
        if found is not None and place.has(uri, found):
            return found
    return None


def _table_sets() -> dict[str, TableSet]:
    """Return the tables of MLflow and Optuna, by the name of their database."""
    from raymlops.tracking.copies import tracking_tables
    from raymlops.tuning.copies import study_tables

    return {MLFLOW: tracking_tables(), OPTUNA: study_tables()}


def _checked_bundles(contents: Contents, uri: str) -> list[BundleRef]:
    """Return the bundles in a backup, each file of them checked."""
    from raymlops.bundle.verify import verify

    found = []
    for bundle in contents.by_digest.values():
        there = BundleRef(uri=filesystem.join(uri, filesystem.FOLDER, bundle.digest), digest=bundle.digest)
        try:
            verify(there.uri, there.digest)
        except BundleError as error:
            raise BundleError(
                f"a bundle of the backup: {error.message}; nothing was restored",
                hint=f"It was at {bundle.uri}: a copy of that folder in its place is enough.",
            ) from error
        found.append(there)
    return found


def _check_schemas(contents: Contents) -> None:
    from raymlops.state.migrate import check_known
    from raymlops.tracking.copies import tracking_schema
    from raymlops.tuning.copies import study_schema

    if STATE in contents.databases:  # an older one is migrated by opening it
        check_known(contents.databases[STATE].schema, what="the backup's state")
    for name, what, schema in ((MLFLOW, "MLflow", tracking_schema), (OPTUNA, "Optuna", study_schema)):
        if name in contents.databases:
            check_schema(contents.databases[name], schema(), what=what)


def _refuse_used(databases: Databases, contents: Contents, backup_id: str) -> None:
    """Refuse to write where something is, other than what a restore of the same backup left when it was killed."""
    from raymlops.state.copies import state_there

    found, tables = {}, _table_sets()
    for name in contents.databases:
        if not databases.may_exist(name):
            continue
        url = databases.urls[name]
        if name == STATE:
            found["the state database"] = state_there(url)
        else:
            found[tables[name].what] = tables[name].there(url, backup=backup_id)
    used = [f"{what} is not empty ({there})" for what, there in found.items() if there is not None]
    if used:
        raise RefusedError(
            f"cannot restore: {'; '.join(used)}; nothing was changed",
            hint="Restore into another storage.path (RAYMLOPS_HOME) and other databases. What is there can be backed "
            "up and moved away first.",
        )
