"""Parameters are drawn in an order that conditions allow, from the distributions that were written."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from raymlops.config.space import parse_distribution
from raymlops.tuning.search_space import draw, draw_order


def space(**written):
    return {key: parse_distribution(value) for key, value in written.items()}


MOMENTUM = {"float": [0.5, 0.99], "when": {"optimizer": ["sgd", "rmsprop"]}}
NESTEROV = {"categorical": [True, False], "when": {"momentum": 0.9}}


def drawn(parameters, values):
    trial = FixedTrial(values)
    params = draw(trial, parameters, order=draw_order(parameters))
    return params, trial.distributions


def test_a_parameter_comes_after_the_one_it_depends_on():
    parameters = space(momentum=MOMENTUM, lr={"float": [0, 1]}, optimizer={"categorical": ["sgd", "adam"]})
    assert draw_order(parameters) == ("lr", "optimizer", "momentum")


@pytest.mark.parametrize(("optimizer", "exists"), [("sgd", True), ("adam", False)])
def test_a_condition_decides_whether_a_parameter_exists(optimizer, exists):
    parameters = space(optimizer={"categorical": ["sgd", "adam"]}, momentum=MOMENTUM)
    params, _ = drawn(parameters, {"optimizer": optimizer, "momentum": 0.9})
    assert ("momentum" in params) is exists


def test_a_parameter_whose_parent_does_not_exist_does_not_exist():
    parameters = space(optimizer={"categorical": ["sgd", "adam"]}, momentum=MOMENTUM, nesterov=NESTEROV)
    params, _ = drawn(parameters, {"optimizer": "adam", "momentum": 0.9, "nesterov": True})
    assert params == {"optimizer": "adam"}


def test_true_is_not_one():
    parameters = space(flag={"categorical": [True, False]}, extra={"int": [1, 3], "when": {"flag": 1}})
    assert drawn(parameters, {"flag": True, "extra": 2})[0] == {"flag": True}


def test_each_word_becomes_its_distribution():
    parameters = space(
        lr={"float": [1e-5, 0.1], "log": True},
        drop={"float": [0, 0.5], "step": 0.1},
        hidden={"int": [16, 256], "log": True},
        layers={"int": [2, 8], "step": 2},
        kind={"categorical": ["a", None, 3]},
    )
    params, distributions = drawn(parameters, {"lr": 0.01, "drop": 0.2, "hidden": 64, "layers": 4, "kind": None})
    assert params == {"lr": 0.01, "drop": 0.2, "hidden": 64, "layers": 4, "kind": None}
    assert distributions == {
        "lr": FloatDistribution(1e-5, 0.1, log=True),
        "drop": FloatDistribution(0.0, 0.5, step=0.1),
        "hidden": IntDistribution(16, 256, log=True),
        "layers": IntDistribution(2, 8, step=2),
        "kind": CategoricalDistribution(("a", None, 3)),
    }


@pytest.mark.parametrize(
    ("condition", "rates"),
    [
        ({"max": 0.01}, {0.001, 0.01}),
        ({"min": 0.01}, {0.01, 0.1}),
        ({"min": 0.005, "max": 0.05}, {0.01}),
    ],
)
def test_a_condition_may_be_an_interval_which_holds_its_ends(condition, rates):
    parameters = space(warmup={"int": [1, 9], "when": {"lr": condition}}, lr={"float": [1e-4, 1]})
    assert draw_order(parameters) == ("lr", "warmup")
    found = {rate for rate in (0.001, 0.01, 0.1) if "warmup" in drawn(parameters, {"lr": rate, "warmup": 3})[0]}
    assert found == rates


def test_true_is_not_in_an_interval():
    parameters = space(flag={"categorical": [True, 2]}, extra={"int": [1, 3], "when": {"flag": {"min": 0}}})
    assert drawn(parameters, {"flag": True, "extra": 2})[0] == {"flag": True}
    assert drawn(parameters, {"flag": 2, "extra": 2})[0] == {"flag": 2, "extra": 2}


def test_a_list_is_drawn_as_its_json_text():
    """Optuna stores scalars alone. What is written of the space is the list."""
    written = {
        "sizes": {"categorical": [[64, 64], [128], "[1]"]},
        "drop": {"float": [0.0, 0.5], "when": {"sizes": [[64, 64], [128]]}},
    }
    parameters = space(**written)
    params, distributions = drawn(parameters, {"sizes": "[64, 64]", "drop": 0.25})
    assert params == {"sizes": "[64, 64]", "drop": 0.25}
    assert distributions["sizes"] == CategoricalDistribution(("[64, 64]", "[128]", "[1]"))
    sizes = parameters["sizes"]
    assert [sizes.written(choice) for choice in sizes.choices] == [[64, 64], [128], "[1]"]
    again = space(**{key: found.model_dump(mode="json") for key, found in parameters.items()})
    assert again == parameters
    assert parameters["sizes"].model_dump(mode="json") == written["sizes"]
