"""Distributions of a search space: ``{float: [low, high], log: true}``, ``{int: ...}``, ``{categorical: [...]}``.

Owns the distributions, their reading from plain data and their ends; pure, without Optuna. ``when: {key: value}``
makes a parameter exist only where another parameter of the space has that value, one of a list, or a number within
``{min, max}``.

Optuna stores scalars alone: a choice that is a list, such as the sizes of layers, is drawn and recorded as its JSON
text, and becomes a list again in the configuration of a trial.
"""

from __future__ import annotations

import json
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


class Interval(BaseModel):
    """A condition on a number: within both bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min: float | int | None = None
    max: float | int | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Return both bounds; infinite where one is not set."""
        return -math.inf if self.min is None else self.min, math.inf if self.max is None else self.max

    def holds(self, value: Scalar) -> bool:
        """Return whether a value is a number within the bounds."""
        low, high = self.ends
        return not isinstance(value, bool) and isinstance(value, int | float) and low <= value <= high

    def __str__(self) -> str:
        if self.min is None:
            return f"at most {self.max}"
        return f"at least {self.min}" if self.max is None else f"{self.min} to {self.max}"


Condition = tuple[Scalar, ...] | Interval
"""Values of which the other parameter has one, or an interval that holds its value."""


class Distribution(BaseModel):
    """The distribution of one parameter of a search space."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["float", "int", "categorical"]
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Scalar, ...] = ()
    lists: frozenset[str] = frozenset()
    """Choices that are the JSON text of a list."""
    when: dict[str, Condition] = Field(default_factory=dict)

    def ends(self) -> tuple[Any, ...]:
        """Return the values that must all be valid for the field: both bounds of a range, every choice."""
        return tuple(map(self.written, self.choices)) if self.kind == "categorical" else (self.low, self.high)

    def written(self, param: Scalar) -> Any:
        """Return the value of the field for a drawn parameter."""
        return json.loads(param) if isinstance(param, str) and param in self.lists else param

    def can_be(self, value: Any) -> bool:
        """Return whether the parameter can take a value: ``true`` is not 1 here, and steps count from ``low``."""
        if self.kind == "categorical":
            return any(same(choice, as_param(value)) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low is None or self.high is None:
            return False
        if not self.low <= value <= self.high or (self.kind == "int" and value != int(value)):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        data: dict[str, Any] = {self.kind: list(self.ends())}
        if self.log:
            data["log"] = True
        if self.step is not None:
            data["step"] = self.step
        if self.when:
            data["when"] = {key: _condition_as_written(condition) for key, condition in self.when.items()}
        return data

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON Schema of a distribution as it is written, not of this model."""
        scalar = {"type": ["boolean", "number", "string", "null"]}
        choice = {"anyOf": [scalar, {"type": "array"}]}
        number = {"type": "number"}
        interval = {
            "type": "object",
            "properties": {"min": number, "max": number},
            "additionalProperties": False,
            "minProperties": 1,
        }
        when = {"type": "object", "additionalProperties": {"anyOf": [scalar, {"type": "array"}, interval]}}
        options = []
        for kind, item in (("float", "number"), ("int", "integer")):
            ends = {"type": "array", "items": {"type": item}, "minItems": 2, "maxItems": 2}
            rest = {"log": {"type": "boolean"}, "step": {"type": item, "exclusiveMinimum": 0}, "when": when}
            options.append(_closed({kind: ends, **rest}, required=kind))
        choices = {"type": "array", "items": choice, "minItems": 1}
        options.append(_closed({"categorical": choices, "when": when}, required="categorical"))
        return {
            "oneOf": options,
            "description": "low and high, or choices; when: only where another parameter has a value",
        }


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


def _categorical(values: Any, data: dict[str, Any], when: dict[str, Condition]) -> Distribution:
    if not isinstance(values, list) or not values:
        raise ValueError(f"categorical: got {values!r}; a list of at least one choice")
    if not all(map(_is_choice, values)):
        raise ValueError("categorical: choices are text, numbers, true, false or null, or lists of them")
    choices = tuple(map(as_param, values))
    if len({(type(choice), choice) for choice in choices}) != len(choices):
        raise ValueError(f"categorical: {values!r} repeats a choice")
    if data.keys() & {"log", "step"}:
        raise ValueError("categorical: log and step are for float and int")
    lists = frozenset(as_param(value) for value in values if isinstance(value, list))
    return Distribution(kind="categorical", choices=choices, lists=lists, when=when)


def _conditions(when: Any) -> dict[str, Condition]:
    if not isinstance(when, dict):
        raise ValueError(f"when: got {when!r}; {_FORM}")
    return {str(key): _condition(key, value) for key, value in when.items()}


_FORM = "{key.path: value}, {key.path: [value, value]} or {key.path: {min: number, max: number}}"


def _condition(key: str, written: Any) -> Condition:
    if isinstance(written, dict) and written:
        if written.keys() <= {"min", "max"} and all(_is_number(bound, "float") for bound in written.values()):
            found = Interval(**written)
            low, high = found.ends
            if low <= high:
                return found
    else:
        values = written if isinstance(written, list) else [written]
        if values and all(map(_is_choice, values)):
            return tuple(map(as_param, values))
    raise ValueError(f"when: {key}: got {written!r}; {_FORM}")


def _condition_as_written(condition: Condition) -> Any:
    if isinstance(condition, Interval):
        return {name: bound for name, bound in (("min", condition.min), ("max", condition.max)) if bound is not None}
    return condition[0] if len(condition) == 1 else list(condition)


def _is_choice(value: Any) -> bool:
    return all(map(_is_choice, value)) if isinstance(value, list) else _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def as_param(value: Any) -> Any:
    """Return a value as it is drawn: a list as its JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def exists(distribution: Distribution, params: Mapping[str, Scalar]) -> bool:
    """Return whether a parameter exists beside others: each one in ``when`` exists and meets its condition."""
    return all(parent in params and meets(params[parent], condition) for parent, condition in distribution.when.items())


def meets(value: Any, condition: Condition) -> bool:
    """Return whether a value meets a condition."""
    if isinstance(condition, Interval):
        return condition.holds(value)
    return any(same(as_param(value), one) for one in condition)


def can_meet(distribution: Distribution, condition: Condition) -> bool:
    """Return whether a parameter can take a value that meets the interval, or each of the values, of a condition."""
    if not isinstance(condition, Interval):
        return all(map(distribution.can_be, condition))
    if distribution.low is None or distribution.high is None:
        return any(map(condition.holds, distribution.choices))
    low, high = condition.ends
    return distribution.low <= high and low <= distribution.high


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a configuration are the same: 2 and 2.0 are, ``true`` and 1 are not."""
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)
