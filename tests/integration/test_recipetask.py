"""A recipe's own ``loss_of``, asked in a process of its own on a real Ray."""

from __future__ import annotations

import os
import sys

import pytest
from own_versions import edited_in
from tiny_bundle import tiny_contents

from raymlops.bundle.write import write_bundle
from raymlops.errors import RecipeError
from raymlops.lifecycle.rollout.label_losses import ask_in_task

pytestmark = pytest.mark.integration

SOURCE = """
import os
import time

from tiny import Tiny


class Own(Tiny):
    def loss_of(self, output, label):
        if label == "hang":
            time.sleep(600)
        if label == "end":
            os._exit(3)
        if label == "pid":
            return None if os.getpid() != output["pid"] else 1.0
        return abs(output["probability"] - label)
"""


@pytest.fixture
def bundle(tmp_path):
    """Return a bundle whose recipe hangs, ends its process or answers, by the label."""
    with edited_in(tmp_path) as folder:
        (folder / "own_losses_of_a_test.py").write_text(SOURCE)
        from own_losses_of_a_test import Own

        yield write_bundle(tmp_path / "store", tiny_contents(recipe_class=Own, loss={"kind": "recipe"}))
    sys.modules.pop("own_losses_of_a_test", None)


def test_a_recipe_is_asked_in_another_process(ray_local, bundle):
    """Not in this one, which may hold credentials; what raises there is told, as it is here."""
    pairs = [({"probability": 0.75}, 1), ({"pid": os.getpid()}, "pid"), ({"probability": 0.75}, "x")]
    values, failure = ask_in_task(bundle, pairs)
    assert values[:2] == [0.25, None]
    assert "Own.loss_of() raised TypeError" in failure


@pytest.mark.parametrize(
    ("label", "timeout_s", "message"),
    [("hang", 2.0, "loss_of did not answer for 1 rows within 2 s"), ("end", 120.0, "that ran loss_of ended")],
)
def test_a_recipe_that_hangs_or_ends_its_process_is_an_error_here(ray_local, bundle, label, timeout_s, message):
    with pytest.raises(RecipeError, match=message):
        ask_in_task(bundle, [({"probability": 0.75}, label)], timeout_s=timeout_s)
