"""References: blocks of consecutive rows, their size in memory and in a file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlops.profiles.file import (
    read_contents,
    read_profiles,
    read_references,
    summary,
    write_profiles,
    write_references,
)
from raymlops.profiles.layout import ROWS, Layout
from raymlops.profiles.learn import Learner
from raymlops.profiles.profile import Blocks
from raymlops.profiles.reference import MAX_CELLS, Chunk, _fitting, _grouped, reference_of
from raymlops.profiles.slices import Slice


def chunks_of(columns, *, times=None, step=1000):
    """Return a function that starts a pass over a table in chunks."""
    rows = len(next(iter(columns.values())))

    def begin():
        for start in range(0, rows, step):
            part = slice(start, min(rows, start + step))
            chunk = {name: values[part] for name, values in columns.items()}
            yield Chunk(chunk, part.stop - start, None if times is None else times[part])

    return begin


def table(rows):
    rng = np.random.default_rng(0)
    letters = np.array(["a", "b", None], object)
    return {"x": rng.normal(size=rows), "s": letters[rng.integers(0, 3, rows)], "n": np.arange(rows)}


def test_blocks_are_of_rows_in_order():
    """10,240 rows: 512 blocks of 20; the numbers of the rows rise from block to block."""
    found = reference_of(chunks_of(table(10_240)), rows=10_240, row_order="ordered")
    assert found.blocks is not None
    assert found.blocks.times is None
    assert found.blocks.rows.tolist() == [20] * 512
    assert np.array_equal(found.blocks.counts.sum(axis=0), found.profile.counts)
    series, cells = next((s, c) for s, c in found.layout.placed() if s.column == "n")
    means = found.blocks.counts[:, cells][:, series.bins] @ np.arange(len(series.edges) + 1) / 20
    assert (np.diff(means) >= 0).all()


@pytest.mark.parametrize("as_seconds", [True, False])
def test_blocks_are_of_rows_in_order_of_time(as_seconds):
    """However the table is shuffled, 333 1/3 hours with a row a minute are blocks of 60.

    A row without a time is in no block, but in the profile.
    """
    columns = table(20_000)
    order = np.random.default_rng(1).permutation(20_000)
    seconds = columns["n"] * 60.0
    times = seconds if as_seconds else (seconds * 1e6).astype("datetime64[us]")
    times[5:8] = np.nan if as_seconds else np.datetime64("NaT")
    shuffled = {name: values[order] for name, values in columns.items()}
    found = reference_of(chunks_of(shuffled, times=times[order]), rows=20_000)
    blocks = found.blocks
    assert blocks is not None
    assert len(blocks) == 334
    assert found.profile.rows == 20_000
    assert blocks.rows.sum() == 19_997
    assert blocks.rows.tolist() == [57] + [60] * 332 + [20]
    assert blocks.times[:-1].tolist() == (np.arange(334) * 3600.0).tolist()


@pytest.mark.parametrize("rows", [200, 1000, 5000])
def test_no_block_and_no_slice_has_fewer_than_twenty_rows(rows):
    """Most times are in bursts; every row is in a block, and a block without rows is a time that has none."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        times = np.sort(np.where(rng.random(rows) < 0.7, rng.integers(0, 9, rows), rng.random(rows) * 90) * 86_400)
        found = reference_of(chunks_of(table(rows), times=times), rows=rows, slices=[Slice("n", 7), Slice("s", "a")])
        assert found.blocks is not None
        assert found.blocks.rows[found.blocks.rows > 0].min() >= 20
        assert found.blocks.rows.sum() == rows
        assert len(found.blocks.times) == len(found.blocks) + 1
        assert (np.diff(found.blocks.times) > 0).all()
        assert [each.name for each in found.slices] == ["s=a"]


def test_a_shuffled_table_has_no_blocks_and_says_so():
    found = reference_of(chunks_of(table(5000)), rows=5000)
    assert found.blocks is None
    assert "row_times" in found.note
    assert found.profile.rows == 5000


@pytest.mark.parametrize("rows", [1, 3, 39])
def test_few_rows_have_a_profile_without_blocks(rows):
    found = reference_of(chunks_of(table(rows)), rows=rows, row_order="ordered")
    assert found.blocks is None
    assert found.profile.rows == rows
    assert "too few" in found.note


def test_rows_of_one_time_have_no_blocks():
    found = reference_of(chunks_of(table(500), times=np.zeros(500)), rows=500)
    assert found.blocks is None
    assert "one time" in found.note
    nothing = reference_of(chunks_of(table(500), times=np.full(500, np.nan)), rows=500)
    assert "row_times" in nothing.note


def test_days_are_blocks():
    """30 days of 100 rows: no day is divided."""
    days = np.repeat(np.arange(30) * 86_400.0, 100)
    found = reference_of(chunks_of(table(3000), times=days), rows=3000)
    assert found.blocks is not None
    assert (found.blocks.rows % 100 == 0).all()
    assert len(found.blocks) >= 25


