"""Slices that ``monitor.slices`` asks for, checked against the inputs of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.errors import UsageError
from raymlops.profiles.slices import Slice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.profiles.slices import Value
    from raymlops.signature import Signature

_OF_SLICES = {"string": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def slices_of(asked: Mapping[str, Sequence[Value]], signature: Signature) -> list[Slice]:
    """Return the slices, a value of an input each.

    Raises:
        UsageError: an input that there is not, or a value that it cannot have: no row would be in that slice.
    """
    inputs = {column.name: column for column in signature.inputs}
    found = []
    for name, values in asked.items():
        column = inputs.get(name)
        if column is None or column.shape or column.type not in _OF_SLICES:
            able = [each.name for each in signature.inputs if not each.shape and each.type in _OF_SLICES]
            raise UsageError(
                f"monitor.slices names {name!r}; expected an input with a single text, number or truth value a row",
                hint=f"Those are {', '.join(able) or 'none'}.",
            )
        for value in values:
            if type(value) not in _OF_SLICES[column.type]:
                raise UsageError(f"monitor.slices.{name}: got {value!r}; the signature says {column.type}")
            found.append(Slice(name, value))
    return found
