"""A plain PyTorch script, the recipe that it became, and how the two are run on the same batches."""

from __future__ import annotations

import difflib
import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raymlops.config.load import load
from raymlops.data.order import seed_all
from raymlops.data.prepare import prepare
from raymlops.data.sampler import epoch_batches, epoch_rows
from raymlops.project import Project, bind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


@dataclass(frozen=True)
class Port:
    """``short`` is some dozens of steps; ``off`` turns off what each rank draws for itself."""

    name: str
    recipe: str
    short: Mapping[str, int]
    metric: str
    loss: str = "train/loss"
    off: Mapping[str, Any] = field(default_factory=dict)
    rows_alone: bool = True
    """Whether the loss is a sum over rows, so that the number of workers makes no difference."""

    @property
    def folder(self) -> Path:
        own = HERE / self.name
        return own if own.is_dir() else EXAMPLES / self.name

    def project(self, storage: Path, *, config: Mapping[str, Any] | None = None, **train: Any) -> Project:
        settings = {"train.threads_per_worker": 1, "train.log_every_steps": 1, "storage.path": storage}
        settings |= {f"train.{key}": value for key, value in train.items()}
        settings |= {f"recipe.config.{key}": value for key, value in (config or {}).items()}
        overrides = [
            f"{key}={str(value).lower() if value in (True, False) else value}" for key, value in settings.items()
        ]
        named = f"recipe.import={self.name}.recipe:{self.recipe}"
        return bind(load(self.folder / "config.yaml", overrides=[named, *overrides]))

    def script(self, **arguments: Any) -> tuple[list[float], dict[str, float]]:
        return importlib.import_module(f"{self.name}.script").main(**arguments)

    def changes(self) -> dict[str, int]:
        """Return how many lines of the script went and how many came, but for indentation, docstrings and settings."""
        before, after = (_lines(self.folder / f"{name}.py") for name in ("script", "recipe"))
        settings = [line for line in _lines(self.folder / "config.yaml") if not line.startswith("#")]
        found = list(difflib.ndiff(before, after))
        counts = {sign: sum(line.startswith(sign) for line in found) for sign in "-+"}
        return {"script": len(before), "gone": counts["-"], "new": counts["+"], "settings": len(settings)}


class Order:
    """A batch sampler for a script: the batches of a recipe's run, each seeded as its step is."""

    def __init__(self, project: Project) -> None:
        self._spec, self._split = project.spec.train, prepare(project).splits["train"]
        self._rows = epoch_rows(self._split, seed=self._spec.seed)
        self._epoch = self._step = 0

    def __len__(self) -> int:
        return math.ceil(self._rows / self._spec.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        self._epoch += 1
        for rows in epoch_batches(self._split, self._spec, epoch=self._epoch, skip=0, rows=self._rows):
            seed_all(self._spec.seed, self._step, 0, device=torch.device("cpu"))
            self._step += 1
            yield (rows % self._split.rows).tolist()


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith('"""')]
