"""``restore``: bring what a backup holds to an empty machine.

Everything is checked before anything is written. What is referred to comes before what refers to it, the state last,
each database in one transaction: killed at any point, nothing is live that lacks something, and the same command goes
on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raymlops.display import number_of
from raymlops.errors import BundleError, RefusedError, UsageError
from raymlops.lifecycle.backup import place
from raymlops.lifecycle.backup.artifacts import check_free, check_makeable, restore_artifacts, restore_models
from raymlops.lifecycle.backup.contents import MLFLOW, OPTUNA, STATE, Contents, Move, Saved, check_schema, origin
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
    made_by: str
    original_id: str | None
    """Of the state that the backup is of."""
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
    state_only: bool = False,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
    agree: Callable[[str], None] = lambda _text: None,
    on_step: Callable[[str], None] = lambda _text: None,
) -> RestoreRecord:
    """Restore a backup into the empty databases and the storage of a configuration.

    By default it is the newest in a place of one state; none older is ever taken that is not named.
    Bundles and artifacts go under ``storage.path``, and what names them is written so. With ``as_copy`` the state gets
    an id of its own, for use beside the original. ``state_only`` restores the state and its bundles beside an MLflow
    that goes on. ``dry_run`` reads and checks all of it, and writes nothing. ``agree`` is told which backup it is, and
    whose, before anything is written, and raises if it is not to be.

    Raises:
        NotFoundError: there is no such backup, or it is unfinished.
        RefusedError: the place has backups of several states, and none is named; something is not empty, the message
            says what is there; a file of the backup is not what was written; its tables are of another MLflow or
            Optuna, or with ``state_only`` MLflow has not what is live. Nothing was changed.
        BundleError: a bundle is missing from the backup, or damaged; nothing was changed.
        StorageError, UnreachableError, UsageError, ConfigError: something cannot be read or written.
    """
    began = time.monotonic()
    if as_copy and state_only:
        raise UsageError(
            "a copy of the state has an MLflow of its own: as_copy and state_only exclude each other",
            hint="Restore all of it as a copy, into databases of its own.",
        )
    uri = place.checked(uri)
    databases = databases_of(stores_of(source, overrides=overrides, env=env))
    chosen, unfinished = (backup_id, []) if backup_id is not None else place.newest(uri)
    with place.opened(uri, chosen) as (folder, found):
        which = f"backup {chosen} of {origin(found.state_id, found.made_by, found.made_at)}"
        contents = _state_alone(found, which) if state_only else found
        _check_schemas(contents)
        count = number_of(len(contents.by_digest), "bundle")
        on_step(f"{which}: checking {count}, and that nothing is in the way")
        bundles = _checked_bundles(contents, uri)
        write = _Writing(databases, contents, folder, on_step)
        came = {"backup": chosen, "made_at": contents.made_at, "roots": contents.roots, "alone": state_only}
        added, files, state_id = 0, 0, _over(databases, contents, folder, came=came, as_copy=as_copy)
        over = state_id is not None
        if over:
            on_step(
                "the state came from it, as its last change: no more than files that are gone since is left to write"
            )
        else:
            _refuse_used(databases, contents, folder, backup_id=chosen)
            if state_only:
                _check_versions(databases, folder, storage=contents.roots["storage"])
            state_id = contents.state_id
        write.check(bundles)
        if not dry_run:
            if not over:
                agree(which)
            added, files = write.files(bundles)
            if not over:
                why = f"{chosen} of {contents.made_at[:19].replace('T', ' ')} UTC"
                state_id = write.databases(came=came, why=why, as_copy=as_copy)
            write.settle()
        return RestoreRecord(
            id=chosen,
            made_at=contents.made_at,
            made_by=contents.made_by,
            original_id=contents.state_id,
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
        self._artifacts = {run_id: self._move(uri) for run_id, uri in contents.artifacts.items()}
        self._models = {self._move(uri): digest for uri, digest in contents.models.items()}

    def check(self, bundles: Sequence[BundleRef]) -> None:
        """Make sure that nothing is in the way of files: each byte of those that are there already.

        Raises:
            BundleError: a bundle is damaged.
            RefusedError: another file is where one belongs.
            StorageError: a folder cannot be made.
        """
        from raymlops.bundle.publish import check_copy, is_there

        for source in bundles:
            copy = BundleRef(uri=filesystem.join(self._storage, filesystem.FOLDER, source.digest), digest=source.digest)
            if is_there(copy.uri):
                check_copy(copy, source.uri, every_byte=True)
        for uri in (*self._databases.roots.values(), filesystem.join(self._storage, filesystem.FOLDER)):
            check_makeable(uri)
        check_free(self._folder, self._artifacts, self._models, {bundle.digest: bundle for bundle in bundles})

    def files(self, bundles: Sequence[BundleRef]) -> tuple[int, int]:
        """Write bundles and artifacts; return how many of each were not there before."""
        from raymlops.bundle.publish import copy_bundle

        self._on_step(f"bundles: {len(bundles)}")
        copied = [copy_bundle(bundle, self._storage) for bundle in bundles]
        self._on_step("artifacts of versions and sweeps")
        files = restore_artifacts(self._folder, self._artifacts)
        files += restore_models(self._models, {bundle.digest: bundle for bundle, _ in copied})
        return sum(new for _, new in copied), files

    def databases(self, *, came: dict[str, Any], why: str, as_copy: bool) -> str | None:
        """Write the databases, the state last; return the id of that."""
        from raymlops.registry.lineage import ALIASES_OF
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
            owners = ALIASES_OF if as_copy else None  # of whatever state: none of them looks at this MLflow
            restore_tracking(
                file, urls[MLFLOW], artifacts=artifacts, backup=came["backup"], change=change, without_tag=owners
            )
        state_id = None
        if STATE in saved:
            self._on_step("the state")
            file = self._folder / f"{STATE}.db"
            state_id = restore_state(file, urls[STATE], change=change, came=came, why=why, as_copy=as_copy)
        return state_id

    def settle(self) -> None:
        """Let MLflow's and Optuna's databases forget whose rows they got."""
        for name, tables in _table_sets().items():
            if name in self._contents.databases and self._databases.may_exist(name):
                tables.settle(self._databases.urls[name])


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


def _state_alone(contents: Contents, which: str) -> Contents:
    """Return a backup as one of nothing but the state and the bundles.

    Raises:
        RefusedError: it has no state.
    """
    if STATE not in contents.databases:
        raise RefusedError(f"{which} holds no state", hint="Restore another one: --backup ID.")
    return replace(contents, databases={STATE: contents.databases[STATE]}, artifacts={}, models={})


def _check_versions(databases: Databases, folder: Path, *, storage: str) -> None:
    """Make sure that MLflow is the one that a state had: it has what is live, and nothing else under its numbers.

    A version that is not live may have been deleted there since. Its versions name bundles in ``storage``.

    Raises:
        RefusedError: naming the versions, or another storage.
    """
    from raymlops.registry.lineage import DIGEST
    from raymlops.state.copies import versions_in
    from raymlops.tracking.copies import versions_there

    url = databases.urls[MLFLOW]
    there = versions_there(url) if databases.may_exist(MLFLOW) else ()
    digests = {(one.name, one.version): one.tags.get(DIGEST) for one in there}
    live, all_of_them = versions_in(folder / f"{STATE}.db")
    problems = []
    for one in sorted(all_of_them):
        got = digests.get((one.name, one.version), "" if one in live else one.digest)
        if got != one.digest:
            has = f"MLflow has it with digest {got}" if got else "MLflow has no such version, and it is live"
            problems.append(f"{one.name} version {one.version} with digest {one.digest}: {has}")
    if problems:
        raise RefusedError(
            f"MLflow's database is not the one that the state had; nothing was changed: {'; '.join(problems)}",
            hint="--state-only is for an MLflow that goes on. Restore all of it into empty databases, or name that "
            "MLflow: tracking.uri, tracking.database.",
        )
    if databases.roots["storage"] != storage:
        raise RefusedError(
            f"MLflow's versions name bundles in {storage}, and storage.path is {databases.roots['storage']}: no "
            "version could be gated or deployed; nothing was changed",
            hint=f"Set storage.path to {storage}, where what is lost of the bundles is written again.",
        )


def _over(databases: Databases, contents: Contents, folder: Path, *, came: dict[str, Any], as_copy: bool) -> str | None:
    """Return the id of the state where this very restore wrote it, which it does last, and nothing came after."""
    from raymlops.state.copies import came_last

    names = contents.databases
    if STATE not in names or not all(map(databases.may_exist, names)):
        return None
    state_id = came_last(databases.urls[STATE], backup=came["backup"], as_copy=as_copy, alone=came["alone"])
    if state_id is None:
        return None
    there = (
        tables.has_as_much(databases.urls[name], file=folder / f"{name}.db")
        for name, tables in _table_sets().items()
        if name in names
    )
    return state_id if all(there) else None


def _refuse_used(databases: Databases, contents: Contents, folder: Path, *, backup_id: str) -> None:
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
            file = folder / f"{name}.db"
            found[tables[name].what] = tables[name].there(url, file=file, backup=backup_id)
    used = [f"{what} is not empty ({there})" for what, there in found.items() if there is not None]
    if used:
        lost = STATE in contents.databases and found.get("the state database") is None
        raise RefusedError(
            f"cannot restore: {'; '.join(used)}; nothing was changed",
            hint="Restore into another storage.path (RAYMLOPS_HOME) and other databases. What is there can be backed "
            "up and moved away first. A restore that was not ended goes on by the ID of its backup: --backup ID."
            + (" Where the state alone is lost, --state-only restores it beside MLflow as it is." if lost else ""),
        )
