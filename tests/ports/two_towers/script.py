"""Retrieval by two towers with in-batch negatives, on users and items of a latent structure, in plain PyTorch."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

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


def loss_of(model, users, items):
    scores = model.user(users) @ model.item(items).T / TEMPERATURE
    return functional.cross_entropy(scores, torch.arange(len(users), device=scores.device))


def hits(model, users, items):
    """For each pair, whether the item is among the ten that are nearest to the user."""
    nearest = (model.user(users) @ model.item(torch.arange(ITEMS, device=users.device)).T).topk(10).indices
    return (nearest == items[:, None]).any(1)


def main(*, seed=0, epochs=10, order=None):
    torch.manual_seed(seed)
    train, validation, _ = splits()
    loader = DataLoader(train, batch_sampler=order) if order else DataLoader(train, batch_size=128, shuffle=True)
    model = Towers()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses, metrics = [], {}
    for epoch in range(epochs):
        for users, items in loader:
            loss = loss_of(model, users, items)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            metrics = {"recall_at_10": float(hits(model, *validation.tensors).float().mean())}
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, recall at 10 {metrics['recall_at_10']:.3f}")
    return losses, metrics


if __name__ == "__main__":
    main()
