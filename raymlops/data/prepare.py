"""Prepare the data of a run: open a recipe's splits, fit the recipe, and fingerprint the rows.

Knows nothing of ranks, epochs or devices. ``split``, ``parquet_split`` and ``iterable_split`` own how rows are read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from raymlops.data.columns import table_columns
from raymlops.data.parquet_split import ParquetSplit
from raymlops.data.sources import Memory, open_source, stands_alone
from raymlops.data.split import ALL_ROWS, Identity, SplitData
from raymlops.data.windowed import check_window, splits_of, window_of
from raymlops.errors import RecipeError, UsageError
from raymlops.recipe import RecipeBase, call_recipe, label_type_of, signature_of
from raymlops.records import DataRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.project import Project
    from raymlops.signature import Signature

__all__ = ["FIT", "SOURCES", "Memory", "Prepared", "SplitData", "fixed", "prepare", "table_columns", "versions_of"]

VERSION = 3
"""Of new fingerprints."""
_ALL_ROWS_HASHED = 2
"""Version of the fingerprints of release 0.1, which rest on hashes of all rows of every split."""
SPLITS = ("train", "validation", "test")
SOURCES = "data/sources.json"
"""Artifact of a run: the result of ``Prepared.sources()``, to find its rows again."""
FIT = "data/fit.json"
"""Artifact of a run: the result of ``fit``, for a resume before the first checkpoint."""
SEED_IT = "If datasets() draws rows at random, seed it and train again, such as by np.random.default_rng(0)."
"""Hint where rows differ from those that were trained on."""


@dataclass(frozen=True)
class Prepared:
    """A recipe with its state, and its splits."""

    recipe: RecipeBase
    splits: dict[str, SplitData]
    state: dict[str, Any]
    refitted: dict[str, Any] | None = None
    """What ``fit`` returns now, with ``refit`` and a known state."""

    @cached_property
    def signature(self) -> Signature:
        """Return the recipe's signature."""
        return signature_of(self.recipe)

    @cached_property
    def identities(self) -> dict[str, Identity]:
        """Return what identifies each split's rows."""
        return {name: split.identity() for name, split in self.splits.items()}

    @cached_property
    def data(self) -> DataRecord:
        """Return rows and fingerprint of all splits, and what identifies each of them."""
        return self._record(VERSION)

    def data_as(self, fingerprint: str, *, rows: Mapping[str, int]) -> DataRecord:
        """Return rows and fingerprint, to be compared with a recorded one: equal where the data is the same.

        A fingerprint of another version is compared with one that is computed as it was. Items that differ each time
        they are read, which rereading some shows, cannot be compared: where splits have as many ``rows`` as were
        recorded, the recorded fingerprint is returned, with a note.

        Raises:
            UsageError: this release does not know how it was computed.
        """
        if not fingerprint:
            return self.data
        version = {f"v{known}": known for known in (_ALL_ROWS_HASHED, VERSION)}.get(fingerprint.partition(":")[0])
        if version is None:
            raise UsageError(
                f"the data's fingerprint {fingerprint[:12]} was made by another raymlops; this one compares "
                f"fingerprints of the versions v{_ALL_ROWS_HASHED} and v{VERSION}",
                hint="Use that release, or train again.",
            )
        if any(count >= 0 and self._rows.get(name) != count for name, count in rows.items()):
            return self.data  # other data for certain, without another pass
        found = self.data if version == VERSION else self._record(version)
        if found.fingerprint == fingerprint:
            return found
        varying = [name for name, split in self.splits.items() if not split.is_repeatable()]
        if not varying:
            return found
        note = (
            f"items of {' and '.join(varying)} differ each time they are read, so the data is assumed unchanged: only "
            "numbers of rows were compared"
        )
        return DataRecord(fingerprint, self._rows, (note,), tables=self._tables)

    def _record(self, version: int) -> DataRecord:
        digest, basis = sha256(), {}
        for name, split in self.splits.items():
            old = version == _ALL_ROWS_HASHED
            found = Identity(split.digest(), ALL_ROWS) if old else self.identities[name]
            digest.update(f"{name}:{split.rows}:{found.digest}:".encode())
            basis[name] = found.basis
        notes = tuple(split.note for split in self.splits.values() if split.note)
        return DataRecord(f"v{version}:{digest.hexdigest()}", self._rows, notes, basis, self._tables)

    @property
    def _rows(self) -> dict[str, int]:
        return {name: split.rows for name, split in self.splits.items()}

    @property
    def _tables(self) -> dict[str, str]:
        found = {name: split.files for name, split in self.splits.items()}
        return {
            name: files.table.name for name, files in found.items() if files is not None and files.table is not None
        }

    def sources(self) -> dict[str, Any]:
        """Return as JSON data what ``prepare`` needs in another process for the same rows, without listing again."""
        return {name: split.describe() for name, split in self.splits.items()}

    def verify(self) -> None:
        """Check, without reading rows, that the files of streamed splits are those that were listed.

        Raises:
            StorageError: a file is gone or was changed.
        """
        for split in self.splits.values():
            if isinstance(split, ParquetSplit):
                split.verify()


