from __future__ import annotations

import json
import math

import numpy as np
import pytest

from raymlops.answer_loss import AnswerLoss, declared, fitted
from raymlops.arrays import Column
from raymlops.signature import Signature

NORMAL = np.random.default_rng(0).normal(size=4000)


def gives(*outputs):
    return Signature(inputs=(Column("x", "float"),), outputs=outputs)


FLIGHTS = gives(Column("probability", "float"), Column("late", "bool"))
DIGITS = gives(Column("digit", "int"), Column("probability", "float"))
KINDS = gives(Column("kind", "string"), Column("p", "float", shape=(3,)))
PRICE = gives(Column("price", "float"))
KNOWN = np.array([0.9, 0.6, 0.2, 0.4])


def flights():
    """The rule of answers like those of the flights recipe."""
    return fitted(FLIGHTS, {"probability": KNOWN, "late": KNOWN >= 0.5}, np.array([1.0, 0.0, 0.0, 1.0]))


def digits():
    return fitted(DIGITS, {"digit": np.array([3, 4, 9]), "probability": np.array([0.9, 0.3, 0.6])}, np.array([3, 4, 8]))


def kinds():
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]])
    return fitted(KINDS, {"kind": np.array(["a", "b"], object), "p": shares}, np.array(["a", "c"], object))


def price(scale=1.0):
    """The rule of a champion with errors of standard deviation `scale`."""
    return fitted(PRICE, {"price": NORMAL * scale}, np.zeros(len(NORMAL)))


@pytest.mark.parametrize("label", [1, True, "1", "true", 1.0, " True "])
def test_a_probability_costs_the_less_the_nearer_it_is(label):
    """0.01 squared, 0.49 squared, 0.99 squared: 1, true and "1" say that it was late."""
    losses = [flights().of({"probability": p, "late": p >= 0.5}, label) for p in (0.99, 0.51, 0.01)]
    assert losses == pytest.approx([0.0001, 0.2401, 0.9801])


@pytest.mark.parametrize("label", [0, False, "0", "false"])
def test_the_other_class_is_0_or_false(label):
    assert flights().of({"probability": 0.8, "late": True}, label) == pytest.approx(0.64)


@pytest.mark.parametrize("label", [3, "3", 3.0])
def test_label_3_means_class_3(label):
    """(1 - 0.9)^2 / 2 where it was answered, (1 + 0.9^2) / 2 where another was."""
    assert digits().of({"digit": 3, "probability": 0.9}, label) == pytest.approx(0.005)
    assert digits().of({"digit": 5, "probability": 0.9}, label) == pytest.approx(0.905)


def test_labels_0_and_1_of_ten_classes_are_classes():
    assert digits().of({"digit": 1, "probability": 0.9}, 1) == pytest.approx(0.005)
    assert digits().of({"digit": 0, "probability": 0.9}, 1) == pytest.approx(0.905)


def test_a_text_beside_a_vector_has_its_largest_probability():
    """0.3^2 / 2 and (1 + 0.7^2) / 2; an index asks the vector: (0.7^2 + 0.2^2 + 0.9^2) / 2."""
    answer = {"kind": "a", "p": [0.7, 0.2, 0.1]}
    assert kinds().of(answer, "a") == pytest.approx(0.045)
    assert kinds().of(answer, "b") == pytest.approx(0.745)
    assert kinds().of(answer, 2) == pytest.approx(0.67)


@pytest.mark.parametrize("signature", [gives(Column("kind", "string")), gives(Column("grade", "int"))])
def test_a_class_alone_is_right_or_wrong(signature):
    (column,) = signature.outputs
    right, wrong = ("a", "b") if column.type == "string" else (4, 5)
    rule = fitted(signature, {column.name: np.array([right, wrong])}, None)
    assert (rule.of({column.name: right}, right), rule.of({column.name: right}, wrong)) == (0.0, 1.0)


@pytest.mark.parametrize(
    "signature",
    [
        gives(Column("a", "float"), Column("b", "float"), Column("c", "float")),
        gives(Column("p", "float", shape=(3,))),
    ],
)
def test_probabilities_alone_cost_half_the_squared_distance(signature):
    """By index, and by name where each has a column: (0.3^2 + 0.2^2 + 0.1^2) / 2."""
    named = len(signature.outputs) == 3
    values = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]])
    answers = dict(zip("abc", values.T, strict=True)) if named else {"p": values}
    rule = fitted(signature, answers, np.array([0, 1]))
    answer = {"a": 0.7, "b": 0.2, "c": 0.1} if named else {"p": [0.7, 0.2, 0.1]}
    for label in (0, "0", *(["a"] if named else [])):
        assert rule.of(answer, label) == pytest.approx(0.07)
    assert rule.of(answer, 3) is None
    assert rule.of(answer, True) is None


