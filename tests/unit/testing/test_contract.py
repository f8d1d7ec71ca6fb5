"""The recipe contract passes a recipe that keeps it, and names what is wrong with one that does not."""

from __future__ import annotations

import inspect
from unittest import SkipTest

import drawn
import numpy as np
import pictures
import pytest
import tagger
import torch
from torch import nn
from torch.nn import functional

from raymlops.arrays import Column
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, RecipeConfig, Splits
from raymlops.signature import Signature
from raymlops.testing import RecipeContract
from raymlops.testing.case import ROWS


class Good(RecipeBase):
    """Two colours and a size that may be missing; the label is twice the size, or 1 where it is missing."""

    class Config(RecipeConfig):
        hidden: int = 4

    label = "price"

    def datasets(self):
        rng = np.random.default_rng(0)
        size = rng.normal(size=90)
        size[::7] = np.nan
        price = np.where(np.isnan(size), 1.0, 2 * size)
        table = {"colour": np.array(["red", "blue"] * 45, dtype=object), "size": size, "price": price}
        parts = (slice(0, 50), slice(50, 70), slice(70, 90))
        return Splits(*({name: values[part] for name, values in table.items()} for part in parts))

    def fit(self, train):
        return {"colours": sorted(set(train["colour"]))}

    def model(self):
        return nn.Sequential(
            nn.Linear(3, self.config.hidden), nn.Tanh(), nn.Dropout(0.5), nn.Linear(self.config.hidden, 1)
        )

    def loss(self, model, batch):
        return functional.mse_loss(model(batch["features"]).squeeze(1), batch["label"])

    def signature(self):
        inputs = (Column("colour", "string", categories=self._colours()), Column("size", "float", nullable=True))
        return Signature(inputs, outputs=(Column("price", "float"),))

    def _colours(self):
        return tuple(self.state["colours"])

    def encode(self, columns):
        ids = {name: index for index, name in enumerate(self.state["colours"], start=1)}
        size = columns["size"]
        features = [[ids.get(name, 0) for name in columns["colour"]], np.nan_to_num(size), np.isnan(size)]
        return {"features": torch.as_tensor(np.array(features).T, dtype=torch.float32)}

    def predict(self, model, batch):
        return model(batch["features"])


class TestGood(RecipeContract):
    recipe = Good


class Flagged(Good):
    """Reads and answers a flag that may be missing, beside two colours; one row in seven has none."""

    def datasets(self):
        splits = super().datasets()
        for part in (splits.train, splits.validation, splits.test):
            part["size"] = [None if np.isnan(size) else bool(size > 0) for size in part["size"]]
        return splits

    def signature(self):
        flag = Column("size", "bool", nullable=True)
        return Signature((super().signature().inputs[0], flag), outputs=(*super().signature().outputs, flag))

    def encode(self, columns):
        return {**super().encode(columns), "size": torch.as_tensor(columns["size"])}

    def predict(self, model, batch):
        return torch.cat([super().predict(model, batch), batch["size"][:, None]], 1)

    def loss(self, model, batch):
        return functional.mse_loss(model(batch["features"]).squeeze(1), batch["label"])

    def decode(self, output):
        price, size = output.numpy().T
        return {"price": price.astype(np.float64), "size": size}


class TestFlagged(RecipeContract):
    recipe = Flagged


class WeightedRows(Good):
    """A loss with weights of its own: the default metrics count these, not rows."""

    def loss(self, model, batch):
        weight = 1 + 9 * (batch["label"] > 0)
        return ((model(batch["features"]).squeeze(1) - batch["label"]).square() * weight).sum(), weight.sum()


class TestWeightedRows(RecipeContract):
    recipe = WeightedRows


class TestAugmented(RecipeContract):
    recipe = drawn.Augmented


class TestUnseeded(RecipeContract):
    recipe = drawn.Unseeded


