"""Which species is a flower? A recipe of one's own: data, a fitted vocabulary, missing values, three classes."""

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from raymlops import Column, RecipeBase, RecipeConfig, Signature, Splits


class IrisLike(RecipeBase):
    class Config(RecipeConfig):
        hidden: int = Field(16, ge=1, description="width of the hidden layer")

    label = "species"

    def datasets(self):
        rng = np.random.default_rng(7)  # fixed: every worker must see the same rows
        species = rng.integers(0, 3, 1500)
        petal = np.where(rng.random(1500) < 0.05, np.nan, rng.normal(np.choose(species, [1.5, 4.3, 5.6]), 0.6))
        garden = np.array(["north", "south", "pond"])[(species + (rng.random(1500) < 0.3)) % 3]
        rows = pd.DataFrame({"garden": garden, "petal_cm": petal, "species": species})
        return Splits(train=rows[:1000], validation=rows[1000:1250], test=rows[1250:])

    def fit(self, train):  # on the training rows alone; JSON, and kept in the bundle as self.state
        return {"gardens": sorted(set(train["garden"])), "mean_cm": float(np.nanmean(train["petal_cm"]))}

    def model(self):
        width = len(self.state["gardens"]) + 3
        return nn.Sequential(nn.Linear(width, self.config.hidden), nn.ReLU(), nn.Linear(self.config.hidden, 3))

    def signature(self):
        inputs = Column("garden", "string"), Column("petal_cm", "float", nullable=True)
        return Signature(inputs, outputs=tuple(Column(name, "float") for name in ("setosa", "versicolor", "virginica")))

    def encode(self, columns):  # the same code for training rows and for requests; id 0 is a garden never seen
        ids = {name: index for index, name in enumerate(self.state["gardens"], start=1)}
        garden = functional.one_hot(torch.tensor([ids.get(name, 0) for name in columns["garden"]]), len(ids) + 1)
        petal = torch.as_tensor(columns["petal_cm"] - self.state["mean_cm"], dtype=torch.float32)
        return {"features": torch.cat([garden, petal.nan_to_num()[:, None], petal.isnan()[:, None]], dim=1)}

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch["features"]), batch["label"])

    def predict(self, model, batch):  # one column for each output of the signature
        return model(batch["features"]).softmax(1)
