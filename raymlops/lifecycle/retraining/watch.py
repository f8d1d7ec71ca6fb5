"""``watch``: start the controller that watches a model, and say what its loop waits for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.config.base import absolute_references
from raymlops.errors import RefusedError
from raymlops.lifecycle.live.lineup import champion_of, monitored, retrained
from raymlops.lifecycle.loop.status import loop_status
from raymlops.lifecycle.rollout.actor import start_controller
from raymlops.lifecycle.sources import Source, spec_of, state_of
from raymlops.lifecycle.watch.registered_slices import as_registered
from raymlops.records import Record

if TYPE_CHECKING:
    from pydantic import BaseModel

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.rollout.actor import ControllerRecord
    from raymlops.state.store import Deployment


@dataclass(frozen=True)
class WatchRecord(Record):
    """A model that is watched: by whom, what its loop waits for, and what of the configuration is not in force."""

    name: str
    version: int
    controller: str
    """User, machine and process."""
    loop: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return it as lines."""
        lines = self.loop or ("nothing triggers a retraining but a person",)
        return "\n".join([f"watched  by {self.controller}", *(f"loop     {line}" for line in lines), *self.notes])


def watch(source: Source) -> WatchRecord:
    """Start the controller of a live model unless it runs, and return what it waits for.

    The ``monitor`` and ``retrain`` sections are those that the model was deployed with: where the configuration's
    differ, a note says so.

    Raises:
        RefusedError: no version of the model is live, so that there is nothing to watch.
        ClusterError: no cluster is running, or the controller cannot run there.
        ConfigError, StorageError, UnreachableError: the configuration, or the state.
    """
    spec = spec_of(source)
    name = spec.project.name
    with state_of(spec) as state:
        champion = champion_of(state.deployments(name))
        if champion is None:
            raise RefusedError(f"no version of {name} is live", hint=f"raymlops deploy {name} makes one live first.")
        held: ControllerRecord = start_controller(spec)
        found = loop_status(state, name, now=state.now())
    lines = () if found is None else tuple(found["lines"])
    return WatchRecord(name, champion.version, held.holder, lines, tuple(_unlike(spec, champion)))


def _unlike(spec: ProjectSpec, champion: Deployment) -> list[str]:
    """Return which sections of a configuration are not in force."""
    monitor = as_registered(spec.monitor, champion.bundle)[0]  # as it would be deployed
    both = {"monitor": (monitor, monitored(champion)), "retrain": (spec.retrain, retrained(champion))}
    changed = [key for key, sections in both.items() if len({_plain(section) for section in sections}) > 1]
    again = f"raymlops deploy {champion.name} --version {champion.version} puts it in force without a restart"
    return [f"the configuration's {key} section is not the one that is deployed: {again}" for key in changed]


def _plain(section: BaseModel) -> str:
    """Return a section as text that is the same wherever its references are relative to, and however it was stored."""
    return json.dumps(absolute_references(section.model_dump(mode="json")), sort_keys=True)