def test_the_number_of_columns_decides_how_fine_a_reference_is():
    """20 columns: 512 blocks of 256 bins. 200: 256 blocks. 2,000: 16 bins. Never more than 2^24 counts."""
    found = {}
    values = np.random.default_rng(0).normal(size=6000)
    for columns in (20, 200, 2000):
        learner = Learner()
        learner.add({f"c{i}": values for i in range(columns)}, rows=6000)
        layout, blocks = _fitting(learner, 512)
        assert (blocks + 1) * layout.size <= MAX_CELLS
        found[columns] = (blocks, len(layout.series[0].edges) - 1)
    assert found == {20: (512, 256), 200: (256, 256), 2000: (256, 16)}


def test_a_file_holds_references_as_they_were():
    columns = table(4000) | {"text": np.array([f"text {i}" for i in range(4000)], object)}
    times = np.arange(4000) * 3600.0
    references = {
        "features": replace(reference_of(chunks_of(columns, times=times), rows=4000), influence={"x": 0.5}),
        "predictions": reference_of(chunks_of({"y": columns["x"]}), rows=4000),
    }
    data = write_references(references)
    assert write_references(references) == data
    again = read_references(data)
    assert again.keys() == references.keys()
    for side, reference in references.items():
        assert again[side].layout.digest == reference.layout.digest
        assert np.array_equal(again[side].profile.counts, reference.profile.counts)
        assert (again[side].note, again[side].influence) == (reference.note, reference.influence)
    told = summary(references)["features"]
    assert told["distinct"]["text"] == pytest.approx(4000, rel=0.3)
    assert told["influence"] == {"x": 0.5}
    assert again["predictions"].blocks is None
    assert np.array_equal(again["features"].blocks.counts, references["features"].blocks.counts)
    assert np.array_equal(again["features"].blocks.times, references["features"].blocks.times)


def test_slices_have_references_on_the_layout_of_the_whole(tmp_path):
    """In its blocks; one of fewer than 20 rows has none, and one of a column that is not there neither."""
    columns = table(4000)
    slices = [Slice("s", "a"), Slice("n", 7), Slice("gone", True)]
    twice = [*slices, Slice("s", "a")]
    found = reference_of(chunks_of(columns, times=np.arange(4000.0)), rows=4000, slices=twice)
    assert list(found.slices) == slices[:1]
    assert found.few == {slices[1]: (columns["n"] == 7).sum(), slices[2]: 0}
    part = found.slices[slices[0]]
    assert part.rows == (columns["s"] == "a").sum()
    assert part.layout is found.layout
    assert (part.counts <= found.profile.counts).all()
    again = read_references(write_references({"features": found}))["features"]
    assert np.array_equal(again.slices[slices[0]].counts, part.counts)
    assert again.few == dict.fromkeys(slices[1:])
    assert np.array_equal(again.blocks.counts, found.blocks.counts)
    answers = reference_of(
        lambda: [Chunk({"y": columns["x"]}, 4000, None, {"s": columns["s"]})], rows=4000, slices=slices[:1]
    )
    assert answers.slices[slices[0]].rows == part.rows
    assert answers.slice_blocks == {}
    blocks = found.slice_blocks[slices[0]]
    assert np.array_equal(blocks.times, found.blocks.times)
    assert np.array_equal(blocks.counts.sum(axis=0), part.counts)
    assert np.array_equal(again.slice_blocks[slices[0]].counts, blocks.counts)


