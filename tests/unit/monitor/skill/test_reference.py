import json

import numpy as np
import pytest

from raymlops.answer_loss import AnswerLoss
from raymlops.lifecycle.registration.quality import of_answers
from raymlops.monitor.skill.reference import QualityReference, base_loss, blocks_of

CHANCE = AnswerLoss("probability", probabilities=("p",), positive=1, negative=0)


@pytest.fixture
def known():
    """Return the reference of 1,000 rows, of which .2 are positive."""
    rng = np.random.default_rng(0)
    labels = (np.arange(1000) % 5 == 0).astype(int)
    return of_answers(CHANCE, [{"p": float(one)} for one in rng.random(1000)], labels.tolist())


def test_it_is_kept_as_bounded_json(known):
    """And judges the same when it is read back."""
    text = json.dumps(known.to_dict())
    assert len(text) < 50_000
    again = QualityReference.from_dict(json.loads(text))
    assert again.metrics["loss"].expectation.at([0.5, 0.5]) == known.metrics["loss"].expectation.at([0.5, 0.5])
    assert again.scores.tolist() == known.scores.tolist()
    assert again.calibrated.error == known.calibrated.error
    assert again.calibrated.calibration.of_confidence([0.3]) == known.calibrated.calibration.of_confidence([0.3])


def test_a_newer_one_is_refused(known):
    """Its format is another."""
    with pytest.raises(ValueError, match="format of its reference for quality is 2"):
        QualityReference.from_dict({**known.to_dict(), "format": 2})


def test_the_base_rate_of_a_window_is_its_own(known):
    """A half costs .25; frozen, who answers .2 pays .5 x .04 + .5 x .64."""
    half, loss = np.array([0.5, 0.5]), known.metrics["loss"]
    assert base_loss(CHANCE, "loss", loss, half, frozen=False) == pytest.approx(0.25)
    assert base_loss(CHANCE, "loss", loss, half, frozen=True) == pytest.approx(0.34)


def test_a_window_of_one_class_is_measured_by_a_fifth_of_what_is_usual(known):
    """The base rate of the reference costs .16."""
    alone = np.array([1.0, 0.0])
    assert base_loss(CHANCE, "loss", known.metrics["loss"], alone, frozen=False) == pytest.approx(0.2 * 0.16)


def test_blocks_are_of_consecutive_rows():
    """200 at most, of about the same size."""
    assert blocks_of(5).tolist() == [0, 1, 2, 3, 4]
    assert blocks_of(6, most=3).tolist() == [0, 0, 1, 1, 2, 2]
