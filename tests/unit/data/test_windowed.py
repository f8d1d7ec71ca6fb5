import numpy as np
import pytest
from windowed_days import Days, Early, Fixed, Late, Later, Needing, Nothing, Unlabelled

from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.data.windowed import takes_window
from raymlops.errors import ConfigError, RecipeError
from raymlops.project import bind

WINDOW = {"start": "2026-01-01", "stop": "2026-01-11"}


def prepared(recipe, tmp_path, **train):
    data = {"project": {"name": "p"}, "recipe": {"import": "x:Y"}, "storage": {"path": str(tmp_path)}, "train": train}
    return prepare(bind(load_data(data), recipe=f"windowed_days:{recipe.__name__}"))


def test_a_window_is_handed_to_datasets(tmp_path):
    """Ten days of hours, less the six that were not labelled by its end; without one, what datasets() returns."""
    assert prepared(Days, tmp_path, window=WINDOW).data.rows["train"] == 234  # 10 * 24 - 6
    assert prepared(Days, tmp_path).data.rows["train"] == 18  # 24 - 6
    assert prepared(Fixed, tmp_path).data.rows["train"] == 18


def test_a_recipe_that_takes_none_is_refused_one(tmp_path):
    """The message says how to take it; one that needs a window is refused without."""
    with pytest.raises(RecipeError, match=r"train.window is 2026-01-01 00:00 until .*Fixed.datasets\(\) takes"):
        prepared(Fixed, tmp_path, window=WINDOW)
    with pytest.raises(RecipeError, match=r"Needing.datasets\(window\) needs a window, and train.window is not set"):
        prepared(Needing, tmp_path)
    assert (takes_window(Days), takes_window(Fixed), takes_window(Needing)) == (True, False, True)


def test_rows_of_the_future_are_refused_with_their_number(tmp_path):
    """Three arose after the end, until 02:00; of rows within, those whose label was known later count as well."""
    with pytest.raises(RecipeError, match=r"3 of 243 rows of the train split arose after its end, .* 2026-01-11T02"):
        prepared(Late, tmp_path, window=WINDOW)
    with pytest.raises(RecipeError, match=r"4 of 238 rows of the train split were labelled after its end"):
        prepared(Later, tmp_path, window=WINDOW)


def test_rows_without_a_time_are_refused(tmp_path):
    """Two have no label: a training would take them for labelled ones of long ago."""
    with pytest.raises(RecipeError, match=r"2 of \d+ rows of the train split have no time at which they were labelled"):
        prepared(Unlabelled, tmp_path, window=WINDOW)


def test_rows_of_before_the_window_are_refused(tmp_path):
    """24 arose on the day before."""
    with pytest.raises(RecipeError, match=r"24 of 234 rows of the train split arose before it, .* 2025-12-31T00"):
        prepared(Early, tmp_path, window=WINDOW)


def test_no_row_at_all_is_refused_by_the_window(tmp_path):
    """The message names it."""
    with pytest.raises(RecipeError, match=r"Nothing.datasets\(2026-01-01 00:00 until .*\): the train split has no"):
        prepared(Nothing, tmp_path, window=WINDOW)


def test_a_window_is_part_of_what_a_run_is(tmp_path):
    """Of its digest where it is set; one that is not leaves the digest as it was before there were any."""
    without, of, other = (
        load_data({"project": {"name": "p"}, "recipe": {"import": "x:Y"}, "train": train})
        for train in ({}, {"window": WINDOW}, {"window": {**WINDOW, "stop": "2026-01-12"}})
    )
    assert len({spec.spec.sha() for spec in (without, of, other)}) == 3
    assert of.spec.train.window.start == "2026-01-01T00:00:00+00:00"
    with pytest.raises(ConfigError, match="before it starts"):
        prepared(Days, tmp_path, window={**WINDOW, "stop": "2025-01-01"})


def test_tables_take_the_place_of_datasets(tmp_path):
    """Their times are their own: when each row was asked and labelled, whatever row_times needs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raymlops.recipe import ASKED_AT, LABELLED_AT, known_times_of, times_of

    asked = np.arange("2026-01-01", "2026-01-02", dtype="datetime64[h]").astype("datetime64[us]")
    table = {"x": np.ones(24), "y": np.zeros(24), ASKED_AT: asked, LABELLED_AT: asked + np.timedelta64(1, "D")}
    for part in ("train", "validation", "test"):
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    found = prepared(Needing, tmp_path, tables=str(tmp_path))
    assert found.data.rows == {"train": 24, "validation": 24, "test": 24}
    (columns,) = found.splits["train"].chunks()
    assert times_of(found.recipe, columns).tolist() == asked.tolist()
    assert known_times_of(found.recipe, columns)[0] == np.datetime64("2026-01-02T00", "us")


def test_a_run_has_one_of_both(tmp_path):
    """A window and tables contradict each other."""
    with pytest.raises(ConfigError, match="leave one of them out"):
        prepared(Days, tmp_path, tables="/t", window=WINDOW)
