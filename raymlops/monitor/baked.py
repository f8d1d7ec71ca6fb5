"""Whether a version is taken back after its promotion. Pure: counts before and since, and the verdict on quality.

A rollout compares two versions on requests that chance gave to them. After the promotion there is one version, so it is
compared with what the one before it did during the rollout, by bounds that hold at all looks (``sequential``). Hours
differ by more than versions do; so what is bounded has to be further apart than the margin, for certain, where a
rollout only has to be sure of a difference.

Where skill is lost since the promotion, by its own test for all looks (``skill``), both are compared on the same
labelled requests: the one before is asked again. A world that changes, in which every version gets worse, takes no
better one back for a worse one: it ends the bake, which would keep a retraining from it. Where the two cannot be
compared, the loss of skill is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raymlops.monitor.sequential import rate_bounds
from raymlops.monitor.skill.verdict import LEVEL
from raymlops.records import Record

if TYPE_CHECKING:
    from raymlops.monitor.replayed import Labelled
    from raymlops.monitor.skill.verdict import Verdict
    from raymlops.predictions.counts import Counts

ALPHA = 0.01
"""Of a version that is as the one before, ever taken back for its counts: half for errors, half for slow answers."""
_EVENTS: dict[str, tuple[str, ...]] = {"errors": ("errors", "refused"), "slow": ("slow", "late")}
_WORDS = {"errors": "errors and rejected requests", "slow": "slow answers"}


@dataclass(frozen=True)
class Compared(Record):
    """A promoted version beside the one before it, on the same labelled requests."""

    outcome: Literal["worse", "not worse", "not enough labels", "not compared"]
    reason: str
    until: str
    """End of the newest of these windows of labels, ISO 8601."""
    rows: int = 0

    @property
    def is_known(self) -> bool:
        """Return whether both answered; else the reason says why not."""
        return self.outcome != "not compared"


@dataclass(frozen=True)
class Baked(Record):
    """What is to become of a promoted version, why, and the numbers."""

    outcome: Literal["baking", "worse", "passed"]
    reason: str
    numbers: dict[str, Any]


def compare(
    labelled: Labelled, *, version: int, before: int, margin: float, until: str, level: float = LEVEL
) -> Compared:
    """Return whether a version is worse than the one ``before`` by more than ``margin`` of its mean loss, for certain.

    ``labelled`` has the losses of the one before as the champion's, and may be looked at whenever it has grown: one
    that is as good is ever called worse with probability at most ``level``. Without a row there is nothing to compare.
    """
    paired, rows = labelled.paired(), len(labelled.clusters)
    if paired is None:
        return Compared(
            "not compared", f"version {before} answers no labelled request, or all of them perfectly", until
        )
    low, high = paired.bounds(level=level)
    whose = f"version {version} beside version {before} on the same {rows:,} labelled rows"
    if paired.difference.few:
        return Compared("not enough labels", f"{whose}: {paired.difference.few}", until, rows)
    told = f"{whose}: {paired.estimate().value:+.3f} of the loss, between {low:+.3f} and {high:+.3f}"
    if low > margin:
        return Compared("worse", f"{told}, and {margin:+g} is allowed", until, rows)
    return Compared("not worse" if high <= margin else "not enough labels", told, until, rows)


def bake(
    before: Counts,
    since: Counts,
    *,
    quality: Verdict | None,
    compared: Compared | None,
    hours: float,
    bake_h: float,
    error_margin: float,
    slow_margin: float,
    alpha: float = ALPHA,
) -> Baked:
    """Return whether a version is worse than the one ``before`` it, as the counts ``since`` its promotion show.

    ``quality`` is the verdict on the version since its promotion, None before the first one; and ``compared`` what came
    of comparing both since then, None as long as that is not known.
    """
    numbers: dict[str, Any] = {"before": before.to_dict(), "since": since.to_dict(), "hours": round(hours, 3)}
    numbers["quality"] = None if quality is None else quality.outcome
    numbers["compared"] = None if compared is None else compared.to_dict()
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
    lost = quality if quality is not None and quality.outcome == "worse" else None
    if lost is not None and compared is not None and compared.outcome in {"worse", "not compared"}:
        how = "" if compared.is_known else "by its own answers alone: "
        worse.append(f"{lost.reason}; {how}{compared.reason}")
    if worse:
        return Baked("worse", "; ".join(worse), numbers)
    known = _known(before, since, quality, compared)
    if lost is not None and compared is not None and compared.outcome == "not worse":
        why = f"after {hours:.1f} of {bake_h:g} h, since the one before would be no better"
        return Baked("passed", f"{why}; {known}", numbers)
    if hours < bake_h:
        return Baked("baking", f"{hours:.1f} of {bake_h:g} h; {known}", numbers)
    return Baked("passed", f"it stood for {hours:.1f} h; {known}", numbers)


def _share(counts: Counts, name: str) -> tuple[int, int]:
    total = max(0, counts.requests)
    return min(total, max(0, sum(getattr(counts, event) for event in _EVENTS[name]))), total


def _known(before: Counts, since: Counts, quality: Verdict | None, compared: Compared | None) -> str:
    """Say what the version was judged by."""
    if not before.requests:
        counts = "no requests of the version before it were counted to compare with"
    else:
        counts = f"{since.requests:,} requests since its promotion, {before.requests:,} of the one before"
    judged = f"quality {'not judged yet' if quality is None else quality.outcome}"
    return "; ".join([counts, judged, *([] if compared is None else [compared.reason])])