def prepare(
    project: Project,
    *,
    state: Mapping[str, Any] | None = None,
    sources: Mapping[str, Any] | None = None,
    memory: Memory | None = None,
    refit: bool = False,
    versions: Mapping[str, int] | None = None,
) -> Prepared:
    """Open the splits and fit the recipe on the training split, or use the ``state`` of an earlier fit.

    With ``refit`` and a ``state``, ``Prepared.refitted`` holds what a fit returns now.

    ``sources`` is the result of ``Prepared.sources()`` in another process, for some splits or all of them. Parquet
    files are then those, and ``datasets()`` is called only where a split needs it; it must return the same rows as
    there. ``versions`` has those at which Delta tables are read, by their URIs, where ``datasets()`` names none; of
    others the newest are read. ``memory`` bounds the memory of streamed splits, by default by
    ``train.shuffle_window_mb``.

    Raises:
        RecipeError: ``datasets()``, ``fit()`` or ``signature()`` raises, a split is missing, empty or of an unknown
            kind, there is no signature, a column of it or the label is not in a table, the fitted state is not
            JSON data, or a split differs from that of ``sources``.
        UsageError, NotFoundError: a version of a Delta table cannot be read.
        StorageError: a Parquet file cannot be read, or Ray Data cannot be written.
    """
    name = project.recipe_class.__name__
    known = {part: None if sources is None else sources.get(part) for part in SPLITS}
    recipe = call_recipe(f"{name}()", lambda: project.recipe(state=state))
    splits: Any = None
    if not all(stands_alone(known[part]) for part in SPLITS):
        splits = splits_of(recipe, project.spec.train)
    root = project.spec.storage.path
    memory = memory or Memory.of(project.spec.train)
    window = window_of(project.spec.train)
    call = f"{name}.datasets({'' if window is None else window})"
    opener = partial(open_source, splits, call=call, root_uri=root, memory=memory, versions=dict(versions or {}))
    opened = {part: opener(part, known=known[part]) for part in SPLITS}
    for part, source in opened.items():
        source.refuse_other_columns(recipe)
        if window is not None and isinstance(source.data, dict):
            check_window(recipe, part, source.data, window=window)
    fitted: dict[str, Any] | None = None
    if state is None or refit:
        train, unfitted = opened["train"].to_fit(), recipe
        if state is not None:
            unfitted = call_recipe(f"{name}()", project.recipe)
        fitted = _json(call_recipe(f"{name}.fit()", lambda: unfitted.fit(train)), where=f"{name}.fit()")
    if state is None:
        recipe = call_recipe(f"{name}()", lambda: project.recipe(state=fitted))
    signature_of(recipe)  # training on a torch dataset never needs it, serving does
    label_type_of(recipe)
    return Prepared(
        recipe=recipe,
        splits={part: source.split(recipe) for part, source in opened.items()},
        state=dict(recipe.state),
        refitted=None if state is None else fitted,
    )


def fixed(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``sources`` that later processes reuse: written from Ray Data, or a version of a Delta table."""
    return {part: known for part, known in sources.items() if known.get("written") or known.get("table")}


def versions_of(sources: Mapping[str, Any]) -> dict[str, int]:
    """Return the versions of Delta tables in ``sources``, by their URIs: see ``prepare(versions=...)``."""
    tables = [known["table"] for known in sources.values() if known.get("table")]
    return {table["uri"]: table["version"] for table in tables}


def _json(state: Any, *, where: str) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{where} returned a state that is not JSON data: {error}",
            hint="Return text, finite numbers, lists and dicts.",
        ) from error
    if not isinstance(plain, dict):
        raise RecipeError(f"{where} returned a {type(state).__name__}; return a dict")
    return plain
