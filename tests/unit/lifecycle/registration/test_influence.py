"""How much answers depend on each input: known functions, and recipes that do not answer every row."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from raymlops.arrays import Column
from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.lifecycle.registration.influence import influence
from raymlops.recipe import RecipeBase
from raymlops.signature import Signature


def recipe_of(function, inputs, outputs):
    """Return a recipe whose answers are a function of its columns, and the numbers of rows it is asked for."""
    asked = []

    class Known(RecipeBase):
        def signature(self):
            return Signature(tuple(inputs), tuple(outputs))

        def encode(self, columns):
            return columns

        def predict(self, _model, batch):
            asked.append(len(next(iter(batch.values()))))
            return function(batch)

        def decode(self, output):
            return output

    return Known(), asked


def measure(function, columns, outputs, *, kinds=None, batch_size=4096):
    inputs = [Column(name, (kinds or {}).get(name, "float")) for name in columns]
    recipe, asked = recipe_of(function, inputs, outputs)
    model = nn.Identity()
    rows = dict(columns)
    found = influence(recipe, model, rows, function(rows), batch_size=batch_size, device="cpu")
    return found, asked


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=3000) for name in "abc"}


SCORE = [Column("score", "float")]


def test_what_alone_decides_is_1_and_what_does_not_matter_is_0(table):
    """Also through a function with tails that squared differences of values would be ruled by."""
    found, asked = measure(lambda rows: {"score": np.exp(5 * rows["a"])}, table, SCORE)
    assert found == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert asked == [3000]


def test_a_share_is_that_of_the_variance(table):
    """2a + b has the variances 4 and 1, of normal numbers with nearly linear ranks: .8 and .2."""
    found, _ = measure(lambda rows: {"score": 2 * rows["a"] + rows["b"]}, table, SCORE)
    assert found["a"] == pytest.approx(0.8, abs=0.06)
    assert found["b"] == pytest.approx(0.2, abs=0.06)
    assert found["c"] == 0


def test_outputs_of_every_kind_are_compared(table):
    """Texts by whether they differ, tensors by element, ragged ones by their moments; shares are averaged."""
    table["t"] = np.array(["x", "yy", "zzz"] * 1000, object)

    def function(rows):
        ragged = np.empty(len(rows["a"]), object)
        for at, value in enumerate(rows["b"]):
            ragged[at] = np.full(2, value)
        return {"text": rows["t"], "many": np.stack([rows["a"], rows["a"] * 0], axis=1), "ragged": ragged}

    outputs = [Column("text", "string"), Column("many", "float", shape=(2,)), Column("ragged", "float", shape=(None,))]
    found, _ = measure(function, table, outputs, kinds={"t": "string"})
    assert found == {name: pytest.approx(1 / 3, abs=1e-4) for name in "abt"} | {"c": 0}


def test_missing_answers_are_answers(table):
    """Not a number is one more value, behind all others."""
    found, _ = measure(lambda rows: {"score": np.where(rows["a"] > 0, np.nan, rows["a"])}, table, SCORE)
    assert found == {"a": 1.0, "b": 0.0, "c": 0.0}


def test_rows_that_the_recipe_rejects_do_not_count(table, caplog):
    """Exchanged rows may be none that anybody sends; an input of which hardly one is answered is left out."""
    table["b"] = table["a"] + 1

    def function(rows):
        if (rows["a"] > rows["b"] + 1).any():
            raise InvalidRowsError([RowProblem(0, "b", "begins after its end")])
        if (rows["c"] != rows["d"]).any():
            raise InvalidRowsError([RowProblem(0, "d", "is another")])
        return {"score": rows["a"]}

    table["d"] = table["c"]
    found, _ = measure(function, table, SCORE)
    assert found.keys() == {"a", "b"}
    assert found["b"] == 0
    assert "answers depend on d is not known" in caplog.text


def test_a_recipe_that_raises_leaves_one_input_out(table, caplog):
    def function(rows):
        if (rows["b"] != rows["c"]).any():
            raise KeyError("no such pair")
        return {"score": rows["a"]}

    table["c"] = table["b"]
    found, _ = measure(function, table, SCORE)
    assert found == {"a": 1.0}
    assert "no such pair" in caplog.text


def test_many_inputs_are_exchanged_in_few_rows_each():
    """500 inputs in 50 rows: 25,000 answers, in batches; those that matter are found."""
    rng = np.random.default_rng(2)
    columns = {f"x{at}": rng.normal(size=300) for at in range(500)}
    found, asked = measure(lambda rows: {"score": rows["x7"] + rows["x8"]}, columns, SCORE)
    assert sum(asked) == 25_000
    assert max(asked) <= 4096
    assert [name for name, value in found.items() if value] == ["x7", "x8"]


def test_a_single_input_decides_alone_and_nothing_is_asked():
    assert measure(lambda rows: {"score": rows["a"]}, {"a": np.arange(50.0)}, SCORE) == ({"a": 1.0}, [])


@pytest.mark.parametrize(("rows", "value", "why"), [(19, 1.0, "19 rows, 20 are needed"), (30, 0.0, "all of 30")])
def test_what_cannot_be_measured_is_said(rows, value, why, caplog):
    columns = {"a": np.arange(rows) * 1.0}
    assert measure(lambda each: {"score": each["a"] * value}, columns, SCORE)[0] == {}
    assert why in caplog.text
