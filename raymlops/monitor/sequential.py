"""Tests that may be looked at as often as one likes: is one version worse than another, and by how much at most. Pure.

**Harm.** Requests fall to the canary with the known probability w and to the champion otherwise. Let request i have the
loss X in [0, 1] (1 for an error, 0 for a good answer), c be any number in [0, 1] and

    Z = (X - c) / w  if the canary answered,    Z = -(X - c) / (1 - w)  if the champion did.

Whatever the request, whatever the hour, the mean of Z is the canary's expected loss of it minus the champion's. While
that is at most 0, the product of ``1 + f Z`` over requests, f >= 0 with no factor negative, grows by no more than
chance allows: it is a nonnegative supermartingale that starts at 1, and so is an average over several f and c. By
Ville's inequality it ever reaches 1 / alpha with probability at most alpha, however often one looks, and however many
steps with different w are multiplied. Z is the inverse-propensity difference of Waudby-Smith, Wu, Ramdas,
Karampatziakis and Mineiro, "Anytime-valid off-policy inference for contextual bandits" (2022); betting on a bounded
mean is Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 86 (2024). For errors
with c = 0 it is the test of Lindon and Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022): of
the requests that went wrong, does more than w fall to the canary? The order does not matter, so counts are enough.

What it needs: that chance alone gives each request to a version, and that an event is counted about as soon after its
request for both. It does not need rates that stay, nor requests that are independent of each other. Where callers
keep to a version, chance gives *callers* to versions, and what a single caller brings (many requests, heavy ones) looks
like the version's doing. Asking with the observed share of the requests in place of w as well, and believing the
smaller evidence, repairs unequal numbers of requests. Nothing that is counted here repairs callers who are unlike, nor
what is not counted at all: requests that were turned away, and those that ended with the process that answered them.
What ends a process from outside is as much a version's doing, to these tests, as what ends it from within.

**Bounds.** A confidence sequence holds for all times at once with probability at least 1 - alpha: Robbins'
Beta-binomial mixture ("Statistical methods related to the law of the iterated logarithm", Ann. Math. Stat. 41, 1970).
It takes each version by itself, and rates that stay while the numbers are gathered.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    Floats = npt.NDArray[np.float64]

RATE_CENTRES = ((0.0, 0.9), (0.5, 0.05), (1.0, 0.05))
"""c and its part of the average. Errors are rare, for which 0 is best; 1 sees it at once where all requests fail."""

_BETS = 0.95 * 2.0 ** -np.arange(10.0)
"""f as parts of the largest one allowed: from differences that a few requests show to those that take a million."""
_HARM_BETS = np.append(_BETS, 0.0)
"""With one that nothing is lost on: after any number of good requests, evidence is at most 2.4 below where it began."""
_PRIOR = 0.5
"""Of the Beta-binomial mixture, both parameters: Jeffreys' prior, good at shares near 0 and 1."""
_HALVINGS = 20
"""Of [0, 1]: a bound is too wide by at most a millionth."""


def rate_harm(canary: Any, champion: Any, *, weight: float) -> Any:
    """Return the natural logarithm of the evidence that the canary has the higher share of events.

    ``canary`` and ``champion`` are ``(events, requests)``, numbers or arrays of one shape; ``weight`` is the
    probability with which one of these requests falls to the canary. Without chance in it (0 or 1) the evidence is 0.
    """
    sides = [np.stack([np.subtract(total, events), events], axis=-1) for events, total in (canary, champion)]
    if not 0 < weight < 1:
        return np.zeros(sides[0].shape[:-1])[()]
    ours, theirs, parts = _factors(weight)
    grown = sides[0] @ ours + sides[1] @ theirs + parts
    top = grown.max(axis=-1)
    return top + np.log(np.exp(grown - top[..., None]).sum(axis=-1))


def rate_bounds(events: int, total: int, *, alpha: float) -> tuple[float, float]:
    """Return the lower and the upper bound of a share, each of which ever fails with probability at most ``alpha``."""
    if total <= 0:
        return 0.0, 1.0
    mixture = _log_beta(events + _PRIOR, total - events + _PRIOR) - _log_beta(_PRIOR, _PRIOR)
    limit = mixture - math.log(1 / alpha)
    share = events / total

    def rejected(rate: float) -> bool:
        return _log_likelihood(rate, events, total) <= limit

    return _edge(rejected, 0.0, share), _edge(rejected, 1.0, share)


@lru_cache(maxsize=64)
def _factors(weight: float) -> tuple[Floats, Floats, Floats]:
    """Return the logarithms of ``1 + f Z``, of shape (2, bets), for both versions, and of each bet's part."""
    values = np.array([[0.0], [1.0]])
    ours, theirs, parts = [], [], []
    for centre, part in RATE_CENTRES:
        bets = _HARM_BETS / max(centre / weight, (1 - centre) / (1 - weight))
        ours.append(np.log1p(bets * (values - centre) / weight))
        theirs.append(np.log1p(-bets * (values - centre) / (1 - weight)))
        parts.append(np.full(len(bets), math.log(part / len(bets))))
    return np.concatenate(ours, axis=1), np.concatenate(theirs, axis=1), np.concatenate(parts)


def _log_likelihood(rate: float, events: int, total: int) -> float:
    if (events and rate <= 0) or (total > events and rate >= 1):
        return -math.inf
    good = (total - events) * math.log1p(-rate) if total > events else 0.0
    return good + (events * math.log(rate) if events else 0.0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(rejected: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return where values stop being rejected between ``outside`` and ``inside``, on the side of ``outside``."""
    if not rejected(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        if rejected(middle):
            outside = middle
        else:
            inside = middle
    return outside
