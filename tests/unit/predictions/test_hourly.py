"""One profile an hour and version, made again where the hour's rows changed."""

from __future__ import annotations

import contextlib
import shutil
from datetime import timedelta
from functools import partial, reduce
from operator import add

import numpy as np
import pytest
from killed_store import KilledError, Killing
from served_requests import HOUR, at, served

from raymlops.arrays import Column
from raymlops.predictions.compact import compact
from raymlops.predictions.erase import Erasure
from raymlops.predictions.hourly import Counted, hourly_profiles, update_profile
from raymlops.predictions.partition import PROFILE, Faults
from raymlops.predictions.where import Where
from raymlops.profiles.count import profile_of
from raymlops.profiles.layout import Layout, Series
from raymlops.profiles.scores import Score
from raymlops.profiles.slices import Slice
from raymlops.signature import Signature

NEXT_DAY = HOUR + timedelta(days=1)
FOLDER = "predictions/flights/version=3/date=2026-11-25/hour=12"
ANNA = Where.parse(["features.carrier=anna"])
LAYOUTS = {
    "features": Layout(
        (
            Series("distance", "number", np.array([0.0, 1.0, 2.0])),
            Series("carrier", "category", categories=("AA", "anna")),
        ),
        (
            Score("distance", "number", np.array([0.0, 1.0, 2.0])),
            Score("carrier", "category", np.zeros(0), "anna"),
        ),
    ),
    "predictions": Layout((Series("late", "number", np.array([0.0, 0.5])),)),
}


def counted_on(_version):
    return Counted({side: [layout] for side, layout in LAYOUTS.items()})


def hours(store, **window):
    return list(hourly_profiles(store, "flights", LAYOUTS, **window))


def counts(profile, column):
    return profile.series(column)[1].tolist()


def sums(profile):
    """Return those of distance, its squares, anna, both, and the squares of anna."""
    return profile.counts[profile.layout.sums].tolist()


def test_compaction_counts_each_past_hour(tmp_path, write, store):
    """Three files of one hour and one of the next: rows 0.5 to 1.5, carriers, answers 0 and 1."""
    write([served("a", rows=2)], [served("b", rows=2)], [served("c", ts=at(hour=13))])
    record = compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    assert record.profiled == 2
    one, two = hours(store)
    assert (one.start, two.start, one.version) == (HOUR, HOUR + timedelta(hours=1), 3)
    assert one.profiles["features"].rows == 4
    assert counts(one.profiles["features"], "distance") == [0, 0, 2, 2, 0, 0, 0]
    assert counts(one.profiles["features"], "carrier") == [4, 0, 0, 0]
    assert counts(one.profiles["predictions"], "late") == [0, 0, 2, 2, 0, 0]
    assert compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on).profiled == 0
    week = reduce(add, (hour.profiles["features"] for hour in hours(store)))
    assert week.rows == 5
    assert len(hours(store, since=HOUR + timedelta(hours=1))) == 1


def test_rows_that_come_late_are_counted_at_the_next_compaction(tmp_path, write, store):
    write([served("a")])
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    write([served("b")])
    assert compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on).profiled == 1
    assert hours(store)[0].profiles["features"].rows == 2


def test_an_hour_whose_version_has_no_layout_has_no_profile(tmp_path, write, store):
    """Nor has one that was not compacted yet; one that was counted on another layout is made again."""
    write([served("a")])
    assert compact(str(tmp_path), "flights", now=NEXT_DAY).profiled == 0
    assert hours(store)[0].profiles == {}
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    other = {"features": Layout((Series("distance", "number", np.array([7.0])),))}
    assert next(hourly_profiles(store, "flights", other)).profiles == {}
    assert (
        compact(
            str(tmp_path),
            "flights",
            now=NEXT_DAY,
            counted_on=lambda _version: Counted({"features": [other["features"]]}),
        ).profiled
        == 1
    )
    assert next(hourly_profiles(store, "flights", other)).profiles["features"].rows == 1


