"""Digits of 8 by 8 pixels, half of the classes rare: script.py as a recipe. Optimizer and schedule: config.yaml."""

import torch
from pydantic import Field
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, WeightedRandomSampler

from raymlops import Column, RecipeBase, RecipeConfig, Signature, Splits


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


class ImageClassifier(RecipeBase):
    class Config(RecipeConfig):
        shift: bool = Field(True, description="move training images by a pixel at random")

    def datasets(self):
        return Splits(*splits(shift=self.config.shift))

    def sampler(self, train, epoch):  # noqa: ARG002 - every epoch draws by the same weights
        weights = 1 / torch.bincount(train.labels)[train.labels]
        return WeightedRandomSampler(weights, len(train))

    def model(self):
        return network()

    def loss(self, model, batch):
        images, labels = batch
        return functional.cross_entropy(model(images), labels, label_smoothing=0.05)

    def metrics(self, model, batch):
        images, labels = batch
        logits = model(images)
        return {
            "accuracy": (logits.argmax(1) == labels).sum(),
            "loss": functional.cross_entropy(logits, labels, reduction="sum"),
            "count": torch.tensor(float(len(labels))),
        }

    def signature(self):
        return Signature((Column("image", "float", shape=(8, 8)),), (Column("scores", "float", shape=(10,)),))

    def example(self):
        return [{"image": [[0.0] * 8] * 8}]

    def encode(self, columns):
        return [torch.as_tensor(columns["image"] / 16, dtype=torch.float32)[:, None]]

    def predict(self, model, batch):
        return model(batch[0]).softmax(1)
