"""Whether a version is taken back after its promotion. Pure: counts before and since, and the verdict on quality.

A rollout compares two versions on requests that chance gave to them. After the promotion there is one version, so it is
compared with what the one before it did during the rollout, by bounds that hold at all looks (``sequential``). Hours
differ by more than versions do; so what is bounded has to be further apart than the margin, for certain, where a
rollout only has to be sure of a difference. A bake has ``PARTS``, and what was counted since the end of each is bounded
too, so that hours that went well hide no failure that begins late: the j-th start has 1 / (j (j + 1)) of the level.
Requests that the recipe rejects do not count: a caller may begin to send bad rows, which every version rejects. Of two
versions at one time they are compared in the rollout.

Where skill is lost since the promotion, by its own test for all looks (``skill``), both are compared on the same
labelled requests: the one before is asked again. A world that changes, in which every version gets worse, takes no
better one back for a worse one: it ends the bake, which would keep a retraining from it. Where the two cannot be
compared, the loss of skill is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raymlops.monitor.sequential import rate_bounds
from raymlops.monitor.skill.labelled import paired
from raymlops.monitor.skill.verdict import LEVEL
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.monitor.skill.verdict import Verdict
    from raymlops.predictions.counts import Counts
    from raymlops.predictions.labelled_rows import Rows

ALPHA = 0.01
"""Of a version that is as the one before, ever taken back for its counts: half for errors, half for slow answers."""
PARTS = 4
"""Of a bake. They end it, and not the time alone: a clock that is set forward a day ends one of them."""
_EVENTS: dict[str, tuple[str, ...]] = {"errors": ("errors",), "slow": ("slow", "late")}
_WORDS = {"errors": "errors", "slow": "slow answers"}


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


def compare(labelled: Rows, *, version: int, before: int, margin: float, until: str, level: float = LEVEL) -> Compared:
    """Return whether a version is worse than the one ``before`` by more than ``margin`` of its mean loss, for certain.

    ``labelled`` has the losses of the one before as the champion's, and may be looked at whenever it has grown: one
    that is as good is ever called worse with probability at most ``level``. Without a row there is nothing to compare.
    """
    both, rows = paired(labelled), len(labelled)
    if both is None:
        return Compared(
            "not compared", f"version {before} answers no labelled request, or all of them perfectly", until
        )
    low, high = both.bounds(level=level)
    whose = f"version {version} beside version {before} on the same {rows:,} labelled rows"
    if both.few:
        return Compared("not enough labels", f"{whose}: {both.few}", until, rows)
    told = f"{whose}: {both.estimate().value:+.3f} of the loss, between {low:+.3f} and {high:+.3f}"
    if low > margin:
        return Compared("worse", f"{told}, and {margin:+g} is allowed", until, rows)
    return Compared("not worse" if high <= margin else "not enough labels", told, until, rows)


def bake(
    before: Counts,
    since: Counts,
    *,
    parts: Sequence[Counts],
    quality: Verdict | None,
    compared: Compared | None,
    hours: float,
    bake_h: float,
    error_margin: float,
    slow_margin: float,
    alpha: float = ALPHA,
) -> Baked:
    """Return whether a version is worse than the one ``before`` it, as the counts ``since`` its promotion show.

    ``parts`` are what was counted by the end of each part of the bake so far. Where nothing of the one before was
    counted, its errors are taken for none, and slow answers are not compared.

    ``quality`` is the verdict on the version since its promotion, None before the first one; and ``compared`` what came
    of comparing both since then, None as long as that is not known.
    """
    numbers: dict[str, Any] = {"before": before.to_dict(), "since": since.to_dict(), "hours": round(hours, 3)}
    numbers["quality"] = None if quality is None else quality.outcome
    numbers["compared"] = None if compared is None else compared.to_dict()
    worse = []
    for name, margin in (("errors", error_margin), ("slow", slow_margin)):
        if not before.requests and name == "slow":
            continue
        share = _apart(name, margin, before, since, parts, alpha=alpha / 2)
        if share is not None:
            numbers[name] = {"before_at_most": share.before, "since_at_least": share.since, "margin": margin}
            worse += [share.reason] if share.is_worse else []
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
    if len(parts) < PARTS:
        return Baked("baking", f"{hours:.1f} of {bake_h:g} h; {known}", numbers)
    return Baked("passed", f"it stood for {hours:.1f} h; {known}", numbers)


@dataclass(frozen=True)
class _Apart:
    """The bounds of a share, since the start at which they are furthest apart."""

    before: float
    since: float
    is_worse: bool
    reason: str


def _apart(
    name: str, margin: float, before: Counts, since: Counts, parts: Sequence[Counts], *, alpha: float
) -> _Apart | None:
    """Return how far apart a share is for certain, at most, by what was counted since the start of any part."""
    events = _EVENTS[name]
    old = _share(before, events)
    upper = rate_bounds(*old, alpha=alpha / 2)[1] if old[1] else 0.0
    found: list[_Apart] = []
    for number, start in enumerate([None, *parts], 1):
        new = _share(since if start is None else since - start, events)
        if not new[1]:
            continue
        lower = rate_bounds(*new, alpha=alpha / 2 / (number * (number + 1)))[0]
        lately = "" if start is None else f" since part {number - 1} of {PARTS} of the bake"
        shown = f"{old[0] / old[1]:.2%} of {old[1]:,} requests before" if old[1] else "none, as before nobody counted"
        reason = (
            f"{_WORDS[name]} {new[0] / new[1]:.2%} of {new[1]:,}{lately} against {shown}: at least "
            f"{lower:.2%} against at most {upper:.2%}, and {margin:g} more is allowed"
        )
        found.append(_Apart(upper, lower, lower > upper + margin, reason))
    return max(found, key=lambda one: one.since, default=None)


def _share(counts: Counts, events: tuple[str, ...]) -> tuple[int, int]:
    total = max(0, counts.requests)
    return min(total, max(0, sum(getattr(counts, event) for event in events))), total


def _known(before: Counts, since: Counts, quality: Verdict | None, compared: Compared | None) -> str:
    """Say what the version was judged by."""
    if not before.requests:
        counts = "no requests of the version before it were counted to compare with"
    else:
        counts = f"{since.requests:,} requests since its promotion, {before.requests:,} of the one before"
    judged = f"quality {'not judged yet' if quality is None else quality.outcome}"
    return "; ".join([counts, judged, *([] if compared is None else [compared.reason])])
