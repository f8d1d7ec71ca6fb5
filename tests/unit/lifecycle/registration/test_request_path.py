"""A version is asked as its callers will ask it before it passes its gate."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import Tiny, make_table
from tiny_bundle import EXAMPLE, loaded

from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.lifecycle.registration.request_path import answers_requests, rows_of


def version(**methods):
    """Return a version of the tiny recipe, untrained, with some of its methods replaced."""
    recipe_class = type("Broken", (Tiny,), methods)
    recipe = recipe_class(Tiny.Config(train_rows=50, hidden=4))
    recipe = recipe_class(recipe.config, state=recipe.fit(recipe.datasets().train))
    torch.manual_seed(0)
    return loaded(recipe, recipe.model())


def split(rows=120):
    table = make_table(rows, seed=3)
    return SimpleNamespace(sample=lambda about_rows: table)


def asked(**methods):
    candidate = version(**methods)
    return answers_requests(candidate, rows_of(candidate, split()), batch_size=50)


def test_a_version_that_answers_passes():
    """Its two example rows and 120 of validation, missing values among them."""
    check = asked()
    assert (check.passed, check.got, check.allowed) == (True, 122.0, "122 rows answered as the signature says")


def test_at_most_256_rows_are_asked_and_examples_alone_where_there_is_no_table():
    candidate = version()
    assert len(rows_of(candidate, split(1000))) == 258
    assert rows_of(candidate, None) == EXAMPLE
    assert rows_of(candidate, SimpleNamespace(sample=lambda about_rows: None)) == EXAMPLE


def raises(self, output):
    return torch.zeros(2, 3) @ torch.zeros(2, 3)  # torch's line says nothing to the recipe's author


@pytest.mark.parametrize(
    ("decode", "reason"),
    [
        (raises, r"RecipeError: Broken.decode\(\) raised RuntimeError: .* at .*test_request_path.py:\d+"),
        (lambda self, output: {}, "the signature's outputs are probability"),
        (lambda self, output: {"probability": output.numpy() * np.nan}, "NonFiniteError: .* is nan"),
        (lambda self, output: {"probability": np.array(["much"] * len(output))}, "the signature says float"),
        (lambda self, output: {"probability": output.numpy()[:1]}, "1 values for 50 rows"),
    ],
)
def test_a_version_that_does_not_answer_is_refused_with_the_reason(decode, reason):
    """Whatever its metrics are: they never touch predict and decode."""
    check = asked(decode=decode)
    assert (check.passed, check.got) == (False, None)
    assert re.search(reason, check.detail, re.DOTALL), check.detail


def test_rows_that_a_recipe_refuses_are_answers():
    """A row with the wrong colour gets its reason, as a caller would; the rest of them are answered."""

    def encode(self, columns):
        if "blue" in columns["colour"].tolist():
            raise InvalidRowsError([RowProblem(0, "colour", "is out of season")])
        return Tiny.encode(self, columns)

    check = asked(encode=encode)
    assert check.passed
    assert 0 < check.got < 122


def test_a_version_that_refuses_every_row_is_refused():
    def encode(self, columns):
        raise InvalidRowsError([RowProblem(0, "colour", "is out of season")])

    check = asked(encode=encode)
    assert (check.passed, check.got, check.detail) == (False, 0.0, "the recipe rejects 122 of them")


@pytest.mark.parametrize(("lengths", "passes"), [(10, True), (70, False)])
def test_a_version_that_refuses_most_rows_is_refused(lengths, passes):
    """Its metrics are those of rows which callers get no answer to."""
    limit = np.quantile(make_table(120, seed=3)["length"], 1 - lengths / 100)

    def encode(self, columns):
        if (columns["length"] > limit).any():
            raise InvalidRowsError([RowProblem(0, "length", "is too long")])
        return Tiny.encode(self, columns)

    check = asked(encode=encode)
    assert check.passed is passes
    assert re.fullmatch(r"the recipe rejects \d+ of them", check.detail)
