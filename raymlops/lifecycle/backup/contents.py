"""What a backup says of itself, which of what the databases name travels with them, and how places move. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import local_path
from raymlops.errors import RefusedError, StorageError
from raymlops.records import BundleRef, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FILE = "backup.json"
_SHORT = 8
STATE, MLFLOW, OPTUNA = "state", "mlflow", "optuna"
NOT_IN_IT = (
    "checkpoints and logs of runs and trials: what had not ended starts again, and cannot be resumed",
    "predictions and labels (predictions/, labels/): copy them as the files that they are",
    "artifacts of runs that are neither a version nor a sweep",
    "credentials: files and variables that a configuration refers to, the cluster's token, certificates",
)
"""What no backup holds, for people to read."""


@dataclass(frozen=True)
class Saved(Record):
    """One database in a backup."""

    schema: str
    made_by: str
    rows: int


@dataclass(frozen=True)
class Contents(Record):
    """A backup, as its ``backup.json`` says it."""

    made_at: str
    """When the first database was copied, ISO 8601 in UTC."""
    made_by: str
    raymlops: str
    state_id: str | None
    databases: dict[str, Saved]
    roots: dict[str, str]
    """Where ``storage.path`` and the folder of MLflow's database were."""
    bundles: tuple[BundleRef, ...]
    """Where each was: once for each place that something names."""
    artifacts: dict[str, str]
    """URI that the artifacts of a run had."""
    models: dict[str, str]
    """URI of each MLflow model that holds a copy of a bundle: the digest of that."""
    left_out: tuple[str, ...] = field(default=())
    """What belongs here and could not be had."""

    @property
    def by_digest(self) -> dict[str, BundleRef]:
        """Return each bundle once, at one of its places."""
        return {bundle.digest: bundle for bundle in self.bundles}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Contents:
        """Rebuild it; keys that a newer version wrote are ignored.

        Raises:
            StorageError: it is damaged.
        """
        try:
            return cls(
                **{name: data[name] for name in ("made_at", "made_by", "raymlops", "state_id", "roots", "artifacts")},
                models=dict(data["models"]),
                databases={name: Saved.from_dict(saved) for name, saved in data["databases"].items()},
                bundles=tuple(BundleRef.from_dict(bundle) for bundle in data["bundles"]),
                left_out=tuple(data["left_out"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{FILE} of the backup is damaged: {type(error).__name__}: {error}") from error


def origin(state_id: str | None, made_by: str, made_at: str) -> str:
    """Return whose a backup is and when it was made, in words."""
    whose = "no state" if state_id is None else f"state {state_id[:_SHORT]}"
    return f"{whose}, made by {made_by} at {made_at[:19].replace('T', ' ')} UTC"


def to_copy(
    live: Iterable[BundleRef], recorded: Iterable[BundleRef], registered: Iterable[BundleRef]
) -> tuple[dict[str, list[BundleRef]], frozenset[str]]:
    """Return the places of each bundle that a backup needs, and the digests of those without which it is none.

    By digest; first where it is live. One bundle may be named at several places, as after ``storage.path`` was moved,
    and whatever names one of them has to find it. What is live comes from the state, and so do versions; MLflow may
    know versions that were registered since the state was copied, whose bundles are there: a bundle is written before
    anything names it.
    """
    live = sorted(live, key=lambda bundle: bundle.uri)
    places: dict[str, list[BundleRef]] = {}
    for bundle in dict.fromkeys((*live, *recorded, *registered)):
        if bundle.uri:
            places.setdefault(bundle.digest, []).append(bundle)
    return dict(sorted(places.items())), frozenset(bundle.digest for bundle in live)


def check_schema(saved: Saved, here: tuple[str, str], *, what: str) -> None:
    """Refuse tables that the release here does not read.

    Raises:
        RefusedError: they are of another release.
    """
    schema, release = here
    if saved.schema != schema:
        name, _, version = saved.made_by.partition(" ")
        raise RefusedError(
            f"the backup's tables of {what} have schema {saved.schema}, made by {saved.made_by}; {release}, which is "
            f"installed here, has {schema}",
            hint=f"pip install '{name}=={version}', restore, then upgrade {name} and its tables as its documentation "
            "says.",
        )


class Move:
    """Where what was in one place is now: bundles by their URI, all else by the folder that it was under."""

    def __init__(self, bundles: Mapping[str, str], roots: Sequence[tuple[str, str]]) -> None:
        self._bundles = {old.rstrip("/"): new for old, new in bundles.items()}
        # The innermost first; a local folder is also written as a URI.
        self._roots = sorted({pair for old, new in roots for pair in _forms(old, new)}, key=lambda pair: -len(pair[0]))

    def __call__(self, text: str) -> str:
        """Return a path or URI as it is now; any other text as it is."""
        if (new := self._bundles.get(text.rstrip("/"))) is not None:
            return new
        base, mark, query = text.partition("?") if "://" in text else (text, "", "")
        for old, root in self._roots:
            old_base = old.partition("?")[0] if "://" in old else old
            if base == old_base or base.startswith(f"{old_base}/"):
                new_base, new_mark, new_query = root.partition("?") if "://" in root else (root, "", "")
                options = new_mark + new_query if old != root else mark + query
                return new_base.rstrip("/") + base[len(old_base) :] + options
        return text


def _forms(old: str, new: str) -> list[tuple[str, str]]:
    old_path, new_path = local_path(old), local_path(new)
    if old_path is None:
        return [(old.rstrip("/"), new)]
    as_uri = new if new_path is None else new_path.as_uri()
    return [(str(old_path), new if new_path is None else str(new_path)), (old_path.as_uri(), as_uri)]
