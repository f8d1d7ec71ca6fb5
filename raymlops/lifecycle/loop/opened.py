"""The state of what a person decides on: by a configuration, a model's name, or the environment."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from raymlops.lifecycle.named_model import named
from raymlops.lifecycle.sources import state_of, stores_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.lifecycle.sources import Source
    from raymlops.state.store import State


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
