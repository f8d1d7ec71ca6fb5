"""The bytelm recipe: its contract, and that every byte is predicted once, from the bytes before it alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raymlops.recipes.bytelm import PAD, START, ByteLM, Windows
from raymlops.testing import RecipeContract

SMALL = {"layers": 2, "heads": 2, "width": 16, "block": 24, "corpus_bytes": 10_000}


class TestByteLMContract(RecipeContract):
    recipe = ByteLM
    config = SMALL


@pytest.fixture
def recipe():
    return ByteLM(ByteLM.Config(**SMALL))


@pytest.fixture
def model(recipe):
    torch.manual_seed(0)
    return recipe.model().eval()


@pytest.mark.parametrize(("label", "loss"), [("n", 0.0), ("m", 1.0), (110, None)])
def test_the_next_byte_is_right_or_wrong(recipe, label, loss):
    """A label is the text of the byte that came; bits a byte are no probability of it."""
    assert recipe.loss_of({"bits_per_byte": 0.5, "next": "n"}, label) == loss


def test_windows_hold_every_byte_once():
    """Ten bytes in windows of four: three windows, the last one padded."""
    windows = Windows(np.arange(10, dtype=np.uint8), 4)
    assert [windows[index]["tokens"].tolist() for index in range(len(windows))] == [
        [START, 0, 1, 2, 3],
        [START, 4, 5, 6, 7],
        [START, 8, 9, PAD, PAD],
    ]


def test_splits_share_no_file_and_keep_their_sizes(recipe):
    """Training has as many bytes as configured, the held-out splits at most a sixteenth, and no window is in two."""
    splits = recipe.datasets()
    parts = [part._tokens[:, 1:] for part in (splits.train, splits.validation, splits.test)]
    assert [(part != PAD).sum().item() for part in parts] == [10_000, 625, 625]
    windows = [{tuple(row) for row in part.tolist()} for part in parts]
    assert not windows[0] & windows[1]
    assert not windows[0] & windows[2]


def test_position_sees_no_later_byte(model):
    """Another last byte changes no logit before it."""
    first = torch.tensor([[START, 1, 2, 3, 4]])
    second = torch.tensor([[START, 1, 2, 3, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(first)[:, :4], model(second)[:, :4])


def test_position_matters(model):
    """Rotary positions tell "ab" from "ba": the byte after them is predicted differently."""
    with torch.no_grad():
        logits = model(torch.tensor([[START, 97, 98, 99], [START, 98, 97, 99]]))
    assert not torch.allclose(logits[0, 3], logits[1, 3])


def test_bits_are_of_the_text_alone(recipe, model):
    """A short text among longer ones is padded, which counts for nothing; an empty one has no bits."""
    with torch.no_grad():
        output = recipe.predict(model, recipe.encode({"text": ["ab", "", "a much longer text"]}))
        logits = model(torch.tensor([[START, 97, 98]]))
    nats = -logits.log_softmax(2)[0, [0, 1], [97, 98]].sum().item()
    bits = recipe.decode(output)["bits_per_byte"]
    assert bits[0] == pytest.approx(nats / 2 / math.log(2), rel=1e-4)
    assert np.isnan(bits[1])


def test_long_text_is_read_from_its_end(recipe):
    """Of 30 bytes the last 24 are read; a character cut in two is no error."""
    tokens = recipe.encode({"text": ["é" * 15, "x"]})["tokens"]
    assert tokens.shape == (2, 25)
    assert tokens[0].tolist() == [START, *("é" * 12).encode()]


def test_next_byte_is_text_and_escaped_beyond_ascii(recipe):
    """Byte 10 is a newline, byte 195 begins a character that one byte cannot show."""
    output = {"nats": torch.ones(2), "bytes": torch.ones(2), "next": torch.tensor([10, 195])}
    assert recipe.decode(output)["next"].tolist() == ["\n", "\\xc3"]


def test_finalize_turns_nats_into_bits():
    """Three bytes at 2 ln 2 nats each are 2 bits a byte, a perplexity of 4."""
    values = ByteLM().finalize({"nats": np.array(6 * math.log(2)), "bytes": np.array(3.0), "count": np.array(1.0)})
    assert values["bits_per_byte"] == pytest.approx(2.0)
    assert values["perplexity"] == pytest.approx(4.0)


def test_heads_must_divide_the_width():
    """Rotary positions turn pairs, so each head needs an even width."""
    with pytest.raises(ValidationError, match="multiple of twice heads, 12"):
        ByteLM.Config(width=16, heads=6)


def test_operations_of_a_row(recipe, model):
    """The formula counts what torch counts in one forward and backward pass over one window."""
    batch = {"tokens": torch.zeros(1, SMALL["block"] + 1, dtype=torch.int64)}
    # As matrix products: torch's counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        recipe.loss(model.train(), batch)[0].backward()
    assert counter.get_total_flops() == recipe.flops_per_row()
    assert recipe.tokens_per_row() == SMALL["block"]


def test_blocks_are_the_layers_to_shard(recipe, model):
    """The embedding is the output layer as well, so it stays with the whole."""
    assert recipe.shard_layers(model) == list(model.blocks)