@pytest.mark.parametrize("unit", [1e5, 1.0, 1e-3])
def test_the_errors_of_a_number_are_measured_by_the_champions(unit):
    """Whatever the unit: the 95% quantile of |N(0, 1)| is 1.96, so that half of it costs 0.5, and twice as much 1."""
    rule = price(unit)
    assert rule.scale == pytest.approx(1.96 * unit, rel=0.03)
    costs = [rule.of({"price": 3.0 * unit}, 3.0 * unit + share * rule.scale) for share in (0.0, 0.5, 2.0)]
    assert costs == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("unit", [1e5, 1e-3])
def test_errors_of_93_cost_more_than_errors_of_53(unit):
    """Root mean squares of 53.4 and 93.7: of |N|, clipped at 1.96 of the champion's, the means are 0.40 and 0.60."""
    rule = price(53.4 * unit)
    means = [np.mean([rule.of({"price": rms * unit * z}, 0.0) for z in NORMAL]) for rms in (53.4, 93.7)]
    assert means == pytest.approx([0.40, 0.60], abs=0.01)


@pytest.mark.parametrize(
    ("rule", "output", "label"),
    [
        (flights(), {"probability": 0.5, "late": True}, "late"),
        (flights(), {"probability": 0.5, "late": True}, 3),
        (flights(), {"probability": 0.5, "late": True}, {"late": 1}),
        (flights(), {"probability": 0.5, "late": True}, None),
        (flights(), {"late": True}, 1),
        (digits(), {"digit": 3, "probability": 0.9}, True),
        (digits(), {"digit": 3, "probability": 0.9}, 3.5),
        (digits(), {"digit": 3, "probability": 0.9}, "three"),
        (kinds(), {"kind": "a", "p": [0.7, 0.2, 0.1]}, 3),
        (kinds(), {"kind": "a", "p": [0.7, 0.2, 0.1]}, ["a"]),
        (price(), {"price": 1.0}, "much"),
        (price(), {"price": 1.0}, True),
        (price(), {"price": 1.0}, 10**400),
        (AnswerLoss.none("why"), {"price": 1.0}, 1.0),
    ],
)
def test_what_cannot_be_compared_has_no_loss(rule, output, label):
    """A label of another kind, a tensor, a column that was redacted."""
    assert rule.of(output, label) is None


@pytest.mark.parametrize(
    ("rule", "output", "label"),
    [
        (flights(), {"probability": None, "late": None}, 1),
        (kinds(), {"kind": None, "p": [0.4, 0.3, 0.3]}, "a"),
        (price(), {"price": None}, 1.0),
    ],
)
def test_no_answer_costs_1(rule, output, label):
    """Else a version that is null where it would be wrong were the best."""
    assert rule.of(output, label) == 1.0


def test_probabilities_outside_0_to_1_cost_at_most_1():
    assert flights().of({"probability": 7.0, "late": True}, 0) == 1.0
    assert digits().of({"digit": 3, "probability": 7.0}, 4) == 1.0
    assert kinds().of({"kind": "a", "p": [0.7, -1e300, 1e308]}, 0) == 1.0


def test_the_probability_of_the_answered_class_is_told_from_that_of_true():
    """At least one half wherever false was answered: it is the answer's own, and 0.9 for false is far from true."""
    own = {"probability": np.array([0.9, 0.6, 0.8]), "late": np.array([True, False, False])}
    rule = fitted(FLIGHTS, own, np.array([True, False, False]))
    assert rule.kind == "class"
    assert rule.of({"probability": 0.9, "late": False}, 0) == pytest.approx(0.005)
    assert rule.of({"probability": 0.9, "late": False}, "true") == pytest.approx(0.905)


def test_the_probability_of_one_of_two_texts_is_found():
    signature = gives(Column("spam", "float"), Column("kind", "string"))
    scores = np.array([0.9, 0.7, 0.1])
    answers = {"spam": scores, "kind": np.where(scores > 0.5, "spam", "ham").astype(object)}
    rule = fitted(signature, answers, np.array(["spam", "ham", "ham"], object))
    assert (rule.kind, rule.positive) == ("probability", "spam")
    assert rule.of({"spam": 0.9, "kind": "spam"}, "ham") == pytest.approx(0.81)
    assert rule.of({"spam": 0.9, "kind": "spam"}, "eggs") is None


def test_a_number_with_labels_0_and_1_is_a_probability():
    score = gives(Column("score", "float"))
    rule = fitted(score, {"score": np.array([0.1, 0.9])}, np.array([0, 1]))
    assert rule.of({"score": 0.9}, True) == pytest.approx(0.01)
    assert fitted(score, {"score": np.array([0.1, 2.0])}, np.array([0, 1])).kind == "number"


@pytest.mark.parametrize(("far", "kind"), [(1, "number"), (2, "none"), (20, "none")])
def test_errors_beyond_the_largest_number_are_no_scale(far, kind):
    """Of 20 rows the 95% quantile lies between the two largest errors; with one of them it is finite, and JSON."""
    answers = np.where(np.arange(20) < far, 1.7e308, 1.0)
    rule = fitted(PRICE, {"price": answers}, np.where(answers > 1, -1.7e308, 0.0))
    assert rule.kind == kind
    assert AnswerLoss.from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False))) == rule
    if kind == "number":
        assert rule.of({"price": 1.7e308}, -1.7e308) == 1.0
    else:
        assert rule.reason.startswith("'price' differs from more than 5% of the validation labels by more than")


