"""The aliases ``champion`` and ``challenger`` of a model in MLflow, which belong to one state.

States may share an MLflow, each with another version live, and an alias names one version. The first state that deploys
a model owns its aliases, by a tag of the model there; every other one leaves them alone, and its status says so. A
person hands them over: ``own``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.errors import TakenError
from raymlops.lifecycle.live.alias_owner import OWNED, words
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.registration.admission import CHAMPION
from raymlops.lifecycle.sources import Source, spec_of, state_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.registry.versions import Registry
    from raymlops.state.identity import Owner

CHALLENGER = "challenger"


class MlflowAliases:
    """The aliases of models as one state may set them; connects to MLflow when asked."""

    def __init__(self, spec: ProjectSpec, owner: Owner) -> None:
        self._spec, self._owner = spec, owner

    def owned_by(self, name: str, version: int) -> str | None:
        """Return which other state owns the aliases of a model, in words; where none does, this one does from now on.

        Unless MLflow lacks the ``version`` that they are to name, as of a model that was deleted and made again: then
        they are for a state that has one of it. Of two that find none at once the later one does: both look again
        later.
        """
        registry = self._registry()
        if not registry.owner(name) and registry.find(name, str(version)) is not None:
            registry.set_owner(name, self._owner.named)
        return other_owner(registry, self._owner, name)

    def owner(self, name: str) -> str:
        """Return the owner as MLflow has it; empty without one."""
        return self._registry().owner(name)

    def own(self, name: str) -> None:
        """Make this state the owner, whoever was."""
        self._registry().set_owner(name, self._owner.named)

    def check(self, name: str, version: int) -> None:
        """Refuse to let the aliases of a model name a version where another state owns them.

        Raises:
            TakenError: naming it.
        """
        if (other := self.owned_by(name, version)) is not None:
            raise TakenError(words(name, other))

    def champion(self, name: str) -> int | None:
        """Return the version that the alias of a model names, None without one."""
        found = self._registry().by_alias(name, CHAMPION)
        return None if found is None else found.version

    def set_champion(self, name: str, version: int) -> None:
        """Point the alias of a model to a version.

        Raises:
            TakenError: as ``check``.
        """
        self.check(name, version)
        self._registry().set_alias(name, CHAMPION, version)

    def withdraw(self, name: str, versions: Collection[int]) -> None:
        """Remove the alias ``challenger`` if it names one of these versions."""
        registry = self._registry()
        found = registry.by_alias(name, CHALLENGER)
        if found is not None and found.version in versions:
            registry.delete_alias(name, CHALLENGER)

    def _registry(self) -> Registry:
        from raymlops.registry.versions import Registry
        from raymlops.tracking.client import tracker

        return Registry(tracker(self._spec))


def other_owner(registry: Registry, owner: Owner, name: str) -> str | None:
    """Return which other state owns the aliases of a model, in words; None where this one does, or none."""
    said = registry.owner(name)
    return None if not said or said.split()[0] == owner.id else f"the state {said}"


def own_aliases(source: Source, *, overrides: Sequence[str] = (), env: str | None = None) -> int | None:
    """Make this state the owner of a model's aliases in MLflow, and return the version that ``champion`` names then.

    That is the one that is live in this state; where none is, what it named before.

    Raises:
        NotFoundError: MLflow has no model of that name.
        StorageError, UnreachableError: the state cannot be written, or MLflow does not answer.
    """
    spec = spec_of(source, overrides=overrides, env=env)
    name = spec.project.name
    with state_of(spec) as state:
        aliases = MlflowAliases(spec, state.owner())
        state.record(action=OWNED, subject=name, before=aliases.owner(name) or None, why="requested")
        aliases.own(name)
        if (live := champion_of(state.deployments(name))) is not None:
            aliases.set_champion(name, live.version)
        return aliases.champion(name)