class Numbers(Good):
    def signature(self):
        return Signature((Column("size", "float", nullable=True),), super().signature().outputs)

    def encode(self, columns):
        return super().encode(columns | {"colour": np.array(["red"] * len(columns["size"]), dtype=object)})


class Clock(Good):
    drawn = 0.0

    def datasets(self):
        Clock.drawn += 1.0
        splits = super().datasets()
        splits.train["size"][1] = Clock.drawn
        return splits


class Unsorted(Good):
    turns = 0

    def fit(self, train):
        Unsorted.turns += 1
        return {"colours": ["red", "blue"] if Unsorted.turns % 2 else ["blue", "red"]}


class Leaks(Good):
    def signature(self):
        return Signature((*super().signature().inputs, Column("price", "float")), super().signature().outputs)


class Unseeded(Good):
    def model(self):
        model = super().model()
        nn.init.constant_(model[0].weight, np.random.default_rng().normal())
        return model


class VectorLoss(Good):
    def loss(self, model, batch):
        return (model(batch["features"]).squeeze(1) - batch["label"]).square()


class DetachedLoss(Good):
    def loss(self, model, batch):
        return super().loss(model, batch).detach()


class Means(Good):
    def metrics(self, model, batch):
        return super().metrics(model, batch) | {"error": self.loss(model, batch)}


class Miscounts(Good):
    def metrics(self, model, batch):
        return super().metrics(model, batch) | {"count": torch.tensor(1.0)}


class NotFinite(Good):
    def finalize(self, totals):
        return {"ratio": float("nan")}


class LooksAtTheBatch(Good):
    def encode(self, columns):
        batch = super().encode(columns)
        return {"features": batch["features"] - batch["features"].mean(0)}


class WrongNames(Good):
    def decode(self, output):
        return {"cost": output[:, 0].numpy()}


class WrongType(Good):
    def decode(self, output):
        return {"price": np.round(output[:, 0].numpy()).astype(int)}


class OneAnswer(Good):
    def decode(self, output):
        return {"price": output[:1, 0].numpy()}


class RandomAnswers(Good):
    def predict(self, model, batch):
        return model.train()(batch["features"])


class HiddenState(Good):
    """Keeps what it learnt in the object, where no bundle finds it."""

    colours = ()

    def fit(self, train):
        HiddenState.colours = (*HiddenState.colours, "red", "blue")
        return super().fit(train)

    def _colours(self):
        HiddenState.colours = (*HiddenState.colours, "green")
        return HiddenState.colours


class ChangesColumns(Good):
    def encode(self, columns):
        torch.from_numpy(columns["size"]).sub_(1.0)
        return super().encode(columns)


class TakesColumns(Good):
    def encode(self, columns):
        return super().encode({"colour": columns.pop("colour"), "size": columns["size"]})


class FailsOnMissing(Good):
    def encode(self, columns):
        batch = super().encode(columns)
        if np.isnan(columns["size"]).all():
            batch["features"] = batch["features"] * np.nan
        return batch


class FailsOnUnknown(Good):
    def encode(self, columns):
        for name in columns["colour"]:
            self.state["colours"].index(name)
        return super().encode(columns)


class WholeLabels(Good):
    label_type = Column("price", "int")


class OwnLoss(Good):
    """Half the squared error, at most 1."""

    label_type = Column("price", "float")

    def loss_of(self, output, label):
        return min(1.0, (output["price"] - label) ** 2 / 2) if isinstance(label, int | float) else None


class LossInDollars(Good):
    def loss_of(self, output, label):
        return abs(output["price"] - label) if isinstance(label, float) else None


class LossOfAnyLabel(Good):
    def loss_of(self, output, label):
        return min(1.0, abs(output["price"] - label))


class LossOfNone(Good):
    def loss_of(self, output, label):
        return None


class LossUpsideDown(Good):
    def loss_of(self, output, label):
        return max(0.0, 1 - abs(output["price"] - label)) if isinstance(label, int | float) else None


