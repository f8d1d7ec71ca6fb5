"""A GAN that draws digits of 8 by 8 pixels: script.py as a recipe, with a training loop of its own."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from raymlops import Column, RecipeBase, Signature, Splits

LATENT = 16


def images():
    pixels = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32).flatten(1)
    return TensorDataset(pixels[:1200]), TensorDataset(pixels[1200:1500]), TensorDataset(pixels[1500:])


def generator():
    return nn.Sequential(
        nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh()
    )


def discriminator():
    return nn.Sequential(
        nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
    )


class Gan(RecipeBase):
    def datasets(self):
        return Splits(*images())

    def model(self):
        return nn.ModuleDict({"draws": generator(), "judges": discriminator()})

    def train_loop(self, ctx):
        model = ctx.model()
        draws, judges = model["draws"], model["judges"]
        draws_optimizer = torch.optim.Adam(draws.parameters(), lr=2e-3, betas=(0.5, 0.999))
        judges_optimizer = torch.optim.Adam(judges.parameters(), lr=2e-3, betas=(0.5, 0.999))
        ctx.restore(model=model, optimizer={"draws": draws_optimizer, "judges": judges_optimizer})
        while not ctx.finished:
            for (real,) in ctx.batches():
                fake = draws(torch.randn(len(real), LATENT, device=real.device))
                judged = functional.softplus(-judges(real)).mean() + functional.softplus(judges(fake.detach())).mean()
                judges_optimizer.zero_grad()
                (judged * ctx.share).backward()
                ctx.average_gradients(judges.parameters())
                judges_optimizer.step()
                drawn = functional.softplus(-judges(fake)).mean()
                draws_optimizer.zero_grad()
                (drawn * ctx.share).backward()
                ctx.average_gradients(draws.parameters())
                draws_optimizer.step()
                ctx.log({"train/generator": drawn})
            ctx.report(ctx.evaluate(model))

    def metrics(self, model, batch):  # sums over rows, of which the workers' and the batches' add up
        (real,) = batch
        fake = model["draws"](torch.randn(len(real), LATENT, device=real.device))
        sums = {"real": real.sum(0), "real_squares": real.square().sum(0)}
        sums |= {"fake": fake.sum(0), "fake_squares": fake.square().sum(0)}
        return {**sums, "count": torch.tensor(float(len(real)))}

    def finalize(self, totals):
        mean = {name: value / totals["count"] for name, value in totals.items()}
        deviations = [(mean[f"{one}_squares"] - mean[one] ** 2).clip(0) ** 0.5 for one in ("real", "fake")]
        return {"distance": float(((mean["real"] - mean["fake"]) ** 2 + (deviations[0] - deviations[1]) ** 2).sum())}

    def signature(self):
        return Signature((Column("latent", "float", shape=(LATENT,)),), (Column("pixels", "float", shape=(64,)),))

    def example(self):
        return [{"latent": [0.0] * LATENT}]

    def predict(self, model, batch):
        return model["draws"](batch["latent"])
