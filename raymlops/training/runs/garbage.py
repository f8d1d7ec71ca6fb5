"""Garbage collection: find, judge and remove files of runs and sweeps that nothing needs any more.

Owns the decision, which is pure, and what lies in the folders of runs and sweeps. One that is in use is left alone; a
run that can be resumed keeps the checkpoints that its pointer names, and a sweep all of its trials. Bundles of
registered versions, and the configuration and report of a sweep, are not touched.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.paths import sqlite_path
from raymlops.errors import NotFoundError, RaymlopsError, StorageError
from raymlops.records import Record
from raymlops.state.copies import restored_at
from raymlops.state.database import Database, state_url
from raymlops.state.lease import lease
from raymlops.storage import filesystem, manifest
from raymlops.training.checkpoints.format import read_pointer
from raymlops.training.runs.lookup import (
    CHECKPOINTS,
    ORIGIN,
    RUNS,
    SWEEPS,
    TRIALS,
    find,
    origin,
    who_holds,
    who_holds_in,
)
from raymlops.training.runs.resume import is_evaluated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.tracking.client import Tracker
    from raymlops.training.checkpoints.retention import Kept
    from raymlops.training.runs.lookup import Recorded

    Files = Mapping[str, Any]
    """pyarrow's ``FileInfo`` of files and folders, by path."""


@dataclass(frozen=True)
class Owner:
    """A run or a sweep with the content of its folder ``uri``."""

    kind: Literal["run", "sweep"]
    run_id: str
    uri: str
    files: Files
    kept: Kept | None = None
    """What the pointer of a run's checkpoints names; None where it cannot be read."""


@dataclass(frozen=True)
class Standing:
    """What decides about the files of a run or a sweep."""

    place: Literal["active", "deleted", "missing"]
    """In MLflow; a deleted run can be restored there for a while."""
    status: str = ""
    weights_uri: str = ""
    spared: str = ""
    """Why nothing of it may be touched; empty if nothing prevents it."""
    evaluated: bool = False
    """Whether the test metrics of a run are recorded, as they are once it is registered: it cannot train longer."""
    extendable: bool = False
    """Whether a budget ended a sweep: its interrupted trials resume once that is extended."""


