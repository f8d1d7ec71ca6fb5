"""What goes into a bundle is the same whether a split lies in memory or is streamed from files."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import sourced
import torch
from saved_weights import load_weights
from tiny import Tiny, make_table

from raymlops.bundle.load import load
from raymlops.bundle.trained_rows import sketch
from raymlops.config.load import load_data
from raymlops.data.parquet_split import ParquetSplit
from raymlops.data.prepare import Memory, prepare
from raymlops.data.split import TableSplit
from raymlops.errors import RecipeError, RefusedError, UsageError
from raymlops.lifecycle.registration.bundle_contents import _sketch
from raymlops.lifecycle.registration.profiles import _sample, doubts, references
from raymlops.lifecycle.registration.register import register
from raymlops.profiles.file import write_references
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.profiles.slices import Slice
from raymlops.project import bind
from raymlops.recipe import RecipeBase
from raymlops.tracking.client import tracker
from raymlops.training.example import example_rows
from raymlops.training.run import train
from raymlops.training.runs.lookup import AT_END, EVALUATION


@pytest.fixture
def both(tmp_path):
    """The same 120 rows as all three splits, streamed and as a table."""
    path = sourced.write_parquet(tmp_path / "rows", make_table(120, seed=3), files=2, row_group_rows=25)
    recipe = {"import": sourced.AllParquet, "config": {"path": path}}
    project = bind(load_data({"project": {"name": "p"}, "recipe": recipe}))
    streamed, table = prepare(project, memory=Memory(whole_bytes=0)), prepare(project)
    assert isinstance(streamed.splits["train"], ParquetSplit)
    return streamed, table


def test_the_example_is_the_first_rows(both):
    streamed, table = both
    assert example_rows(streamed) == example_rows(table)
    assert len(example_rows(table)) == 2


def test_references_are_those_of_the_rows(both):
    """However they are read; 120 rows in order are six blocks of 20."""
    found = []
    for prepared in both:
        prepared.recipe.row_order = "ordered"
        torch.manual_seed(0)
        found.append(references(prepared, prepared.recipe.model().eval(), batch_size=50, device="cpu"))
    assert write_references(found[0]) == write_references(found[1])
    assert found[0]["features"].profile.rows == found[0]["predictions"].profile.rows == 120
    assert found[0]["features"].blocks.rows.tolist() == [20] * 6


class Timed(sourced.AllParquet):
    """Rows with a time that no request has, the newest first."""

    def row_times(self, columns):
        return columns["at"] * -60.0


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
def test_blocks_are_in_order_of_times_that_are_no_input(tmp_path, whole_bytes):
    """120 minutes, of files and of a table: a first and a last slot of 5 min are there in part, to their middle."""
    table = make_table(120, seed=3) | {"at": np.arange(120)}
    path = sourced.write_parquet(tmp_path / "rows", table, files=2, row_group_rows=25)
    recipe = {"import": sourced.AllParquet, "config": {"path": path}}
    project = replace(bind(load_data({"project": {"name": "p"}, "recipe": recipe})), recipe_class=Timed)
    prepared = prepare(project, memory=Memory(whole_bytes=whole_bytes))
    found = references(prepared, prepared.recipe.model().eval(), batch_size=50, device="cpu")
    for side in ("features", "predictions"):
        blocks = found[side].blocks
        assert blocks.rows.sum() == 120
        assert (blocks.times[0], blocks.times[-1]) == (-120 * 60 + 150, 150)


@pytest.mark.parametrize("times", [np.zeros(3), np.array(["a"] * 120), {"a": 1}])
def test_times_that_are_none_are_refused(both, times):
    both[1].recipe.row_times = lambda _columns: times
    with pytest.raises(RecipeError, match="row_times"):
        references(both[1], both[1].recipe.model().eval(), batch_size=50, device="cpu")


def test_the_rows_to_be_answered_are_copies():
    """A view of some rows would keep the whole split in memory."""
    kept = []

    class Split:
        def chunks(self):
            for _ in range(5):
                assert sum(chunk() is not None for chunk in kept) <= 1
                chunk = np.zeros(1000)
                kept.append(weakref.ref(chunk))
                yield {"x": chunk}

        def sampled_rows(self, _some, about_rows):
            return np.arange(99, 5000, 100)

    found = _sample(Split(), SimpleNamespace(row_times=lambda _columns: None), ["x"])
    assert found["x"].shape == (50,)


def test_each_entity_of_a_sorted_panel_has_answers_of_its_own():
    """40 shops in turn for 1,000 hours: one of each four rows is answered, 250 of each shop but by chance."""
    split = TableSplit({"shop": np.tile(np.arange(40), 1000)}, name="validation", recipe=RecipeBase())
    found = _sample(split, SimpleNamespace(row_times=lambda _columns: None), ["shop"])["shop"]
    assert len(found) == 10_000
    assert abs(np.bincount(found, minlength=40) - 250).max() < 3 * 250**0.5


def test_slices_have_references_of_their_own(both, caplog):
    """Of what was asked and of what was answered there. One that hardly has rows has none, which is logged."""
    found = []
    for prepared in both:
        model = prepared.recipe.model().eval()
        asked = {"colour": ["red", "none such"]}
        found.append(references(prepared, model, batch_size=50, device="cpu", slices=asked))
    for side in ("features", "predictions"):
        assert [each.name for each in found[0][side].slices] == ["colour=red"]
        assert found[0][side].slices["colour", "red"].rows == (make_table(120, seed=3)["colour"] == "red").sum()
    assert (
        "the slice colour=none such is not judged: 0 training rows, 20 are needed; the values of colour" in caplog.text
    )
    assert "red" in caplog.text


def half_hours(days, slices=()):
    """Return the reference of so many days with a row each half hour, every second one red."""
    number = days * 48
    times = 86_400.0 * 20_000 + 60 + np.arange(number) * 1_800.0
    colours = np.where(np.arange(number) % 2 == 0, "red", "blue")
    chunk = Chunk({"x": np.random.default_rng(0).normal(size=number), "colour": colours}, number, times)
    return reference_of(lambda: [chunk], rows=number, slices=slices)


def test_windows_that_a_split_has_too_few_of_are_said():
    """Of each day of the week three are needed, which ten days do not have; answers are compared with validation."""
    many, few = half_hours(60), half_hours(10)
    assert doubts(many, answers=many, window_h=24) == []
    of_training, of_validation = doubts(few, answers=few, window_h=24)
    assert of_training.startswith("training has 0 windows of 24 h (monitor.window_h)")
    assert of_validation.startswith("validation has 0 windows of 24 h (monitor.window_h)")


def test_a_slice_with_too_few_rows_a_window_is_said():
    """24 a day: training has enough rows of it, and no day has."""
    (told,) = doubts(half_hours(60, [Slice("colour", "red")]), window_h=24)
    assert told.startswith("the slice colour=red is not judged against training: 24 rows in the median window of 24 h")


def test_registering_names_columns_that_are_judged_for_slips_alone():
    """A temperature is .9 of the day before, and what is drawn anew is judged. Without that training judges nothing."""
    rng, days, rows = np.random.default_rng(0), 84, 200
    level = np.zeros(days)
    for day in range(1, days):
        level[day] = 0.9 * level[day - 1] + rng.normal()
    times = np.arange(days * rows) * 86_400.0 / rows + 86_400.0 * 20_000
    columns = {"temp": np.repeat(level, rows) + rng.normal(size=days * rows), "x": rng.normal(size=days * rows)}
    reference = reference_of(lambda: [Chunk(columns, days * rows, times)], rows=days * rows)
    (told,) = doubts(replace(reference, influence={"temp": 0.62}), window_h=24)
    assert "judged for slips alone" in told
    assert "temp (influence 0.62)" in told
    alone = reference_of(lambda: [Chunk({"temp": columns["temp"]}, days * rows, times)], rows=days * rows)
    (told,) = doubts(alone, window_h=24)
    assert "so alike one after the other" in told


def test_registering_tells_of_a_text_that_is_a_date():
    """A month and a release move on with time; a weekday comes again, and what changed in part has both."""
    number, rng = 8_000, np.random.default_rng(0)
    day = np.arange(number) * 56 // number
    texts = {
        "month": day // 28,
        "release": day // 14,
        "weekday": day % 7,
        "renamed": np.where(day < 40, 0, rng.integers(0, 2, number)),
    }
    columns = {name: np.array([f"v{each}" for each in values], object) for name, values in texts.items()}
    chunk = Chunk({**columns, "x": day + rng.normal(size=number)}, number, day * 86_400.0)
    found = doubts(reference_of(lambda: [chunk], rows=number), window_h=None)
    assert [doubt.split(" has none of the values at the end")[0] for doubt in found] == ["month", "release"]
    shuffled = reference_of(lambda: [chunk._replace(times=None)], rows=number)
    assert doubts(shuffled, window_h=None) == []


@pytest.mark.parametrize(
    ("slices", "message"),
    [({"hue": ["red"]}, "'hue'"), ({"colour": [1]}, "string"), ({"length": [True]}, "float")],
)
def test_a_slice_that_no_row_can_be_in_is_refused(both, slices, message):
    with pytest.raises(UsageError, match=message):
        references(both[1], both[1].recipe.model().eval(), batch_size=50, device="cpu", slices=slices)


def test_a_shuffled_table_has_no_blocks_which_is_logged(both, caplog):
    found = references(both[1], both[1].recipe.model().eval(), batch_size=50, device="cpu")
    assert found["features"].blocks is None
    assert "row_times" in caplog.text


class Asked(Tiny):
    """Writes down how many rows each call of ``predict`` gets."""

    rows: ClassVar[list[int]] = []

    def predict(self, model, batch):
        self.rows.append(len(batch["colour"]))
        return super().predict(model, batch)


def test_references_ask_for_few_rows_in_batches(monkeypatch):
    """Of 39,999 rows one of each three is answered, in batches of 4,096; the features of all are counted.

    Then each of three inputs is exchanged in 1,000 rows.
    """
    monkeypatch.setattr(Asked, "rows", [])
    config = {"train_rows": 99_999, "validation_rows": 39_999}
    data = {"project": {"name": "p"}, "recipe": {"import": "tiny:Tiny", "config": config}}
    prepared = prepare(replace(bind(load_data(data)), recipe_class=Asked))
    found = references(prepared, prepared.recipe.model().eval(), batch_size=4096, device="cpu")
    assert Asked.rows == [4096] * 3 + [1045, 3000]
    matters = found["features"].influence
    assert matters.keys() == {"length", "width", "colour"}
    scored = list(dict.fromkeys(score.column for score in found["features"].layout.scores))
    assert scored == sorted(matters, key=matters.get, reverse=True)
    assert (found["features"].profile.rows, found["predictions"].profile.rows) == (99_999, 13_333)


class Answers(Tiny):
    """Answers every fourth row with infinity."""

    def decode(self, output):
        answers = super().decode(output)["probability"]
        answers[::4] = np.inf
        return {"probability": answers}


def test_a_profile_takes_answers_that_are_not_finite():
    """Whether such a model may be live is the gate's to say."""
    data = {"project": {"name": "p"}, "recipe": {"import": "tiny:Tiny", "config": {"validation_rows": 40}}}
    prepared = prepare(replace(bind(load_data(data)), recipe_class=Answers))
    found = references(prepared, prepared.recipe.model().eval(), batch_size=512, device="cpu")
    series, counts = found["predictions"].profile.series("probability")
    assert counts.sum() - counts[series.bins].sum() == 10


