"""The words of a search space: ``{float: [low, high], log: true}``, ``{int: ...}``, ``{categorical: [...]}``.

Owns the distributions, their reading from plain data and their ends; pure, without Optuna. ``when:
{key: value}`` makes a parameter exist only where another parameter of the space has that value (or one of a list).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

Scalar = bool | int | float | str | None


class Distribution(BaseModel):
    """Where one parameter of a search space is drawn from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["float", "int", "categorical"]
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Scalar, ...] = ()
    when: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)

    def ends(self) -> tuple[Scalar, ...]:
        """Return the values that must all satisfy the field: both ends of a range, every choice."""
        return self.choices if self.kind == "categorical" else (self.low, self.high)

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
    kinds = [kind for kind in ("float", "int", "categorical") if kind in data]
    unknown = data.keys() - {"float", "int", "categorical", "log", "step", "when"}
    if len(kinds) != 1 or unknown:
        raise ValueError(f"got keys {', '.join(map(str, data))}; {_EXAMPLE}")
    kind: Any = kinds[0]
    when = _conditions(data.get("when", {}))
    values = data[kind]
    if kind == "categorical":
        return _categorical(values, data, when)
    number = (int, float) if kind == "float" else (int,)
    if not (
        isinstance(values, list)
        and len(values) == 2
        and all(isinstance(v, number) and type(v) is not bool for v in values)
    ):
        raise ValueError(f"{kind}: got {values!r}; two {'numbers' if kind == 'float' else 'integers'}, [low, high]")
    low, high = (float(v) for v in values) if kind == "float" else values
    log, step = data.get("log", False), data.get("step")
    if type(log) is not bool:
        raise ValueError(f"log: got {log!r}; true or false")
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"{kind}: [{low}, {high}] is empty; low must be at most high, both finite")
    if log and low <= 0:
        raise ValueError(f"{kind}: log needs a low above 0, got {low}")
    if step is not None and (log or type(step) is bool or not isinstance(step, number) or step <= 0):
        raise ValueError(f"step: got {step!r}; above 0, of the same type, and not together with log")
    return Distribution(kind=kind, low=low, high=high, log=log, step=step, when=when)


def _categorical(values: Any, data: dict[str, Any], when: dict[str, tuple[Scalar, ...]]) -> Distribution:
    if not isinstance(values, list) or not values:
        raise ValueError(f"categorical: got {values!r}; a list of at least one choice")
    if not all(value is None or isinstance(value, bool | int | float | str) for value in values):
        raise ValueError("categorical: choices are text, numbers, true, false or null")
    if len({(type(value), value) for value in values}) != len(values):
        raise ValueError(f"categorical: {values!r} repeats a choice")
    if data.keys() & {"log", "step"}:
        raise ValueError("categorical: log and step are for float and int")
    return Distribution(kind="categorical", choices=tuple(values), when=when)


def _conditions(when: Any) -> dict[str, tuple[Scalar, ...]]:
    if not isinstance(when, dict):
        raise ValueError(f"when: got {when!r}; {{key.path: value}} or {{key.path: [values]}}")
    return {str(key): tuple(value) if isinstance(value, list) else (value,) for key, value in when.items()}
