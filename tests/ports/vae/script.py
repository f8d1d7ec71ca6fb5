"""A variational autoencoder of digits in plain PyTorch."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

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


def main(*, seed=0, epochs=20, order=None, noise=1.0):
    torch.manual_seed(seed)
    train, validation, _ = splits()
    loader = DataLoader(train, batch_sampler=order) if order else DataLoader(train, batch_size=64, shuffle=True)
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses, metrics, step = [], {}, 0
    for epoch in range(epochs):
        model.train()
        for (pixels,) in loader:
            beta = min(1.0, step / WARM)
            reconstruction, divergence = parts_of(model, pixels, noise)
            loss = reconstruction + beta * divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            reconstruction, divergence = parts_of(model, *validation.tensors, noise)
        metrics = {"loss": float(reconstruction + divergence)}
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, validation {metrics['loss']:.3f}")
    return losses, metrics


if __name__ == "__main__":
    main()
