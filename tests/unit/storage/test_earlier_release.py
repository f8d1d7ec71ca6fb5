"""A bundle and a checkpoint that release 0.1 wrote open, and are written again byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from saved_weights import load_weights
from snapshots import IDENTITY

from raymlops.bundle.load import load
from raymlops.bundle.profiles import references_of
from raymlops.bundle.verify import verify
from raymlops.errors import NotFoundError
from raymlops.storage.manifest import BUNDLE, CHECKPOINT, MANIFEST, Format
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.restore import restore

RELEASE = Path(__file__).parents[2] / "fixtures/release_0_1"
DIGEST = "57255ffa2d9ada6169d271e93917b2233d8949aec537659aaa15273d6fc751d2"
CHECKPOINTS = str(RELEASE / "checkpoints")


def test_its_bundle_answers():
    """Under the digest that its state database recorded; the numbers are what 0.1 answered."""
    loaded = load(RELEASE / "bundles" / DIGEST, DIGEST)
    answers = [row["probability"] for row in loaded.predict_rows(loaded.example)]
    assert answers == pytest.approx([0.5651146, 0.6615314], abs=1e-6)


def test_its_profiles_are_refused_with_how_to_make_new_ones():
    """Twenty bins of a sample cannot be compared with traffic."""
    with pytest.raises(NotFoundError) as caught:
        references_of(RELEASE / "bundles" / DIGEST, DIGEST)
    assert "raymlops models register" in caught.value.hint


def test_its_checkpoint_is_resumed():
    """From the newest one, with the model, the optimizer and what fit learnt."""
    recalled = recall(CHECKPOINTS, metric="loss", mode="min", repair=False)
    assert recalled.set_aside == ()
    assert (recalled.kept.best, recalled.kept.last) == ("step-00000010-aaa-1", "step-00000015-aaa-2")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    state = restore(str(recalled.uri), identity=IDENTITY, model=model, optimizer=optimizer)
    assert (state.step, state.history) == (15, [{"loss": 2.0}])
    assert optimizer.param_groups[0]["lr"] == 0.01
    weights, fit = load_weights(f"{CHECKPOINTS}/step-00000010-aaa-1")
    assert weights["weight"].tolist() == [[1.0, 1.0]]
    assert fit == {"mean": 1.5}


@pytest.mark.parametrize(
    ("folder", "written"), [(f"bundles/{DIGEST}", BUNDLE), ("checkpoints/step-00000010-aaa-1", CHECKPOINT)]
)
def test_a_manifest_is_written_as_it_was(folder: str, written: Format):
    """The same files give the same bytes, so that a bundle keeps its digest."""
    data = (RELEASE / folder / MANIFEST).read_bytes()
    assert written.encode(written.decode(data)[1]) == data
    if written is BUNDLE:
        assert hashlib.sha256(data).hexdigest() == DIGEST
        assert verify(RELEASE / folder, DIGEST) == written.decode(data)[1]
