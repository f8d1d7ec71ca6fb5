"""Whether a version is taken back after its promotion. Pure: counts before and since, and the verdict on quality.

A rollout compares two versions on requests that chance gave to them. After the promotion there is one version, so it is
compared with what the one before it did during the rollout, by bounds that hold at all looks (``sequential``). Hours
differ by more than versions do; so what is bounded has to be further apart than the margin, for certain, where a
rollout only has to be sure of a difference. Quality has its own test for all looks since the promotion (``skill``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raymlops.monitor.sequential import rate_bounds
from raymlops.records import Record

if TYPE_CHECKING:
    from raymlops.monitor.skill.verdict import Verdict
    from raymlops.predictions.counts import Counts

ALPHA = 0.01
"""Of a version that is as the one before, ever taken back for its counts: half for errors, half for slow answers."""
_EVENTS: dict[str, tuple[str, ...]] = {"errors": ("errors", "refused"), "slow": ("slow", "late")}
_WORDS = {"errors": "errors and rejected requests", "slow": "slow answers"}


@dataclass(frozen=True)
class Baked(Record):
    """What is to become of a promoted version, why, and the numbers."""

    outcome: Literal["baking", "worse", "passed"]
    reason: str
    numbers: dict[str, Any]


def bake(
    before: Counts,
    since: Counts,
    *,
    quality: Verdict | None,
    hours: float,
    bake_h: float,
    error_margin: float,
    slow_margin: float,
    alpha: float = ALPHA,
) -> Baked:
    """Return whether a version is worse than the one ``before`` it, as the counts ``since`` its promotion show.

    ``quality`` is the verdict on the version since its promotion, None before the first one.
    """
    numbers: dict[str, Any] = {"before": before.to_dict(), "since": since.to_dict(), "hours": round(hours, 3)}
    numbers["quality"] = None if quality is None else quality.outcome
    worse = []
    for name, margin in (("errors", error_margin), ("slow", slow_margin)):
        old, new = (_share(counts, name) for counts in (before, since))
        if not old[1] or not new[1]:
            continue
        upper, lower = rate_bounds(*old, alpha=alpha / 4)[1], rate_bounds(*new, alpha=alpha / 4)[0]
        numbers[name] = {"before_at_most": upper, "since_at_least": lower, "margin": margin}
        if lower > upper + margin:
            shares = (f"{number / total:.2%} of {total:,}" for number, total in (new, old))
            worse.append(
                f"{_WORDS[name]} {' against '.join(shares)} requests before: at least {lower:.2%} against at most "
                f"{upper:.2%}, and {margin:g} more is allowed"
            )
    if quality is not None and quality.outcome == "worse":
        worse.append(quality.reason)
    if worse:
        return Baked("worse", "; ".join(worse), numbers)
    known = _known(before, since, quality)
    if hours < bake_h:
        return Baked("baking", f"{hours:.1f} of {bake_h:g} h; {known}", numbers)
    return Baked("passed", f"it stood for {hours:.1f} h; {known}", numbers)


def _share(counts: Counts, name: str) -> tuple[int, int]:
    total = max(0, counts.requests)
    return min(total, max(0, sum(getattr(counts, event) for event in _EVENTS[name]))), total


def _known(before: Counts, since: Counts, quality: Verdict | None) -> str:
    """Say what the version was judged by."""
    if not before.requests:
        counts = "no requests of the version before it were counted to compare with"
    else:
        counts = f"{since.requests:,} requests since its promotion, {before.requests:,} of the one before"
    return f"{counts}; quality {'not judged yet' if quality is None else quality.outcome}"
