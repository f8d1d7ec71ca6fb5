"""The gate: whether a version may become challenger, with the numbers. Pure.

Three kinds of checks. *Served*: what callers would get, and what it was tested on, which no metric shows; they are
computed elsewhere.
*Thresholds* are bounds on test metrics. *Not worse than the champion* compares both on the same test rows: the rows are
cut into contiguous blocks, each block's metric sums are known for both models, and whole blocks are drawn with
replacement, the same ones for both (a paired block bootstrap; Künsch, 1989): blocks keep rows that hang together
together. Where rows have times they are whole days or weeks: chance draws days, not parts of them. The differences of
the resamples show how much of the difference is chance. Their quantile at ``1 - confidence``, the lower end of a
one-sided percentile interval, must be at least ``-margin``; of few blocks it is further away, by Student's quantile and
the variance that resamples lack.

Few blocks. Resamples of blocks of which few differ show none of those that the test rows happen to lack: of two models
for an event of one row in ten thousand, the one that never expects it is better wherever the event is missing. How many
blocks carry a difference say the parts d of it that leaving each one out shows (the jackknife's): so many of one size
have the same ratio (sum d^2)^2 / sum d^4, a third of them where they are normal. Below eight, and a twentieth of all
blocks, the bound is lowered by what as many more blocks make, as bad as the largest, as would be missing with the
probability ``1 - confidence``: three at 95%. Of 28 blocks, such as the quarters of a week's days, eight or fewer carry
differences that are only a little unequal; there one block alone is few.

What the margin means. With ``margin: 0`` the candidate must be shown to be better: of candidates that are exactly as
good as the champion, only about ``1 - confidence`` pass. With a margin it must be shown to be less than that
worse, so a model as good as the champion passes the more surely, the larger the margin is beside the spread of
the difference. The same weights again differ by exactly 0 and always pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from raymlops.errors import UsageError
from raymlops.records import GateCheck, GateDecision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.schema import GateSection
    from raymlops.config.sweep import Threshold

    Totals = Mapping[str, npt.NDArray[np.float64]]
    Finalize = Callable[[Totals], Mapping[str, float]]

BlocksAre = Literal["blocks", "days", "weeks"]

SEED = 20_130_101
"""Of the resamples: the same evaluation gets the same decision."""

FEWEST_BLOCKS = 8
"""That carry a difference, below which more of them may be missing."""
FEWEST_SHARE = 1 / 20
"""Of all blocks, below which they are few; one alone always is."""
MOST_OF_ONE = 0.5
"""Share of a metric that one block makes, above which that is said."""

FEWEST_DAYS = 5
"""Below which resamples of days do not show chance."""

_PREFIX = "test/"
_CHUNK = 128
_ROUNDING = 1e-6
"""Of float32 sums, relative."""
_GROUPS = 10
"""Of blocks, drawn by chance, over which the usual size of a metric is taken."""


@dataclass(frozen=True)
class ChampionEvaluation:
    """The champion on the candidate's test rows, or the ``reason`` why it could not answer them."""

    version: int
    blocks: Sequence[Totals] | None
    finalize: Finalize | None
    reason: str = ""
    trained_on_share: float | None = None
    """Share of the test rows that the champion was trained on, 0 to 1; None or NaN where it is not known."""


def decide(
    gate: GateSection,
    *,
    metrics: Mapping[str, float | None],
    metric: str,
    mode: Literal["min", "max"],
    candidate_blocks: Sequence[Totals],
    candidate_finalize: Finalize,
    champion: ChampionEvaluation | None,
    served: Sequence[GateCheck] = (),
    blocks_are: BlocksAre = "blocks",
    rng: np.random.Generator | None = None,
) -> GateDecision:
    """Run every check of the gate and return the decision with all its numbers.

    ``served`` are the checks of what callers get and of its test rows, which no metric shows. ``blocks_are`` whole days
    or weeks where rows have times.

    ``metrics`` are the candidate's on the test split, named ``test/...``; NaN or None fails every threshold.
    ``metric``, better towards ``mode``, is compared with the champion's on the same blocks of rows.

    Raises:
        UsageError: a threshold or ``metric`` names a metric that was not reported, or the blocks of the two models are
            not of the same rows.
    """
    checks = [*served]
    checks += [_threshold(name, bounds, metrics) for name, bounds in gate.thresholds.items()]
    metric = _known(metric, metrics)
    if champion is None:
        return GateDecision(
            passed=all(check.passed for check in checks),
            checks=tuple(checks),
            notes=("There is no other champion to compare with.",),
        )
    if champion.blocks is None or champion.finalize is None:
        check = GateCheck(
            name=_name(metric, champion),
            passed=False,
            got=None,
            allowed="a champion that answers the test rows",
            detail=champion.reason,
        )
        notes: list[str] = [f"Champion version {champion.version} could not answer the test rows: {champion.reason}"]
    else:
        check = _compare(
            gate,
            metric=metric,
            mode=mode,
            candidate=(candidate_blocks, candidate_finalize),
            champion=champion,
            blocks_are=blocks_are,
            rng=rng or np.random.default_rng(SEED),
        )
        notes = [_overlap_note(champion)]
    checks.append(check)
    return GateDecision(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        champion_version=champion.version,
        notes=tuple(notes),
    )


