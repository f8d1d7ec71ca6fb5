"""One recipe with its data and a model, as the contract of a recipe tries it: prepared once for all of its tests."""

from __future__ import annotations

import json
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch

from raymlops.bundle.load import typed_outputs
from raymlops.config.schema import ProjectSpec
from raymlops.data.batches import select
from raymlops.data.prepare import Prepared, SplitData, prepare
from raymlops.data.random_streams import Stream
from raymlops.errors import NonFiniteError, RecipeError
from raymlops.loss_value import loss_value
from raymlops.project import Project, bind
from raymlops.pytree import leaves
from raymlops.recipe import Batch, RecipeBase, defines_loss
from raymlops.recipe_import import reference_of
from raymlops.testing.answered import AnsweredRows
from raymlops.training.loop.evaluation import Totals, batch_totals
from raymlops.training.split_predictions import answer_loss

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from raymlops.signature import Signature

ROWS = 32
"""Rows that a test draws from a split, at most."""
LABELS = 16
"""Of them, that each of several answers is compared with."""


class RecipeCase:
    """One recipe with its data and a model, prepared once for all tests."""

    def __init__(self, recipe: type[RecipeBase], config: dict[str, Any], seed: int) -> None:
        sections = {
            "project": {"name": "contract"},
            "recipe": {"import": reference_of(recipe), "config": config},
            "train": {"seed": seed},
        }
        self.project: Project = bind(ProjectSpec.model_validate(sections), recipe=recipe)

    @cached_property
    def prepared(self) -> Prepared:
        """Return the recipe with its splits."""
        return prepare(self.project)

    @property
    def recipe(self) -> RecipeBase:
        """Return the recipe, fitted."""
        return self.prepared.recipe

    @cached_property
    def signature(self) -> Signature:
        """Return its signature."""
        return self.recipe.signature()

    @cached_property
    def trained(self) -> nn.Module:
        """One step of training away from the first weights, so that no output is a constant by its initial value."""
        model = self.model().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with torch.enable_grad():  # a caller may have switched gradients off
            if defines_loss(type(self.recipe)):
                loss = loss_value(self.recipe.loss(model, self.batch("train")), where="loss()").mean()
            else:
                loss = torch.stack([value.square().sum() for value in model.parameters()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return model.eval()

    @cached_property
    def example(self) -> list[dict[str, Any]]:
        """Return request rows: the first training rows of a table, else the recipe's own."""
        rows = self.recipe.example()
        split = self.prepared.splits["train"]
        columns = split.take(first_rows(split.rows))
        if columns is not None:
            # The first training rows, whatever the recipe shows to readers: they are compared with their own encoding.
            rows = self.signature.rows({column.name: columns[column.name] for column in self.signature.inputs})
        assert rows, "the splits are torch datasets: define example(), which returns request rows"
        return rows

    def model(self) -> nn.Module:
        """Return a model with the first weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.project.spec.train.seed)
            return self.recipe.model()

    def batch(self, split: str) -> Batch:
        """Return the first rows of a split."""
        return self.prepared.splits[split].batch(first_rows(self.prepared.splits[split].rows))

    def whole_and_parts(self, split: str, rows: torch.Tensor, middle: int) -> list[Batch]:
        """Return these rows as one batch, and cut into two; items that are drawn at random are drawn once."""
        data = self.prepared.splits[split]
        whole = data.batch(rows)
        flat = all(isinstance(value, torch.Tensor) and len(value) == len(rows) for _, value in leaves(whole))
        pieces = (torch.arange(middle), torch.arange(middle, len(rows)))
        return [whole, *(data.batch(rows[i]) if data.is_table or not flat else select(whole, i) for i in pieces)]

    def metrics(self, batch: Batch, *, rows: int) -> Totals:
        """Return the sums over a batch."""
        with torch.no_grad():
            return batch_totals(self.recipe, self.trained, batch, rows=rows)

    def decode(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what ``decode`` makes of the answers to request rows."""
        return _decoded(self.recipe, self.trained, rows)

    def ask(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the answers to request rows, typed as a replica does."""
        return answer_of(self.recipe, self.trained, rows, self.signature)

    @cached_property
    def losses(self) -> AnsweredRows:
        """Return the answers to validation rows beside their labels."""
        rule = answer_loss(self.prepared, self.trained, batch_size=ROWS, device="cpu")
        split = self.prepared.splits["validation"]
        columns = split.take(first_rows(split.rows))
        rows, labels = self.example, list[Any]()
        if columns is not None:
            rows = self.signature.rows({column.name: columns[column.name] for column in self.signature.inputs})
            named = {} if self.recipe.label is None else {self.recipe.label: columns[self.recipe.label]}
            labels = [label for row in self.signature.rows(named) for label in row.values()]  # JSON, as feedback is
        return AnsweredRows(rule, self.recipe, self.signature.rows(self.ask(rows))[:LABELS], labels[:LABELS])


@cache
def case_of(recipe: Any, config: str, seed: int) -> RecipeCase:
    """Return the case of a recipe; ``config`` is JSON."""
    return RecipeCase(recipe, json.loads(config), seed)


def drawn(split: SplitData, rows: torch.Tensor) -> Batch:
    """Return rows of a split as a batch, with what its items draw seeded."""
    with Stream(0).drawn_from():
        return split.batch(rows)


def first_rows(rows: int, *, most: int = ROWS) -> torch.Tensor:
    """Return the numbers of the first of so many rows."""
    return torch.arange(min(rows, most))


def _decoded(recipe: RecipeBase, model: nn.Module, rows: list[dict[str, Any]]) -> dict[str, Any]:
    with torch.no_grad():
        return recipe.decode(recipe.predict(model, recipe.encode(recipe.signature().parse_rows(rows))))


def answer_of(
    recipe: RecipeBase, model: nn.Module, rows: list[dict[str, Any]], signature: Signature
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the outputs as a replica types them."""
    try:
        return typed_outputs(_decoded(recipe, model, rows), signature, rows=len(rows), where="decode()")
    except (NonFiniteError, RecipeError) as error:
        raise AssertionError(error.message) from error
