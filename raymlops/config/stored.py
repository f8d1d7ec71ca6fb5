"""Sections that are read from where any release stored them: leniently, as user data never is."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from raymlops.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.base import Spec

    S = TypeVar("S", bound=Spec)


def read_stored(section: type[S], data: Mapping[str, Any]) -> S:
    """Return a section as it was stored, by this release or another one.

    At every depth, fields that this release does not know are left out, and values that it does not know get the
    default.

    Raises:
        StorageError: what is left contradicts itself.
    """
    known: dict[str, Any] = deepcopy(dict(data))
    while True:
        try:
            return section.model_validate(known)
        except ValidationError as error:
            first = error.errors()[0]
            if not _leave_out(known, first["loc"]):
                reason = first["msg"].removeprefix("Value error, ")
                raise StorageError(
                    f"the settings that another release of raymlops stored cannot be read: {reason}",
                    hint="Use that release, or deploy the version again with this one.",
                ) from error


def _leave_out(data: dict[Any, Any], place: Sequence[int | str]) -> bool:
    """Remove the innermost mapping's entry at a place, and return whether there is one."""
    if not place or place[0] not in data:
        return False
    inner = data[place[0]]
    if not (isinstance(inner, dict) and _leave_out(inner, place[1:])):
        del data[place[0]]
    return True
