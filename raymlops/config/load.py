"""Load a configuration: files, overlay and overrides become a ``ProjectSpec`` with the origin of each value.

Later wins: defaults, ``extends``, the file, the ``--env`` overlay, ``key.path=value``. Everything wrong is
reported at once. Imports no recipe: ``project`` checks its section and its search keys.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config import shape
from raymlops.config.bounds import check_space
from raymlops.config.layers import Kind, Stack, put_file, put_overlay, put_overrides
from raymlops.config.messages import Finding, check
from raymlops.config.platforms.databricks import alike, tag_key
from raymlops.config.schema import ProjectSpec
from raymlops.config.space import Distribution, parse_distribution
from raymlops.config.train import TrainSection
from raymlops.config.yaml import NULL_BYTE, KeyPath, Place, dotted
from raymlops.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a value: ``place`` is ``file:line:col``, its path for an override, empty for a default."""

    kind: Kind
    place: str

    def __str__(self) -> str:
        return f"{self.kind} {self.place}".strip()


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A checked spec. ``origins`` has every leaf of ``spec.to_dict()`` under its dotted path.

    A list, a search distribution and an empty mapping are one leaf. ``files`` were read in this order; later ones win.
    """

    spec: ProjectSpec
    origins: Mapping[str, Origin]
    files: tuple[Path, ...] = ()


def load(path: str | Path, *, overrides: Sequence[str] = (), env: str | None = None) -> LoadedSpec:
    """Load a file with the files it extends, its overlay ``env/NAME.yaml`` and overrides.

    Raises:
        ConfigError: with every problem of every file, each with its place.
    """
    stack = Stack()
    file = Path(path)
    put_file(stack, file, kind="file")
    if env is not None:
        put_overlay(stack, file, env)
    put_overrides(stack, overrides)
    return _checked(stack, Place(str(file), 1, 1))


def load_data(data: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Load plain data as a file would hold it; a class is replaced by its import string.

    Raises:
        ConfigError: with every problem.
    """
    stack = Stack()
    place = Place("data")
    plain = _plain(data)
    if not isinstance(plain, dict):
        raise ConfigError([Problem("", f"got {type(data).__name__}; a mapping of sections", "data")])
    values = dict.fromkeys((path for path, _ in shape.walk(plain)), place)
    for path, value in shape.walk(plain):
        if isinstance(value, str) and "\0" in value:
            stack.report(place, dotted(path), NULL_BYTE)
    stack.put(plain, keys=values, values=values, kind="file")
    put_overrides(stack, overrides)
    return _checked(stack, place)


def dump(spec: ProjectSpec) -> str:
    """Return the spec as YAML with every default written out; ``load`` reads an equal spec from it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def styled(value: Any, path: KeyPath = ()) -> Any:
        if isinstance(value, dict):
            if not shape.is_atom(shape.at(ProjectSpec, path)):
                return CommentedMap({key: styled(item, (*path, key)) for key, item in value.items()})
            line = CommentedMap({key: styled(item) for key, item in value.items() if item is not None})
            line.fa.set_flow_style()
            return line
        if isinstance(value, list):
            sequence = CommentedSeq([styled(item) for item in value])
            sequence.fa.set_flow_style()
            return sequence
        return value

    yaml = YAML()
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(styled(spec.to_dict()), text)
    return text.getvalue()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, for editors.

    Nothing is required: a file may leave any key to a file that it extends, or that extends it.
    """
    schema = ProjectSpec.model_json_schema(by_alias=True)
    for part in [schema, *schema["$defs"].values()]:
        part.pop("required", None)
        for field in part.get("properties", {}).values():
            entry = field.get("additionalProperties")
            if isinstance(entry, dict):  # null removes an entry of a file below, or all of them
                field |= {"type": ["object", "null"], "additionalProperties": {"anyOf": [entry, {"type": "null"}]}}
            elif entry is True:
                field["type"] = ["object", "null"]
    for part in schema["properties"].values():
        part.pop("default", None)  # the fields say theirs, and a storage path may come from the environment
    one = {"type": "string", "minLength": 1}
    extends = {
        "anyOf": [one, {"type": "array", "items": one}],
        "description": "files below this one, relative to it; what is written here wins",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "raymlops configuration",
        "description": "A file, or an overlay in env/.",
        "properties": {"extends": extends, **schema["properties"]},
    }


def _checked(stack: Stack, start: Place) -> LoadedSpec:
    spec = None
    if stack.data or stack.complete:
        spec, findings = check(ProjectSpec, stack.data)
        findings += [*_space_findings(stack.data), *_tag_findings(stack.data)]
        # A missing key may be in the layer that could not be read.
        stack.problems += [_placed(found, stack, start) for found in findings if stack.complete or not found.missing]
    if stack.problems or spec is None:
        order = {str(file): index for index, file in enumerate(reversed(stack.files))}
        ranked = sorted(stack.problems, key=lambda item: (order.get(item[0].source, len(order)), item[0]))
        raise ConfigError([problem for _, problem in ranked]) from None
    return LoadedSpec(spec, dict(_origins(spec, stack)), tuple(stack.files))


def _space_findings(data: dict[str, Any]) -> list[Finding]:
    """Check the space against ``train`` from the raw data, so that a problem elsewhere does not hide it."""
    train, sweep = data.get("train", {}), data.get("sweep", {})
    raw = sweep.get("space", {}) if isinstance(sweep, dict) else {}
    space: dict[str, Distribution] = {}
    for key, value in raw.items() if isinstance(raw, dict) else ():
        section, _, field = key.partition(".")
        if section != "train" or field in TrainSection.model_fields:
            with suppress(ValueError):  # reported with the sections
                space[key] = parse_distribution(value)
    unread = [key for key in raw if key not in space] if isinstance(raw, dict) else []
    return check_space(space, train=train if isinstance(train, dict) else {}, unread=unread)


def _tag_findings(data: dict[str, Any]) -> Iterator[Finding]:
    """Yield tags of the project that would be one in Unity Catalog, where the models go there."""
    project, tracking = data.get("project"), data.get("tracking")
    tags = project.get("tags") if isinstance(project, dict) else None
    if not isinstance(tags, dict) or not isinstance(tracking, dict) or tracking.get("uc_schema") is None:
        return
    for keys in alike(map(str, tags)):
        message = f"{' and '.join(keys)} are one tag in Unity Catalog, {tag_key(keys[0])}: rename all but one"
        yield Finding(("project", "tags", keys[-1]), message, at_key=True)


def _placed(finding: Finding, stack: Stack, start: Place) -> tuple[Place, Problem]:
    path = finding.path
    place = stack.keys.get(path) if finding.at_key else None
    while place is None:
        place = stack.values.get(path) if path else start
        path = path[:-1]
    return place, Problem(dotted(finding.path), finding.message, str(place))


def _origins(spec: ProjectSpec, stack: Stack) -> Iterator[tuple[str, Origin]]:
    # A distribution is one value.
    paths = dict.fromkeys(
        path[:3] if path[:2] == ("sweep", "space") else path for path, _ in shape.leaves(spec.to_dict())
    )
    for path in paths:
        kind = stack.kinds.get(path, "default")
        place = "" if kind == "default" else dotted(path) if kind == "override" else str(stack.values[path])
        yield dotted(path), Origin(kind, place)


def _plain(data: Any) -> Any:
    """Return Python data as YAML data: text as keys, lists, a class as its import string."""
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, type):
        return f"{data.__module__}:{data.__qualname__}"
    if isinstance(data, Path):
        return str(data)
    return data
