"""Digits of 8 by 8 pixels, half of the classes rare, in plain PyTorch: python script.py, 20 s."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

DECAY = 0.98


class Digits(Dataset):
    def __init__(self, images, labels, *, shift):
        self.images, self.labels, self.shift = images, labels, shift

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.shift:
            top, left = torch.randint(0, 3, (2,)).tolist()
            image = functional.pad(image, (1, 1, 1, 1))[:, top : top + 8, left : left + 8]
        return image, self.labels[index]


def splits(*, shift):
    data = load_digits()
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    row = torch.arange(len(labels))
    train = (row < 1200) & ((labels < 5) | (row % 4 == 0))
    parts = (train, shift), ((row >= 1200) & (row < 1500), False), (row >= 1500, False)
    return [Digits(images[rows], labels[rows], shift=moved) for rows, moved in parts]


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def main(*, seed=0, epochs=12, order=None, shift=True):
    torch.manual_seed(seed)
    train, validation, _ = splits(shift=shift)
    weights = 1 / torch.bincount(train.labels)[train.labels]
    sampler = WeightedRandomSampler(weights, len(train))
    loader = DataLoader(train, batch_sampler=order) if order else DataLoader(train, batch_size=64, sampler=sampler)
    model = network()
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    total = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total, pct_start=0.3)
    losses, metrics, step = [], {}, 0
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            loss = functional.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            decay = min(DECAY, (1 + step) / (10 + step))
            with torch.no_grad():
                for average, value in zip(averaged.parameters(), model.parameters(), strict=True):
                    average.lerp_(value, 1 - decay)
                for average, value in zip(averaged.buffers(), model.buffers(), strict=True):
                    average.copy_(value)
            losses.append(loss.item())
        averaged.eval()
        with torch.no_grad():
            logits = averaged(validation.images)
        metrics = {"accuracy": float((logits.argmax(1) == validation.labels).float().mean())}
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {metrics['accuracy']:.3f}")
    return losses, metrics


if __name__ == "__main__":
    main()
