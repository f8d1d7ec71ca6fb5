"""Profiles as Parquet: the references of a bundle in one file, the profiles of an hour of its traffic in another.

Owns both formats. A row of the first is one series of one side (``features``, ``predictions``) with its edges or
categories and its counts: those of the whole, of each slice, of each block, then of each block of each slice; behind
them each score has a row, with its sums. A row of the second is one side, of all rows or of a slice, with the cells
that are not 0; it names the layout by its digest.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.profiles.distinct import estimate
from raymlops.profiles.layout import HEAD, Layout, Series
from raymlops.profiles.profile import Blocks, Profile
from raymlops.profiles.reference import Reference
from raymlops.profiles.scores import Score, number_of_sums
from raymlops.profiles.slices import Slice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

VERSION, VERSION_OF_HOURS = 3, 2
"""Release 0.1 wrote ``profile.json`` of version 1; references of version 2 have no blocks of slices."""
_KEY = b"raymlops.profiles"
_SERIES = pa.schema(
    {
        "side": pa.string(),
        "column": pa.string(),
        "measure": pa.string(),
        "edges": pa.list_(pa.float64()),
        "categories": pa.list_(pa.string()),
        "counts": pa.list_(pa.int64()),
    }
)
_SIDES = pa.schema(
    {"side": pa.string(), "layout": pa.string(), "cells": pa.list_(pa.int32()), "counts": pa.list_(pa.int64())}
)


def write_references(references: Mapping[str, Reference]) -> bytes:
    """Return the file of references by side; the same bytes for the same references."""
    rows: list[dict[str, Any]] = []
    heads: dict[str, Any] = {}
    for side, reference in references.items():
        blocks = reference.blocks
        counts = np.stack([part.counts for part in (reference.profile, *reference.slices.values())])
        if blocks is not None:
            counts = np.concatenate([counts, blocks.counts, *(part.counts for part in reference.slice_blocks.values())])
        times = None if blocks is None or blocks.times is None else blocks.times.tolist()
        heads[side] = {"head": counts[:, :HEAD].tolist(), "times": times, "note": reference.note}
        heads[side] |= {"blocks": 0 if blocks is None else len(blocks)}
        heads[side] |= {"independent": reference.independent, "slices": [list(each) for each in reference.slices]}
        heads[side] |= {"few": [list(each) for each in reference.few]} if reference.few else {}
        heads[side] |= {"influence": dict(reference.influence)} if reference.influence else {}
        for series, cells in reference.layout.placed():
            rows.append({"side": side, **series.to_dict(), "counts": np.ascontiguousarray(counts[:, cells]).ravel()})
        heads[side] |= {"scores": len(reference.layout.scores)} if reference.layout.scores else {}
        for at, score in enumerate(reference.layout.scores):
            described = {"measure": score.measure, "edges": score.edges, "categories": [score.category]}
            sums = counts[:, reference.layout.sums][:, number_of_sums(at) : number_of_sums(at + 1)]
            rows.append({"side": side, "column": score.column, **described, "counts": sums.ravel()})
    table = pa.Table.from_pylist(rows, schema=_SERIES)
    return _written(table, {"version": VERSION, "sides": heads})


def summary(references: Mapping[str, Reference]) -> dict[str, Any]:
    """Return what references are of, as JSON data for people to read."""
    return {"version": VERSION} | {
        side: {
            "rows": reference.profile.rows,
            "columns": len(reference.layout.by_column),
            "cells": reference.layout.size,
            "blocks": 0 if reference.blocks is None else len(reference.blocks),
            "slices": {each.name: part.rows for each, part in reference.slices.items()},
            "few": [each.name for each in reference.few],
            "note": reference.note,
            "distinct": {
                series.column: float(f"{estimate(reference.profile.series(series.column, 'distinct')[1]):.2g}")
                for series in reference.layout.series
                if series.measure == "distinct"
            },
            "influence": dict(reference.influence),
        }
        for side, reference in references.items()
    }


@contextmanager
def _damage() -> Iterator[None]:
    """Raise ValueError for whatever is raised of a damaged file: Parquet, JSON and NumPy have errors of every kind."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        msg = f"damaged profiles: {type(error).__name__}: {error}"
        raise ValueError(msg) from error


