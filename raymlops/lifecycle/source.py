"""One way in for every verb: whatever a caller has becomes a ``Project``.

Knows how files, mappings and specs are read; knows nothing of clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymlops.config.load import LoadedSpec, load, load_data
from raymlops.config.schema import ProjectSpec
from raymlops.errors import UsageError
from raymlops.project import Project, bind

Source = str | Path | Mapping[str, Any] | ProjectSpec | LoadedSpec | Project
"""A YAML file, plain data, a spec, or a project that is bound already."""


def spec_of(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> ProjectSpec:
    """Return the spec without importing the recipe: enough for what only needs to know where things are.

    Raises:
        ConfigError: with every problem found.
        UsageError: overrides or an overlay for what was read already.
    """
    if isinstance(source, str | Path):
        return load(source, overrides=overrides, env=env).spec
    if isinstance(source, Mapping) and env is None:
        return load_data(source, overrides=overrides).spec
    if overrides or env:
        raise UsageError("overrides and env apply to a file", hint="Pass the path of the YAML file.")
    return source.spec if isinstance(source, LoadedSpec | Project) else source  # type: ignore[return-value]


def project_of(
    source: Source, *, overrides: Sequence[str] = (), env: str | None = None, recipe: type | str | None = None
) -> Project:
    """Return the project: the spec, its recipe imported, the recipe's section and the search space checked.

    ``recipe`` replaces the recipe of the spec by a class or an import string.

    Raises:
        ConfigError: with every problem found.
        RecipeImportError: the recipe cannot be imported by a worker.
    """
    if isinstance(source, str | Path):
        return bind(load(source, overrides=overrides, env=env), recipe=recipe)
    if isinstance(source, Mapping) and env is None:
        return bind(load_data(source, overrides=overrides), recipe=recipe)
    if overrides or env:
        raise UsageError("overrides and env apply to a file", hint="Pass the path of the YAML file.")
    return bind(source, recipe=recipe)  # type: ignore[arg-type]