@pytest.mark.parametrize("scale", [None, math.inf])
def test_a_stored_rule_without_a_finite_scale_says_so(scale):
    """Bundles have null for an infinite one: no answer would ever have a loss, and nothing would say why."""
    rule = AnswerLoss.from_dict({"kind": "number", "output": "price", "scale": scale})
    assert rule == AnswerLoss.none("the bundle has no finite scale for the errors of 'price'; register its run again")


def test_an_integer_with_labels_between_is_a_number():
    rule = fitted(gives(Column("minutes", "int")), {"minutes": np.array([3, 7])}, np.array([3.5, 7.5]))
    assert (rule.kind, rule.scale) == ("number", 0.5)


def test_labels_are_compared_with_the_output_of_their_name():
    """A class beside a number says little of labels that are numbers, be some of them 0 or 1."""
    signature = gives(Column("progress", "float"), Column("severe", "bool"))
    answers = {"progress": np.array([90.0, 210.0, 3.0]), "severe": np.array([False, True, False])}
    rule = fitted(signature, answers, np.array([100.0, 205.0, 1.0]), label="progress")
    assert (rule.kind, rule.output, rule.columns) == ("number", "progress", ("progress",))
    assert rule.of({"progress": 100.0, "severe": False}, 100.0) == 0
    two = gives(Column("a", "int"), Column("b", "string"))
    found = fitted(two, {"a": np.array([3, 4]), "b": np.array(["x", "y"], object)}, np.array([3, 5]), label="a")
    assert (found.kind, found.output) == ("class", "a")
    late = {"probability": KNOWN, "late": KNOWN >= 0.5}
    for label in ("late", "probability"):  # a probability is still one
        assert fitted(FLIGHTS, late, np.array([1.0, 0.0, 0.0, 1.0]), label=label) == flights()


@pytest.mark.parametrize(
    ("signature", "answers", "labels", "reason"),
    [
        (PRICE, {"price": np.ones(3)}, None, "no labels to measure its errors by"),
        (PRICE, {"price": np.ones(3)}, np.ones(3) * 1.0, "probability"),
        (PRICE, {"price": np.full(3, 7.0)}, np.full(3, 7.0), "has no errors on validation rows"),
        (PRICE, {"price": np.ones(3)}, np.array(["a", "b", "c"], object), "the validation labels are not"),
        (gives(Column("x", "float"), Column("y", "float")), {"x": np.ones(2), "y": np.ones(2)}, None, "neither"),
        (gives(Column("e", "float", shape=(4,))), {"e": np.ones((2, 4))}, None, "neither a class"),
        (gives(Column("a", "int"), Column("b", "string")), {}, None, "several outputs are classes: a, b"),
        (
            gives(Column("kind", "string")),
            {"kind": np.array(["a"], object)},
            np.array([3]),
            "labels such as 3 cannot be compared",
        ),
    ],
)
def test_what_fits_none_says_why(signature, answers, labels, reason):
    rule = fitted(signature, answers, labels)
    if reason == "probability":
        assert rule.kind == reason
    else:
        assert (rule.kind, reason in rule.reason) == ("none", True), rule


def test_a_signature_alone_gives_what_needs_no_scale():
    """Of bundles without a rule: what a number beside a class means is not known, but beside true and false."""
    assert declared(FLIGHTS).of({"probability": 0.9, "late": True}, "1") == pytest.approx(0.01)
    assert declared(DIGITS).of({"digit": 3, "probability": 0.2}, 3) == 0.0
    assert declared(KINDS).of({"kind": "a", "p": [0.7, 0.2, 0.1]}, "b") == 1.0
    shares = {"a": 0.7, "b": 0.2, "c": 0.1}
    assert declared(gives(*(Column(name, "float") for name in shares))).of(shares, "a") == pytest.approx(0.07)
    assert "no scale of its errors was kept" in declared(PRICE).reason


@pytest.mark.parametrize("rule", [flights(), digits(), kinds(), price(), AnswerLoss.none("why")])
def test_a_rule_is_json(rule):
    assert AnswerLoss.from_dict(json.loads(json.dumps(rule.to_dict(), allow_nan=False))) == rule


def test_a_rule_of_a_newer_raymlops_gives_no_losses():
    rule = AnswerLoss.from_dict({"kind": "pinball", "tau": 0.9, "output": "price"})
    assert rule.of({"price": 1.0}, 1.0) is None
    assert "'pinball'" in rule.reason


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_true_probability_of_the_class_is_the_cheapest(p):
    """In the mean, of answers that are right with probability p: it costs (1 - p^2) / 2, and others cost more."""

    def mean(claimed):
        answer = {"digit": 3, "probability": claimed}
        return p * digits().of(answer, 3) + (1 - p) * digits().of(answer, 4)

    claims = np.linspace(0, 1, 101)
    assert claims[np.argmin([mean(claim) for claim in claims])] == pytest.approx(p)
    assert math.isclose(mean(p), (1 - p**2) / 2)
