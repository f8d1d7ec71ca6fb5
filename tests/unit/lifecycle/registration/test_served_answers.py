"""A version whose answers say something else than its metrics is found before it is live."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import Tiny, make_table
from tiny_bundle import loaded
from torch import nn

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.errors import InvalidRowsError, RowProblem
from raymlops.lifecycle.registration import served_answers
from raymlops.lifecycle.registration.served_answers import compare_served
from raymlops.recipe import RecipeBase, RecipeConfig, batch_rows
from raymlops.signature import Signature

PROBABILITY = AnswerLoss("probability", probabilities=("probability",), positive=1, negative=0)
ALONE = AnswerLoss("class", "answer")


@pytest.fixture(scope="module")
def trained():
    """Return the state and the weights of the tiny recipe, trained to an AUC of about 0.9."""
    torch.manual_seed(0)
    recipe = Tiny(Tiny.Config(train_rows=2000))
    train = recipe.datasets().train
    recipe = Tiny(recipe.config, state=recipe.fit(train))
    model = recipe.model()
    batch = {**recipe.encode(train), "label": torch.as_tensor(train["label"], dtype=torch.float32)}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        recipe.loss(model, batch).backward()
        optimizer.step()
    return recipe, model


@pytest.fixture
def compared(trained, monkeypatch):
    """Return how a trained version with other methods fares, on rows of which it never saw any."""

    def compare(rule=PROBABILITY, metric="test/auc", mode="max", columns=None, **methods):
        recipe, model = trained
        monkeypatch.setattr(served_answers, "read_loss", lambda uri, digest: rule)
        other = type("Other", (Tiny,), methods)(recipe.config, state=recipe.state)
        table = make_table(500, seed=3) if columns is None else columns
        split = SimpleNamespace(sample=lambda about_rows: table)
        return compare_served(loaded(other, model), split, metric=metric, mode=mode, batch_size=200)

    return compare


def chances(change):
    return lambda self, output: {"probability": change(torch.sigmoid(output).numpy().astype(np.float64))}


@pytest.mark.parametrize(("metric", "mode"), [("test/auc", "max"), ("test/loss", "min")])
def test_answers_that_are_what_was_measured_pass(compared, metric, mode):
    check = compared(metric=metric, mode=mode)
    assert check.passed
    assert check.got > 6
    assert f"on 500 test rows {metric} is " in check.detail


@pytest.mark.parametrize(
    "change",
    [lambda p: 1 - p, lambda p: np.full_like(p, 0.3), lambda p: np.roll(p, 1), np.sort],
    ids=["inverted", "constant", "of the row before", "in another order"],
)
def test_answers_that_know_nothing_of_the_labels_are_refused_beside_good_metrics(compared, change):
    check = compared(decode=chances(change))
    assert not check.passed
    assert check.allowed == ">= 2 standard deviations better than chance"
    assert check.detail.endswith(
        "; if they are meant so, define loss_of() in the recipe or set gate.compare_answers: false"
    )


@pytest.mark.parametrize("change", [lambda p: p**4, lambda p: 0.5 + p / 1000], ids=["too small", "too timid"])
def test_calibration_is_not_judged(compared, change):
    """The answers follow the labels, however true their numbers are."""
    assert compared(decode=chances(change)).passed


def test_a_metric_that_knows_nothing_either_refuses_nothing(compared, trained):
    """An untrained model, or one that is measured by what has nothing to do with labels."""
    table = make_table(500, seed=3)
    table["label"] = np.random.default_rng(0).permutation(table["label"])
    assert compared(columns=table, decode=chances(lambda p: 1 - p)).passed
    assert compared(metric="test/rows", decode=chances(lambda p: 1 - p)).passed


def test_rows_that_the_recipe_rejects_are_left_out(compared):
    """Those of one colour, as a caller would be told; where training rejects them too, nothing is measured."""

    def predict(self, model, batch):
        if (batch["colour"] == 1).any():
            raise InvalidRowsError([RowProblem(0, "colour", "is out of season")])
        return model(batch)

    def encode(self, columns):
        raise InvalidRowsError([RowProblem(0, "colour", "is out of season")])

    assert compared(predict=predict).passed
    assert compared(encode=encode) == "row 0, field 'colour': is out of season"


def test_test_rows_without_an_answer_refuse(compared):
    check = compared(decode=chances(lambda p: np.where(p > p.min(), p, np.nan)))
    assert (check.passed, check.got) == (False, None)
    assert "NonFiniteError" in check.detail


def test_where_nothing_can_be_compared_it_says_why(compared):
    assert compared(rule=AnswerLoss.none("no scale was kept")) == "no scale was kept"
    table = make_table(50, seed=3)
    del table["label"]
    assert compared(columns=table) == "the test split has no rows with a label"
    raised = compared(rule=AnswerLoss("recipe"), loss_of=lambda self, output, label: output["p"])
    assert "loss_of() raised KeyError" in raised
    unlike = compared(rule=AnswerLoss("recipe"), loss_of=lambda self, output, label: None)
    assert unlike == "none of the answers can be compared with the label of its row"


def test_rows_without_a_label_are_left_out_and_labels_are_those_of_feedback(compared):
    """A time is a text and a gap is none: what the recipe's own loss gets in a rollout."""
    table = make_table(500, seed=3)
    table["label"] = np.where(np.arange(500) % 10, table["label"], np.nan)
    seen = []

    def loss_of(self, output, label):
        seen.append(label)
        return (output["probability"] - label) ** 2

    check = compared(rule=AnswerLoss("recipe"), loss_of=loss_of, columns=table)
    assert check.got > 6
    assert len(seen) == 11 * 450
    assert set(seen) == {0, 1}
    times = np.array(["2026-01-31"] * 500, "datetime64[D]")
    compared(
        rule=AnswerLoss("recipe"),
        loss_of=lambda self, output, label: seen.append(label),
        columns=table | {"label": times},
    )
    assert seen[-1] == "2026-01-31T00:00:00.000000Z"