def test_the_sketch_of_rows_is_found_in_one_pass(both):
    """Chunk by chunk it comes to the sketch of all hashes at once."""
    _, table = both
    expected = sketch(np.concatenate([*table.splits["train"].hashes()]))
    for prepared in both:
        found, share = _sketch(prepared.splits["train"])
        assert np.array_equal(found, expected)
        assert share == 1


@pytest.mark.parametrize("recipe", ["drawn:Augmented", "drawn:Unseeded", "drawn:Masked", "drawn:Reordered"])
def test_what_was_trained_can_be_registered(storage_path, recipe):
    """Items that draw at random, buffers of infinity, and a fit that gives another state each time forfeit no run."""
    project = bind(
        load_data(
            {
                "project": {"name": "p"},
                "recipe": {"import": recipe, "config": {"train_rows": 300, "validation_rows": 100}},
                "train": {"epochs": 1, "threads_per_worker": 1},
                "storage": {"path": str(storage_path)},
            }
        )
    )
    run = train(project)
    version = register(project.spec, run.run_id)
    loaded = load(version.bundle.uri, version.bundle.digest)
    weights, state = load_weights(run.weights_uri)
    assert loaded.recipe.state == state
    assert {name: tensor.isinf().sum() for name, tensor in loaded.model.state_dict().items()} == {
        name: tensor.isinf().sum() for name, tensor in weights.items()
    }