@pytest.mark.parametrize("as_times", [True, False])
def test_no_block_of_a_slice_has_fewer_than_twenty_rows(as_times):
    """Most values of a slice are bursts; each block that has rows of it has 20, and none is lost but without a time."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        columns = {"x": rng.normal(size=5000), "s": np.repeat(rng.random(50) < 0.3, 100) & (rng.random(5000) < 0.5)}
        times = np.sort(rng.random(5000)) * 86_400 if as_times else None
        order = None if as_times else "ordered"
        chunks = chunks_of(columns, times=times)
        found = reference_of(chunks, rows=5000, row_order=order, slices=[Slice("s", True), Slice("s", False)])
        for each, blocks in found.slice_blocks.items():
            assert len(blocks) == len(found.blocks)
            assert blocks.rows[blocks.rows > 0].min() >= 20
            assert blocks.rows.sum() == (columns["s"] == each.value).sum() == found.slices[each].rows
    assert len(found.slice_blocks) == 2


def test_rows_of_a_slice_are_where_the_middle_one_of_twenty_is():
    """5 + 0 + 30 rows are in the third block, since the 18th is there; 4 + 4 + 25 and 3 that are left in the sixth."""
    rows = np.array([5, 0, 30, 4, 4, 25, 3])
    blocks = Blocks(Layout(()), np.stack([rows, rows], axis=1))
    assert _grouped(blocks).rows.tolist() == [0, 0, 35, 0, 0, 36, 0]
    assert _grouped(Blocks(Layout(()), np.full((3, 2), 6))).rows.tolist() == [0, 0, 0]


def test_slices_take_their_part_of_the_budget():
    """20 columns of 512 x 256 counts fit six times into 2^24; 16 slices have as many blocks, and 64 bins."""
    learner = Learner()
    values = np.random.default_rng(0).normal(size=6000)
    learner.add({f"c{i}": values for i in range(20)}, rows=6000)
    found = {slices: _fitting(learner, 512, slices=slices) for slices in (0, 4, 16)}
    assert {slices: (blocks, len(layout.series[0].edges) - 1) for slices, (layout, blocks) in found.items()} == {
        0: (512, 256),
        4: (512, 256),
        16: (512, 64),
    }
    assert all((blocks + 1) * (1 + slices) * layout.size <= MAX_CELLS for slices, (layout, blocks) in found.items())


def test_a_year_with_slices_keeps_its_days_apart():
    """21 columns and 6 slices: 512 blocks of 17 hours; 256 were 34 hours each, and no day was an own window."""
    learner = Learner()
    values = np.random.default_rng(0).normal(size=6000)
    learner.add({f"c{i}": values for i in range(21)}, rows=6000)
    layout, blocks = _fitting(learner, 512, slices=6)
    assert (blocks, len(layout.series[0].edges) - 1) == (512, 128)


def test_references_of_an_earlier_release_have_slices_without_blocks():
    """Version 2 of the file had one whole profile of each, and said nothing of how many blocks there are."""
    columns, chosen = table(4000), Slice("s", "a")
    found = reference_of(chunks_of(columns), rows=4000, row_order="ordered", slices=[chosen])
    written = pq.read_table(pa.BufferReader(write_references({"features": replace(found, slice_blocks={})})))
    head = json.loads(written.schema.metadata[b"raymlops.profiles"])
    head["version"] = 2
    del head["sides"]["features"]["blocks"]
    sink = pa.BufferOutputStream()
    pq.write_table(written.replace_schema_metadata({b"raymlops.profiles": json.dumps(head).encode()}), sink)
    again = read_references(sink.getvalue().to_pybytes())["features"]
    assert np.array_equal(again.blocks.counts, found.blocks.counts)
    assert np.array_equal(again.slices[chosen].counts, found.slices[chosen].counts)
    assert again.slice_blocks == {}


def test_a_reference_without_columns_is_a_file_too():
    found = read_references(write_references({"features": reference_of(lambda: iter(()), rows=0)}))
    assert found["features"].profile.counts.tolist() == [0, 0, 0]


def test_profiles_of_an_hour_are_read_on_the_layout_that_they_were_counted_on():
    one = reference_of(chunks_of(table(2000)), rows=2000).profile
    other = reference_of(chunks_of({"x": np.arange(2000.0)}), rows=2000).profile
    data = write_profiles([("features", one), ("predictions", other)], about={"files": ["a"]})
    contents = {("features", one.layout.digest), ("predictions", other.layout.digest)}
    assert read_contents(data) == ({"files": ["a"]}, contents)
    found = read_profiles(data, {"features": one.layout, "predictions": one.layout})
    assert found.keys() == {"features"}
    assert np.array_equal(found["features"].counts, one.counts)
    assert (found["features"] + one).counts[ROWS] == 4000


def test_each_damaged_byte_of_a_file_is_a_value_error_or_does_no_harm():
    """Whatever Parquet, JSON or NumPy raise of it."""
    one = reference_of(chunks_of({"x": np.arange(300.0)}), rows=300).profile
    data = write_profiles([("features", one)], about={"files": {"a": 1}})
    refused = 0
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        try:
            read_contents(damaged)
            read_profiles(damaged, {"features": one.layout})
        except ValueError:
            refused += 1
    assert refused > len(data) // 3
    for cut in (0, 3, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=r"."):
            read_contents(data[:cut])


def test_a_file_of_a_newer_release_is_refused(monkeypatch):
    monkeypatch.setattr("raymlops.profiles.file.VERSION", 4)
    data = write_references({"features": reference_of(chunks_of(table(100)), rows=100)})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 4"):
        read_references(data)


def test_hours_of_a_newer_release_are_refused(monkeypatch):
    """Also where their version is one that references have by now."""
    profile = reference_of(chunks_of(table(100)), rows=100).profile
    monkeypatch.setattr("raymlops.profiles.file.VERSION_OF_HOURS", 3)
    data = write_profiles([("features", profile)], about={})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 3; this raymlops reads up to 2"):
        read_contents(data)
    with pytest.raises(ValueError, match="version 3; this raymlops reads up to 2"):
        read_profiles(data, {"features": profile.layout})