def test_a_request_counts_once_over_all_versions(tmp_path, write, store):
    """The shadow's features are the champion's; its answers are its own."""
    write([served("a"), served("a", version=4, route="shadow"), served("b", version=4, route="canary")])
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    three, four = hours(store)
    assert (three.profiles["features"].rows, four.profiles["features"].rows) == (1, 1)
    assert (three.profiles["predictions"].rows, four.profiles["predictions"].rows) == (1, 2)


def test_features_of_all_versions_add_up_on_each_layout(tmp_path, write, store):
    """Version 4 was trained on other data; its hours are counted on the layout of version 3 too, and the reverse."""
    other = {"features": Layout((Series("distance", "number", np.array([0.5])),))}
    both = [LAYOUTS["features"], other["features"]]
    write([served("a", rows=2), served("b", version=4, rows=3)])
    layouts = {3: Counted({"features": both}), 4: Counted({"features": both[::-1]})}
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=layouts.__getitem__)
    for chosen in ({"features": LAYOUTS["features"]}, other):
        found = list(hourly_profiles(store, "flights", chosen))
        total = reduce(add, (hour.profiles["features"] for hour in found))
        assert total.rows == 5
        assert sum(counts(total, "distance")) == 5


def test_an_hour_is_counted_again_where_a_layout_is_new(tmp_path, write, store):
    """Version 4 goes live after the hour of version 3 was counted on its own layout: compaction adds the other one."""
    other = Layout((Series("distance", "number", np.array([0.5])),))
    write([served("a", rows=2)])
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    on = Counted({"features": [LAYOUTS["features"], other], "predictions": [LAYOUTS["predictions"]]})
    for profiled in (1, 0):
        assert compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=lambda _version: on).profiled == profiled
    assert next(hourly_profiles(store, "flights", {"features": other})).profiles["features"].rows == 2
    assert compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on).profiled == 0


def test_hours_are_read_as_they_are_asked_for(tmp_path, write, store, monkeypatch):
    """Of 200 hours, at most 64 more than were asked for."""
    write(*([served(str(n), ts=at(hour=n % 24) + 86_400 * (n // 24))] for n in range(200)))
    opened = []
    monkeypatch.setattr("raymlops.predictions.hourly._stored", lambda _store, folder: opened.append(folder))
    found = hourly_profiles(store, "flights", LAYOUTS)
    next(found)
    assert 0 < len(opened) <= 64
    assert len(list(found)) == 199
    assert len(opened) == 200


def test_slices_are_counted_on_the_layout_of_all_rows(tmp_path, write, store):
    """Answers too, by the features of their rows; a field that was redacted has none."""
    anna = {"distance": np.array([0.5, 7.0]), "carrier": np.array(["anna", None], object)}
    write([served("a", rows=2), served("b", rows=2, columns=anna)])
    slices = (Slice("carrier", "anna"), Slice("carrier", "nobody"), Slice("distance", 0.5))
    on = Counted({side: [layout] for side, layout in LAYOUTS.items()}, slices)
    record = compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=lambda _version: on)
    assert record.profiled == 1
    assert set(hours(store)[0].profiles) == {"features", "predictions"}
    sides = {each.qualify(side): layout for side, layout in LAYOUTS.items() for each in slices} | LAYOUTS
    found = next(hourly_profiles(store, "flights", sides)).profiles
    assert {name: profile.rows for name, profile in found.items()} == {
        "features": 4,
        "features[carrier=anna]": 1,
        "features[carrier=nobody]": 0,
        "features[distance=0.5]": 2,
        "predictions": 4,
        "predictions[carrier=anna]": 1,
        "predictions[carrier=nobody]": 0,
        "predictions[distance=0.5]": 2,
    }
    assert counts(found["features[carrier=anna]"], "distance") == [0, 0, 1, 0, 0, 0, 0]
    assert compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=lambda _version: on).profiled == 0
    write([served("c")], redact=("carrier",))
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=lambda _version: on)
    found = next(hourly_profiles(store, "flights", sides)).profiles
    assert (found["features"].rows, found["features[carrier=anna]"].rows) == (5, 1)


def test_a_column_of_another_type_has_no_row_in_a_slice(tmp_path, write, store):
    """Version 4 has numbers where version 3 had texts, which does not keep the hours of 3 from being counted."""
    write([served("a", rows=2)])
    slices = (Slice("carrier", 1), Slice("carrier", True), Slice("distance", "AA"))
    on = Counted({side: [layout] for side, layout in LAYOUTS.items()}, slices)
    assert compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=lambda _version: on).profiled == 1
    sides = {each.qualify("features"): LAYOUTS["features"] for each in slices} | LAYOUTS
    found = next(hourly_profiles(store, "flights", sides)).profiles
    assert [found[each.qualify("features")].rows for each in slices] == [0, 0, 0]
    assert found["features"].rows == 2


def broken_at(hour):
    """Return layouts of one hour's version that cannot be counted on, and of all others as they are."""
    broken = Layout((Series("distance", "number", np.array(["no number"])),))
    return lambda version: Counted({"features": [broken]}) if version == hour else counted_on(version)


def test_an_hour_that_cannot_be_counted_stops_no_other(tmp_path, write, store, caplog):
    """The hours of version 3 come first; the compaction says so once and counts those of version 4."""
    write([served("a"), served("b", ts=at(hour=13), version=4)])
    with caplog.at_level("WARNING"):
        record = compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=broken_at(3))
    assert record.profiled == 1
    assert [set(hour.profiles) for hour in hours(store)] == [set(), {"features", "predictions"}]
    assert len(caplog.messages) == 1
    assert f"{FOLDER} cannot be counted" in caplog.text


