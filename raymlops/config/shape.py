"""Walk the schema and plain data: keys of a section, the annotation at a path, the path of a dotted key.

Owns walking through pydantic models by key, with near misses named. Knows nothing of files.
"""

from __future__ import annotations

import types
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from raymlops.config.base import SecretRef
from raymlops.config.space import Distribution
from raymlops.config.yaml import KeyPath, dotted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

ATOMS = (Distribution, SecretRef)
"""Models that are one value: a later file replaces them as a whole."""


class UnknownKeyError(Exception):
    """An unknown dotted key; the message names the nearest one."""


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's fields under the names that YAML uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def step(annotation: Any, key: str | int) -> Any:
    """Return the annotation under a key; None where the key is unknown."""
    for option in options(annotation):
        if _is_model(option) and key in fields(option):
            return fields(option)[str(key)].annotation
        if get_origin(option) is dict and isinstance(key, str):
            return get_args(option)[1]
        if get_origin(option) in {list, tuple, set, frozenset} and isinstance(key, int):
            return get_args(option)[0]
    return None


def walk(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value of plain data with its path, the outer ones first."""
    yield path, data
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from walk(value, (*path, key))


def leaves(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values that hold no others by key: a list is one, and so is an empty mapping."""
    if not isinstance(data, dict) or not data:
        yield path, data
        return
    for key, value in data.items():
        yield from leaves(value, (*path, key))


def with_value(data: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return plain data with another value at a path; mappings that are not there are added."""
    key, *rest = path
    inner = data.get(key)
    return {**data, key: with_value(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def at(annotation: Any, path: KeyPath) -> Any:
    """Return the annotation at a path; None where the path is unknown."""
    for key in path:
        annotation = step(annotation, key)
    return annotation


def options(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of an annotation without None, constraints taken off."""
    if get_origin(annotation) is Annotated:
        yield from options(get_args(annotation)[0])
    elif get_origin(annotation) in {Union, types.UnionType}:
        for option in get_args(annotation):
            yield from options(option)
    elif annotation is not None and annotation is not type(None):
        yield annotation


def section(annotation: Any) -> type[BaseModel] | None:
    """Return the model among the alternatives."""
    return next((option for option in options(annotation) if _is_model(option)), None)


def is_atom(annotation: Any) -> bool:
    """Return whether a later file replaces the value as a whole instead of merging it."""
    return any(_is_model(option) and issubclass(option, ATOMS) for option in options(annotation))


def holds_keys(annotation: Any) -> bool:
    """Return whether only a mapping is valid, so that an empty value means an empty mapping."""
    found = list(options(annotation))
    return len(found) == 1 and not is_atom(annotation) and (_is_model(found[0]) or get_origin(found[0]) is dict)


def entry(annotation: Any) -> Any:
    """Return the annotation of the values of a mapping whose keys are free; None where it is no such mapping."""
    return next((get_args(option)[1] for option in options(annotation) if get_origin(option) is dict), None)


def takes_null(annotation: Any) -> bool:
    """Return whether null is a valid value."""
    return annotation is Any or type(None) in get_args(annotation)


def key_path(model: type[BaseModel], key: str) -> tuple[str, ...]:
    """Return the path of a dotted key; keys of a search space or of tags may contain dots themselves.

    Raises:
        UnknownKeyError: naming the nearest key.
    """
    parts = key.split(".")
    path: tuple[str, ...] = ()
    annotation: Any = model
    while parts:
        here = section(annotation)
        if here is not None:
            if parts[0] not in fields(here):
                raise UnknownKeyError(unknown_key(parts[0], path, root=model))
            path, annotation = (*path, parts[0]), fields(here)[parts.pop(0)].annotation
            continue
        item = entry(annotation)
        if item is None:
            raise UnknownKeyError(f"{dotted(path)} is one value and has no key {'.'.join(parts)!r}")
        if item is Any:
            return (*path, *parts)
        inner = section(item)
        if inner is not None and not is_atom(item) and len(parts) > 1 and parts[-1] in fields(inner):
            return (*path, ".".join(parts[:-1]), parts[-1])
        return (*path, ".".join(parts))
    return path


def unknown_key(key: str, path: KeyPath, *, root: Any) -> str:
    """Return the message for an unknown key: the nearest key here or elsewhere, or the known ones."""
    here = section(at(root, path))
    siblings = list(fields(here)) if here else []
    near = get_close_matches(key, siblings, n=1)
    if near:
        return f"unknown key {key!r}; did you mean {near[0]!r}?"
    elsewhere = [dotted(other) for other in _paths(root) if other[-1] == key]
    if elsewhere:
        return f"unknown key {key!r} here; did you mean {' or '.join(elsewhere[:2])}?"
    return f"unknown key {key!r}; known: {', '.join(siblings) or 'none'}"


def _paths(annotation: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    here = section(annotation)
    for name, field in (fields(here) if here else {}).items():
        yield (*prefix, name)
        if len(prefix) < 3:
            yield from _paths(field.annotation, (*prefix, name))


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)
