"""A variational autoencoder of digits: script.py as a recipe."""

import torch
from pydantic import Field
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from raymlops import Column, RecipeBase, RecipeConfig, Signature, Splits

LATENT, WARM = 8, 200


def splits():
    pixels = torch.tensor(load_digits().images / 16, dtype=torch.float32).flatten(1)
    return TensorDataset(pixels[:1200]), TensorDataset(pixels[1200:1500]), TensorDataset(pixels[1500:])


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.reads = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * LATENT))
        self.draws = nn.Sequential(nn.Linear(LATENT, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, pixels, noise):
        mean, log_variance = self.reads(pixels).chunk(2, dim=1)
        latent = mean
        if self.training:
            latent = mean + noise * torch.randn_like(mean) * (log_variance / 2).exp()
        return self.draws(latent), mean, log_variance


def parts_of(model, pixels, noise):
    logits, mean, log_variance = model(pixels, noise)
    reconstruction = functional.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return reconstruction / len(pixels), divergence / len(pixels)


class DigitsVae(RecipeBase):
    class Config(RecipeConfig):
        noise: float = Field(1.0, ge=0, description="of the latent in training")

    def datasets(self):
        return Splits(*splits())

    def model(self):
        return Vae()

    def loss(self, model, batch):
        # In evaluations the whole bound: what is annealed would make the first epochs the best.
        beta = min(1.0, self.progress.step / WARM) if model.training else 1.0
        reconstruction, divergence = parts_of(model, *batch, self.config.noise)
        return {"reconstruction": reconstruction, "divergence": beta * divergence}

    def signature(self):
        pixels = Column("pixels", "float", shape=(64,))
        return Signature((pixels,), (Column("reconstruction", "float", shape=(64,)),))

    def example(self):
        return [{"pixels": [0.5] * 64}]

    def predict(self, model, batch):
        return model(batch["pixels"], 0.0)[0].sigmoid()
