"""What all ranks know of each other while they write or read a checkpoint, so that none waits for one that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from torch import distributed

from raymlops.errors import DamagedError, RaymlopsError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def gathered(value: T, *, group: distributed.ProcessGroup | None = None) -> list[T]:
    """Return the values of all ranks, by rank. A collective, over several."""
    if not distributed.is_initialized():
        return [value]
    values = [value] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group=group)
    return values


def for_all(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, once no rank has failed: one that fails would leave the others waiting.

    Raises:
        DamagedError: what it raised on any rank, the first one that did, so that all know what is damaged.
        RaymlopsError: what it raised on this rank, or else on the first one that failed.
    """
    failure, found = None, None
    try:
        found = work()
    except RaymlopsError as error:
        failure = error
    failures = [each for each in gathered(failure) if each is not None]
    if failures:
        damage = next((each for each in failures if isinstance(each, DamagedError)), None)
        raise damage or failure or failures[0]
    return cast("T", found)
