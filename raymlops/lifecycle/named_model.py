"""A model by its name, without a configuration file: served as it was deployed last.

Owns what replaces the file. The environment locates MLflow, the state and the files.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from raymlops.config.credentials import redact
from raymlops.config.load import load_data
from raymlops.config.paths import sqlite_path
from raymlops.errors import NotFoundError
from raymlops.lifecycle.live.lineup import champion_of, monitored, retrained
from raymlops.lifecycle.sources import environment, known_tracker, state_of, stores_of
from raymlops.serving.control.render import settings_of
from raymlops.state.audit import changes_of
from raymlops.state.database import state_url
from raymlops.state.store import Deployment, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.config.base import Spec
    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.sources import Source


def split_version(text: str) -> tuple[str, str | None]:
    """Split ``NAME``, ``NAME@ALIAS`` or ``NAME@NUMBER`` into the name and a version as verbs take it."""
    name, _, version = text.partition("@")
    return name, None if not version else version if version.isdigit() else f"@{version}"


def named(name: str, *, overrides: Sequence[str] = (), deployed: bool = False) -> ProjectSpec:
    """Return the project of a model.

    Its ``serve``, ``monitor`` and ``retrain`` sections are those of the champion, or of the last champion of a
    model that was taken down.

    Raises:
        NotFoundError: with ``deployed``, no such model was ever deployed, so that its settings are unknown.
        ConfigError: the name is invalid, or ``overrides`` are.
    """
    data = {"project": {"name": name}, "recipe": {"import": "any:Recipe"}, **environment()}
    load_data(data)  # an invalid name is reported as such
    champion = _last_champion(name, overrides=overrides)
    if champion is None and deployed:
        raise NotFoundError(
            f"{name} was never deployed according to the state here, so that its settings are unknown",
            hint="Name its configuration with --config FILE, in Python config=; or set RAYMLOPS_HOME, "
            "RAYMLOPS_STATE_URL or RAYMLOPS_STATE_FILE to where the state is.",
        )
    sections: dict[str, Spec] = {}
    if champion is not None:
        sections = {"serve": settings_of(champion), "monitor": monitored(champion), "retrain": retrained(champion)}
    stored = {name: section.model_dump(mode="json") for name, section in sections.items()}
    return load_data({**data, **stored}, overrides=overrides).spec


@contextmanager
def chosen_state(name: str | None, config: Source | None) -> Iterator[State]:
    """Open the state of a configuration, else of a model that was deployed, else of the environment.

    Raises:
        NotFoundError: no model of that name was ever deployed.
        ConfigError: of the configuration.
        StorageError, UnreachableError: the state cannot be used.
    """
    spec = stores_of(config) if config is not None or name is None else named(name, deployed=True)
    with state_of(spec) as state:
        yield state


def was_deployed(name: str) -> bool:
    """Return whether a model was ever deployed by the state here, so that its name alone is enough to deploy it."""
    return _last_champion(name) is not None


def shown_state(spec: ProjectSpec) -> str:
    """Return the URL of the state without its password, and the variable or the file that has it, if one does."""
    found = spec.storage.state
    return redact(state_url(spec)) + (
        "" if found is None or isinstance(found, str) else f" ({found.env or found.file})"
    )


def nameless() -> ProjectSpec:
    """Return a spec from the environment alone; Serve listens where the first champion was deployed to listen."""
    spec, champion = stores_of(None), None
    if (url := _known(spec)) is not None:
        with State.open(url) as state:
            champion = champion_of(state.deployments())
    return spec if champion is None else spec.model_copy(update={"serve": settings_of(champion)})


def of_run(run_id: str) -> ProjectSpec:
    """Return the configuration that a run recorded.

    Raises:
        NotFoundError: there is no such run, or it recorded none.
        TrackingError: MLflow does not answer.
    """
    from raymlops.training.runs.lookup import look_up

    spec = look_up(known_tracker(None), run_id).spec
    if spec is None:
        raise NotFoundError(f"run {run_id} recorded no configuration", hint="Name it with --config FILE.")
    return spec


def _known(spec: ProjectSpec) -> str | None:
    """Return the URL of the state, None if it does not exist yet; no database is created."""
    url = state_url(spec)
    file = sqlite_path(url)
    return url if file is None or file.exists() else None


def _last_champion(name: str, *, overrides: Sequence[str] = ()) -> Deployment | None:
    """Return the champion of a model by the state here, or the last one of a model that was taken down."""
    if (url := _known(stores_of(None, overrides=overrides))) is None:
        return None
    with State.open(url) as state:
        if (champion := champion_of(state.deployments(name))) is not None:
            return champion
        for event in changes_of(state, name):
            for side in (event.after, event.before):
                if (champion := champion_of([Deployment.from_dict(item) for item in side])) is not None:
                    return champion
    return None