def test_an_hour_that_cannot_be_counted_is_erased_all_the_same(tmp_path, write, store):
    """Its rows were searched and are gone: no file may hold some of them."""
    people = {"distance": np.zeros(1), "carrier": np.array(["anna"], object)}
    write([served("a", columns=people), served("b"), served("c", ts=at(hour=13), version=4, columns=people)])
    erased = Erasure([str(tmp_path)], "flights", ANNA, counted_on=broken_at(3)).run(now=NEXT_DAY)
    assert (erased.rows, erased.damaged) == (2, ())
    assert [set(hour.profiles) for hour in hours(store)] == [set(), {"features", "predictions"}]


def test_a_sampled_row_counts_as_often_as_its_weight(tmp_path, write, store):
    """Four rows for 2.5 requests each and one that was not sampled."""
    write([served(str(n), weight=2.5) for n in range(4)], [served("x")])
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    found = hours(store)[0].profiles["features"]
    assert (found.rows, found.read) == (11, 5)
    assert counts(found, "distance") == [0, 0, 11, 0, 0, 0, 0]
    assert sums(found) == [-11, 11, -11, 11, 11]


def test_a_sample_says_as_much_as_the_requests_that_were_drawn(tmp_path, write, store):
    """Four of 5 rows for 10 each: 200 rows of squares 4 (50 + 90 x 25), of which anna has 40 and 4 (10 + 90).

    In one row of each that is a request's worth. Rows that were not sampled count each on its own.
    """
    people = {"distance": np.arange(5.0), "carrier": np.array(["anna", *["AA"] * 4], object)}
    slices = (Slice("carrier", "anna"),)
    on = Counted({side: [layout] for side, layout in LAYOUTS.items()}, slices)
    sides = {each.qualify("features"): LAYOUTS["features"] for each in slices} | LAYOUTS
    for weight, read in ((10.0, (4, 4)), (1.0, (20, 4))):
        shutil.rmtree(tmp_path / "predictions", ignore_errors=True)
        write(*([served(str(n), rows=5, columns=people, weight=weight)] for n in range(4)))
        compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=lambda _version: on)
        found = next(hourly_profiles(store, "flights", sides)).profiles
        assert (found["features"].read, found["features[carrier=anna]"].read) == read
        assert found["features"].rows == 20 * weight
        assert found["features"].drawn == pytest.approx(0.25 - 1 / 200 if weight > 1 else 0, abs=0.03)


