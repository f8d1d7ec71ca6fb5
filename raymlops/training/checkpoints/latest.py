"""Find the checkpoint to resume from: the newest whose digests verify, whatever a crash left behind.

Owns what is trusted (digests first, then the pointer), what is set aside and what is removed. A process may have been
killed at any moment, so there can be unfinished folders, complete ones that the pointer does not name yet, and ones
that it no longer names. Knows nothing of tensors.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import NotFoundError, StorageError, UsageError
from raymlops.storage import filesystem, manifest
from raymlops.training.checkpoints.format import needed, read_pointer, read_state
from raymlops.training.checkpoints.retention import POINTER, STATE, Entry, Kept, ranked, with_best_of
from raymlops.training.checkpoints.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NAMED, _OLD_NAMED = "step-", "epoch-"


@dataclass(frozen=True)
class Recalled:
    """Where a run can resume. ``uri`` and ``state`` are None where it has to start from scratch.

    The best report in ``state`` is one whose checkpoint exists. ``set_aside`` names each unusable checkpoint and what
    is wrong with it. ``kept`` goes to the ``FolderSaver`` of the next attempt.
    """

    uri: str | None
    state: RunState | None
    set_aside: tuple[str, ...]
    kept: Kept

    def warnings(self) -> list[str]:
        """Return what to tell the user: which checkpoints were set aside, and whether none is left."""
        warnings = [f"a checkpoint could not be used and was set aside: {text}" for text in self.set_aside]
        if warnings and self.state is None:
            warnings.append("no usable checkpoint is left: the run restarts from scratch")
        return warnings


def recall(checkpoints_uri: str, *, metric: str, mode: str, repair: bool = True, digests: bool = True) -> Recalled:
    """Find the newest checkpoint that verifies, and the best one.

    Without ``digests`` only sizes and states are verified, where what is restored is verified then: a damaged one is
    set aside by ``restore``, and the next call finds the one before.

    With ``repair``, which only the holder of the run's lease may request, damaged checkpoints are set aside, unfinished
    and unreferenced ones removed, and the pointer is rewritten with a new claim: from then on an earlier attempt that
    is still alive cannot write. ``metric`` and ``mode`` decide which is best where neither state nor pointer does.

    Raises:
        StorageError: the storage cannot be read or, for repairs, written; or a newer raymlops wrote there.
        UsageError: an older raymlops wrote there, whose checkpoints hold weights alone.
    """
    search = _Search(checkpoints_uri, metric=metric, repair=repair, digests=digests)
    pointer = read_pointer(checkpoints_uri)
    if repair and not search.whole and search.has_old_ones:
        raise UsageError(
            f"{checkpoints_uri!r} holds checkpoints of an older raymlops, from which no training can be resumed",
            hint="Their weights can still be used. Start a new run.",
        )
    forgotten, current = search.candidates(pointer)
    newest = search.newest([*forgotten, *current])
    if newest is None:
        uri, state, entries, best = None, None, [], None
    else:
        entry, state = newest
        uri = filesystem.join(checkpoints_uri, entry.name)
        entries = sorted({*search.usable(current), entry}, key=lambda known: known.age)
        named_best = None if pointer is None else pointer.best
        best = search.best(entries, newest=entry, state=state, named=named_best, mode=mode)
        entries = search.usable(entries)
    kept = Kept(
        tuple(entries),
        best=None if best is None else best.name,
        last=None if newest is None else newest[0].name,
        claim=secrets.token_hex(8) if repair else "" if pointer is None else pointer.claim,
    )
    if repair:
        filesystem.write_bytes(filesystem.join(checkpoints_uri, POINTER), kept.to_json())
        search.clean(known={entry.name for entry in entries})
    return Recalled(uri, None if state is None else with_best_of(state, kept), tuple(search.set_aside), kept)


def recorded_fit(checkpoints_uri: str) -> dict[str, Any] | None:
    """Return what ``fit`` learnt, from the newest complete checkpoint; None without one.

    Only the file that holds it is verified; tensors are verified when they are loaded.

    Raises:
        StorageError: the storage cannot be read, or a newer raymlops wrote there.
    """
    search = _Search(checkpoints_uri, metric="", repair=False, digests=False)
    forgotten, current = search.candidates(read_pointer(checkpoints_uri))
    newest = search.newest_document([*forgotten, *current])
    return None if newest is None else dict(newest[1]["fit"])


class _Search:
    """A search through a run's checkpoints, which sets damaged ones aside."""

    def __init__(self, uri: str, *, metric: str, repair: bool, digests: bool) -> None:
        self.set_aside: list[str] = []
        self._uri = uri
        self._metric = metric
        self._repair = repair
        self._digests = digests
        self._unusable: set[str] = set()
        folders = {name: files for name, files in filesystem.listing(uri).items() if files is not None}
        mine = {
            name
            for name, files in folders.items()
            if name.startswith(_NAMED) and not manifest.is_set_aside(name, files)
        }
        self.whole = {name for name in mine if manifest.MANIFEST in folders[name]}
        self.has_old_ones = any(name.startswith(_OLD_NAMED) for name in folders)
        self._unfinished = mine - self.whole

    def candidates(self, pointer: Kept | None) -> tuple[list[Entry], list[Entry]]:
        """Return the checkpoints that the pointer dropped, and the current ones, each newest last.

        One newer than the pointer's last was complete when its process was killed, before the pointer moved.
        """
        if pointer is None:
            return [], sorted(self._entries(self.whole), key=lambda entry: entry.age)
        for entry in pointer.entries:
            if entry.name in self._unfinished:
                self._drop(entry.name, f"it has no {manifest.MANIFEST}")
            elif entry.name not in self.whole:
                self.set_aside.append(f"{entry.name}: it does not exist")
        named = [entry for entry in pointer.entries if entry.name in self.whole]
        named.sort(key=lambda entry: (entry.name == pointer.last, entry.age))
        last = pointer.entry(pointer.last)
        others = self._entries(self.whole - {entry.name for entry in named})
        others.sort(key=lambda entry: entry.age)
        newer = [entry for entry in others if last is None or entry.age > last.age]
        return [entry for entry in others if entry not in newer], [*named, *newer]

    def newest(self, entries: Sequence[Entry]) -> tuple[Entry, RunState] | None:
        """Return the last one that verifies, with its state."""
        found = self.newest_document(entries)
        return None if found is None else (found[0], RunState.from_dict(found[1]["run"]))

    def newest_document(self, entries: Sequence[Entry]) -> tuple[Entry, dict[str, Any]] | None:
        """Return the last one that verifies, with the content of its state file."""
        for entry in reversed(entries):
            document = self._verified(entry.name)
            if document is not None:
                return entry, document
        return None

    def best(
        self, entries: Sequence[Entry], *, newest: Entry, state: RunState, named: str | None, mode: str
    ) -> Entry | None:
        """Return the best one that verifies: by the newest's state, else by the pointer, else by value."""
        by_state = [entry for entry in entries if entry.value is not None and entry.reports == state.best_epoch]
        by_pointer = [entry for entry in entries if entry.name == named]
        for entry in dict.fromkeys([*reversed(by_state), *by_pointer, *ranked(entries, mode=mode)]):
            if entry == newest or self._verified(entry.name) is not None:
                return entry
        return None

    def usable(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return those that were not found damaged."""
        return [entry for entry in entries if entry.name not in self._unusable]

    def clean(self, *, known: set[str]) -> None:
        """Remove unreferenced folders; one that cannot be removed does no harm."""
        left = filesystem.listing(self._uri)
        for name in left:
            unfinished = name in self._unfinished - self._unusable
            forgotten = name in self.whole - known - self._unusable
            if unfinished or forgotten or name.startswith("."):
                with contextlib.suppress(StorageError):
                    manifest.delete(filesystem.join(self._uri, name))

    def _entries(self, names: Iterable[str]) -> list[Entry]:
        """Return folders as checkpoints, from their states, which are not verified yet."""
        entries = []
        for name in sorted(names):
            document = self._document(name)
            if document is None:
                continue
            try:
                value = document["metrics"].get(self._metric)
                entry = Entry(
                    name,
                    step=int(document["step"]),
                    order=int(document["order"]),
                    reports=len(document["run"]["history"]),
                    value=value if value is not None and math.isfinite(value) else None,
                )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._drop(name, f"{STATE} is damaged: {type(error).__name__}: {error}")
            else:
                entries.append(entry)
        return entries

    def _document(self, name: str) -> dict[str, Any] | None:
        uri = filesystem.join(self._uri, name)
        try:
            return read_state(filesystem.read_bytes(filesystem.join(uri, STATE)), uri)
        except (NotFoundError, ValueError) as error:
            self._drop(name, f"{STATE} is damaged: {error}")
            return None

    def _verified(self, name: str) -> dict[str, Any] | None:
        if name in self._unusable:
            return None
        document = self._document(name)
        if document is None:
            return None
        try:
            uri = filesystem.join(self._uri, name)
            # The listing is complete in any case; digests require reading the files.
            problem = manifest.damage(uri, needs=needed(document), check=lambda file: file == STATE or self._digests)
        except NotFoundError:
            problem = "it does not exist"
        if problem is not None:
            self._drop(name, problem)
            return None
        return document

    def _drop(self, name: str, problem: str) -> None:
        self._unusable.add(name)
        if self._repair:
            with contextlib.suppress(NotFoundError):
                name = manifest.set_aside(filesystem.join(self._uri, name), reason=problem) or name
        self.set_aside.append(f"{name}: {problem}")
