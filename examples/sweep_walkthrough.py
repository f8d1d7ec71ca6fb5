# A sweep from a notebook: it outlives the kernel, and any other kernel can attach to it.
#
#   jupytext --to notebook examples/sweep_walkthrough.py     makes a notebook of it
#   eval "$(raymlops up)"                                    starts the cluster; then jupyter, from the same shell
#
# Half a minute on 2 cores; validation/loss of the best trial about 0.035 (guessing: 0.5).
# ruff: noqa: B018, E402 - a cell shows its last line, and imports what it needs

# %% [markdown]
# ## A recipe in a cell
# Workers and jobs import a recipe by its name, which a class of a notebook has not: the magic makes the cell a module.

# %%
# %load_ext raymlops

# %%
# %%raymlops waves_recipe.py
import numpy as np
from pydantic import Field
from torch import nn

from raymlops import Column, RecipeBase, RecipeConfig, Signature, Splits


class Waves(RecipeBase):
    class Config(RecipeConfig):
        hidden: int = Field(16, ge=1, description="width of the hidden layer")

    label = "height"

    def datasets(self):
        rng = np.random.default_rng(7)
        place = rng.uniform(-3, 3, 1200).astype("float32")
        rows = {"place": place, "height": np.sin(2 * place) + rng.normal(0, 0.1, 1200).astype("float32")}
        parts = (slice(0, 800), slice(800, 1000), slice(1000, 1200))
        return Splits(*({name: values[part] for name, values in rows.items()} for part in parts))

    def model(self):
        return nn.Sequential(nn.Linear(1, self.config.hidden), nn.Tanh(), nn.Linear(self.config.hidden, 1))

    def loss(self, model, batch):
        return nn.functional.mse_loss(self.predict(model, batch)[:, 0], batch["label"])

    def predict(self, model, batch):
        return model(batch["place"][:, None])

    def signature(self):
        return Signature((Column("place", "float"),), outputs=(Column("height", "float"),))


# %% [markdown]
# ## The sweep, as a job
# `wait=False` sends it to the cluster and returns once it has its id. What is wrong with the configuration fails here.

# %%
import raymlops as rm

sweep = rm.sweep(
    {
        "project": {"name": "waves"},
        "recipe": {"import": "waves_recipe:Waves"},
        "train": {
            "epochs": 20,
            "batch_size": 64,
            "metric": "validation/loss",
            "mode": "min",
            "num_workers": 0,
            "cpus_per_worker": 0.5,
        },
        "sweep": {
            "num_trials": 8,
            "startup_trials": 4,
            "space": {
                "recipe.config.hidden": {"int": [4, 64], "log": True},
                "train.lr": {"float": [1e-3, 1e-1], "log": True},
            },
        },
    },
    wait=False,
)
sweep

# %%
sweep.status().state

# %% [markdown]
# One display that is updated in place. Interrupting the cell ends the waiting, not the sweep.

# %%
record = sweep.wait()

# %%
sweep.trials().sort_values("value").head()

# %%
sweep.plot("history")

# %% [markdown]
# ## Any other kernel
# The id is enough: everything is read from MLflow and the study.

# %%
again = rm.attach(sweep.sweep_id)
again.best

# %% [markdown]
# ## The winner
# It is trained as a run of its own and registered, with the sweep and the trial in its lineage.

# %%
version = again.register()
version
