"""What labelled answers are compared with later: the version's answers to its own test rows."""

from __future__ import annotations

import numpy as np
import pytest
import sourced
import torch
from tiny import make_table

from raymlops.answer_loss import AnswerLoss
from raymlops.config.load import load_data
from raymlops.data.prepare import Memory, prepare
from raymlops.errors import UsageError
from raymlops.lifecycle.registration.quality import of_answers, quality_reference
from raymlops.monitor.skill.reference import QualityReference
from raymlops.profiles.slices import Slice
from raymlops.project import bind
from raymlops.training.split_predictions import answer_loss

RED = Slice("colour", "red")
CHANCE = AnswerLoss("probability", probabilities=("p",), positive=1, negative=0)


@pytest.fixture
def both(tmp_path):
    """The same 400 rows as all three splits, streamed and as a table."""
    path = sourced.write_parquet(tmp_path / "rows", make_table(400, seed=3), files=2, row_group_rows=25)
    recipe = {"import": sourced.AllParquet, "config": {"path": path}}
    project = bind(load_data({"project": {"name": "p"}, "recipe": recipe}))
    return prepare(project, memory=Memory(whole_bytes=0)), prepare(project)


def test_the_reference_is_of_the_test_rows_however_they_are_read(both):
    """Of 400 rows: loss by class, log loss, scores in blocks, a slice, and what came true by confidence."""
    found = []
    for prepared in both:
        torch.manual_seed(0)
        model = prepared.recipe.model().eval()
        rule = answer_loss(prepared, model, batch_size=50, device="cpu")
        known = quality_reference(prepared, model, rule, batch_size=50, device="cpu", slices={"colour": ["red"]})
        found.append(known.to_dict())
    assert found[0] == found[1]
    known = QualityReference.from_dict(found[0])
    assert (known.rows, known.classes.values, set(known.metrics)) == (400, (0, 1), {"loss", "log_loss"})
    assert [*known.slices] == [RED]
    assert known.scores.sum() == 400
    assert known.calibrated is not None


def test_a_slice_of_no_input_is_refused(both):
    """As for profiles."""
    with pytest.raises(UsageError, match=r"monitor\.slices names 'wdth'"):
        quality_reference(both[1], both[1].recipe.model(), CHANCE, batch_size=50, device="cpu", slices={"wdth": [1.0]})


def test_answers_without_a_loss_have_no_reference(both, caplog):
    """The log says why, and registration goes on."""
    rule = AnswerLoss.none("the outputs are neither")
    assert quality_reference(both[1], both[1].recipe.model(), rule, batch_size=50, device="cpu") is None
    assert "the outputs are neither" in caplog.text


def test_losses_are_by_class():
    """Answers of .8 to 50 positives and .4 to 50 negatives: .04 and .16; a base rate of a half costs .25."""
    outputs = [{"p": 0.8}] * 50 + [{"p": 0.4}] * 50
    found = of_answers(CHANCE, outputs, [1] * 50 + [0] * 50)
    loss = found.metrics["loss"]
    assert loss.expectation.means == pytest.approx([0.16, 0.04])
    assert (loss.base_loss, loss.loss) == (pytest.approx(0.25), pytest.approx(0.1))
    assert loss.base == pytest.approx([0.25, 0.25])
    assert found.metrics["log_loss"].expectation.means == pytest.approx([-np.log(0.6), -np.log(0.8)])


def test_a_recipes_own_loss_is_measured_against_answers_to_other_rows():
    """Of a distance from 0 to .99 the answer to the same row is .01 off, that to another one by a third."""
    numbers = np.arange(100) / 100
    found = of_answers(
        AnswerLoss("recipe"),
        [{"a": one + 0.01} for one in numbers],
        numbers.tolist(),
        own=lambda output, label: min(1.0, abs(output["a"] - label)),
    )
    assert found.classes.count == 10
    assert found.metrics["loss"].loss == pytest.approx(0.01)
    assert found.metrics["loss"].base_loss == pytest.approx(1 / 3, abs=0.05)


def test_few_rows_have_no_reference(caplog):
    """39 are too few to be judged by."""
    assert of_answers(CHANCE, [{"p": 0.5}] * 39, [1] * 39) is None
    assert "39 test rows can be compared with their label, and 40 are needed" in caplog.text
