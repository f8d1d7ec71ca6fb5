"""Which labels a model accepts, by the rule that its answers are compared by, or by what the recipe declares."""

import pytest
from jsonschema import Draft202012Validator

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.errors import InvalidRowsError
from raymlops.predictions.label_type import LabelType
from raymlops.predictions.labels import parse_feedback

PROBABILITY = (AnswerLoss("probability", "late", ("p",), positive=True, negative=False), {"p": 0.3, "late": False})
TEXTS = (AnswerLoss("probability", "kind", ("p",), positive="spam", negative="ham"), {"p": 0.3, "kind": "ham"})
NUMBER = (AnswerLoss("number", "minutes", scale=10.0), {"minutes": 3.0})
DIGIT = (AnswerLoss("class", "digit"), {"digit": 3})
KIND = (AnswerLoss("class", "kind"), {"kind": "a"})
SHARES = (AnswerLoss("vector", probabilities=("a", "b")), {"a": 0.5, "b": 0.5})
OUTPUTS = (Column("kind", "string", categories=("a", "b", "c"), unknown="reject"), Column("digit", "int"))


@pytest.mark.parametrize(
    ("rule", "good", "bad", "said"),
    [
        (PROBABILITY, [1, 0, True, "false", 1.0], [2, "late", [1]], "1 or 0"),
        (TEXTS, ["spam", "ham"], ["sapm", 1], "'spam' or 'ham'"),
        (NUMBER, [1, 2.5, "3"], ["soon", True, [1.0]], "a number"),
        (DIGIT, [0, 9, 3.0], [1.5, "three", [3]], "its number from 0"),
        (KIND, ["a", "c"], [[1], True], "a class, as text"),
        (SHARES, [0, 1, "a", "b"], [2, "c", -1], "one of a, b"),
    ],
    ids=["probability", "texts", "number", "digit", "kind", "shares"],
)
def test_a_label_is_what_answers_can_be_compared_with(rule, good, bad, said):
    """Anything else would never count; why is said."""
    loss, answer = rule
    kind = LabelType(None, loss, OUTPUTS, answer)
    assert [label for label in good if kind.problem(label) is not None] == []
    for label in bad:
        assert said in kind.problem(label)
    assert said in kind.expected
    accepted, example = Draft202012Validator(kind.schema()), kind.example
    assert accepted.is_valid(example)
    assert kind.problem(example) is None
    assert [
        label
        for label in (*range(-3, 12), "a", "spam", "x", True, 1.5)
        if kind.problem(label) and accepted.is_valid(label)
    ] == []


def test_a_class_that_no_answer_can_be_is_unknown():
    """Where the signature lists the classes."""
    kind = LabelType(None, *KIND[:1], OUTPUTS, KIND[1])
    assert kind.problem("d") == "unknown class 'd'; known: a, b, c"


@pytest.mark.parametrize("loss", [None, AnswerLoss("recipe"), AnswerLoss.none("two outputs")])
def test_without_a_rule_every_label_is_accepted(loss):
    """The recipe's own loss_of alone knows what it takes."""
    kind = LabelType(None, loss, OUTPUTS, {"kind": "a"})
    assert [kind.problem(label) for label in (1, "x", [1, "y"], True)] == [None] * 4


@pytest.mark.parametrize(
    ("column", "good", "bad", "said"),
    [
        (Column("m", "float"), [1, 2.5], ["2.5", True, [1], 1e30], "expected a finite number"),
        (Column("c", "string", categories=("x", "y"), unknown="reject"), ["x"], ["z", 1], "known: x, y"),
        (Column("t", "float", shape=(2,)), [[1, 2]], [[1], 1, ["a", "b"]], "shape (2)"),
    ],
)
def test_a_recipe_declares_what_it_wants(column, good, bad, said):
    """By a column, whatever its answers are compared by."""
    kind = LabelType(column, *NUMBER[:1], OUTPUTS, NUMBER[1])
    assert [label for label in good if kind.problem(label) is not None] == []
    assert all(kind.problem(label) is not None for label in bad)
    assert said in kind.problem(bad[0])


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (2**63, r"a number beyond 2\^63"),
        ([1, [-(2**63) - 1]], r"a number beyond 2\^63"),
        (1e20, r"a number beyond 2\^63"),
        (["a", "\ud800"], "half of a surrogate pair"),
    ],
)
def test_what_no_column_holds_is_no_label(label, said):
    """One such label would end each training on the log."""
    with pytest.raises(InvalidRowsError, match=said):
        parse_feedback({"labels": [{"request_id": "q", "label": label}]})


def test_feedback_says_which_label_is_wrong():
    """With its place; nothing of the request is kept."""
    data = {"labels": [{"request_id": "a", "label": 1}, {"request_id": "b", "label": "late"}]}
    with pytest.raises(InvalidRowsError) as refused:
        parse_feedback(data, kind=LabelType(None, PROBABILITY[0], (), PROBABILITY[1]))
    (problem,) = refused.value.problems
    assert (problem.row, problem.field) == (1, "label")
    assert problem.message.endswith("expected 1 or 0, also as true or false")
