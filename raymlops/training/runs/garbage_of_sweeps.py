"""Checkpoints of trials that go on no more: found, decided upon, removed.

Owns the decision, which is pure, and where the files of sweeps are. A sweep that is held, may go on or is not of this
MLflow keeps all of its trials. Its configuration and its report stay in any case: they are small. Knows nothing of how
trials are run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from raymlops.errors import NotFoundError, RaymlopsError
from raymlops.state.lease import holder_of, lease
from raymlops.storage import filesystem
from raymlops.training.runs.garbage import Spared, Waste, files_under, in_use, lease_url
from raymlops.training.runs.lookup import find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.tracking.client import Tracker
    from raymlops.training.runs.garbage import CollectRecord

SWEEPS = "sweeps"
"""Folder of all sweeps under ``storage.path``, in each sweep's own folder its configuration and its report."""
TRIALS = "trials"
"""Folder of a sweep's trials, each with its checkpoints while it is not over."""


@dataclass(frozen=True)
class Standing:
    """What decides about the trials of a sweep."""

    place: Literal["active", "deleted"] = "active"
    """In MLflow."""
    status: str = ""
    spared: str = ""
    """Why nothing of it may be touched; empty where nothing speaks for that."""


def decide(sizes: Mapping[str, int], standing: Mapping[str, Standing], *, sweeps_uri: str) -> list[Waste]:
    """Return the folders of trials that may go, each with its reason; ``sizes`` is in bytes, by sweep."""
    waste = []
    for sweep_id, size in sizes.items():
        reason = _reason(standing[sweep_id])
        if reason:
            waste.append(Waste(sweep_id, filesystem.join(sweeps_uri, sweep_id, TRIALS), size, reason))
    return waste


def look(tracker: Tracker, spec: ProjectSpec, *, runs: CollectRecord) -> CollectRecord:
    """Return what was found of runs with what is found of the sweeps beside them.

    Raises:
        StorageError, TrackingError: they cannot be asked.
    """
    sweeps_uri = filesystem.join(spec.storage.path, SWEEPS)
    sizes = _sizes(sweeps_uri)
    standing = {sweep_id: _standing(tracker, spec, sweep_id) for sweep_id in sizes}
    return replace(
        runs,
        sweeps=len(sizes),
        waste=(*runs.waste, *decide(sizes, standing, sweeps_uri=sweeps_uri)),
        spared=(*runs.spared, *(Spared(name, found.spared) for name, found in standing.items() if found.spared)),
    )


def is_of_sweep(item: Waste, spec: ProjectSpec) -> bool:
    """Return whether it was found here, and not with the runs."""
    return item.uri == filesystem.join(spec.storage.path, SWEEPS, item.run_id, TRIALS)


def remove(tracker: Tracker, spec: ProjectSpec, waste: Sequence[Waste]) -> list[str]:
    """Remove the trials of sweeps, each held for as long; return what could not be removed, and why.

    A sweep that was resumed since keeps them.
    """
    failed = []
    for item in waste:
        try:
            with lease(lease_url(tracker, spec, item.run_id), item.run_id, purpose="gc"):
                if _reason(_standing(tracker, spec, item.run_id, mine=True)):
                    filesystem.delete(item.uri)
        except RaymlopsError as error:
            failed.append(f"{item.run_id}: {error.message}")
    return failed


def _reason(standing: Standing) -> str:
    """Return why no trial goes on; empty where one may."""
    if standing.spared:
        return ""
    if standing.place == "deleted":
        return "the sweep was deleted in MLflow"
    return "the sweep is finished: no trial goes on from it" if standing.status == "FINISHED" else ""


def _sizes(sweeps_uri: str) -> dict[str, int]:
    """Return how much the files of the trials take, by sweep; a sweep whose trials have none is left out."""
    sizes: Counter[str] = Counter()
    for file in files_under(sweeps_uri):
        sweep_id, _, path = file.path.partition("/")
        if path.startswith(f"{TRIALS}/") and not file.is_folder:
            sizes[sweep_id] += file.size_bytes
    return dict(sorted(sizes.items()))


def _standing(tracker: Tracker, spec: ProjectSpec, sweep_id: str, *, mine: bool = False) -> Standing:
    """Ask MLflow about a sweep, and who holds it; ``mine`` where that is us."""
    try:
        recorded = find(tracker, sweep_id)
    except NotFoundError:
        # No file in a sweep's folder says which MLflow it is of, so that another one may have it.
        return Standing(spared=f"{tracker.shown_uri} has no such sweep, and nothing says which MLflow it is of")
    if recorded.kind != "sweep":
        return Standing(spared=f"{tracker.shown_uri} has it as {recorded.kind or 'something else'}, which is no sweep")
    if recorded.deleted:
        holder = None if mine else holder_of(lease_url(tracker, spec, sweep_id), sweep_id)
        return Standing("deleted", spared=f"in use by {holder}" if holder else "")
    return Standing("active", recorded.status, "" if mine else in_use(recorded))