class TestTagger(RecipeContract):
    """Padded encodings, ragged answers, and lists as labels."""

    recipe = tagger.Tagger


class TestPictures(RecipeContract):
    """Images, bytes and times in requests, tables and answers."""

    recipe = pictures.Pictures


class PadsInFront(tagger.Tagger):
    """As generators of text do."""

    def encode(self, columns):
        batch = super().encode({"words": [row[::-1].copy() for row in columns["words"]]})
        return {name: tensor.flip(1) for name, tensor in batch.items()}

    def target(self, columns):
        return super().target({"tags": [row[::-1].copy() for row in columns["tags"]]}).flip(1)


class TestPadsInFront(RecipeContract):
    recipe = PadsInFront


class Loud(drawn.Seedable):
    def noise(self):
        return 100 * super().noise()


class LoudUnseedable(drawn.Unseedable):
    def noise(self):
        return 100 * super().noise()


class Masking(RecipeBase):
    """Draws its items anew each time, in validation too, as a masked language model does."""

    def datasets(self):
        return Splits(*(Loud(40) for _ in range(3)))

    def model(self):
        return drawn.LineModel()

    def loss(self, model, batch):
        return functional.mse_loss(model(batch), batch["y"])

    def signature(self):
        return Signature((Column("x", "float"),), (Column("y", "float"),))

    def example(self):
        return [{"x": 0.5}]


class TestMasking(RecipeContract):
    recipe = Masking


class UnseededValidation(Masking):
    def datasets(self):
        return Splits(*(LoudUnseedable(40) for _ in range(3)))


class TestUnseededValidation(RecipeContract):
    recipe = UnseededValidation


class OtherWords(tagger.Tagger):
    """Reads the words of a request otherwise than those of training, whose rows are many."""

    def encode(self, columns):
        batch = super().encode(columns)
        return batch if len(batch["words"]) > ROWS else batch | {"words": batch["words"].clamp(max=5)}


class Truncates(tagger.Tagger):
    """Cuts the sentences of a request to four words."""

    def encode(self, columns):
        few = len(columns["words"]) <= ROWS
        return super().encode({"words": [row[:4] if few else row for row in columns["words"]]})


class Shifts(tagger.Tagger):
    """Begins a request with an empty word."""

    def encode(self, columns):
        batch = super().encode(columns)
        few = len(columns["words"]) <= ROWS
        return {name: functional.pad(tensor, (1, 0))[:, :-1] if few else tensor for name, tensor in batch.items()}


class NoCut(tagger.Tagger):
    """Returns tags of padding, as many as the longest sentence of other clients has words."""

    def decode(self, output):
        found = output["scores"].softmax(-1).max(-1)
        return {"tags": found.indices.numpy(), "sure": found.values.numpy()}


class SeesPadding(tagger.Tagger):
    """Its sentence's mean is one of padding too."""

    def predict(self, model, batch):
        return {"scores": model(batch["words"], torch.ones_like(batch["mask"])), "mask": batch["mask"]}


class FloatTags(tagger.Tagger):
    def decode(self, output):
        decoded = super().decode(output)
        return decoded | {"tags": [tags.astype(float) for tags in decoded["tags"]]}


class LossOfArrays(tagger.Tagger):
    """Compares as arrays do, which a list of feedback does not."""

    def loss_of(self, output, label):
        return float((output["tags"] != label).mean())


class TestOwnLoss(RecipeContract):
    recipe = OwnLoss


LOSSES = "test_losses_of_answers_are_numbers_from_0_to_1"


class LateTimes(Good):
    def row_times(self, columns):
        return np.zeros(len(columns["size"]) - 1)


