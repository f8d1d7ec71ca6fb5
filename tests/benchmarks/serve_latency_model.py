"""The model of ``serve_latency``: seven numbers, one of which may be missing, and a category."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from raymlops.recipe import RecipeBase, Splits
from raymlops.signature import Column, Signature

NUMBERS = ("a", "b", "c", "d", "e", "f", "g")
COLOURS = ("red", "green", "blue")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(COLOURS) + 1, 8)
        self.layers = nn.Sequential(
            nn.Linear(len(NUMBERS) + 8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, numbers: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layers(torch.cat([numbers, self.embedding(colour)], dim=1)).squeeze(1))


class Bench(RecipeBase):
    def datasets(self) -> Splits:
        return Splits({}, {}, {})

    def model(self) -> nn.Module:
        return Net()

    def loss(self, model, batch):
        return model(*batch).mean()

    def signature(self) -> Signature:
        return Signature(
            inputs=(
                *(Column(name, "float", nullable=name == "g") for name in NUMBERS),
                Column("colour", "string", categories=COLOURS),
            ),
            outputs=(Column("y", "float"),),
        )

    def encode(self, columns):
        numbers = np.stack([columns[name] for name in NUMBERS], axis=1).astype(np.float32)
        colour = [COLOURS.index(value) + 1 if value in COLOURS else 0 for value in columns["colour"]]
        return torch.from_numpy(np.nan_to_num(numbers)), torch.tensor(colour)

    def predict(self, model, batch):
        return model(*batch)

    def decode(self, output):
        return {"y": output.numpy().astype(np.float64)}
