"""Files of runs that nothing refers to any more: found, decided upon, removed.

Owns the decision, which is pure, and what is in the folders of runs. A run that is held is left alone, and one that can
still go on keeps what its pointer names. Sweeps are another module's (``sweepfiles``). Bundles of registered versions
are elsewhere and are not looked at.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from raymlops.errors import NotFoundError, RaymlopsError, StorageError
from raymlops.records import Record
from raymlops.state.database import state_url
from raymlops.state.lease import holder_of, lease
from raymlops.storage import filesystem as storage
from raymlops.storage import manifest
from raymlops.training.checkpoints.retention import POINTER, Kept
from raymlops.training.runs.lookup import CHECKPOINTS, ORIGIN, RUNS, find, origin, who_holds
from raymlops.training.runs.resume import is_evaluated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.lookup import Recorded


@dataclass(frozen=True)
class File:
    """A file or a folder below a folder: its path from there, its size and when it was written."""

    path: str
    size_bytes: int = 0
    written_at: datetime | None = None
    is_folder: bool = False


@dataclass(frozen=True)
class RunFiles:
    """What lies in the folder of a run."""

    run_id: str
    files: tuple[File, ...]
    kept: Kept | None = None
    """What the pointer names; None where it cannot be read."""

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.size_bytes for file in self.files)

    def checkpoints(self) -> dict[str, list[File]]:
        """Return what lies in the folder of its checkpoints, by name, each with itself and what is in it."""
        found: dict[str, list[File]] = defaultdict(list)
        for file in self.files:
            folder, _, rest = file.path.partition("/")
            if folder == CHECKPOINTS and rest:
                found[rest.partition("/")[0]].append(file)
        return dict(found)


@dataclass(frozen=True)
class Standing:
    """What decides about a run's files."""

    place: Literal["active", "deleted", "missing"]
    """In MLflow; a deleted run can be brought back there for a while."""
    status: str = ""
    weights_uri: str = ""
    spared: str = ""
    """Why nothing of it may be touched; empty where nothing speaks for that."""
    evaluated: bool = False
    """Whether its test metrics are on record, as registering it leaves them: it cannot be trained for longer."""


@dataclass(frozen=True)
class Waste(Record):
    """One folder or file that may go, and why."""

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
    """False where it only looked."""
    failed: tuple[str, ...] = ()
    """What could not be removed, and why."""
    sweeps: int = 0
    """Sweeps whose trials have files, which were looked at."""

    @property
    def size_bytes(self) -> int:
        """Return the size of all that may go."""
        return sum(item.size_bytes for item in self.waste)


def decide(found: Sequence[RunFiles], standing: Mapping[str, Standing], *, runs_uri: str) -> list[Waste]:
    """Return what may go, run by run, each with its reason.

    - all files of a run that MLflow has no more;
    - of a FINISHED run every checkpoint but the one that its weights are in and the last one, from which it can be
      trained for longer; of one that was registered, which cannot, the last one too;
    - unfinished checkpoints, damaged ones that were set aside, and ones that newer ones replaced.
    """
    waste = []
    for run in found:
        of_run, uri = standing[run.run_id], storage.join(runs_uri, run.run_id)
        if of_run.spared:
            continue
        if of_run.place != "active":
            reason = {"deleted": "the run was deleted in MLflow", "missing": "MLflow has no such run"}[of_run.place]
            waste.append(Waste(run.run_id, uri, run.size_bytes, reason))
            continue
        checkpoints = run.checkpoints()
        for name, files in checkpoints.items():
            reason = _useless(name, files, run.kept) or _left_behind(
                name, of_run, checkpoints=checkpoints, kept=run.kept
            )
            if reason:
                size = sum(file.size_bytes for file in files)
                waste.append(Waste(run.run_id, storage.join(uri, CHECKPOINTS, name), size, reason))
    return waste


def look(tracker: Tracker, spec: ProjectSpec) -> CollectRecord:
    """Look at all runs under ``storage.path`` and say what may go, and which runs are left alone.

    Raises:
        StorageError, TrackingError: they cannot be asked.
    """
    runs_uri = storage.join(spec.storage.path, RUNS)
    found = _found(runs_uri)
    standing = {run.run_id: _standing(tracker, spec, run, runs_uri=runs_uri) for run in found}
    return CollectRecord(
        runs_uri=runs_uri,
        runs=len(found),
        waste=tuple(decide(found, standing, runs_uri=runs_uri)),
        spared=tuple(Spared(run_id, of_run.spared) for run_id, of_run in standing.items() if of_run.spared),
    )


def remove(tracker: Tracker, spec: ProjectSpec, waste: Sequence[Waste]) -> list[str]:
    """Remove what was decided upon, each run held for as long; return what could not be removed, and why.

    Of a run that changed since, only what may still go.
    """
    runs_uri = storage.join(spec.storage.path, RUNS)
    failed = []
    for run_id in dict.fromkeys(item.run_id for item in waste):
        uris = {item.uri for item in waste if item.run_id == run_id}
        try:
            with lease(lease_url(tracker, spec, run_id), run_id, purpose="gc"):
                now = _found(storage.join(runs_uri, run_id), run_id=run_id)
                standing = {run.run_id: _standing(tracker, spec, run, runs_uri=runs_uri, mine=True) for run in now}
                for item in decide(now, standing, runs_uri=runs_uri):
                    if item.uri in uris:
                        storage.delete(item.uri, first=manifest.MANIFEST)
        except RaymlopsError as error:
            failed.append(f"{run_id}: {error.message}")
    return failed