def _threshold(name: str, bounds: Threshold, metrics: Mapping[str, float | None]) -> GateCheck:
    name = _known(name, metrics)
    value = _number(metrics[name])
    allowed = " and ".join(
        f"{sign} {bound:g}" for sign, bound in ((">=", bounds.min), ("<=", bounds.max)) if bound is not None
    )
    passed = (
        value is not None
        and (bounds.min is None or value >= bounds.min)
        and (bounds.max is None or value <= bounds.max)
    )
    return GateCheck(
        name=name, passed=passed, got=value, allowed=allowed, detail="" if value is not None else "not a number"
    )


def _known(name: str, metrics: Mapping[str, float | None]) -> str:
    """Return the full name of a test metric, which may be written without ``test/``."""
    full = name if name in metrics else f"{_PREFIX}{name}"
    if full in metrics:
        return full
    near = get_close_matches(full, list(metrics), n=1)
    raise UsageError(
        f"the gate asks for the metric {name!r}, which was not reported on the test split; "
        f"reported: {', '.join(sorted(metrics)) or 'none'}",
        hint=f"Did you mean {near[0]}?" if near else "Name one of these under gate.",
    )


def _compare(
    gate: GateSection,
    *,
    metric: str,
    mode: Literal["min", "max"],
    candidate: tuple[Sequence[Totals], Finalize],
    champion: ChampionEvaluation,
    blocks_are: BlocksAre,
    rng: np.random.Generator,
) -> GateCheck:
    blocks, finalize = candidate
    assert champion.blocks is not None
    assert champion.finalize is not None
    key = metric.removeprefix(_PREFIX)
    _same_rows(blocks, champion.blocks)
    allowed = f">= {-gate.margin:g}" if gate.margin else ">= 0"
    sign = 1.0 if mode == "max" else -1.0
    ours, theirs = _Resampler(blocks, finalize, key), _Resampler(champion.blocks, champion.finalize, key)
    whole = np.ones((1, len(blocks)))
    new, old = float(ours.values(whole)[0]), float(theirs.values(whole)[0])
    needed = 2 if blocks_are == "blocks" else FEWEST_DAYS
    if len(blocks) < needed:
        few = f"test rows of {len(blocks)} {blocks_are}: chance cannot be told with fewer than {needed}"
        return GateCheck(_name(metric, champion), passed=False, got=None, allowed=allowed, detail=few)
    # How often each block is drawn, for each resample: the sums of a resample are these counts times the blocks' sums.
    shares = np.full(len(blocks), 1 / len(blocks))
    counts = rng.multinomial(len(blocks), shares, size=gate.resamples).astype(np.float64)
    differences = sign * (ours.values(counts) - theirs.values(counts))
    undefined = float(np.isnan(differences).mean())
    # A resample without a value speaks for the worst; "lower" takes a value that was seen, not one between two.
    differences[np.isnan(differences)] = -np.inf
    better = sign * (new - old)
    bound = better + _few_blocks(len(blocks), gate.confidence) * (
        float(np.quantile(differences, 1 - gate.confidence, method="lower")) - better
    )
    rounding = _rounding(theirs, old)
    carried, largest = _carried(ours, theirs, new - old, rounding=rounding)
    fewest = min(FEWEST_BLOCKS, max(FEWEST_SHARE * len(blocks), 1.5))
    missing = -math.log1p(-gate.confidence) * largest / len(blocks) if carried < fewest else 0.0
    bound -= missing
    passed = math.isfinite(new) and math.isfinite(old) and bound >= -gate.margin - rounding
    detail = (
        f"{key} {new:.5g} against {old:.5g}, better by {better:+.3g}; bound at {gate.confidence:.0%} "
        f"confidence over {gate.resamples} resamples of {len(blocks)} {blocks_are}"
    )
    if missing:
        detail += f"; as few as {carried:.1f} {blocks_are} carry the difference, so that it is lowered by {missing:.3g}"
    if undefined:
        detail += f"; {undefined:.1%} of the resamples have no value"
    if (share := _largest_share(theirs, old)) > MOST_OF_ONE:
        detail += f"; one block makes {share:.0%} of {key}: look for a label that is far off"
    return GateCheck(name=_name(metric, champion), passed=passed, got=_number(bound), allowed=allowed, detail=detail)


