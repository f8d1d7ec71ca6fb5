"""Which payment is a fraud? An imbalanced table with columns of text and class weights, in plain PyTorch."""

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


def tables():
    rng = np.random.default_rng(7)
    rows = 6000
    country = rng.choice(["AT", "DE", "FR", "NL", "PL"], rows)
    shop = rng.choice([f"shop {number}" for number in range(30)], rows)
    amount = rng.lognormal(3, 1, rows)
    risk = 1.5 * (country == "NL") + 2.0 * np.isin(shop, ["shop 3", "shop 17"]) + 0.8 * (np.log(amount) - 3)
    fraud = (rng.random(rows) < 1 / (1 + np.exp(5 - 1.5 * risk))).astype(np.int64)
    table = pd.DataFrame({"country": country, "shop": shop, "amount": amount, "fraud": fraud})
    return table[:4000], table[4000:5000], table[5000:]


def fit(train):
    amount = np.log(train["amount"])
    counts = np.bincount(train["fraud"], minlength=2)
    return {
        "country": sorted(set(train["country"])),
        "shop": sorted(set(train["shop"])),
        "mean": float(amount.mean()),
        "deviation": float(amount.std()),
        "weights": (len(train["fraud"]) / (2 * counts)).tolist(),
    }


def encode(table, state):
    known = {name: {text: number for number, text in enumerate(state[name], 1)} for name in ("country", "shop")}
    ids = [[known[name].get(text, 0) for text in table[name]] for name in known]
    amount = (np.log(np.asarray(table["amount"])) - state["mean"]) / state["deviation"]
    return {"ids": torch.tensor(ids).T, "amount": torch.as_tensor(amount, dtype=torch.float32)}


class Scorer(nn.Module):
    def __init__(self, countries, shops):
        super().__init__()
        self.country, self.shop = nn.Embedding(countries + 1, 4), nn.Embedding(shops + 1, 4)
        self.layers = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, ids, amount):
        parts = self.country(ids[:, 0]), self.shop(ids[:, 1]), amount[:, None]
        return self.layers(torch.cat(parts, dim=1))


def main(*, seed=0, epochs=8, order=None):
    torch.manual_seed(seed)
    train, validation, _ = tables()
    state = fit(train)
    weights = torch.tensor(state["weights"])
    data, held = (
        TensorDataset(*encode(part, state).values(), torch.tensor(part["fraud"].to_numpy()))
        for part in (train, validation)
    )
    loader = DataLoader(data, batch_sampler=order) if order else DataLoader(data, batch_size=128, shuffle=True)
    model = Scorer(len(state["country"]), len(state["shop"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    losses, metrics = [], {}
    for epoch in range(epochs):
        for ids, amount, fraud in loader:
            loss = functional.cross_entropy(model(ids, amount), fraud, weight=weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        ids, amount, fraud = held.tensors
        with torch.no_grad():
            right = model(ids, amount).argmax(1) == fraud
        recalls = [float(right[fraud == kind].float().mean()) for kind in (0, 1)]
        metrics = {"balanced_accuracy": sum(recalls) / 2}
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, balanced accuracy {metrics['balanced_accuracy']:.3f}")
    return losses, metrics


if __name__ == "__main__":
    main()