def test_redacted_fields_are_not_counted(tmp_path, write, store):
    """In one of two files: the rows are, the field's cells lack them."""
    write([served("a")])
    write([served("b")], redact=("carrier", "late"))
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    found = hours(store)[0].profiles
    assert found["features"].rows == 2
    assert sum(counts(found["features"], "carrier")) == 1
    assert sum(counts(found["features"], "distance")) == 2
    assert sum(counts(found["predictions"], "late")) == 1
    assert sums(found["features"]) == [-2, 2, -1, 1, 1]


def test_rows_are_counted_of_which_every_field_is_redacted(tmp_path, write, store):
    """A text model has one input: without it there is traffic nevertheless."""
    write([served("a", ts=at(0), rows=2)], redact=("distance", "carrier"))
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    (hour,) = hours(store)
    assert [hour.profiles[side].rows for side in ("features", "predictions")] == [2, 2]
    assert counts(hour.profiles["features"], "distance") == [0] * 7


def test_an_hour_of_which_a_killed_writer_left_the_folder_alone_is_none(tmp_path, write, store):
    """It has a temporary file, which compaction removes with the folder; before that it is no hour either."""
    write([served("a", ts=at(0))])
    for hour in (13, 14):
        folder = tmp_path / FOLDER.replace("hour=12", f"hour={hour}")
        folder.mkdir()
        (folder / ".1772420400000-w_1234abcd.parquet-x1y2").write_bytes(b"PAR1 half")
    assert [found.start for found in hours(store)] == [HOUR]
    compact(str(tmp_path), "flights", now=HOUR + timedelta(hours=2.2), counted_on=counted_on)
    assert sorted(path.name for path in (tmp_path / FOLDER).parent.iterdir()) == ["hour=12", "hour=14"]


def test_an_erased_row_is_counted_no_more(tmp_path, write, store):
    """The erasure makes the hour's profile again where it knows the layout, and else removes it."""
    for known in (counted_on, lambda _version: Counted()):
        shutil.rmtree(tmp_path / "predictions", ignore_errors=True)
        people = {"distance": np.zeros(1), "carrier": np.array(["anna"], object)}
        write([served("a", columns=people), served("b")])
        compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
        assert counts(hours(store)[0].profiles["features"], "carrier") == [1, 1, 0, 0]
        assert sums(hours(store)[0].profiles["features"]) == [-2, 2, 0, 0, 2]
        erased = Erasure([str(tmp_path)], "flights", ANNA, counted_on=known).run(now=NEXT_DAY)
        assert erased.damaged == ()
        found = hours(store)[0].profiles
        assert found == {} if known is not counted_on else counts(found["features"], "carrier") == [1, 0, 0, 0]
        assert not found or sums(found["features"]) == [-1, 1, -1, 1, 1]


