"""A process's prepared data, cached for its next trial.

Owns the cache key: two configurations have the same data where they differ only in fields of the recipe's
configuration that ``datasets``, ``fit``, ``encode`` and ``target`` never read. Their reads are recorded, so that a
sweep over ``hidden`` loads its data once a process, and one over ``train_rows`` does not train on the wrong rows. The
same key decides whether a process may use the listing, the row counts or the whole data of another one.
"""

from __future__ import annotations

import copy
import platform
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raymlops.data.prepare import Prepared, prepare, versions_of
from raymlops.data.shared import SharedData, pack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from raymlops.project import Project
    from raymlops.recipe import RecipeConfig


@dataclass
class _Entry:
    project: Project
    watched: WatchedConfig
    prepared: Prepared

    @property
    def key(self) -> dict[str, Any]:
        """Return what decides the data. Training may read more fields, so this may change."""
        return _key(self.project, self.watched.read_fields())


class DataCache:
    """Caches the data that was prepared last; only that, as a trial's data may fill the memory.

    ``shared`` is another process's data, which is available too, as it costs no memory.
    """

    def __init__(self, shared: SharedData | None = None) -> None:
        self._shared = shared
        self._entry: _Entry | None = None
        self.prepared = 0
        """How often data was prepared."""

    def get(
        self,
        project: Project,
        *,
        shared: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        versions: Mapping[str, int] | None = None,
    ) -> Prepared:
        """Return the project's data, from the cache or prepared now, with a recipe of this configuration.

        ``shared`` is what ``share`` returned in another process; it is used where the data would be the same. Else its
        versions of Delta tables are, as ``versions`` are by ``prepare``.
        ``state`` is what ``fit`` returned for the weights of a resumed training, which need that very state.

        Raises:
            RecipeError, StorageError: as ``prepare``.
        """

        def has_state(found: Mapping[str, Any]) -> bool:
            return state is None or found == state

        if (entry := self._entry) is not None and has_state(entry.prepared.state) and _same(project, entry.key):
            kept = entry.prepared
            return Prepared(project.recipe(state=kept.state), kept.splits, kept.state)
        self._entry = None
        watched = WatchedConfig(project.recipe_config)
        ready = self._shared
        if ready is not None and ready.fits_here and has_state(ready.state) and _same(project, ready.key):
            watched.count_as_read(ready.key["config"])
            recipe = replace(project, recipe_config=watched).recipe(state=ready.state)  # type: ignore[arg-type]
            made = ready.prepared(recipe)
            self._entry = _Entry(project, watched, made)
        else:
            self.prepared += 1
            sources = None
            if shared is not None:
                versions = versions_of(shared["sources"])
            if shared is not None and _same(project, shared["key"]):
                sources = shared["sources"]
                watched.count_as_read(shared["key"]["config"])  # in that process: ``datasets`` may not be called here
            there = replace(project, recipe_config=watched)  # type: ignore[arg-type]
            made = prepare(there, state=state, sources=sources, versions=versions)
            if state is None:  # otherwise ``fit`` did not run, and its reads are unknown
                self._entry = _Entry(project, watched, made)
        return Prepared(project.recipe(state=made.state), made.splits, made.state)

    def share(self) -> dict[str, Any]:
        """Return, as JSON data, the sources of the data that was prepared last, for another process."""
        entry = self._entry
        assert entry is not None, "nothing was prepared"
        repeats = entry.project.spec.sweep.repeats.seeds > 1
        known = {"fingerprint": entry.prepared.data.fingerprint} if repeats else {}
        return {"key": entry.key, "sources": entry.prepared.sources(), **known}

    def shared_data(self) -> SharedData | None:
        """Return the data that was prepared last for another process's cache; None where it cannot be shared.

        Raises:
            RecipeError: ``encode()`` or ``target()`` raises.
        """
        entry = self._entry
        assert entry is not None, "nothing was prepared"
        sources = entry.prepared.sources()
        # It encodes, which reads the remaining fields that decide the data.
        parts = pack(entry.prepared.splits, sources=sources)
        if parts is None:
            return None
        return SharedData(entry.key, sources, entry.prepared.state, parts, host=platform.node())


def fingerprint_of(project: Project, prepared: Prepared, *, shared: Mapping[str, Any] | None) -> str:
    """Return the fingerprint of a trial's data, that of ``share`` where it is the same; empty without repeats."""
    if shared is None or "fingerprint" not in shared:
        return ""
    return str(shared["fingerprint"]) if _same(project, shared["key"]) else prepared.data.fingerprint


def _key(project: Project, fields: Iterable[str]) -> dict[str, Any]:
    """Return what a project's data depends on, where it reads these fields of the recipe's configuration."""
    values = project.recipe_config.model_dump(mode="json")
    config = {name: values.get(name) for name in sorted(fields)}
    train = project.spec.train
    read = train.model_dump(mode="json", include={"seed", "shuffle_window_mb", "tables", "window"})
    return {"recipe": project.reference, **read, "config": config}


def _same(project: Project, key: Mapping[str, Any]) -> bool:
    """Return whether a project would prepare the data of another one's key."""
    return _key(project, key["config"]) == key


class WatchedConfig:
    """Proxies a recipe's configuration and records which fields are read.

    Anything other than reading a field (dumping, copying, comparing, iterating) counts as reading them all.
    """

    def __init__(self, config: RecipeConfig) -> None:
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_read", set())

    def read_fields(self) -> frozenset[str]:
        """Return the names of the fields read so far."""
        return frozenset(object.__getattribute__(self, "_read"))

    def count_as_read(self, names: Iterable[str]) -> None:
        """Count fields as read."""
        object.__getattribute__(self, "_read").update(names)

    def __getattr__(self, name: str) -> Any:
        config = self._config
        if name in type(config).model_fields:
            self._read.add(name)
            return getattr(config, name)
        return getattr(self._all(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)  # frozen: pydantic's own error

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance holds
        return type(self._config)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return bool(self._all() == other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __copy__(self) -> Any:
        return copy.copy(self._all())

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self._all(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._all().__reduce_ex__(protocol)

    def _all(self) -> Any:
        config = object.__getattribute__(self, "_config")
        object.__getattribute__(self, "_read").update(type(config).model_fields)
        return config