def _few_blocks(number: int, confidence: float) -> float:
    """Return by how much a bound is further away by Student's quantile than by resamples of so many blocks."""
    student, normal = stdtrit(number - 1, confidence), ndtri(confidence)
    return float(student / normal) * math.sqrt(number / (number - 1))


def _rounding(theirs: _Resampler, old: float) -> float:
    """Return what is no difference: the same training on other workers differs in the last bits of its sums.

    By the size that the metric has, or by its median over groups of blocks where that is less: one label that is far
    off makes the sum of its block, and the whole metric, so large that every other difference would be beyond the last
    bits of that. Of single blocks a ratio may have any size, as 1 - SSE / variance where all labels are alike.
    """
    if not math.isfinite(old):
        return 0.0
    number = min(_GROUPS, max(theirs.blocks // 2, 1))
    groups = np.zeros((number, theirs.blocks))
    groups[np.arange(theirs.blocks) % number, np.random.default_rng(0).permutation(theirs.blocks)] = 1
    each = np.abs(theirs.values(groups))
    each = each[np.isfinite(each)]
    return _ROUNDING * min(abs(old), float(np.median(each)) if len(each) else math.inf)


def _largest_share(theirs: _Resampler, old: float) -> float:
    """Return which share of a metric one block makes; 0 where there are too few to say, or a value is not finite."""
    number = theirs.blocks
    if number < FEWEST_BLOCKS:
        return 0.0
    parts = np.abs(number * old - (number - 1) * theirs.values(1 - np.eye(number)))
    whole = float(parts.sum())
    return float(parts.max()) / whole if math.isfinite(whole) and whole > 0 else 0.0


def _carried(ours: _Resampler, theirs: _Resampler, difference: float, *, rounding: float) -> tuple[float, float]:
    """Return how many blocks carry the difference, and the largest part of one; all of them where there is none."""
    number = ours.blocks
    without = 1 - np.eye(number)
    parts = number * difference - (number - 1) * (ours.values(without) - theirs.values(without))
    if not np.isfinite(parts).all():  # a metric that one block decides
        return 1.0, math.inf
    parts = np.where(np.abs(parts) <= rounding * number, 0.0, parts)
    fourth = float((parts**4).sum())
    carried = float((parts**2).sum()) ** 2 / fourth if fourth > 0 else float(number)
    return carried, float(np.abs(parts).max())


class _Resampler:
    """One model's metric over weighted blocks."""

    def __init__(self, blocks: Sequence[Totals], finalize: Finalize, key: str) -> None:
        self._shapes = {name: np.shape(value) for name, value in blocks[0].items()}
        self._stacked = {
            name: np.stack([np.asarray(block[name], dtype=np.float64).ravel() for block in blocks])
            for name in self._shapes
        }
        self._finalize = finalize
        self._key = key
        self.blocks = len(blocks)

    def values(self, counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the metric for each row of ``counts``, of shape (resamples, blocks); NaN where it is undefined."""
        values = np.empty(len(counts))
        # In pieces, so that wide sums (histograms, confusion matrices) stay small in memory.
        for start in range(0, len(counts), _CHUNK):
            part = counts[start : start + _CHUNK]
            sums = {name: part @ stacked for name, stacked in self._stacked.items()}
            for index in range(len(part)):
                values[start + index] = self._value(
                    {name: total[index].reshape(self._shapes[name]) for name, total in sums.items()}
                )
        return values

    def _value(self, totals: Totals) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            try:
                found = self._finalize(totals)
            except ZeroDivisionError:
                return math.nan
        if self._key not in found:
            raise UsageError(
                f"the gate compares {self._key!r}, which finalize() does not return; it returns {', '.join(found)}"
            )
        value = _number(found[self._key])
        return math.nan if value is None else value


def _same_rows(ours: Sequence[Totals], theirs: Sequence[Totals]) -> None:
    rows = [[float(np.sum(block.get("count", np.nan))) for block in side] for side in (ours, theirs)]
    if len(ours) != len(theirs) or not np.array_equal(rows[0], rows[1], equal_nan=True):
        raise UsageError(
            "candidate and champion were not evaluated on the same blocks: "
            f"{len(ours)} of {np.nansum(rows[0]):g} rows, {len(theirs)} of {np.nansum(rows[1]):g} rows"
        )


def _overlap_note(champion: ChampionEvaluation) -> str:
    share = champion.trained_on_share
    if share is None or math.isnan(share):
        return f"Whether champion version {champion.version} was trained on some of these rows is not known."
    if share == 0:
        return f"Champion version {champion.version} was trained on none of these rows."
    return (
        f"Champion version {champion.version} was trained on {share:.1%} of these rows: the comparison favours it, "
        "and a candidate that passes is the better for it."
    )


def _name(metric: str, champion: ChampionEvaluation) -> str:
    return f"not worse than champion version {champion.version} on {metric}"


def _number(value: float | None) -> float | None:
    """Return a finite number, None for anything else: records are JSON, which has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)
