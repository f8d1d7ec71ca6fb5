"""From the argument of a verb to a ``ProjectSpec`` or a ``Project``, and to its state, tracker and Serve's API.

Knows how files, mappings and specs are read, and what the environment names without a configuration file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.load import LoadedSpec, load, load_data
from raymlops.config.paths import STATE_FILE, STATE_URL
from raymlops.config.schema import ProjectSpec
from raymlops.errors import NotFoundError, UsageError
from raymlops.project import Project, bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.store import State
    from raymlops.tracking.client import Tracker


Source = str | Path | Mapping[str, Any] | ProjectSpec | LoadedSpec | Project
"""A YAML file, plain data, a spec, or a bound project."""


@contextmanager
def state_of(spec: ProjectSpec) -> Iterator[State]:
    """Open the desired state."""
    from raymlops.state.database import state_url
    from raymlops.state.store import State

    with State.open(state_url(spec)) as state:
        yield state


def state_id(spec: ProjectSpec) -> str:
    """Return the id of the state that a configuration names: whose log it is, and by what a sampled one is drawn.

    Raises:
        StorageError, UnreachableError: the state cannot be used.
    """
    with state_of(spec) as state:
        return state.owner().id


@contextmanager
def serve_of(spec: ProjectSpec) -> Iterator[ServeApi]:
    """Open Serve's API of the running cluster: on Kubernetes that of the RayService that the environment names."""
    from raymlops.cluster.dashboard import dashboard
    from raymlops.serving.control.ray_service import RayServiceApi, ray_service
    from raymlops.serving.control.rest_api import ServeApi

    if (name := ray_service()) is not None:
        yield RayServiceApi(name)
        return
    with dashboard(spec) as found:
        yield ServeApi(found.url, found.token())


@contextmanager
def opened(spec: ProjectSpec) -> Iterator[tuple[State, ServeApi]]:
    """Open the desired state and Serve's API of the running cluster."""
    with serve_of(spec) as api, state_of(spec) as state:
        yield state, api


def loaded(
    source: Source, *, overrides: Sequence[str] = (), env: str | None = None
) -> LoadedSpec | ProjectSpec | Project:
    """Return a source as it is loaded, with overrides and an overlay applied.

    Raises:
        ConfigError: with every problem found.
        UsageError: overrides or an overlay for a source that is not a file.
    """
    if isinstance(source, str | Path):
        return load(source, overrides=overrides, env=env)
    if isinstance(source, Mapping) and env is None:
        return load_data(source, overrides=overrides)
    if overrides or env:
        raise UsageError("overrides and env apply to a file", hint="Pass the path of the YAML file.")
    assert not isinstance(source, Mapping)
    return source


def spec_of(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> ProjectSpec:
    """Return the spec of a source without importing the recipe; raises as ``loaded``."""
    found = loaded(source, overrides=overrides, env=env)
    return found if isinstance(found, ProjectSpec) else found.spec


def stores_of(source: Source | None, *, overrides: Sequence[str] = (), env: str | None = None) -> ProjectSpec:
    """Return a spec that locates tracking, storage and state: by a configuration, or else by the environment.

    Without a source only overrides of ``tracking`` and ``storage`` apply.

    Raises:
        ConfigError: with every problem found.
        UsageError: an overlay without a file, or overrides for a source that is not a file.
    """
    if source is not None:
        return spec_of(source, overrides=overrides, env=env)
    if env is not None:
        raise UsageError("--env NAME lays a file over another one", hint="Name that one with --config FILE.")
    anything = {"project": {"name": "anything"}, "recipe": {"import": "any:Recipe"}, **environment()}
    places = [text for text in overrides if text.startswith(("tracking.", "storage."))]
    return load_data(anything, overrides=places).spec


def environment() -> dict[str, Any]:
    """Return what the environment sets without a configuration file, beside RAYMLOPS_HOME: the state's URL."""
    if os.environ.get(STATE_URL):
        return {"storage": {"state": {"env": STATE_URL}}}
    file = os.environ.get(STATE_FILE)
    return {"storage": {"state": {"file": file}}} if file else {}


def known_tracker(source: Source | None, *, overrides: Sequence[str] = (), env: str | None = None) -> Tracker:
    """Return the tracker of ``stores_of``, without creating its database.

    Raises:
        NotFoundError: it does not exist yet, so it has no runs.
        TrackingError: it does not answer.
        ConfigError, UsageError: as ``stores_of``.
    """
    from raymlops.tracking.client import Tracker, tracking_uri
    from raymlops.tracking.client import tracker as tracker_of
    from raymlops.tracking.database import database_file

    spec = stores_of(source, overrides=overrides, env=env)
    file = database_file(tracking_uri(spec))
    if file is not None and not file.exists():
        raise NotFoundError(
            f"there is no run: {Tracker(tracking_uri(spec)).shown_uri} does not exist yet",
            hint="Runs elsewhere are found by --config FILE, MLFLOW_TRACKING_URI or RAYMLOPS_HOME.",
        )
    tracker = tracker_of(spec)
    tracker.check()
    return tracker


def project_of(
    source: Source, *, overrides: Sequence[str] = (), env: str | None = None, recipe: type | str | None = None
) -> Project:
    """Return the project: the spec, its recipe imported, the recipe's section and the search space checked.

    ``recipe`` replaces the recipe of the spec by a class or an import string.

    Raises:
        ConfigError: with every problem found.
        RecipeImportError: the recipe cannot be imported by a worker.
    """
    return bind(loaded(source, overrides=overrides, env=env), recipe=recipe)
