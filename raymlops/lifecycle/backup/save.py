"""``backup``: copy the databases, then what they name, while everything runs.

The order makes the copy consistent without stopping anybody: what refers is copied before what it refers to. A version
is in MLflow before the state records it, a trial in Optuna before MLflow has its run, a bundle on the storage before
anything names it, and none of these changes later. So whatever a copy names is there to be copied after it, and what is
made meanwhile is named by none.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raymlops.config.paths import local_path
from raymlops.errors import BundleError, NotFoundError, UsageError
from raymlops.lifecycle.backup import place
from raymlops.lifecycle.backup.artifacts import save_artifacts
from raymlops.lifecycle.backup.contents import FILE, MLFLOW, NOT_IN_IT, OPTUNA, STATE, Contents, Saved, to_copy
from raymlops.lifecycle.backup.databases import databases_of
from raymlops.lifecycle.sources import Source, stores_of
from raymlops.records import BundleRef, Record
from raymlops.storage import clock, filesystem
from raymlops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from raymlops.lifecycle.backup.databases import Databases
    from raymlops.state.copies import SavedState
    from raymlops.tracking.copies import SavedTracking


@dataclass(frozen=True)
class BackupRecord(Record):
    """A backup that was written."""

    id: str
    to: str
    made_at: str
    databases: dict[str, Saved]
    bundles: int
    new_bundles: int
    """Of these, how many the place did not have."""
    size_bytes: int
    """Of its own folder, without the bundles."""
    seconds: float
    left_out: tuple[str, ...]
    """What belongs here and could not be had: it is not in the backup."""
    not_in_it: tuple[str, ...] = NOT_IN_IT


def backup(
    source: Source | None = None,
    *,
    to: str,
    overrides: Sequence[str] = (),
    env: str | None = None,
    verify: bool = False,
    on_step: Callable[[str], None] = lambda _text: None,
) -> BackupRecord:
    """Write a backup of the state, MLflow's and Optuna's databases, bundles, and artifacts of versions and sweeps.

    Everything may go on meanwhile. Killed at any point it leaves no backup, or a whole one; bundles that are there are
    kept, and several at once to one place do not disturb each other. Of those their sizes are compared, or with
    ``verify`` every byte.

    Raises:
        NotFoundError: there is nothing to back up.
        BundleError: a bundle of what is live is missing or damaged, or with ``verify`` one that the place had already.
        StorageError: the place cannot be written; the message names what is refused.
        UsageError: the place is ``storage.path`` itself.
        StorageError, UnreachableError, TrackingError, UsageError, ConfigError: a database cannot be read.
    """
    began, made_at = time.monotonic(), clock.now()
    to = place.checked(to)
    databases = databases_of(stores_of(source, overrides=overrides, env=env))
    if _real(to) == _real(databases.roots["storage"]):
        raise UsageError(
            f"{to} is storage.path itself: a backup in it is lost with it",
            hint="--to names a folder on another disk, or a bucket.",
        )
    if not any(databases.may_exist(name) for name in (STATE, MLFLOW)):
        where = ", ".join(str(databases.file(name)) for name in (STATE, MLFLOW))
        raise NotFoundError(
            f"there is nothing to back up: {where} do not exist",
            hint="What is elsewhere is found by --config FILE, RAYMLOPS_HOME or RAYMLOPS_STATE_FILE.",
        )
    place.check_place(to)
    at = place.next_time(to, made_at)
    with place.draft(to) as folder:
        contents, needed, live = _copied(databases, folder, made_at=made_at.isoformat(), on_step=on_step)
        if verify:
            on_step("bundles that the place has")
            _verify_copies(needed, to)
        on_step(f"bundles: {len(needed)}")
        contents, new = _with_bundles(contents, needed, live, to)
        on_step("artifacts of versions and sweeps")
        lacks = save_artifacts(contents.artifacts, contents.models, folder)
        contents = replace(contents, left_out=(*contents.left_out, *lacks))
        (folder / FILE).write_text(json.dumps(contents.to_dict(), indent=1), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        backup_id = place.publish(folder, to, at=at)
    return BackupRecord(
        id=backup_id,
        to=to,
        made_at=contents.made_at,
        databases=contents.databases,
        bundles=len(contents.by_digest),
        new_bundles=new,
        size_bytes=size,
        seconds=time.monotonic() - began,
        left_out=contents.left_out,
    )


def _copied(
    databases: Databases, folder: Path, *, made_at: str, on_step: Callable[[str], None]
) -> tuple[Contents, dict[str, list[BundleRef]], frozenset[str]]:
    """Copy the databases; return what they name, the bundles to copy, and the digests of those that are live."""
    from raymlops.registry.lineage import BUNDLE_URI, DIGEST
    from raymlops.state.copies import SCHEMA, save_state
    from raymlops.state.engine import this_user
    from raymlops.tracking.copies import save_tracking, tracking_schema
    from raymlops.tuning.copies import save_studies, study_schema

    saved: dict[str, Saved] = {}
    state: SavedState | None = None
    tracking: SavedTracking | None = None
    if databases.may_exist(STATE):
        on_step("the state")
        state = save_state(databases.urls[STATE], folder / f"{STATE}.db")
        saved[STATE] = Saved(SCHEMA, f"raymlops {__version__}", state.rows)
    if databases.may_exist(MLFLOW):
        on_step("MLflow's database")
        tracking = save_tracking(databases.urls[MLFLOW], folder / f"{MLFLOW}.db")
        if tracking is not None:
            saved[MLFLOW] = Saved(*tracking_schema(), tracking.rows)
    if databases.may_exist(OPTUNA):
        on_step("Optuna's database")
        saved[OPTUNA] = Saved(*study_schema(), save_studies(databases.urls[OPTUNA], folder / f"{OPTUNA}.db"))
    versions = () if tracking is None else tracking.versions
    tagged = [
        (one, BundleRef(uri=one.tags.get(BUNDLE_URI, ""), digest=one.tags[DIGEST]))
        for one in versions
        if DIGEST in one.tags
    ]
    needed, live = to_copy(
        () if state is None else state.live, () if state is None else state.recorded, (ref for _, ref in tagged)
    )
    contents = Contents(
        made_at=made_at,
        made_by=this_user(),
        raymlops=__version__,
        state_id=None if state is None else state.id,
        databases=saved,
        roots=dict(databases.roots),
        bundles=(),
        artifacts={} if tracking is None else dict(tracking.artifacts),
        models={one.source: ref.digest for one, ref in tagged},
    )
    return contents, needed, live


def _with_bundles(
    contents: Contents, needed: Mapping[str, Sequence[BundleRef]], live: frozenset[str], to: str
) -> tuple[Contents, int]:
    """Copy bundles to the place of backups; return the contents with them, and how many were not there before."""
    copied: list[BundleRef] = []
    lacks, new = [], 0
    for digest, places in needed.items():
        try:
            new += _copied_once(places[:1] if digest in live else places, to)
        except BundleError as error:
            if digest in live:
                raise
            # Of a version that is not on Serve: one that was lost long ago must not prevent all backups.
            lacks.append(f"a bundle: {error.message}")
        else:
            copied += places
    return replace(contents, bundles=tuple(copied), left_out=(*contents.left_out, *lacks)), new


def _verify_copies(needed: Mapping[str, Sequence[BundleRef]], to: str) -> None:
    """Read the bundles that an earlier backup wrote, on which this one relies.

    Raises:
        BundleError: one is damaged.
    """
    from raymlops.bundle.publish import check_copy, is_there

    for digest, places in needed.items():
        copy = BundleRef(uri=filesystem.join(to, filesystem.FOLDER, digest), digest=digest)
        if is_there(copy.uri):
            check_copy(copy, places[0].uri, every_byte=True)


def _real(uri: str) -> str:
    """Return a place without links and without a slash at its end."""
    path = local_path(uri)
    return uri.rstrip("/") if path is None else str(path.resolve())


def _copied_once(places: Sequence[BundleRef], to: str) -> bool:
    """Copy a bundle from the first of its places that has it; return whether it was not there before.

    Raises:
        BundleError: of the last one, where none has.
    """
    from raymlops.bundle.publish import copy_bundle

    *others, last = places
    for bundle in others:
        try:
            return copy_bundle(bundle, to, private=True)[1]
        except BundleError:
            continue
    return copy_bundle(last, to, private=True)[1]
