"""Which version answers a request, and which others get a copy. Pure: shares and a request's facts in, a choice out.

A request stands at a point between 0 and 1: by its caller's hash where callers keep to a version, by chance otherwise.
The canaries have parts of that line that begin at its ends, the champion the rest between them::

    0 ........................................................... 1
    |canary 7 ->|                champion          |<- canary 8|

So a canary whose weight grows takes callers from the champion alone, and none of its own goes back. With one canary or
two this holds for all callers; of three or more, the third and later ones stand behind the second and are moved along
when it grows, for no rule without a memory can spare them all.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.predictions.served import Route

_POINTS = float(2**53)
"""As many as a float tells apart between 0 and 1, so that none is rounded to 1."""


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
    salt: str = ""
    """Goes into the hash of callers, so that those of two models with the same salt alone meet the same fate."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, as a replica's settings hold it."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Traffic:
        """Rebuild it; unknown keys are ignored. The shares are taken as they are: who stored them has checked them."""
        known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        for name in ("canaries", "shadows"):
            known[name] = tuple(Share(item["version"], item["weight"]) for item in data.get(name, ()))
        known["standing"] = tuple(data.get("standing", ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers: ``version`` None is the champion."""

    version: int | None
    route: Route


_CHAMPION = Choice(None, "champion")


def choose(traffic: Traffic, *, sticky: str | None, draw: float) -> Choice:
    """Return who answers a request that is not pinned.

    ``sticky`` is the caller's session or key, None where it has none; ``draw`` is uniform in [0, 1).
    """
    canaries = traffic.canaries
    if not canaries:
        return _CHAMPION
    point = draw if sticky is None or traffic.sticky == "request" else _point(traffic.salt, sticky)
    if len(canaries) > 1:
        canaries = tuple(sorted(canaries, key=lambda share: share.version))
    if point < canaries[0].weight:
        return Choice(canaries[0].version, "canary")
    end = 1.0
    for share in canaries[1:]:
        end -= share.weight
        if point >= end:
            return Choice(share.version, "canary")
    return _CHAMPION


def copies(traffic: Traffic, *, draw: float) -> tuple[int, ...]:
    """Return the shadows that get a copy of a request, each independently of the others.

    ``draw`` is uniform in [0, 1), and another one than chose who answers.
    """
    chosen = []
    for share in traffic.shadows:
        taken = draw < share.weight
        if taken:
            chosen.append(share.version)
        # Given which part it fell into, its place there is uniform again: one draw is enough for all.
        start, width = (0.0, share.weight) if taken else (share.weight, 1.0 - share.weight)
        draw = (draw - start) / width
    return tuple(chosen)


def _point(salt: str, caller: str) -> float:
    """Return where a caller stands in [0, 1): always the same place, and evenly spread over callers."""
    text = f"{len(salt)}:{salt}{caller}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 11) / _POINTS
