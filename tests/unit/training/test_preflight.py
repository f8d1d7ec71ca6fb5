"""What is refused on a handful of rows before anything starts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from broken import Items
from tiny import Tiny

from raymlops.errors import RecipeError
from raymlops.training.data import prepare
from raymlops.training.preflight import has_unused_parameters, preflight


def check(project: Any) -> None:
    preflight(project, prepare(project))


@pytest.mark.parametrize("recipe", ["tiny:Tiny", "broken:Items", "broken:OwnLoop"])
def test_a_recipe_that_keeps_its_contract_passes(tiny_project: Any, recipe: str) -> None:
    """Tables, datasets, batch normalisation, a loop of its own: all fine."""
    check(tiny_project(recipe=recipe))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("broken:RaisesInModel", r"RaisesInModel\.model\(\) raised ValueError: no layers at .*broken\.py:\d+"),
        ("broken:NanLoss", r"NanLoss\.loss\(\) is nan on the first rows of train"),
        ("broken:Detached", r"Detached\.loss\(\) has no gradient"),
        ("broken:Means", r"Means\.metrics\(\)\['loss'\] does not add up"),
    ],
)
def test_a_broken_recipe_is_refused(tiny_project: Any, recipe: str, message: str) -> None:
    """The error names the method and what is wrong with it."""
    with pytest.raises(RecipeError, match=message):
        check(tiny_project(recipe=recipe))


@pytest.mark.parametrize(
    ("train", "more", "message"),
    [
        ({"metric": "validation/acc"}, {}, "train.metric is 'validation/acc', which is never reported"),
        ({}, {"sweep": {"metric": "validation/acc"}}, "sweep.metric is 'validation/acc'"),
        (
            {},
            {"sweep": {"constraints": {"validation/acc": {"min": 0.5}}}},
            "sweep.constraints names 'validation/acc', which is never reported",
        ),
        (
            {},
            {"sweep": {"objectives": {"validation/acc": "max", "validation/loss": "min"}}},
            "sweep.objectives names 'validation/acc', which is never reported",
        ),
        ({}, {"gate": {"metric": "test/acc"}}, "gate names the metric 'test/acc'"),
        ({}, {"gate": {"thresholds": {"acc": {"min": 0.5}}}}, "gate names the metric 'acc'"),
    ],
)
def test_a_metric_that_is_never_reported_is_refused(
    tiny_project: Any, train: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    """The error says which ones are reported."""
    with pytest.raises(RecipeError, match=message) as raised:
        check(tiny_project(more=more, **train))
    assert "accuracy" in str(raised.value.hint)


def test_parameters_that_the_loss_does_not_use_are_found(tiny_project: Any) -> None:
    """DDP must be told of them, or the second step of two workers fails."""
    for recipe, expected in (("tiny:Tiny", False), ("broken:Items", True)):
        project = tiny_project(recipe=recipe)
        assert has_unused_parameters(project, prepare(project)) is expected


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("signature", None, r"Tiny\.signature\(\) returned None; return a raymlops\.Signature"),
        ("signature", {}, r"Tiny\.signature\(\) returned a dict; return a raymlops\.Signature"),
        ("datasets", None, r"Tiny\.datasets\(\) returned no train split, but NoneType"),
        ("datasets", (), r"Tiny\.datasets\(\) returned no train split, but tuple"),
        ("model", None, r"Tiny\.model\(\) returned None; return a torch\.nn\.Module"),
        ("model", torch.nn.Linear, r"Tiny\.model\(\) returned the class Linear; return a torch\.nn\.Module"),
        ("encode", None, r"Tiny\.encode\(\) returned None, which has no rows"),
        ("encode", {}, r"Tiny\.encode\(\) returned a dict, which has no rows"),
        ("loss", None, r"Tiny\.loss\(\) returned None; return the mean over the batch"),
    ],
)
def test_a_method_that_returns_something_else_is_refused(
    tiny_project: Any, method: str, value: Any, message: str
) -> None:
    """A forgotten return is said as such, and not as what fails on None later."""
    forgetful = type("Tiny", (Tiny,), {method: lambda *_: value})
    with pytest.raises(RecipeError, match=message):
        check(dataclasses.replace(tiny_project(), recipe_class=forgetful))


def test_a_recipe_on_datasets_needs_a_signature_too(tiny_project: Any) -> None:
    """Its training never asks for one."""
    forgetful = type("Items", (Items,), {"signature": lambda _: None})
    with pytest.raises(RecipeError, match=r"Items\.signature\(\) returned None"):
        prepare(dataclasses.replace(tiny_project(), recipe_class=forgetful))
