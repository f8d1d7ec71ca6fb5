from types import SimpleNamespace

import numpy as np
import pytest

from raymlops.answer_loss import AnswerLoss
from raymlops.lifecycle.registration.both_classes import both_classes

EVENT = AnswerLoss("probability", "p", ("p",))


def asked(*chunks, loss=EVENT, label="y"):
    candidate = SimpleNamespace(loss=loss, recipe=SimpleNamespace(label=label))
    return both_classes(candidate, SimpleNamespace(chunks=lambda: iter([{"y": np.array(one)} for one in chunks])))


def test_an_event_that_no_test_row_has_is_refused():
    """Two chunks of two rows, none positive."""
    (found,) = asked([0, 0], [0, 0])
    assert not found.passed
    assert found.detail == "all 4 test rows are negative: take more of them, until both classes are there"


@pytest.mark.parametrize(
    ("chunks", "also"),
    [
        ([[0, 0], [0, 1]], {}),
        ([[0, 0]], {"loss": AnswerLoss("number", "p")}),
        ([[0, 0]], {"label": None}),
        ([[0, 0]], {"label": "z"}),
        ([[0.5, 0.7]], {}),
    ],
)
def test_others_are_not_asked(chunks, also):
    """Both classes, numbers, no label, and labels that are none of the classes."""
    assert asked(*chunks, **also) == []