@dataclass(frozen=True)
class Waste(Record):
    """One folder or file that may be removed, and why."""

    run_id: str
    """Of a run or a sweep."""
    uri: str
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class Spared(Record):
    """A run or a sweep that was left alone, and why."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class CollectRecord(Record):
    """What ``gc`` found under ``runs_uri`` and in the sweeps beside it, and what became of it."""

    runs_uri: str
    runs: int
    """Folders of runs that were looked at."""
    waste: tuple[Waste, ...]
    spared: tuple[Spared, ...] = ()
    removed: bool = False
    """False after a dry run."""
    failed: tuple[str, ...] = ()
    """What could not be removed, and why."""
    sweeps: int = 0
    """Sweeps whose trials have files, which were looked at."""

    @property
    def size_bytes(self) -> int:
        """Return the size of everything that may be removed."""
        return sum(item.size_bytes for item in self.waste)


def decide(owner: Owner, standing: Standing) -> list[Waste]:
    """Return what may be removed, with reasons.

    - all files of a run that MLflow does not have any more;
    - of a FINISHED run every checkpoint but the one with its weights and the last one, from which it can be trained for
      longer; once it is registered, which rules that out, the last one too;
    - unfinished checkpoints, damaged ones that were set aside, and ones that newer ones replaced;
    - the trials of a sweep that is FINISHED, not by a budget that may be extended, or was deleted.
    """
    if standing.spared:
        return []
    if owner.kind == "sweep":
        finished = standing.status == "FINISHED" and not standing.extendable
        ended = "is finished: none of its trials is resumed" if finished else ""
        reason = "was deleted in MLflow" if standing.place == "deleted" else ended
        return [_waste(owner, owner.files, f"the sweep {reason}", TRIALS)] if reason else []
    if standing.place != "active":
        reason = {"deleted": "the run was deleted in MLflow", "missing": "MLflow has no such run"}[standing.place]
        return [_waste(owner, owner.files, reason)]
    checkpoints: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, info in owner.files.items():
        folder, _, rest = path.partition("/")
        if folder == CHECKPOINTS and rest:
            checkpoints[rest.partition("/")[0]][path] = info
    waste = []
    for name, files in checkpoints.items():
        reason = _useless(name, files, owner.kept) or _unneeded(name, standing, checkpoints, kept=owner.kept)
        if reason:
            waste.append(_waste(owner, files, reason, CHECKPOINTS, name))
    return waste


def look(tracker: Tracker, spec: ProjectSpec) -> CollectRecord:
    """Return what may be removed under ``storage.path``, and which runs and sweeps are left alone.

    Raises:
        StorageError, TrackingError: they do not answer.
    """
    runs, sweeps = _owners("run", spec), _owners("sweep", spec)
    standings = [(owner, _standing(tracker, spec, owner)) for owner in (*runs, *sweeps)]
    return CollectRecord(
        runs_uri=filesystem.join(spec.storage.path, RUNS),
        runs=len(runs),
        sweeps=len(sweeps),
        waste=tuple(item for owner, standing in standings for item in decide(owner, standing)),
        spared=tuple(Spared(owner.run_id, standing.spared) for owner, standing in standings if standing.spared),
    )


def remove(tracker: Tracker, spec: ProjectSpec, waste: Sequence[Waste]) -> list[str]:
    """Remove waste, with the lease of its run or sweep held; return what could not be removed, and why.

    Where a run or sweep has changed since, only what is still waste is removed.
    """
    failed = []
    for run_id in dict.fromkeys(item.run_id for item in waste):
        uris = {item.uri for item in waste if item.run_id == run_id}
        try:
            with lease(state_url(_lease_spec(_find(tracker, run_id), spec)), run_id, purpose="gc"):
                for owner in (*_owners("run", spec, only=run_id), *_owners("sweep", spec, only=run_id)):
                    for item in decide(owner, _standing(tracker, spec, owner, mine=True)):
                        if item.uri in uris:
                            manifest.delete(item.uri)
        except RaymlopsError as error:
            failed.append(f"{run_id}: {error.message}")
    return failed


def newest_whole(checkpoints_uri: str) -> str | None:
    """Return the name of the complete checkpoint with the highest step, for where no pointer names it."""
    whole = [
        name
        for name, files in filesystem.listing(checkpoints_uri).items()
        if files is not None and manifest.MANIFEST in files and not manifest.is_set_aside(name, files)
    ]
    return max(whole, key=lambda name: (_step(name) if _step(name) < float("inf") else -1, name), default=None)


def _waste(owner: Owner, files: Files, reason: str, *path: str) -> Waste:
    size_bytes = sum(info.size or 0 for info in files.values())
    return Waste(owner.run_id, filesystem.join(owner.uri, *path), size_bytes, reason)


def _useless(name: str, files: Files, kept: Kept | None) -> str:
    """Return why a checkpoint is of no use to any run; empty if it may be, or is no checkpoint."""
    if _is_file(name, files):
        return "left over from writing" if name.startswith(".") else ""
    inside = frozenset(path.rpartition("/")[2] for path, info in files.items() if info.is_file)
    if manifest.is_set_aside(name, inside):
        return "damaged, and set aside"
    if manifest.MANIFEST not in inside:
        return "never finished"
    last = None if kept is None else kept.entry(kept.last)
    # One that is newer than the pointer was written by a process that died before the pointer moved: it counts.
    if kept is not None and last is not None and kept.entry(name) is None and _step(name) < last.step:
        return "replaced by newer ones"
    return ""


def _unneeded(name: str, standing: Standing, checkpoints: Mapping[str, Files], *, kept: Kept | None) -> str:
    """Return why a finished run does not need a checkpoint; empty if it does, or if its best one is missing."""
    best = standing.weights_uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    if standing.status != "FINISHED" or best not in checkpoints or name == best or _is_file(name, checkpoints[name]):
        return ""
    if standing.evaluated:
        return "the run was registered, and this is not its best"
    # Without a pointer it is unknown which one is the last.
    return "" if kept is None or name == kept.last else "the run is finished, and this is neither its best nor its last"


def _is_file(name: str, files: Files) -> bool:
    info = files.get(f"{CHECKPOINTS}/{name}")
    return info is not None and bool(info.is_file)


def _step(name: str) -> float:
    """Return the step in a checkpoint's name; infinite if it has none, so that it is kept."""
    digits = name.removeprefix("step-").partition("-")[0]
    return int(digits) if name.startswith("step-") and digits.isdecimal() else float("inf")


