"""Ownership of the applications on Serve: of this state, of another state, or foreign to raymlops.

Owns the mark that applications carry, and who may change them. Pure; sends nothing.

The mark is in ``user_config``, which Serve (2.60) stores, returns, and passes to running replicas without a restart. It
names the state database of the application, and the revision at which it was last sent. An application of another state
is never changed and never removed. One without a mark was deployed by a release that set none: it belongs to this state
if the audit record has that version with that digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import OutdatedStateError, TakenError
from raymlops.serving.control.details import configs, covers
from raymlops.serving.control.render import MARK, is_rendered
from raymlops.serving.names import INDEX_APP, INDEX_IMPORT_PATH
from raymlops.state.identity import SHORT, Owner, Revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from raymlops.serving.control.details import Details
    from raymlops.state.store import Desired

UNMARKED = "a state of which an earlier raymlops left no mark"


@dataclass(frozen=True)
class Mark:
    """The state that an application belongs to; an empty id if unknown."""

    id: str = ""
    made_by: str = ""
    revision: Revision | None = None
    """The newest revision of that state when the application was sent."""

    def __str__(self) -> str:
        if not self.id:
            return UNMARKED
        return f"state {self.id[:SHORT]}" + (f" (made by {self.made_by})" if self.made_by else "")


@dataclass(frozen=True)
class Division:
    """The declared applications of a Serve, by owner."""

    ours: dict[str, dict[str, Any]]
    others: dict[str, dict[str, Any]]
    """Applications of other states."""
    foreign: dict[str, dict[str, Any]]
    """Applications that are not of raymlops."""
    places: dict[str, str | None]
    """Name and route of each application that is not of raymlops, those that ``serve.run`` started included."""

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Return all applications that are sent back unchanged."""
        return [*self.foreign.values(), *self.others.values()]

    @property
    def index_fits(self) -> bool:
        """Return whether the list of models can have its name and the route /."""
        return INDEX_APP not in {*self.others, *self.places} and "/" not in self.places.values()

    def taken(self, claims: Iterable[tuple[str, str, str | None]]) -> dict[str, TakenError]:
        """Return which of these models cannot be changed here, and why.

        Another state has the model, or an application that is not of raymlops has its name or its route. A claim is a
        model, one of its applications, and that one's route.
        """
        found: dict[str, TakenError] = {}
        holders = {model: mark_of(config) for config in self.others.values() if (model := model_of(config))}
        for model, application, route in claims:
            if model in holders:
                found[model] = TakenError(
                    f"the model {model} on this Serve belongs to {holders[model]}, and is left as it is",
                    hint="Change it where that state is (storage.state), or give yours another project.name. "
                    "Where that state is lost: end its applications by Serve itself (serve.delete(NAME) in Python on "
                    "the cluster), then deploy.",
                )
            for name, at in self.places.items():
                if name == application or (at is not None and at == route):
                    found[model] = TakenError(
                        f"the Serve application {name!r}, which is not of raymlops, has the "
                        f"{f'name of a version of {model}' if name == application else f'route {route}'}, "
                        f"so that {model} is left as it is",
                        hint=f"Remove it (serve.delete({name!r}) in Python on the cluster, or from the config of "
                        "`serve deploy`), or give the model another project.name. --takeover leaves it alone.",
                    )
        return found

    def seen(self) -> tuple[str, ...]:
        """Return the notes on other states on this Serve."""
        if not self.others:
            return ()
        names = sorted(self.others)
        count = f"{len(names)} application{'' if len(names) == 1 else 's'}"
        owners = ", ".join(sorted({str(mark_of(config)) for config in self.others.values()}))
        return (f"{count} of another state on this Serve, left alone: {', '.join(names)} ({owners})",)


def divide(details: Details, desired: Desired, *, outdated: bool = False) -> Division:
    """Divide the declared applications by owner.

    Raises:
        OutdatedStateError: Serve runs the desired state of a newer copy of this state's database, and ``outdated`` does
            not allow it.
    """
    ours: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    foreign: dict[str, dict[str, Any]] = {}
    declared = configs(details)
    for name, config in declared.items():
        if not is_rendered(config):
            foreign[name] = config
        elif _is_ours(config, desired.owner):
            ours[name] = config
        else:
            others[name] = config
    if not outdated:
        _refuse_newer(ours, desired.owner)
    places = {
        name: application.get("route_prefix")
        for name, application in details["applications"].items()
        if name in foreign or (name not in declared and application.get("status") != "DELETING")
    }
    return Division(ours, others, foreign, places)


def mark_of(config: Mapping[str, Any]) -> Mark:
    """Return the mark that an application carries."""
    data = _user_config(config).get(MARK) or {}
    revision = Revision(data["revision"], data["at"]) if "revision" in data else None
    return Mark(str(data.get("id", "")), str(data.get("made_by", "")), revision)


def model_of(config: Mapping[str, Any]) -> str | None:
    """Return the model of which an application serves a version; None for the index."""
    name: str | None = (config.get("args") or {}).get("name")
    return name


def stamped(config: dict[str, Any], live: Mapping[str, Any] | None, owner: Owner) -> dict[str, Any]:
    """Return an application with the revision at which it is sent.

    An unchanged live one keeps its own: another would reconfigure each of its replicas.
    """
    user_config = _user_config(config)
    if not owner.id or MARK not in user_config:
        return config
    number, at = owner.revision
    if live is not None and (before := mark_of(live).revision) is not None and covers(live, config):
        number, at = before
    (options,) = config["deployments"]
    mark = {**user_config[MARK], "revision": number, "at": at}
    return {**config, "deployments": [{**options, "user_config": {**user_config, MARK: mark}}]}


def _is_ours(config: Mapping[str, Any], owner: Owner) -> bool:
    mark = mark_of(config)
    if mark.id and mark.id == owner.id:
        return True
    if config.get("import_path") == INDEX_IMPORT_PATH:
        # One state alone had what carries no mark, and its index lists every champion of it.
        mine = not mark.id and any(_deployed(listed, owner) for listed in _user_config(config).get("models", ()))
        return mine or (not mark.id and not owner.id)
    return not mark.id and _deployed(config.get("args") or {}, owner)


def _deployed(of: Mapping[str, Any], owner: Owner) -> bool:
    return {"name", "version", "digest"} <= of.keys() and owner.history.deployed(
        of["name"], int(of["version"]), of["digest"]
    )


def _refuse_newer(ours: Mapping[str, Mapping[str, Any]], owner: Owner) -> None:
    marks = {mark.revision for config in ours.values() if (mark := mark_of(config)).id == owner.id}
    for revision in sorted((mark for mark in marks if mark is not None), reverse=True):
        if not owner.history.wrote(revision):
            # Without this one's own newest change: a controller tells once what stays the same.
            raise OutdatedStateError(
                f"Serve runs what a newer copy of this state database ({owner.short}) desired: its change {revision} "
                "is not in this one; nothing was changed on Serve",
                hint="A backup was restored, or a copy is in use elsewhere: use the newer database. Where that is "
                "lost: raymlops deploy --restore --takeover makes this one count, and brings Serve to what it says.",
            )


def _user_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    deployments = config.get("deployments") or [{}]
    user_config: Mapping[str, Any] = deployments[0].get("user_config") or {}
    return user_config
