"""The layers of a configuration: extended files, the file, its overlay, overrides; and how they stack.

Owns the order (later wins) and the merge: mappings merge; lists, search distributions and credential references
replace; ``null`` removes an entry of a mapping whose keys are free, such as a search space, or all of them. Every value
keeps the place where it is written. Knows nothing of valid values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config import shape
from raymlops.config.schema import ProjectSpec
from raymlops.config.yaml import KeyPath, Place, dotted, read, read_value
from raymlops.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = Literal["default", "file", "overlay", "override"]

MAX_BYTES = 500_000
"""More than any configuration has: a data file given by mistake is not read into memory."""


@dataclass(slots=True)
class Stack:
    """The merged layers so far, and all problems found.

    ``complete`` is False where a layer could not be read, so that a missing key may be in that layer.
    """

    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    kinds: dict[KeyPath, Kind] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    complete: bool = True

    def report(self, place: Place, path: str, message: str) -> None:
        """Add a problem."""
        self.problems.append((place, Problem(path, message, str(place))))

    def put(
        self, data: dict[str, Any], *, keys: dict[KeyPath, Place], values: dict[KeyPath, Place], kind: Kind
    ) -> None:
        """Merge a mapping on top of the layers so far."""
        # A key without a value is not null: a section whose entries are all commented out.
        written = {path: place for path, place in values.items() if not place.line or place != keys.get(path)}
        self._merge(self.data, data, (), written=written)
        self.keys |= keys
        self.values |= values
        self.kinds |= dict.fromkeys(values, kind)

    def _merge(
        self, base: dict[str, Any], over: dict[str, Any], path: KeyPath, *, written: Mapping[KeyPath, Place]
    ) -> None:
        is_entry = shape.entry(shape.at(ProjectSpec, path)) is not None
        for key, value in over.items():
            here = (*path, key)
            annotation = shape.at(ProjectSpec, here)
            free = shape.entry(annotation) is not None
            if (
                value is None
                and here in written
                and key in base
                and (free or (is_entry and not shape.takes_null(annotation)))
            ):
                self._forget(here)
                del base[key]
                continue
            value = {} if value is None and shape.holds_keys(annotation) else value  # noqa: PLW2901 - an empty section
            old = base.get(key)
            if isinstance(old, dict) and isinstance(value, dict) and not shape.is_atom(annotation):
                if free and old and over[key] == {}:
                    what = "is empty, which changes nothing: mappings merge; null removes what is set before"
                    self.report(written[here], dotted(here), what)
                self._merge(old, value, here, written=written)
                continue
            if key in base:
                self._forget(here)
            base[key] = value
            if isinstance(value, dict) and not shape.is_atom(annotation):
                base[key] = {}
                self._merge(base[key], value, here, written=written)

    def _forget(self, path: KeyPath) -> None:
        """Forget the places of a value that is replaced."""
        for places in (self.keys, self.values, self.kinds):
            for inner in [inner for inner in places if inner[: len(path)] == path]:
                del places[inner]


def put_file(stack: Stack, path: Path, *, kind: Kind, chain: tuple[Path, ...] = (), named: Place | None = None) -> None:
    """Put a file on the stack, on top of the files that it extends; ``named`` is where another file names it."""
    if os.path.realpath(path) in map(os.path.realpath, chain):
        circle = " -> ".join(str(outer) for outer in (*chain, path))
        stack.report(named or Place(str(path)), "extends", f"goes in a circle: {circle}")
        stack.complete = False
        return
    text = _text(stack, path, named=named)
    if text is None:
        stack.complete = False
        return
    document = read(text, str(path))
    stack.problems += [problem for problem in document.problems if problem not in stack.problems]
    start = document.values.get((), Place(str(path), 1, 1))
    if document.fatal or not isinstance(document.data, dict):
        stack.complete = False
        if not document.fatal:
            what = "is empty" if document.data is None else f"holds {_noun(document.data)}"
            stack.report(start, "", f"{what}; a configuration is a mapping of sections: project, recipe, train ...")
        return
    data = document.data
    for index, name in enumerate(_extended(stack, data.pop("extends", None), document.values)):
        place = document.values.get(("extends", index)) or document.values[("extends",)]
        put_file(stack, Path(os.path.normpath(path.parent / name)), kind=kind, chain=(*chain, path), named=place)
    stack.put(data, keys=document.keys, values=document.values, kind=kind)
    if path not in stack.files:
        stack.files.append(path)


def put_overlay(stack: Stack, file: Path, name: str) -> None:
    """Put the overlay ``env/NAME.yaml`` beside the file on the stack."""
    folder = file.parent / "env"
    names = sorted(found.stem for found in folder.glob("*.yaml"))
    if name not in names:
        near = get_close_matches(name, names, n=1)
        there = f"there are {', '.join(names)}" if names else f"there are none: {folder} holds no .yaml file"
        advice = f"; did you mean {near[0]!r}?" if near else ""
        stack.report(Place("--env"), "", f"no overlay {name!r} in {folder}; {there}{advice}")
        stack.complete = False
        return
    put_file(stack, folder / f"{name}.yaml", kind="overlay")


def put_overrides(stack: Stack, overrides: Sequence[str]) -> None:
    """Put ``key.path=value`` overrides on the stack, in their order."""
    place = Place("override")
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            stack.report(place, "", f"got {key!r}; write key.path=value, such as train.lr=0.01")
            continue
        try:
            path = shape.key_path(ProjectSpec, key)
        except shape.UnknownKeyError as error:
            stack.report(place, key, str(error))
            continue
        document = read_value(value.strip(), place.source)
        if document.fatal:
            words = document.problems[0][1].message
            stack.report(place, key, f"{words}; quote the value: {key}='\"...\"'")
            continue
        for _, problem in document.problems:
            stack.report(place, dotted(path), problem.message)
        data: Any = document.data
        for part in reversed(path):
            data = {part: data}
        inner = {(*path, *rest): place for rest in document.values}
        stack.put(data, keys=inner, values=inner, kind="override")


def _text(stack: Stack, path: Path, *, named: Place | None) -> str | None:
    place = named or Place(str(path))
    field_name = "extends" if named else ""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = {
            FileNotFoundError: "there is no such file",
            IsADirectoryError: "is a folder, not a file",
            PermissionError: "may not be read",
        }.get(type(error), str(error.strerror))
        near = _near(path) if isinstance(error, FileNotFoundError) else ""
        stack.report(place, field_name, f"{path}: {reason}{near}" if named else f"{reason}{near}")
        return None
    if len(raw) > MAX_BYTES:
        stack.report(Place(str(path)), "", f"has more than {MAX_BYTES:,} bytes; no configuration does")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = error.start - before.rfind(b"\n")
        at = Place(str(path), before.count(b"\n") + 1, column)
        stack.report(at, "", f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8")
        return None


def _near(path: Path) -> str:
    names = [found.name for pattern in ("*.yaml", "*.yml") for found in path.parent.glob(pattern)]
    near = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _extended(stack: Stack, value: Any, places: dict[KeyPath, Place]) -> list[str]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    reported = {place for place, _ in stack.problems}
    if any(place in reported for path, place in places.items() if path[:1] == ("extends",)):
        stack.complete = False
        return []
    if not all(isinstance(name, str) and name for name in names):
        stack.report(places[("extends",)], "extends", f"got {value!r}; the path of a file, or a list of paths")
        stack.complete = False
        return []
    return names


def _noun(value: Any) -> str:
    return "a list" if isinstance(value, list) else "one value" if not isinstance(value, str) else "text"
