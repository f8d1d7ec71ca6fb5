"""Validate data against a pydantic model; one short message for each invalid value.

Owns the wording: what was got, what is allowed, the nearest known key. A credential is never repeated.
Knows nothing of files; a finding has a path, and ``load`` and ``project`` know the places.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, to_json

from raymlops.config import shape
from raymlops.config.credentials import ADVICE, holds_credential, redact
from raymlops.config.space import FLAG_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.yaml import KeyPath

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem at a path; ``at_key`` where the key itself is wrong, ``missing`` where it is absent."""

    path: KeyPath
    message: str
    at_key: bool = False
    missing: bool = False


def check(model: type[M], data: dict[str, Any], *, lenient: bool = False) -> tuple[M | None, list[Finding]]:
    """Validate plain data strictly as JSON: lists serve as tuples, but no text as a number.

    YAML 1.1's ``on off yes no`` count as true and false where nothing but true or false is allowed. ``lenient``
    ignores unknown keys, and what an earlier version did not take for a credential, for data that it stored.
    """
    texts = [] if lenient else [(path, value) for path, value in shape.walk(data) if isinstance(value, str)]
    findings = [Finding(path, ADVICE) for path, value in texts if holds_credential(value)]
    try:
        text = to_json(data, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as error:
        return None, [*findings, Finding((), f"is not plain data: {error}")]
    try:
        found = model.model_validate_json(text, extra="ignore" if lenient else None, context={"stored": lenient})
    except ValidationError as error:
        details = error.errors(include_url=False)
        worded = _with_flags(data, details, model)
        if worded is not None:
            return check(model, worded, lenient=lenient)
        refused = {finding.path for finding in findings}
        findings += [finding for finding in _findings(details, data, model) if finding.path not in refused]
        return None, findings
    return (None if findings else found), findings


def got(value: Any, *, kind: bool = False) -> str:
    """Describe a value as YAML would show it; ``kind`` adds that it is text where that matters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": ".inf", "-inf": "-.inf"}.get(str(value), ".nan")
    text = repr(redact(value) if isinstance(value, str) else value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text} (text)" if kind and isinstance(value, str) else text


def _with_flags(data: dict[str, Any], details: list[ErrorDetails], model: type[BaseModel]) -> dict[str, Any] | None:
    """Return the data with flag words replaced where they stand for a bool; None without any."""
    changed = copy.deepcopy(data)
    for detail in details:
        word = detail["input"]
        if detail["type"] != "bool_type" or not isinstance(word, str) or word.lower() not in FLAG_WORDS:
            continue
        path, union = _locate(detail, data, model)
        if union is None:
            _value_at(changed, path[:-1])[path[-1]] = FLAG_WORDS[word.lower()]
    return None if changed == data else changed


def _findings(details: list[ErrorDetails], data: Any, model: type[BaseModel]) -> Iterator[Finding]:
    """Yield one finding for each value, however many alternatives of a union rejected it."""
    unions: dict[KeyPath, list[tuple[KeyPath, ErrorDetails]]] = {}
    seen = set()
    for detail in details:
        path, union = _locate(detail, data, model)
        if union is not None:
            unions.setdefault(union, []).append((path, detail))
        elif path not in seen:
            seen.add(path)
            yield _finding(path, detail, model)
    for root, members in unions.items():
        # A mapping was meant for the alternative that validated its keys, or that rejected more than its type.
        deeper = {path: detail for path, detail in members if path != root or detail["type"] == "value_error"}
        if isinstance(_value_at(data, root), dict) and deeper:
            for path, detail in deeper.items():
                yield _finding(path, detail, model)
            continue
        value = got(_value_at(data, root), kind=True)
        if shape.is_atom(shape.at(model, root)):
            yield Finding(root, f"got {value}; a URI, or {{env: NAME}} or {{file: PATH}}")
            continue
        allowed = dict.fromkeys(_allowed(detail) for _, detail in members)
        yield Finding(root, f"got {value}; {' or '.join(allowed)}")


def _finding(path: KeyPath, detail: ErrorDetails, model: type[BaseModel]) -> Finding:
    kind = detail["type"]
    at_key = kind == "extra_forbidden" or "[key]" in detail["loc"]
    return Finding(path, _sentence(detail, path, model), at_key=at_key, missing=kind == "missing")


def _locate(detail: ErrorDetails, data: Any, model: type[BaseModel]) -> tuple[KeyPath, KeyPath | None]:
    """Return the path of an error in the data, and the path of the union whose alternatives were tried there.

    pydantic puts the name of each alternative into ``loc``: a part that is neither in the data nor a field is one.
    """
    path: KeyPath = ()
    union: KeyPath | None = None
    annotation: Any = model
    cursor = data
    for part in detail["loc"]:
        inside = part in cursor if isinstance(cursor, dict) else isinstance(cursor, list) and isinstance(part, int)
        if inside or (isinstance(cursor, dict) and shape.step(annotation, part) is not None and part != "[key]"):
            in_list = isinstance(cursor, list)
            cursor = cursor[part] if inside and (not in_list or part < len(cursor)) else None  # type: ignore[operator]
            annotation = shape.step(annotation, part)
            path = (*path, part)
        elif part != "[key]" and union is None:
            union = path
    return path, union


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part] if isinstance(data, dict | list) else None  # type: ignore[index]
    return data


def _sentence(detail: ErrorDetails, path: KeyPath, model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return shape.unknown_key(str(path[-1]), path[:-1], root=model)
    if kind == "json_invalid":
        return "is nested too deeply"
    if kind == "missing":
        return _missing(path, model)
    if kind in {"value_error", "assertion_error"}:
        return redact(str(detail.get("ctx", {}).get("error", detail["msg"])))
    if shape.is_atom(shape.at(model, path)) or shape.is_atom(shape.at(model, path[:-1])):
        # A wrong value here may be the credential itself.
        return f"got {'text' if isinstance(value, str) else got(value)}; {{env: NAME}} or {{file: PATH}}"
    return f"got {got(value, kind=kind.split('_')[-1] in {'type', 'parsing', 'float'})}; {_allowed(detail)}"


def _missing(path: KeyPath, model: type[BaseModel]) -> str:
    inner = shape.section(shape.at(model, path))
    if inner is not None:
        required = [name for name, field in shape.fields(inner).items() if field.is_required()]
        return f"missing; a section with {', '.join(required)}" if required else "missing"
    parent = shape.section(shape.at(model, path[:-1]))
    field = shape.fields(parent).get(str(path[-1])) if parent else None
    return f"missing; {field.description}" if field is not None and field.description else "missing"


def _allowed(detail: ErrorDetails) -> str:
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind in _ALLOWED:
        return _ALLOWED[kind].format(**context)
    message = redact(str(context.get("error", detail["msg"])))
    return message[:1].lower() + message[1:]


_ALLOWED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "nothing",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} character(s)",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} item(s)",
}