def test_a_run_of_another_project_is_refused(tmp_path):
    """Its bundle would become a version of a model that it has nothing to do with."""
    data = {
        "project": {"name": "iris"},
        "recipe": {"import": "tiny:Tiny", "config": {"train_rows": 40, "validation_rows": 20}},
        "train": {"epochs": 1},
        "storage": {"path": str(tmp_path)},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    run = train(bind(load_data(data)), on_event=lambda _event: None)
    with pytest.raises(RefusedError, match=f"run {run.run_id} is of project iris, not of flights"):
        register({**data, "project": {"name": "flights"}}, run.run_id)


@pytest.mark.parametrize(
    ("other", "taken"), [({}, True), ({"weights_uri": "file:///other"}, False), ({"data_fingerprint": "00"}, False)]
)
def test_test_metrics_of_the_end_are_taken_where_they_are_of_these_weights(tiny_project, storage_path, other, taken):
    """Recognised by a value that no evaluation gives; of other weights or data they are computed."""
    project = tiny_project()
    run = train(project)
    mlflow = tracker(project.spec)
    at_end = json.loads(mlflow.read_text(run.run_id, AT_END))
    mlflow.log_text(run.run_id, json.dumps({**at_end, "metrics": {"test/auc": 0.125}} | other), AT_END)
    lines = []
    version = register(project.spec, run.run_id, on_line=lines.append)
    evaluation = load(version.bundle.uri, version.bundle.digest).evaluation
    expected = {"test/auc": 0.125} if taken else pytest.approx(at_end["metrics"], abs=1e-6)
    assert evaluation["metrics"] == expected
    assert set(evaluation) == {"metrics", "rows", "data_fingerprint"}
    assert mlflow.run(run.run_id).data.metrics["test/auc"] == evaluation["metrics"]["test/auc"]
    assert json.loads(mlflow.read_text(run.run_id, EVALUATION)) == evaluation
