"""Distributions of a search space: ``{float: [low, high], log: true}``, ``{int: ...}``, ``{categorical: [...]}``.

Owns the distributions, their reading from plain data and their ends; pure, without Optuna. ``when:
{key: value}`` makes a parameter exist only where another parameter of the space has that value (or one of a list).
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema

Scalar = bool | int | float | str | None

FLAG_WORDS = {"on": True, "yes": True, "off": False, "no": False}
"""YAML 1.1's words for true and false, which people still write; YAML 1.2 reads them as text."""


class Distribution(BaseModel):
    """The distribution of one parameter of a search space."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["float", "int", "categorical"]
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Scalar, ...] = ()
    when: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)

    def ends(self) -> tuple[Scalar, ...]:
        """Return the values that must all be valid for the field: both bounds of a range, every choice."""
        return self.choices if self.kind == "categorical" else (self.low, self.high)

    def can_be(self, value: Scalar) -> bool:
        """Return whether the parameter can take a value: ``true`` is not 1 here, and steps count from ``low``."""
        if self.kind == "categorical":
            return any(same(choice, value) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low is None or self.high is None:
            return False
        if not self.low <= value <= self.high or (self.kind == "int" and value != int(value)):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            self.kind: list(self.choices) if self.kind == "categorical" else [self.low, self.high],
        }
        if self.log:
            data["log"] = True
        if self.step is not None:
            data["step"] = self.step
        if self.when:
            data["when"] = {key: values[0] if len(values) == 1 else list(values) for key, values in self.when.items()}
        return data

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON Schema of a distribution as it is written, not of this model."""
        scalar = {"type": ["boolean", "number", "string", "null"]}
        when = {"type": "object", "additionalProperties": {"anyOf": [scalar, {"type": "array", "items": scalar}]}}
        options = []
        for kind, item in (("float", "number"), ("int", "integer")):
            ends = {"type": "array", "items": {"type": item}, "minItems": 2, "maxItems": 2}
            rest = {"log": {"type": "boolean"}, "step": {"type": item, "exclusiveMinimum": 0}, "when": when}
            options.append(_closed({kind: ends, **rest}, required=kind))
        choices = {"type": "array", "items": scalar, "minItems": 1}
        options.append(_closed({"categorical": choices, "when": when}, required="categorical"))
        return {"oneOf": options, "description": "low and high, or choices; when: only where another field has a value"}


def _closed(properties: dict[str, Any], *, required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [required], "additionalProperties": False}


_EXAMPLE = "write {float: [1e-5, 1e-1], log: true}, {int: [16, 256]} or {categorical: [a, b]}"


def parse_distribution(data: Any) -> Distribution:
    """Read a distribution from plain YAML data.

    Raises:
        ValueError: saying what was got and what is allowed.
    """
    if isinstance(data, Distribution):
        return data
    if not isinstance(data, dict):
        raise ValueError(f"got {data!r}; {_EXAMPLE}")
    words = ("float", "int", "categorical", "log", "step", "when")
    for key in data:
        if key not in words:
            near = get_close_matches(str(key), words, n=1)
            raise ValueError(f"unknown key {str(key)!r}; {f'did you mean {near[0]!r}?' if near else _EXAMPLE}")
    kinds = [kind for kind in words[:3] if kind in data]
    if len(kinds) != 1:
        raise ValueError(f"got {' and '.join(kinds) or 'none'} of float, int and categorical; {_EXAMPLE}")
    kind: Any = kinds[0]
    when = _conditions(data.get("when", {}))
    values = data[kind]
    if kind == "categorical":
        return _categorical(values, data, when)
    noun = "numbers" if kind == "float" else "integers"
    if not (isinstance(values, list) and len(values) == 2 and all(_is_number(value, kind) for value in values)):
        raise ValueError(f"{kind}: got {values!r}; two finite {noun}, [low, high]")
    low, high = map(float, values) if kind == "float" else values
    log, step = data.get("log", False), data.get("step")
    log = FLAG_WORDS.get(log.lower(), log) if isinstance(log, str) else log
    if type(log) is not bool:
        raise ValueError(f"log: got {log!r}; true or false")
    if low > high:
        raise ValueError(f"{kind}: [{low}, {high}] is empty; low must be at most high")
    if log and low <= 0:
        raise ValueError(f"{kind}: log needs a low above 0, got {low}")
    if step is not None and (log or not _is_number(step, kind) or step <= 0):
        raise ValueError(f"step: got {step!r}; one of the {noun} above 0, and not together with log")
    return Distribution(kind=kind, low=low, high=high, log=log, step=step, when=when)


def _is_number(value: Any, kind: str) -> bool:
    if type(value) is int:
        return abs(value) < 2**63  # more than that no sampler draws, and a float may not hold it
    return kind == "float" and type(value) is float and math.isfinite(value)


def _categorical(values: Any, data: dict[str, Any], when: dict[str, tuple[Scalar, ...]]) -> Distribution:
    if not isinstance(values, list) or not values:
        raise ValueError(f"categorical: got {values!r}; a list of at least one choice")
    if not all(map(_is_scalar, values)):
        raise ValueError("categorical: choices are text, numbers, true, false or null")
    if len({(type(value), value) for value in values}) != len(values):
        raise ValueError(f"categorical: {values!r} repeats a choice")
    if data.keys() & {"log", "step"}:
        raise ValueError("categorical: log and step are for float and int")
    return Distribution(kind="categorical", choices=tuple(values), when=when)


def _conditions(when: Any) -> dict[str, tuple[Scalar, ...]]:
    form = "{key.path: value} or {key.path: [value, value]}"
    if not isinstance(when, dict):
        raise ValueError(f"when: got {when!r}; {form}")
    conditions = {str(key): tuple(value) if isinstance(value, list) else (value,) for key, value in when.items()}
    for key, values in conditions.items():
        if not values or not all(map(_is_scalar, values)):
            raise ValueError(f"when: {key}: got {when[key]!r}; {form}")
    return conditions


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def exists(distribution: Distribution, params: Mapping[str, Scalar]) -> bool:
    """Return whether a parameter exists beside others: each one in ``when`` exists, with one of the values given."""
    return all(
        parent in params and any(same(params[parent], value) for value in values)
        for parent, values in distribution.when.items()
    )


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a configuration are the same: 2 and 2.0 are, ``true`` and 1 are not."""
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)
