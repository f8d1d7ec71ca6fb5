"""Which version answers a request, and which others get a copy. Pure: shares and a request's facts in, a choice out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.predictions.served import Route


@dataclass(frozen=True, slots=True)
class Share:
    """A version beside the champion, and its share of the requests, 0 to 1."""

    version: int
    weight: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Which versions of one model are up beside the champion, and what each of them gets."""

    epoch: str = ""
    """Changes with every change of the weights, so that counts of before and after are kept apart."""
    canaries: tuple[Share, ...] = ()
    shadows: tuple[Share, ...] = ()
    standing: tuple[int, ...] = ()
    """All versions that are up beside the champion: those that a request may be pinned to."""
    sticky: Literal["request", "key", "header"] = "request"
    sticky_header: str = "x-session-id"
    canary_timeout_s: float = 1.0
    max_shadow_requests: int = 16

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, as a replica's settings hold it."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Traffic:
        """Rebuild it; unknown keys are ignored."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers: ``version`` None is the champion."""

    version: int | None
    route: Route


def choose(traffic: Traffic, *, sticky: str | None, draw: float) -> Choice:
    """Return who answers a request that is not pinned.

    ``sticky`` is the caller's session or key, None where it has none; ``draw`` is uniform in [0, 1).
    """
    raise NotImplementedError


def copies(traffic: Traffic, *, draw: float) -> tuple[int, ...]:
    """Return the shadows that get a copy of a request."""
    raise NotImplementedError
