from __future__ import annotations

import pytest

from raymlops.lifecycle.losses import loss_of


@pytest.mark.parametrize(
    ("output", "label", "loss"),
    [
        ({"p": 0.8}, True, 0.04),  # 0.2 squared
        ({"p": 0.8}, 0, 0.64),
        ({"kind": "a"}, "a", 0.0),
        ({"kind": "a"}, "b", 1.0),
        ({"a": 0.7, "b": 0.2, "c": 0.1}, "a", 0.07),  # (0.09 + 0.04 + 0.01) / 2
        ({"a": 0.7, "b": 0.2, "c": 0.1}, 2, 0.67),  # (0.49 + 0.04 + 0.81) / 2
        ({"minutes": 12.25}, 12, 0.25),
        ({"minutes": 3.0}, 40, 1.0),
    ],
)
def test_an_answer_is_compared_with_its_label(output, label, loss):
    """As the module's table says; never above 1."""
    assert loss_of(output, label) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ({"kind": "a"}, 1),
        ({"a": 0.5, "b": 0.5}, "c"),
        ({"a": 0.5, "b": 0.5}, 2),
        ({"a": 0.5, "b": 0.5}, True),
        ({"p": None}, 1),
        ({"p": [0.1, 0.2]}, 1),
        ({"p": 0.1}, {"late": True}),
        ({}, 1),
    ],
)
def test_what_cannot_be_compared_says_nothing(output, label):
    """A label of another kind, a tensor, an answer that was redacted."""
    assert loss_of(output, label) is None
