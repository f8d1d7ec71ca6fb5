"""Which payment is a fraud? An imbalanced table with columns of text and class weights: script.py as a recipe."""

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from raymlops import Column, RecipeBase, Signature, Splits


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


class Scorer(nn.Module):
    def __init__(self, countries, shops):
        super().__init__()
        self.country, self.shop = nn.Embedding(countries + 1, 4), nn.Embedding(shops + 1, 4)
        self.layers = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, ids, amount):
        parts = self.country(ids[:, 0]), self.shop(ids[:, 1]), amount[:, None]
        return self.layers(torch.cat(parts, dim=1))


class Fraud(RecipeBase):
    label = "fraud"

    def datasets(self):
        return Splits(*tables())

    def fit(self, train):
        amount = np.log(train["amount"])
        counts = np.bincount(train["fraud"], minlength=2)
        return {
            "country": sorted(set(train["country"])),
            "shop": sorted(set(train["shop"])),
            "mean": float(amount.mean()),
            "deviation": float(amount.std()),
            "weights": (len(train["fraud"]) / (2 * counts)).tolist(),
        }

    def encode(self, table):
        state = self.state
        known = {name: {text: number for number, text in enumerate(state[name], 1)} for name in ("country", "shop")}
        ids = [[known[name].get(text, 0) for text in table[name]] for name in known]
        amount = (np.log(np.asarray(table["amount"])) - state["mean"]) / state["deviation"]
        return {"ids": torch.tensor(ids).T, "amount": torch.as_tensor(amount, dtype=torch.float32)}

    def model(self):
        return Scorer(len(self.state["country"]), len(self.state["shop"]))

    def loss(self, model, batch):  # what cross_entropy divides by with weights: theirs, not the number of rows
        weights = torch.tensor(self.state["weights"], device=batch["label"].device)
        logits = model(batch["ids"], batch["amount"])
        total = functional.cross_entropy(logits, batch["label"], weight=weights, reduction="sum")
        return total, weights[batch["label"]].sum()

    def metrics(self, model, batch):
        right = model(batch["ids"], batch["amount"]).argmax(1) == batch["label"]
        found = {"frauds_found": right & (batch["label"] == 1), "others_found": right & (batch["label"] == 0)}
        sums = {name: value.sum() for name, value in found.items()}
        return {**sums, "frauds": batch["label"].sum(), "count": torch.tensor(float(len(right)))}

    def finalize(self, totals):
        frauds, others = totals["frauds"], totals["count"] - totals["frauds"]
        recalls = totals["frauds_found"] / max(1, frauds), totals["others_found"] / max(1, others)
        return {"balanced_accuracy": float(sum(recalls) / 2)}

    def signature(self):
        inputs = Column("country", "string"), Column("shop", "string"), Column("amount", "float")
        return Signature(inputs, (Column("probability", "float"),))

    def predict(self, model, batch):
        return model(batch["ids"], batch["amount"]).softmax(1)[:, 1]