class Rare(RecipeBase):
    """Finds one event in fifty by a number; the answer is yes or no."""

    Config = RecipeConfig
    label = "event"

    def signature(self):
        return Signature((Column("x", "float"),), (Column("answer", "int"),))

    def model(self):
        return nn.Identity()

    def metrics(self, model, batch):
        above, event = batch["x"] > 1, batch["label"] > 0
        return {"found": (above == event).sum(), "count": torch.tensor(float(batch_rows(batch)))}

    def predict(self, model, batch):
        return batch["x"]

    def decode(self, output):
        return {"answer": (output.numpy() > self.limit).astype(np.int64)}


@pytest.mark.parametrize(("limit", "passes"), [(1.0, True), (1e9, True), (3.0, True)])
def test_classes_alone_may_all_be_the_same(monkeypatch, limit, passes):
    """What is rare is never likelier than not; a few right answers are better than chance."""
    monkeypatch.setattr(served_answers, "read_loss", lambda uri, digest: ALONE)
    assert rare(limit, lambda event: event).passed is passes


def test_classes_that_are_exchanged_are_refused(monkeypatch):
    monkeypatch.setattr(served_answers, "read_loss", lambda uri, digest: ALONE)
    inverted = type("Inverted", (Rare,), {"decode": lambda self, output: {"answer": (output.numpy() <= 1).astype(int)}})
    check = rare(1.0, lambda event: event, recipe_class=inverted)
    assert not check.passed
    assert check.allowed == ">= -3 standard deviations better than chance"


def rare(limit, labels, *, recipe_class=Rare):
    rng = np.random.default_rng(1)
    event = rng.random(1000) < 0.02
    columns = {"x": rng.normal(0.0, 0.3, size=1000) + 3 * event, "event": labels(event.astype(np.int64))}
    recipe = recipe_class(RecipeConfig())
    recipe.limit = limit
    split = SimpleNamespace(sample=lambda about_rows: columns)
    return compare_served(loaded(recipe, recipe.model()), split, metric="test/found", mode="max", batch_size=500)
