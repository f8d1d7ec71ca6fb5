"""Decide which checkpoints a run keeps, and serialize the pointer that names them. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.train import TrainSection
    from raymlops.training.checkpoints.state import RunState

POINTER = "index.json"
STATE = "state.json"
"""In each checkpoint: everything but tensors."""
FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint. ``order`` counts the run's checkpoints, over all its attempts."""

    name: str
    step: int
    order: int
    reports: int = 0
    """Reports of the run when it was written: for the best one, which report was the best."""
    value: float | None = None
    """``train.metric`` of the report at which it was written; None in mid-epoch."""

    @property
    def age(self) -> tuple[int, int]:
        """Return the key by which checkpoints are ordered."""
        return self.step, self.order


@dataclass(frozen=True)
class Kept:
    """The checkpoints of a run, oldest first.

    ``claim`` changes with each ``recall`` for training, so that a writer of an earlier attempt that is still alive sees
    that it has been replaced.
    """

    entries: tuple[Entry, ...] = ()
    best: str | None = None
    last: str | None = None
    claim: str = ""

    def entry(self, name: str | None) -> Entry | None:
        """Return the checkpoint of that name, if it is kept."""
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def next_order(self) -> int:
        """Return the order of the next checkpoint."""
        return max((entry.order for entry in self.entries), default=0) + 1

    def saved(self, entry: Entry, *, best: bool) -> Kept:
        """Return the checkpoints after one was written."""
        return replace(self, entries=(*self.entries, entry), last=entry.name, best=entry.name if best else self.best)

    def pruned(self, section: TrainSection) -> Kept:
        """Return the last ``keep_checkpoints``, the best ``keep_best`` by value, and always the last and best one."""
        best = ranked(self.entries, mode=section.mode)[: section.keep_best]
        names = {entry.name for entry in (*self.entries[-section.keep_checkpoints :], *best)}
        names |= {self.best, self.last} - {None}  # type: ignore[arg-type]
        return replace(self, entries=tuple(entry for entry in self.entries if entry.name in names))

    def to_json(self) -> bytes:
        """Return the pointer's content."""
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "best": self.best,
                "last": self.last,
                "claim": self.claim,
                "checkpoints": [asdict(entry) for entry in self.entries],
            },
            indent=1,
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Kept | None:
        """Read a pointer; None where it is damaged or of the first format, which named no states.

        Raises:
            StorageError: a newer raymlops wrote it.
        """
        try:
            read: dict[str, Any] = json.loads(data)
            version = int(read["format_version"])
            if version > FORMAT_VERSION:
                raise StorageError(
                    f"{POINTER} has format {version}; this raymlops reads up to {FORMAT_VERSION}",
                    hint="Upgrade raymlops.",
                )
            if version < FORMAT_VERSION:
                return None
            entries = tuple(_entry(item) for item in read["checkpoints"])
            kept = cls(entries, best=read["best"], last=read["last"], claim=str(read["claim"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        names = {entry.name for entry in entries} | {None}
        return kept if {kept.best, kept.last} <= names else None


def _entry(item: dict[str, Any]) -> Entry:
    value = item["value"]
    return Entry(
        name=str(item["name"]),
        step=int(item["step"]),
        order=int(item["order"]),
        reports=int(item["reports"]),
        value=None if value is None else float(value),
    )


def ranked(entries: Sequence[Entry], *, mode: str) -> list[Entry]:
    """Return the checkpoints that have a value, best first; of equals, the older one is better."""
    sign = 1 if mode == "min" else -1
    rated = [(sign * entry.value, entry.age, entry) for entry in entries if entry.value is not None]
    return [entry for _, _, entry in sorted(rated, key=lambda item: item[:2])]


def with_best_of(state: RunState, kept: Kept) -> RunState:
    """Return the state with a best report whose checkpoint exists; without one, the next report is the best."""
    best = kept.entry(kept.best)
    if best is not None and best.reports == state.best_epoch:
        return state
    if best is None or best.value is None:
        return replace(state, best_epoch=0, best_value=None, best_step=0, waited=0, waited_from=None)
    return replace(
        state,
        best_epoch=best.reports,
        best_value=best.value,
        best_step=best.step,
        waited=max(len(state.history) - best.reports, 0),
        waited_from=None,
    )
