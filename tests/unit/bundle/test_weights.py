"""Weights are read into a model as torch's own loading does, without a second copy of them in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from raymlops.bundle.weights import read_into, write


class Kinds(nn.Module):
    """Holds every kind of number that a file may."""

    def __init__(self):
        super().__init__()
        kinds = {
            "mask": torch.tensor([True, False, True]),
            "count": torch.tensor(7),
            "none": torch.zeros(0, 3, dtype=torch.float16),
            "short": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "tiny": torch.tensor([0.5], dtype=torch.float8_e4m3fn),
            "wide": torch.tensor([[1.0, 2.0]], dtype=torch.float64),
            "spectrum": torch.tensor([1 + 2j]),
            "id": torch.tensor([2**60 + 1]),
        }
        for name, value in kinds.items():
            self.register_buffer(name, value)
        self.layer = nn.Linear(3, 2)
        self.tied = self.layer


def test_every_number_comes_back(tmp_path):
    """Of any type and shape, tied or not; what the model held before is gone."""
    kept = Kinds().state_dict()
    write(tmp_path / "w", kept)
    other = Kinds()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    read_into(other, tmp_path / "w")
    assert other.layer.weight is other.tied.weight
    for name, tensor in other.state_dict().items():
        assert torch.equal(_bytes(tensor), _bytes(kept[name])), name


def _bytes(tensor):
    return tensor.view(torch.uint8) if tensor.ndim else tensor


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, 'Missing key.*"bias"'),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(1)}, 'Unexpected key.*"scale"'),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "size mismatch for weight"),
    ],
)
def test_weights_of_another_model_are_named(tmp_path, weights, message):
    write(tmp_path / "w", weights)
    with pytest.raises(RuntimeError, match=message):
        read_into(nn.Linear(3, 2), tmp_path / "w")


class Scaled(nn.Sequential):
    """Doubles its second layer's weights in place as they are loaded, as a migration of old weights may."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[f"{prefix}1.weight"].mul_(2)
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_what_a_model_changes_as_it_is_loaded_stays_changed(tmp_path):
    saved = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    write(tmp_path / "w", saved.state_dict())
    model = Scaled(nn.Linear(1, 1), nn.Linear(1, 1))
    read_into(model, tmp_path / "w")
    assert model[1].weight.item() == 2 * saved[1].weight.item()
    assert model[0].weight.item() == saved[0].weight.item()


MEMORY = """
import sys
from pathlib import Path
import torch
from torch import nn
from raymlops.bundle.weights import read_into, write

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) << 10

model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(8)))
write(Path(sys.argv[1]), model.state_dict())
read_into(nn.Linear(1, 1, bias=False), Path(sys.argv[2]))
before = peak_bytes()
read_into(model, Path(sys.argv[1]))
print((peak_bytes() - before) / sum(tensor.nbytes for tensor in model.state_dict().values()))
"""


@pytest.mark.soak
def test_reading_takes_no_copy_of_the_weights(tmp_path):
    """128 MB in eight layers raise the highest resident memory by about one layer."""
    script = tmp_path / "memory.py"
    script.write_text(MEMORY, encoding="utf-8")
    write(tmp_path / "small", nn.Linear(1, 1, bias=False).state_dict())
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "w"), str(tmp_path / "small")],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 0.25
