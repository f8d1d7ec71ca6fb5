"""Projects on the tiny recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from raymlops.config.load import load_data
from raymlops.project import Project, bind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def tiny_project(tmp_path: Path) -> Callable[..., Project]:
    """Return a factory: keyword arguments are fields of ``train``, ``config`` is the recipe's, ``more`` the rest."""

    def make(
        *,
        recipe: str = "tiny:Tiny",
        config: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
        **train: Any,
    ) -> Project:
        section = {"epochs": 2, "batch_size": 64, "lr": 1e-2, "threads_per_worker": 1} | train
        data = {
            "project": {"name": "tiny"},
            "recipe": {"import": recipe, "config": {"train_rows": 300, "validation_rows": 101, **(config or {})}},
            "train": section,
            "storage": {"path": str(tmp_path / "storage")},
        }
        return bind(load_data(data | (more or {})))

    return make