@_damage()
def read_references(data: bytes) -> dict[str, Reference]:
    """Return the references in a file by side.

    Raises:
        ValueError: it is damaged, or a newer release wrote it.
    """
    table, head = _read(data, _SERIES, newest=VERSION)
    found: dict[str, Reference] = {}
    rows = list(zip(*(table[name].to_pylist() for name in _SERIES.names[:-1]), table["counts"], strict=True))
    for side, known in head["sides"].items():
        mine = [row for row in rows if row[0] == side]
        series = len(mine) - known.get("scores", 0)
        layout = Layout(
            tuple(
                Series(column, measure, np.array(edges, np.float64), tuple(categories))
                for _, column, measure, edges, categories, _ in mine[:series]
            ),
            tuple(
                Score(column, measure, np.array(edges, np.float64), *categories)
                for _, column, measure, edges, categories, _ in mine[series:]
            ),
        )
        parts = [np.array(known["head"], np.int64)]
        parts += [np.asarray(row[-1].values).reshape(len(parts[0]), -1) for row in mine]
        times = None if known["times"] is None else np.array(known["times"])
        slices = [Slice(column, value) for column, value in known["slices"]]
        parts.append(np.zeros((len(parts[0]), layout.size - sum(part.shape[1] for part in parts)), np.int64))
        counts = np.concatenate(parts, axis=1)
        whole, *others = (Profile(layout, each) for each in counts[: 1 + len(slices)])
        blocks = counts[1 + len(slices) :]
        number = known.get("blocks", len(blocks))
        sliced = blocks.reshape(-1, number, layout.size)[1:] if number else ()
        found[side] = Reference(
            whole,
            Blocks(layout, blocks[:number], times) if number else None,
            known["note"],
            known["independent"],
            dict(zip(slices, others, strict=True)),
            {each: Blocks(layout, part, times) for each, part in zip(slices, sliced, strict=False)},
            {Slice(column, value): None for column, value in known.get("few", ())},
            known.get("influence", {}),
        )
    return found


def write_profiles(profiles: Iterable[tuple[str, Profile]], *, about: Mapping[str, Any]) -> bytes:
    """Return the file of profiles with their sides, without layouts, and of what is known ``about`` them, JSON data.

    A side may have several, on different layouts.
    """
    rows = []
    for side, profile in profiles:
        cells = np.flatnonzero(profile.counts)
        counts = profile.counts[cells]
        rows.append({"side": side, "layout": profile.layout.digest, "cells": cells.astype(np.int32), "counts": counts})
    return _written(pa.Table.from_pylist(rows, schema=_SIDES), {"version": VERSION_OF_HOURS, "about": dict(about)})


@_damage()
def read_contents(data: bytes) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """Return what is known about the profiles in a file, and the side of each with the digest of its layout.

    Raises:
        ValueError: it is damaged, or a newer release wrote it.
    """
    table, head = _read(data, _SIDES, newest=VERSION_OF_HOURS)
    return dict(head["about"]), set(zip(table["side"].to_pylist(), table["layout"].to_pylist(), strict=True))


@_damage()
def read_profiles(data: bytes, layouts: Mapping[str, Layout]) -> dict[str, Profile]:
    """Return the profiles in a file of these sides, qualified ones of slices too, that were counted on these layouts.

    Raises:
        ValueError: it is damaged, or a newer release wrote it.
    """
    table, _ = _read(data, _SIDES, newest=VERSION_OF_HOURS)
    found = {}
    for side, digest, cells, counts in zip(*(table[name] for name in _SIDES.names), strict=True):
        layout = layouts.get(side.as_py())
        if layout is not None and layout.digest == digest.as_py():
            dense = np.zeros(layout.size, np.int64)
            dense[np.asarray(cells.values)] = np.asarray(counts.values)
            found[side.as_py()] = Profile(layout, dense)
    return found


def _written(table: pa.Table, head: Mapping[str, Any]) -> bytes:
    table = table.replace_schema_metadata({_KEY: json.dumps(head).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=9, write_page_checksum=True)
    return bytes(sink.getvalue())


def _read(data: bytes, schema: pa.Schema, *, newest: int) -> tuple[pa.Table, dict[str, Any]]:
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    head: dict[str, Any] = json.loads((table.schema.metadata or {})[_KEY])
    if head["version"] > newest:
        msg = f"profiles of version {head['version']}; this raymlops reads up to {newest}"
        raise ValueError(msg)
    if table.schema != schema:
        msg = f"damaged profiles: the columns are {', '.join(table.schema.names)}"
        raise ValueError(msg)
    return table.combine_chunks(), head
