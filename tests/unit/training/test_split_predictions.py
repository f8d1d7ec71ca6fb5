"""How a trained model's answers are compared with labels, by its own answers to validation rows."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import sourced
import torch
from tiny import Tiny, make_table
from torch import nn

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.config.load import load_data
from raymlops.data.prepare import Memory, prepare
from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.project import bind
from raymlops.recipe import RecipeBase, Splits
from raymlops.signature import Signature
from raymlops.training.split_predictions import answer_loss, answered


class Line(RecipeBase):
    """Answers x, where the truth is x plus an error of -2 to 2 hundredths of a million."""

    label = "price"

    def datasets(self) -> Splits:
        x = np.arange(100.0)
        return Splits(*({"x": x, "price": x + 1e4 * np.linspace(-2, 2, 100)},) * 3)

    def model(self) -> nn.Module:
        return nn.Identity()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch["x"]) - batch["label"]).square().mean()

    def signature(self) -> Signature:
        return Signature((Column("x", "float"),), (Column("price", "float"),))

    def predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return batch["x"]


class Own(Line):
    """Knows itself how wrong it is."""

    def loss_of(self, output: Any, label: Any) -> float | None:
        return float(output["price"] > label)


class Items(Line):
    """Its splits are torch datasets, whose items are not request rows."""

    def datasets(self) -> Splits:
        data = torch.utils.data.TensorDataset(torch.zeros(4))
        return Splits(data, data, data)


class Misfit(Line):
    """Gives another column than its signature says."""

    def decode(self, output: Any) -> dict[str, Any]:
        return {"cost": output.numpy()}


def rule_of(recipe: type[RecipeBase], config: dict[str, Any] | None = None, memory: Memory | None = None) -> AnswerLoss:
    data = {"project": {"name": "p"}, "recipe": {"import": recipe, "config": config or {}}}
    prepared = prepare(bind(load_data(data)), memory=memory)
    torch.manual_seed(0)
    return answer_loss(prepared, prepared.recipe.model().eval(), batch_size=64, device="cpu")


def test_the_scale_of_a_number_is_a_quantile_of_its_errors_on_validation():
    """Errors are even over 0 to 20,000, whose 95% quantile is about 19,000, asked in batches of 64."""
    rule = rule_of(Line)
    assert (rule.kind, rule.output) == ("number", "price")
    assert rule.scale == pytest.approx(19_000, rel=0.02)


class Images(Line):
    """Answers each row with a picture, and counts how many it answers at a time."""

    asked: ClassVar[list[int]] = []

    def signature(self) -> Signature:
        return Signature((Column("x", "float"),), (Column("picture", "float", shape=(256, 256)),))

    def decode(self, output: Any) -> dict[str, Any]:
        self.asked.append(len(output))
        return {"picture": np.ones((len(output), 256, 256)) * np.asarray(output)[:, None, None]}


def test_answers_that_are_large_are_those_of_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5 MB each: of 400 rows 128 fit into 64 MB, so that one of each 3 or 4 is answered, in batches of 50."""
    monkeypatch.setattr(Images, "asked", [])
    columns = {"x": np.arange(400.0), "price": np.arange(400.0)}
    rows, answers = answered(Images(), nn.Identity(), columns, batch_size=50, device="cpu")
    assert Images.asked == [50, 50, 50, 28]
    assert rows["price"].tolist() == answers["picture"][:, 0, 0].tolist()
    stretch = np.searchsorted(np.arange(129) * 400 // 128, rows["price"], side="right") - 1
    assert stretch.tolist() == list(range(128))


class Picky(Line):
    """Rejects every seventh row, as a caller would be told."""

    every: ClassVar[int] = 7

    def predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        wrong = [int(row) for row in torch.nonzero(batch["x"].long() % self.every == 0)]
        if wrong:
            raise InvalidRowsError([RowProblem(wrong[0], "x", "is no such place")])
        return batch["x"]


def test_rows_that_the_recipe_rejects_are_left_out() -> None:
    """By every caller, so that a version that rejects some can be registered; not one that rejects all."""
    columns = {"x": np.arange(100.0), "price": -np.arange(100.0)}
    rows, answers = answered(Picky(), nn.Identity(), columns, batch_size=30, device="cpu")
    left = [x for x in range(100) if x % 7]
    assert (rows["x"].tolist(), (-rows["price"]).tolist(), answers["price"].tolist()) == (left, left, left)
    assert rule_of(Picky).scale == pytest.approx(19_000, rel=0.05)
    none = type("None_", (Picky,), {"every": 1})
    with pytest.raises(InvalidRowsError, match="row 0, field 'x': is no such place"):
        answered(none(), nn.Identity(), columns, batch_size=30, device="cpu")


def test_labels_say_that_a_number_is_a_probability():
    assert rule_of(Tiny, {"train_rows": 50}) == AnswerLoss(
        "probability", probabilities=("probability",), positive=1, negative=0
    )


def test_streamed_rows_give_the_same_rule_as_those_in_memory(tmp_path):
    path = sourced.write_parquet(tmp_path / "rows", make_table(120, seed=3), files=2, row_group_rows=25)
    rules = [rule_of(sourced.AllParquet, {"path": path}, Memory(whole_bytes=size)) for size in (0, 2**26)]
    assert rules[0] == rules[1]
    assert rules[0].kind == "probability"


def test_a_recipes_own_loss_is_left_to_it():
    assert rule_of(Own) == AnswerLoss("recipe")
    assert Own().loss_of({"price": 2.0}, 1.0) == 1.0


def test_the_default_is_what_the_signature_allows():
    """A single number has no scale in the recipe; a bundle has."""
    assert Line().loss_of({"price": 2.0}, 1.0) is None


def test_torch_datasets_have_no_labelled_rows():
    rule = rule_of(Items)
    assert rule.kind == "none"
    assert rule.reason.endswith("its splits are torch datasets, whose items are not request rows with a label")


def test_answers_that_do_not_fit_the_signature_have_no_losses():
    """The version is registered all the same; its gate refuses it."""
    rule = rule_of(Misfit)
    assert rule.kind == "none"
    assert "Misfit.decode() returned cost; the signature's outputs are price" in rule.reason