def _owners(kind: Literal["run", "sweep"], spec: ProjectSpec, *, only: str = "") -> list[Owner]:
    """Return the runs under ``storage.path``, or the sweeps whose trials have files; ``only`` the one of that id."""
    root = filesystem.join(spec.storage.path, RUNS if kind == "run" else SWEEPS)
    folder, prefix = (filesystem.join(root, only), f"{only}/") if only else (root, "")
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, info in filesystem.entries(folder, recursive=True).items():
        run_id, _, rest = f"{prefix}{path}".partition("/")
        if rest and (kind == "run" or (info.is_file and rest.startswith(f"{TRIALS}/"))):
            found[run_id][rest] = info
    return [
        Owner(kind, run_id, uri := filesystem.join(root, run_id), files, _kept(uri))
        for run_id, files in sorted(found.items())
    ]


def _standing(tracker: Tracker, spec: ProjectSpec, owner: Owner, *, mine: bool = False) -> Standing:
    """Return what MLflow says of a run or a sweep, and whether another process uses it; ``mine`` if we do."""
    recorded, mlflow = _find(tracker, owner.run_id), tracker.shown_uri
    if recorded is None and (other := origin(owner.uri)) != mlflow:
        whose = f"it belongs to the MLflow at {other}" if other else f"no {ORIGIN} says which MLflow it belongs to"
        return Standing("missing", spared=f"{mlflow} has no such {owner.kind}, but {whose}")
    if recorded is not None and recorded.kind != owner.kind:
        return Standing("active", spared=f"{mlflow} has it as {recorded.kind or 'something else'}, not a {owner.kind}")
    held, who = "free", ""
    if not mine and (recorded is None or recorded.deleted):
        held, who = who_holds_in(_lease_spec(recorded, spec), owner.run_id)
    elif not mine and recorded is not None:
        held, who = who_holds(recorded)
    spared = {"held": f"in use by {who}", "unknown": f"it may be in use: {who}"}.get(held, "")
    if recorded is None:
        return Standing("missing", spared=spared or _newer_than_a_backup(spec, owner, mlflow))
    if recorded.deleted:
        return Standing("deleted", spared=spared)
    return Standing(
        "active",
        recorded.status,
        recorded.tags.get("raymlops.weights_uri", ""),
        spared,
        evaluated=recorded.status == "FINISHED" and is_evaluated(tracker, owner.run_id),
        extendable=bool(recorded.tags.get("raymlops.stopped")),
    )


def _newer_than_a_backup(spec: ProjectSpec, owner: Owner, mlflow: str) -> str:
    """Return why an MLflow that came from a backup need not know a run; empty where it must."""
    file = sqlite_path(state_url(spec))
    if file is not None and not file.exists():
        return ""
    with Database.open(state_url(spec)) as state:
        moment = restored_at(state)
    times = [info.mtime for info in owner.files.values() if info.is_file and info.mtime is not None]
    if moment is None or not times or min(times) > moment:
        return ""
    return f"{mlflow} has no such {owner.kind}, but came from a backup on {moment:%Y-%m-%d}, which may be older than it"


def _kept(uri: str) -> Kept | None:
    with suppress(StorageError):
        return read_pointer(filesystem.join(uri, CHECKPOINTS))
    return None


def _find(tracker: Tracker, run_id: str) -> Recorded | None:
    try:
        return find(tracker, run_id)
    except NotFoundError:
        return None


def _lease_spec(recorded: Recorded | None, spec: ProjectSpec) -> ProjectSpec:
    """Return the configuration whose state has the lease of a run or a sweep: its own, else ``spec``."""
    return spec if recorded is None or recorded.spec is None else recorded.spec