def files_under(uri: str) -> list[File]:
    """Return every file and folder below a folder; nothing where there is none.

    Raises:
        StorageError: it cannot be read.
    """
    return [
        File(
            path=path,
            size_bytes=int(info.size or 0) if info.is_file else 0,
            written_at=None if info.mtime is None else info.mtime.astimezone(UTC),
            is_folder=not info.is_file,
        )
        for path, info in storage.entries(uri, recursive=True).items()
    ]


def read_pointer(checkpoints_uri: str) -> Kept | None:
    """Return the pointer of a run's checkpoints; None where there is none that can be read."""
    try:
        return Kept.from_json(storage.read_bytes(storage.join(checkpoints_uri, POINTER)))
    except (NotFoundError, StorageError):
        return None


def newest_whole(checkpoints_uri: str) -> str | None:
    """Return the name of the checkpoint with the highest step that was finished, for where no pointer says it."""
    there = storage.listing(checkpoints_uri).items()
    whole = [
        name
        for name, files in there
        if files is not None and manifest.MANIFEST in files and not manifest.is_set_aside(name, files)
    ]
    return max(whole, key=lambda name: (_step(name) if _step(name) < float("inf") else -1, name), default=None)


def _useless(name: str, files: Sequence[File], kept: Kept | None) -> str:
    """Return why a checkpoint is of no use to any run; empty for one that may be, and for what is none."""
    if _is_file(name, files):
        return "left over from writing" if name.startswith(".") else ""
    inside = frozenset(file.path.rpartition("/")[2] for file in files if not file.is_folder)
    if manifest.is_set_aside(name, inside):
        return "damaged, and set aside"
    if manifest.MANIFEST not in inside:
        return "never finished"
    last = None if kept is None else kept.entry(kept.last)
    # One that is newer than the pointer was written by a process that died before it could say so: it counts.
    if kept is not None and last is not None and kept.entry(name) is None and _step(name) < last.step:
        return "replaced by newer ones"
    return ""


def _left_behind(name: str, of_run: Standing, *, checkpoints: Mapping[str, Sequence[File]], kept: Kept | None) -> str:
    """Return why a finished run has no use for a checkpoint; empty where it has, or where its best one is missing."""
    best = of_run.weights_uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    if of_run.status != "FINISHED" or best not in checkpoints or name == best or _is_file(name, checkpoints[name]):
        return ""
    if of_run.evaluated:
        return "the run was registered, and this is not its best"
    # Without a pointer nobody knows which one is the last.
    return "" if kept is None or name == kept.last else "the run is finished, and this is neither its best nor its last"


def _is_file(name: str, files: Sequence[File]) -> bool:
    return all(file.path == f"{CHECKPOINTS}/{name}" and not file.is_folder for file in files)


def _step(name: str) -> float:
    """Return the step in a checkpoint's name; infinite where there is none, so that it is kept."""
    digits = name.removeprefix("step-").partition("-")[0]
    return int(digits) if name.startswith("step-") and digits.isdecimal() else float("inf")


def _found(uri: str, *, run_id: str | None = None) -> list[RunFiles]:
    """Return the runs below the folder of all runs, or the one that ``uri`` is the folder of."""
    by_run: dict[str, list[File]] = defaultdict(list)
    for file in files_under(uri):
        owner, _, path = (run_id, "", file.path) if run_id is not None else file.path.partition("/")
        if path:
            by_run[owner].append(File(path, file.size_bytes, file.written_at, file.is_folder))
    return [
        RunFiles(owner, tuple(files), read_pointer(storage.join(*([uri] if run_id else [uri, owner]), CHECKPOINTS)))
        for owner, files in sorted(by_run.items())
    ]


def _standing(tracker: Tracker, spec: ProjectSpec, run: RunFiles, *, runs_uri: str, mine: bool = False) -> Standing:
    """Ask MLflow about a run, and who holds it; ``mine`` where that is us."""
    try:
        recorded = find(tracker, run.run_id)
    except NotFoundError:
        recorded = None
    if recorded is None and (other := origin(storage.join(runs_uri, run.run_id))) != tracker.shown_uri:
        whose = f"it is of the MLflow at {other}" if other else f"no {ORIGIN} says which MLflow it is of"
        return Standing("missing", spared=f"{tracker.shown_uri} has no such run, but {whose}")
    if recorded is None or recorded.deleted:
        holder = None if mine else holder_of(state_url(spec), run.run_id)
        return Standing("missing" if recorded is None else "deleted", spared=f"in use by {holder}" if holder else "")
    return Standing(
        "active",
        recorded.status,
        recorded.tags.get("raymlops.weights_uri", ""),
        "" if mine else in_use(recorded),
        evaluated=recorded.status == "FINISHED" and is_evaluated(tracker, run.run_id),
    )


def in_use(recorded: Recorded) -> str:
    """Return that somebody has a run or a sweep now, or may have it; empty where nobody does."""
    held, who = who_holds(recorded)
    return {"held": f"in use by {who}", "unknown": f"it may be in use: {who}"}.get(held, "")


def lease_url(tracker: Tracker, spec: ProjectSpec, run_id: str) -> str:
    """Return the state database of the lease of a run or a sweep: that of its own configuration, else of ``spec``."""
    try:
        own = find(tracker, run_id).spec
    except NotFoundError:
        own = None
    return state_url(spec if own is None else own)
