import math

import pytest

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.errors import DataRefusedError
from raymlops.lifecycle.loop.log_labels import label_array, of_one_kind, of_type

PROBABILITY = AnswerLoss("probability", "p", ("p",), positive=True, negative=False)
NAMED = AnswerLoss("probability", "p", ("p",), positive="yes", negative="no")
NUMBER = AnswerLoss("number", "y", ("y",), scale=10.0)
CLASS = AnswerLoss("class", "c", ("c",))
VECTOR = AnswerLoss("vector", probabilities=("red", "blue"))
OWN = AnswerLoss("recipe")
NO_RULE = AnswerLoss.none("no loss")


@pytest.mark.parametrize(
    ("labels", "rule", "found"),
    [
        ([0, 1, "1", "true", "maybe", 2], PROBABILITY, [0, 1, 1, 1, None, None]),
        (["1", "0"], PROBABILITY, [1, 0]),
        (["yes", "no", True], NAMED, ["yes", "no", None]),
        ([1.5, 2, "3.5", "x", math.inf, [1]], NUMBER, [1.5, 2, 3.5, None, None, None]),
        ([0, 1, 2, "1", 3.5], CLASS, [0, 1, 2, 1, None]),
        (["1", "2", "AA", 1], CLASS, ["1", "2", "AA", "1"]),
        (["AA", "UA", 7], CLASS, ["AA", "UA", None]),
        (["red", "blue", 1, 2], VECTOR, ["red", "blue", "blue", None]),
        ([0, 1, 1, "red"], VECTOR, [0, 1, 1, 0]),
        ([[1, 2], [3], "a", None], OWN, [[1, 2], [3], None, None]),
        (["a", "b", "c", 1], NO_RULE, ["a", "b", "c", None]),
        ([1, 2.5, True, math.inf], NO_RULE, [1, 2.5, True, None]),
        ([2, 3, 2**63, -(2**70)], CLASS, [2, 3, None, None]),
        ([1.5, 10**30, 1e39, "1e39", 10**400], NUMBER, [1.5, None, None, None, None]),
        (["a", "b", "\ud800"], CLASS, ["a", "b", None]),
        ([[1], [], [1, "a"], [[1]], [True], [2**64], ["\ud800"]], OWN, [[1], [], None, None, [True], None, None]),
        ([[], [["a"], []], [["b", "c"]], []], OWN, [[], [["a"], []], [["b", "c"]], []]),
        ([], PROBABILITY, []),
    ],
)
def test_labels_of_several_kinds_become_those_of_one(labels, rule, found):
    """By the rule: a text that is a class or a number is that one; what is none of them does not count."""
    said = of_one_kind(labels, rule)
    assert said == found
    assert list(map(type, said)) == list(map(type, found))


@pytest.mark.parametrize("odd", [[1.5], [], [[1.0], [2.0]], [[1.0, 2.0], [3.0]]])
def test_lists_of_another_shape_do_not_count_where_nearly_all_are_of_one(odd):
    """A recipe that takes two pairs a row would end with it, also one of few rows; labels of any length are labels."""
    pairs = [[[1.0, 2.0], [3.0, 4.0]]] * 19
    assert of_one_kind([*pairs, odd], OWN) == [*pairs, None]


def test_lists_may_be_of_any_length():
    """As tags are: more than a few have another one."""
    ragged = [*([["a", "b"]] * 18), ["a"], []]
    assert of_one_kind(ragged, OWN) == ragged


@pytest.mark.parametrize(
    ("labels", "rule", "kind", "values"),
    [
        ([1, 0], CLASS, "int64", [1, 0]),
        ([1, 0], PROBABILITY, "double", [1.0, 0.0]),
        ([True, False], CLASS, "bool", [True, False]),
        ([True, False], PROBABILITY, "double", [1.0, 0.0]),
        ([True, 0], CLASS, "int64", [1, 0]),
        ([True, 0.5], CLASS, "double", [1.0, 0.5]),
        (["a", "b"], NAMED, "string", ["a", "b"]),
        ([[1], [], [True]], OWN, "list<item: int64>", [[1], [], [1]]),
        ([[1], [0.5]], OWN, "list<item: double>", [[1.0], [0.5]]),
        ([[True], []], OWN, "list<item: bool>", [[True], []]),
        ([["a"], []], OWN, "list<item: string>", [["a"], []]),
    ],
)
def test_labels_become_a_column_of_one_type(labels, rule, kind, values):
    """Of that which they all have; floats where losses take them."""
    found = label_array(labels, rule)
    assert (str(found.type), found.to_pylist()) == (kind, values)


def test_a_declared_type_is_that_of_the_column():
    """Labels of another type, from before it was declared, do not count; where they are many, it says what they are."""
    minutes = Column("minutes", "float")
    said = of_type([*range(20), "a"], minutes)
    assert said == [*range(20), None]
    assert str(label_array(said[:-1], OWN, minutes).type) == "double"
    with pytest.raises(DataRefusedError, match=r"1 of 2 labels .* 5% may be, such as: expected a finite number"):
        of_type([1, "a"], minutes)
