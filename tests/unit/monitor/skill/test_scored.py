import math

import numpy as np
import pytest

from raymlops.answer_loss import AnswerLoss
from raymlops.monitor import quality
from raymlops.monitor.skill.scored import (
    SCORES,
    auc_of,
    base_by_class,
    believed,
    came_true,
    histogram,
    log_loss,
    metrics_of,
    score,
)

CHANCE = AnswerLoss("probability", "yes", ("p",), positive=True, negative=False)
VECTOR = AnswerLoss("vector", probabilities=("a", "b", "c"))
CLASS = AnswerLoss("class", "kind", ("p",))


def test_metrics_are_those_that_answers_have():
    """AUC of one probability of two classes alone."""
    assert metrics_of(CHANCE) == ("loss", "log_loss", "auc")
    assert metrics_of(VECTOR) == ("loss", "log_loss")
    assert metrics_of(AnswerLoss("number", "x", scale=1.0)) == ("loss",)
    assert metrics_of(AnswerLoss.none("why")) == ()


@pytest.mark.parametrize(
    ("rule", "output", "label", "chance"),
    [
        (CHANCE, {"p": 0.25, "yes": False}, 1, 0.25),
        (CHANCE, {"p": 0.25, "yes": False}, False, 0.75),
        (CHANCE, {"p": 0.0, "yes": False}, 1, 1e-7),
        (VECTOR, {"a": 0.5, "b": 0.3, "c": 0.2}, "b", 0.3),
    ],
)
def test_log_loss_is_of_the_probability_of_the_label(rule, output, label, chance):
    assert log_loss(rule, output, label) == pytest.approx(-math.log(chance))


def test_what_cannot_be_compared_has_no_log_loss():
    """A label that is none, or an output that is missing."""
    assert log_loss(CHANCE, {"p": 0.5, "yes": True}, "maybe") is None
    assert log_loss(CHANCE, {"yes": True}, 1) is None
    assert log_loss(VECTOR, {"a": 0.5, "b": 0.3, "c": 0.2}, 7) is None


@pytest.mark.parametrize("label", [0, 1])
def test_what_an_answer_expects_is_its_loss(label):
    """Of two classes the losses if true and if false are those of the rule."""
    output = {"p": 0.7, "yes": True}
    said = believed(CHANCE, output)
    assert came_true(CHANCE, output, label) is bool(label)
    assert (said.if_true if label else said.if_false) == pytest.approx(CHANCE.of(output, label))


def test_of_several_classes_the_others_are_expected_as_the_answer_does():
    """.5, .3, .2: right .19; wrong .69 - .3 or .69 - .2, three to two."""
    output = {"a": 0.5, "b": 0.3, "c": 0.2}
    said = believed(VECTOR, output)
    assert said.confidence == 0.5
    assert said.if_true == pytest.approx(VECTOR.of(output, "a"))
    wrong = [VECTOR.of(output, name) for name in ("b", "c")]
    assert said.if_false == pytest.approx((3 * wrong[0] + 2 * wrong[1]) / 5)
    assert came_true(VECTOR, output, "a")
    assert not came_true(VECTOR, output, "b")


def test_a_class_with_its_probability_is_right_or_wrong():
    """By its own rule."""
    output = {"kind": "x", "p": 0.8}
    said = believed(CLASS, output)
    assert (said.if_true, said.if_false) == pytest.approx((CLASS.of(output, "x"), CLASS.of(output, "y")))
    assert came_true(CLASS, output, "x")
    assert not came_true(CLASS, output, "y")


def test_an_answer_has_one_number():
    """A probability, how sure it is, a number; none where it is null."""
    assert score(CHANCE, {"p": 0.3, "yes": False}) == 0.3
    assert score(VECTOR, {"a": 0.5, "b": 0.3, "c": 0.2}) == 0.5
    assert score(AnswerLoss("number", "x", scale=1.0), {"x": -3}) == -3.0
    assert math.isnan(score(CHANCE, {"p": None, "yes": False}))


def test_the_base_rate_has_a_loss_by_class():
    """Of a quarter: .0625 and .5625 by Brier; the likelier class with its probability; that class; its logarithm."""
    shares = np.array([0.75, 0.25])
    assert base_by_class(CHANCE, "loss", shares) == pytest.approx([0.0625, 0.5625])
    assert base_by_class(CLASS, "loss", shares) == pytest.approx([0.03125, 0.78125])
    assert base_by_class(AnswerLoss("class", "kind"), "loss", shares).tolist() == [0.0, 1.0]
    assert base_by_class(CHANCE, "log_loss", shares) == pytest.approx([-math.log(0.75), -math.log(0.25)])
    assert base_by_class(AnswerLoss("recipe"), "loss", shares) is None


def test_auc_is_that_of_the_scores():
    """To within the width of a bin."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 5000)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    sums = np.zeros((1, 2, SCORES))
    np.add.at(sums, (0, labels, histogram(scores)), 1)
    assert auc_of(sums)[0] == pytest.approx(quality.auc(scores, labels), abs=0.002)
    assert math.isnan(auc_of(np.zeros((1, 2, SCORES)))[0])
