"""The rule for labels in a bundle, and the recipe's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_bundle import tiny_contents

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.bundle.loss import own_losses, read_loss
from raymlops.bundle.verify import verify
from raymlops.bundle.write import write_bundle
from raymlops.errors import BundleError
from raymlops.signature import Signature

RULE = AnswerLoss("number", "price", scale=9758.0)
OWN = """
    from torch import nn

    from raymlops.recipe import RecipeBase, Splits
    from raymlops.signature import Column, Signature


    class Mine(RecipeBase):
        def datasets(self):
            return Splits({}, {}, {})

        def model(self):
            raise RuntimeError("the weights are not needed for this")

        def loss(self, model, batch):
            return 0

        def signature(self):
            return Signature((Column("x", "float"),), (Column("y", "float"),))

        def loss_of(self, output, label):
            if label == "skip":
                return None
            return abs(output["y"] - label["y"]) / 10
"""


def test_the_rule_is_a_file_of_the_bundle_under_its_digest(tmp_path):
    """Written only where there is one, so that a bundle without it stays what it is; both are whole."""
    without, ref = write_bundle(tmp_path, tiny_contents()), write_bundle(tmp_path, tiny_contents(loss=RULE.to_dict()))
    assert not (Path(without.uri) / "loss.json").exists()
    assert ref.digest != without.digest
    assert "loss.json" in verify(ref.uri, ref.digest)
    assert read_loss(ref.uri, ref.digest) == RULE


def test_a_bundle_without_one_has_that_of_its_signature(tmp_path):
    signature = Signature((Column("x", "float"),), (Column("kind", "string"),))
    ref = write_bundle(tmp_path, tiny_contents(signature=signature))
    assert read_loss(ref.uri, ref.digest) == AnswerLoss("class", "kind")


def test_a_rule_that_was_changed_is_refused(tmp_path):
    ref = write_bundle(tmp_path, tiny_contents(loss=RULE.to_dict()))
    path = Path(ref.uri) / "loss.json"
    path.write_text(path.read_text().replace("9758.0", "0.0001"))
    with pytest.raises(BundleError, match=r"loss\.json: expected SHA-256"):
        read_loss(ref.uri, ref.digest)
    path.unlink()
    with pytest.raises(BundleError, match="got nothing"):
        read_loss(ref.uri, ref.digest)


def test_the_rule_is_read_wherever_the_bundle_is(s3, tmp_path):
    """On a filesystem of pyarrow too, without fetching the weights."""
    ref = write_bundle(s3.uri("bucket"), tiny_contents(loss=RULE.to_dict()), cache=tmp_path)
    del s3.objects[f"bucket/bundles/{ref.digest}/weights.safetensors"]
    assert read_loss(ref.uri, ref.digest) == RULE


def test_a_recipes_own_loss_is_asked_without_its_model(tmp_path, imported):
    """What it does wrong is told with its line, and costs the answer in question alone."""
    recipe = imported("mine:Mine", {"mine.py": OWN})
    own = {"recipe_class": recipe, "recipe_config": {}, "state": {}, "loss": {"kind": "recipe"}}
    ref = write_bundle(tmp_path, tiny_contents(**own))
    pairs = [({"y": 3.0}, {"y": 1.0}), ({"y": 3.0}, "skip"), ({"y": 3.0}, {"z": 1.0}), ({"y": 90.0}, {"y": 1.0})]
    values, failure = own_losses(ref.uri, ref.digest, pairs)
    assert values[:2] == [0.2, None]
    assert [math.isnan(value) for value in values[2:]] == [True, True]
    assert failure.startswith("Mine.loss_of() raised KeyError: 'y'")
    assert "mine.py:24" in failure
    assert failure.endswith("(output {'y': 3.0}, label {'z': 1.0})")
    _, failure = own_losses(ref.uri, ref.digest, pairs[3:])
    assert "Mine.loss_of() returned 8.9" in failure
    assert "from 0 to 1, or None" in failure
