"""The model of ``serve_latency`` as a recipe: seven numbers, one of which may be missing, and a category."""

from __future__ import annotations

import numpy as np
import torch
from serve_latency_net import COLOURS, NUMBERS, Net
from torch import nn

from raymlops.arrays import Column
from raymlops.recipe import RecipeBase, Splits
from raymlops.signature import Signature


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
                Column("colour", "string", categories=tuple(COLOURS)),
            ),
            outputs=(Column("y", "float"),),
        )

    def encode(self, columns):
        numbers = np.stack([columns[name] for name in NUMBERS], axis=1).astype(np.float32)
        colour = [COLOURS.get(value, 0) for value in columns["colour"]]
        return torch.from_numpy(np.nan_to_num(numbers)), torch.tensor(colour)

    def predict(self, model, batch):
        return model(*batch)

    def decode(self, output):
        return {"y": output.numpy().astype(np.float64)}
