"""A GAN that draws digits of 8 by 8 pixels, in plain PyTorch: python script.py, 20 s."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

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


def distance(real, fake):
    """How far means and deviations of the pixels are apart: the Frechet distance of independent pixels."""
    means = (real.mean(0) - fake.mean(0)).square().sum()
    return float(means + (real.std(0, correction=0) - fake.std(0, correction=0)).square().sum())


def main(*, seed=0, epochs=40, order=None):
    torch.manual_seed(seed)
    train, validation, _ = images()
    loader = DataLoader(train, batch_sampler=order) if order else DataLoader(train, batch_size=64, shuffle=True)
    draws, judges = generator(), discriminator()
    draws_optimizer = torch.optim.Adam(draws.parameters(), lr=2e-3, betas=(0.5, 0.999))
    judges_optimizer = torch.optim.Adam(judges.parameters(), lr=2e-3, betas=(0.5, 0.999))
    losses, metrics = [], {}
    for epoch in range(epochs):
        for (real,) in loader:
            fake = draws(torch.randn(len(real), LATENT, device=real.device))
            judged = functional.softplus(-judges(real)).mean() + functional.softplus(judges(fake.detach())).mean()
            judges_optimizer.zero_grad()
            judged.backward()
            judges_optimizer.step()
            drawn = functional.softplus(-judges(fake)).mean()
            draws_optimizer.zero_grad()
            drawn.backward()
            draws_optimizer.step()
            losses.append(drawn.item())
        with torch.no_grad():
            (real,) = validation.tensors
            metrics = {"distance": distance(real, draws(torch.randn(len(real), LATENT)))}
        print(f"epoch {epoch + 1}: generator {drawn.item():.3f}, distance {metrics['distance']:.3f}")
    return losses, metrics


if __name__ == "__main__":
    main()
