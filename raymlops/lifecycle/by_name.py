"""A model that is named without a configuration: it is served as it was deployed last.

Owns how such a name is read, and where what is needed in place of a configuration comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.config.load import load_data
from raymlops.config.paths import sqlite_path
from raymlops.errors import UsageError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.sources import place_of
from raymlops.serving.control.render import settings_of
from raymlops.state.audit import changes_of
from raymlops.state.database import state_url
from raymlops.state.store import Deployment, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec


def named(text: str, *, overrides: Sequence[str] = ()) -> tuple[ProjectSpec, str | None]:
    """Return the project of ``NAME``, ``NAME@ALIAS`` or ``NAME@NUMBER``, and the version as verbs take it, if any.

    The state is where the environment and ``overrides`` say; the ``serve`` section is that of the champion, of the last
    one where the model was taken down.

    Raises:
        UsageError: the model was never deployed from here, so that nothing says how to serve it.
        ConfigError: of ``overrides``.
    """
    name, _, version = text.partition("@")
    data = {"project": {"name": name}, "recipe": {"import": "any:Recipe"}}
    load_data(data)  # a name that cannot be is said as such
    champion = None
    if (url := _known(place_of(None, overrides=overrides))) is not None:
        with State.open(url) as state:
            champion = _last_champion(state, name)
    if champion is None:
        raise UsageError(
            f"{name} was never deployed, as far as the state here knows, so that nothing says how to serve it",
            hint="Name its configuration with --config FILE; or say by RAYMLOPS_HOME where the state is.",
        )
    serve = settings_of(champion).model_dump(mode="json")
    spec = load_data({**data, "serve": serve}, overrides=overrides).spec
    return spec, None if not version else version if version.isdigit() else f"@{version}"


def nameless(*, env: str | None = None) -> ProjectSpec:
    """Return where things are by the environment alone, with Serve where the first champion was deployed to listen.

    Raises:
        UsageError: an overlay without a file.
    """
    spec = place_of(None, env=env)
    champion = None
    if (url := _known(spec)) is not None:
        with State.open(url) as state:
            champion = champion_of(state.deployments())
    return spec if champion is None else spec.model_copy(update={"serve": settings_of(champion)})


def _known(spec: ProjectSpec) -> str | None:
    """Return the URL of the state, None where there is none: asking makes no database."""
    url = state_url(spec)
    file = sqlite_path(url)
    return url if file is None or file.exists() else None


def _last_champion(state: State, name: str) -> Deployment | None:
    if (champion := champion_of(state.deployments(name))) is not None:
        return champion
    for event in changes_of(state, name):
        for side in (event.after, event.before):
            if (champion := champion_of([Deployment.from_dict(item) for item in side])) is not None:
                return champion
    return None
