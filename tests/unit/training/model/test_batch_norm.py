"""Whether a model's batch normalisation can train on a single row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raymlops.training.model.batch_norm import one_row_is_too_few


def frozen() -> nn.Module:
    return nn.BatchNorm1d(3).eval()


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.BatchNorm1d(3), (1, 3), True),
        (nn.BatchNorm1d(3), (1, 3, 1), True),
        (nn.BatchNorm1d(3), (1, 3, 2), False),
        (nn.BatchNorm2d(3), (1, 3, 1, 1), True),
        (nn.BatchNorm2d(3), (1, 3, 4, 4), False),
        (nn.BatchNorm1d(3, track_running_stats=False), (1, 3), True),
        (frozen(), (1, 3), False),
        (nn.LayerNorm(3), (1, 3), False),
    ],
)
def test_one_row_is_too_few_where_torch_refuses_it(layer: nn.Module, shape: tuple[int, ...], expected: bool) -> None:
    """It is the number of values per channel that counts; the layer is left as it was."""
    mode, before = layer.training, {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    row = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    assert one_row_is_too_few(layer, lambda: layer(row)) is expected
    assert layer.training is mode
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    if expected:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            layer(row)
    else:
        layer(row)


def test_what_fails_otherwise_proves_nothing() -> None:
    """The training will say what is wrong with the row."""
    layer = nn.BatchNorm1d(3)
    assert one_row_is_too_few(layer, lambda: layer(torch.zeros(1, 4, 2))) is False


class Counting(nn.Module):
    """Names its layer's input, and counts in a buffer that each pass makes new."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.BatchNorm1d(3)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        self.passes = self.passes + 1
        return self.layer(input=row)


def test_an_input_by_name_is_seen_and_a_new_buffer_is_put_back() -> None:
    """As models may call their layers, and may keep what they count."""
    model = Counting()
    assert one_row_is_too_few(model, lambda: model(torch.zeros(1, 3))) is True
    assert model.passes.item() == 0
