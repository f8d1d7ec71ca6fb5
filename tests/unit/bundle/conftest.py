"""Bundles on disk, and modules that exist only for one test."""

from __future__ import annotations

import importlib
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from tiny_bundle import tiny_contents

from raymlops.bundle.write import write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from raymlops.records import BundleRef


@pytest.fixture
def tiny_ref(tmp_path: Path) -> BundleRef:
    """Return a bundle of the tiny recipe in a folder of its own."""
    return write_bundle(tmp_path / "store", tiny_contents())


@pytest.fixture
def imported(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return a function that writes files below a new folder, imports one module of it and forgets it again.

    ``imported("shop.recipe:Shop", {"shop/recipe.py": "..."})`` returns the class, as training would have it.
    """
    path, modules = list(sys.path), set(sys.modules)
    folders: list[Path] = []

    def forget() -> None:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(tuple(map(str, folders))) or (
                getattr(sys.modules[name], "__file__", "") is None
            ):
                del sys.modules[name]
        importlib.invalidate_caches()

    def load(reference: str, files: dict[str, str]) -> Any:
        forget()
        folder = tmp_path / f"source{len(folders)}"
        folders.append(folder)
        for name, text in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text), encoding="utf-8")
        sys.path.insert(0, str(folder))
        module, _, attribute = reference.partition(":")
        return getattr(importlib.import_module(module), attribute)

    yield load
    forget()
