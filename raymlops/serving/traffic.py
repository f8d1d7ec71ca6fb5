"""Traffic split: the version that answers a request, and the shadows that get a copy. Pure.

A request is a point between 0 and 1: the hash of its caller where sessions are sticky, random otherwise. The canaries
own intervals that begin at the ends of that line, the champion the rest between them::

    0 ........................................................... 1
    |canary 7 ->|                champion          |<- canary 8|

So a canary whose weight grows takes callers from the champion only, and keeps its own. This holds for all callers of
one canary or two; the third and later ones are next to the second and shift when it grows, which no rule without
state can avoid.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_POINTS = float(2**53)
"""The resolution of floats between 0 and 1, so that none is rounded to 1."""


@dataclass(frozen=True, slots=True)
class Share:
    """A version other than the champion, and its share of the requests, 0 to 1."""

    version: int
    weight: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """The live versions of one model other than the champion, and their shares."""

    epoch: str = ""
    """Changes with every change of the weights, so that counts before and after it stay separate."""
    canaries: tuple[Share, ...] = ()
    shadows: tuple[Share, ...] = ()
    standing: tuple[int, ...] = ()
    """All live versions other than the champion, to which a request may be pinned."""
    sticky: Literal["request", "key", "header"] = "request"
    sticky_header: str = "x-session-id"
    canary_timeout_s: float = 1.0
    max_shadow_requests: int = 16
    salt: str = ""
    """Part of the hash of callers, so that only models with the same salt split them alike."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, as a replica's settings hold it."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Traffic:
        """Rebuild it; unknown keys are ignored. The shares were checked when they were stored."""
        known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        for name in ("canaries", "shadows"):
            known[name] = tuple(Share(item["version"], item["weight"]) for item in data.get(name, ()))
        known["standing"] = tuple(data.get("standing", ()))
        return cls(**known)


def choose(traffic: Traffic, *, sticky: str | None, draw: float) -> int | None:
    """Return the canary that answers a request which is not pinned; None is the champion.

    ``sticky`` is the caller's session or key, None where it has none; ``draw`` is uniform in [0, 1).
    """
    canaries = traffic.canaries
    if not canaries:
        return None
    point = draw if sticky is None or traffic.sticky == "request" else _point(traffic.salt, sticky)
    if len(canaries) > 1:
        canaries = tuple(sorted(canaries, key=lambda share: share.version))
    if point < canaries[0].weight:
        return canaries[0].version
    end = 1.0
    for share in canaries[1:]:
        end -= share.weight
        if point >= end:
            return share.version
    return None


def copies(traffic: Traffic, *, draw: float) -> tuple[int, ...]:
    """Return the shadows that get a copy of a request, each independently of the others.

    ``draw`` is uniform in [0, 1), and independent of the one for ``choose``.
    """
    chosen = []
    for share in traffic.shadows:
        taken = draw < share.weight
        if taken:
            chosen.append(share.version)
        # Within the part that it fell into, the draw is uniform again: one is enough for all shadows.
        start, width = (0.0, share.weight) if taken else (share.weight, 1.0 - share.weight)
        draw = (draw - start) / width
    return tuple(chosen)


def _point(salt: str, caller: str) -> float:
    """Return a caller's point in [0, 1): stable, and uniform over callers."""
    text = f"{len(salt)}:{salt}{caller}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 11) / _POINTS