@pytest.mark.parametrize(
    ("broken", "test", "message"),
    [
        (Clock, "test_datasets_are_the_same_every_time", "the train split of two processes differ in features"),
        (drawn.ShuffledItems, "test_datasets_are_the_same_every_time", "the train split of two processes differ in x"),
        (Unsorted, "test_fit_gives_the_same_json_every_time", "sort sets"),
        (Leaks, "test_label_is_no_input", "'price' is an input"),
        (Unseeded, "test_model_is_on_the_cpu_and_seeded", "differ in 0.weight"),
        (VectorLoss, "test_loss_is_a_finite_scalar_with_a_gradient", "return the mean"),
        (DetachedLoss, "test_loss_is_a_finite_scalar_with_a_gradient", "no gradient"),
        (Means, "test_metrics_are_sums", "'error'] is no sum"),
        (Miscounts, "test_metrics_are_sums", "counts 1.0 of 20"),
        (NotFinite, "test_finalize_gives_finite_numbers", "'ratio'] is nan"),
        (LooksAtTheBatch, "test_answers_do_not_depend_on_the_batch", "output 'price'"),
        (LooksAtTheBatch, "test_requests_are_encoded_as_in_training", "same rows in a request differ in features"),
        (WrongNames, "test_example_is_answered_as_the_signature_says", r"\['cost'\], the signature says \['price'\]"),
        (WrongType, "test_example_is_answered_as_the_signature_says", "int64, the signature says float"),
        (OneAnswer, "test_example_is_answered_as_the_signature_says", "1 values for 32 rows"),
        (RandomAnswers, "test_answers_are_the_same_every_time", "output 'price'"),
        (HiddenState, "test_weights_and_state_make_the_same_model_elsewhere", "more than config and state"),
        (ChangesColumns, "test_columns_of_a_request_are_left_as_they_are", "changes size in place"),
        (TakesColumns, "test_columns_of_a_request_are_left_as_they_are", "changes colour in place"),
        (FailsOnMissing, "test_missing_values_are_answered", "not finite"),
        (OtherWords, "test_requests_are_encoded_as_in_training", "differ in words"),
        (Truncates, "test_requests_are_encoded_as_in_training", "differ in words"),
        (Shifts, "test_requests_are_encoded_as_in_training", "differ in words"),
        (NoCut, "test_answers_do_not_depend_on_the_batch", "output 'tags'"),
        (SeesPadding, "test_answers_do_not_depend_on_the_batch", "output 'sure'"),
        (FloatTags, "test_example_is_answered_as_the_signature_says", "'tags' as float64, the signature says int"),
        (LossOfArrays, LOSSES, "return None for a label that fits nothing"),
        (LossInDollars, LOSSES, "return a number from 0 to 1, or None"),
        (LossOfAnyLabel, LOSSES, "return None for a label that fits nothing"),
        (LossOfNone, LOSSES, "returns None for every label of the table"),
        (LossUpsideDown, "test_a_right_answer_costs_no_more_than_a_wrong_one", "for right answers"),
        (WholeLabels, "test_labels_of_the_table_are_of_the_declared_type", "labels of the table: expected an integer"),
        (LateTimes, "test_rows_of_a_table_have_times_if_any", "for 50 rows"),
        (FailsOnUnknown, "test_unknown_categories_get_what_the_signature_says", "is not in list"),
    ],
)
def test_contract_names_what_is_broken(broken, test, message):
    """Each breach fails the test made for it, with a message that says what to change."""
    contract = type("TestBroken", (RecipeContract,), {"recipe": broken})()
    with pytest.raises((AssertionError, ValueError, RecipeError), match=message):
        getattr(contract, test)()


def test_contract_skips_what_does_not_apply():
    """A recipe without a text column has no unknown category."""
    contract = type("TestNumbers", (RecipeContract,), {"recipe": Numbers})()
    with pytest.raises(SkipTest, match="no input is text"):
        contract.test_unknown_categories_get_what_the_signature_says()


def test_every_contract_test_says_what_it_asks():
    """A user reads the docstring of the test that failed."""
    tests = [value for name, value in vars(RecipeContract).items() if name.startswith("test_")]
    assert len(tests) == 22
    assert all(inspect.getdoc(test) for test in tests)
