"""Retrieval by two towers with in-batch negatives, on users and items of a latent structure: script.py as a recipe."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from raymlops import Column, RecipeBase, Signature, Splits

USERS, ITEMS, WIDTH, TEMPERATURE = 300, 200, 16, 0.2


def splits():
    """Draw pairs: each user takes items near its own taste."""
    drawn = torch.Generator().manual_seed(7)
    tastes, kinds = (torch.randn(count, 4, generator=drawn) for count in (USERS, ITEMS))
    taken = torch.multinomial((2 * tastes @ kinds.T).softmax(1), 20, replacement=True, generator=drawn)
    users = torch.arange(USERS)[:, None].expand_as(taken)
    return [
        TensorDataset(users[:, at].flatten(), taken[:, at].flatten())
        for at in (slice(16), slice(16, 18), slice(18, 20))
    ]


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, WIDTH), nn.Embedding(ITEMS, WIDTH)
        self.user_head, self.item_head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def user(self, ids):
        return functional.normalize(self.user_head(self.users(ids)), dim=1)

    def item(self, ids):
        return functional.normalize(self.item_head(self.items(ids)), dim=1)


def hits(model, users, items):
    """For each pair, whether the item is among the ten that are nearest to the user."""
    nearest = (model.user(users) @ model.item(torch.arange(ITEMS, device=users.device)).T).topk(10).indices
    return (nearest == items[:, None]).any(1)


class TwoTowers(RecipeBase):
    def datasets(self):
        return Splits(*splits())

    def model(self):
        return Towers()

    def loss(self, model, batch):  # a rank's negatives are the other rows of its own micro-batch
        users, items = batch
        scores = model.user(users) @ model.item(items).T / TEMPERATURE
        return functional.cross_entropy(scores, torch.arange(len(users), device=scores.device))

    def metrics(self, model, batch):
        return {"recall_at_10": hits(model, *batch).sum(), "count": torch.tensor(float(len(batch[0])))}

    def signature(self):
        return Signature((Column("user", "int"),), (Column("items", "int", shape=(10,)),))

    def example(self):
        return [{"user": 1}, {"user": 2}]

    def encode(self, columns):
        return {"user": torch.as_tensor(columns["user"]).clamp(0, USERS - 1)}

    def predict(self, model, batch):
        items = model.item(torch.arange(ITEMS, device=batch["user"].device))
        return (model.user(batch["user"]) @ items.T).topk(10).indices