@pytest.mark.parametrize("after", [False, True])
def test_no_profile_outlives_an_erased_row(tmp_path, write, store, after):
    """Killed at each change: the profile is of the rows that are there, or it is gone until the erasure is repeated."""
    people = {"distance": np.zeros(1), "carrier": np.array(["anna"], object)}
    write([served("a", columns=people), served("b")], uri=str(tmp_path / "whole"))
    compact(str(tmp_path / "whole"), "flights", now=NEXT_DAY, counted_on=counted_on)
    killed = 0
    for at_change in range(20):
        folder = tmp_path / str(at_change)
        shutil.copytree(tmp_path / "whole", folder)
        cut = partial(Killing, left=[at_change], after=after)
        job = Erasure([str(folder)], "flights", ANNA, open_store=cut, counted_on=counted_on)
        done = False
        with contextlib.suppress(KilledError):
            job.run(now=NEXT_DAY)
            done = True
        killed += not done
        there = cut(str(folder))
        found = next(hourly_profiles(there, "flights", LAYOUTS)).profiles
        if done or at_change > 0 or after:
            assert not found or counts(found["features"], "carrier") == [1, 0, 0, 0]
        half = folder / FOLDER / f".{PROFILE}-{'0' * 32}"
        half.write_bytes(b"PAR1")
        Erasure([str(folder)], "flights", ANNA, counted_on=counted_on).run(now=NEXT_DAY)
        assert not half.exists()
        found = next(hourly_profiles(there, "flights", LAYOUTS)).profiles
        assert counts(found["features"], "carrier") == [1, 0, 0, 0]
        if done:
            break
    assert killed >= 3


def test_a_damaged_profile_is_made_again(tmp_path, write, store):
    write([served("a")])
    compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on)
    path = tmp_path / FOLDER / PROFILE
    whole = path.read_bytes()
    places = range(4, len(whole) - 8, len(whole) // 16)
    flipped = [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in places]
    made = 0
    for data in (b"PAR1 and no more", b"", *flipped):
        path.write_bytes(data)
        hours(store)
        made += compact(str(tmp_path), "flights", now=NEXT_DAY, counted_on=counted_on).profiled
        assert hours(store)[0].profiles["features"].rows == 1
    assert made >= len(flipped) // 2


def test_what_the_log_holds_is_counted_as_what_was_trained_on(tmp_path, write, store):
    """Every type of a column: the profile of an hour is that of the arrays of its requests; of images only the size."""
    signature = Signature(
        inputs=(
            Column("n", "int", nullable=True),
            Column("flag", "bool"),
            Column("when", "datetime", nullable=True),
            Column("raw", "bytes", nullable=True),
            Column("photo", "image", shape=(None, None, 3)),
            Column("square", "float", shape=(2, 2)),
            Column("words", "int", shape=(None,)),
            Column("text", "string", nullable=True),
        ),
        outputs=(Column("late", "float"),),
    )
    ragged, photos = np.empty(3, object), np.empty(3, object)
    ragged[:] = [np.arange(2), np.zeros(0, np.int64), np.arange(5)]
    photos[:] = [np.zeros((2, n, 3), np.uint8) for n in (1, 2, 3)]
    columns = {
        "n": np.array([1.0, np.nan, 3.0]),
        "flag": np.array([True, False, True]),
        "when": np.array(["2026-01-01", "NaT", "2026-01-03"], "datetime64[us]"),
        "raw": np.array([b"a", None, b"abc"], object),
        "photo": photos,
        "square": np.arange(12.0).reshape(3, 2, 2),
        "words": ragged,
        "text": np.array(["x", None, "a long one"], object),
    }
    edges = np.array([0.5, 2.0, 4.0, 1.7673e9])
    measures = {
        "n": ["number"],
        "flag": ["number"],
        "when": ["time"],
        "raw": ["size"],
        "photo": ["size"],
        "square": ["mean", "deviation"],
        "words": ["mean", "deviation", "size"],
        "text": ["length", "distinct", "category"],
    }
    layout = Layout(tuple(Series(name, m, edges, ("x",)) for name, each in measures.items() for m in each))
    outputs = {"late": np.zeros(3)}
    write([served("a", rows=3, columns=columns, outputs=outputs)], signature=signature)
    assert update_profile(store, FOLDER, Counted({"features": [layout]}), Faults())
    found = next(hourly_profiles(store, "flights", {"features": layout})).profiles["features"]
    expected = profile_of(columns, layout)
    for series, cells in layout.placed():
        assert found.counts[cells].tolist() == expected.counts[cells].tolist(), series
