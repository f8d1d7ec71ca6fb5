"""The skill of a window's answers, and whether its labels are to be believed. Pure: what was read in, numbers out.

What is kept of a window is bounded, so that a verdict on hundreds of them reads no log again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from raymlops.display import some_of
from raymlops.monitor.skill.clusters import FEWEST, Moments, pseudo_values
from raymlops.monitor.skill.expected import Window, label_shares, metric_lost, window_skill
from raymlops.monitor.skill.label_coverage import Coverage, Selection, coverage, selection
from raymlops.monitor.skill.reference import base_loss
from raymlops.monitor.skill.scored import SCORES, auc_of, histogram
from raymlops.monitor.skill.slices import SliceSkill, judge_slices
from raymlops.predictions.labelled_rows import admit

if TYPE_CHECKING:
    from raymlops.answer_loss import AnswerLoss
    from raymlops.config.data import SkillSection
    from raymlops.monitor.skill.clusters import Floats
    from raymlops.monitor.skill.expected import Codes
    from raymlops.monitor.skill.reference import MetricReference, QualityReference
    from raymlops.predictions.labelled_rows import Rows
    from raymlops.profiles.slices import Slice

AGES_S = (3_600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
"""At which the share of labelled requests is told."""
_STRATA = 8
"""Ages of a window within which labelled answers are compared with unlabelled ones."""
_MOST_CLUSTERS = 10_000
"""Requests whose scores AUC is measured on: of more, a random part."""


@dataclass(frozen=True)
class Answers:
    """What was read of a window.

    Attributes:
        rows: How many it has.
        labelled: Those with a label that their answer can be compared with: what ``labelled_rows`` says of them, and
            ``codes``, ``losses``, ``scores``, ``numbers``, and a column for each slice.
        sample: Of all rows: ``asked``, ``received`` (NaN without a label), ``scores``, ``clusters``, ``weights``.
        unlike: How many labels cannot be compared with their answer.
        notes: What is not in it, and why.
    """

    rows: int
    labelled: Rows
    sample: Rows
    unlike: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A window of answers, and what its labels say.

    Attributes:
        rows: That the version answered.
        labelled: Of them, those with a label that counts.
        window: Their skill; None without any.
        coverage: How many have a label, and how late these came.
        selection: Whether labelled answers are like the others.
        refused: Why the labels are not to be believed; empty where they are.
        slices: The loss in slices, those first that lost what chance does not explain.
        notes: What was left out, and why.
    """

    rows: int
    labelled: int
    window: Window | None
    coverage: Coverage
    selection: Selection
    refused: str = ""
    slices: tuple[SliceSkill, ...] = ()
    notes: tuple[str, ...] = ()


def measure(
    answers: Answers, rule: AnswerLoss, known: QualityReference, section: SkillSection, *, now: float, window_s: float
) -> Measured:
    """Measure a window of answers by the labels that came until ``now``, in seconds."""
    sample, notes = answers.sample, list(answers.notes)
    covered = coverage(sample["asked"], sample["received"], now=now, ages_s=AGES_S, weights=sample["weights"])
    alike = _selection(sample, now=now, window_s=window_s)
    rows = answers.labelled
    rows = rows.where(rows["received"] <= now) if len(rows) else rows
    found = Measured(answers.rows, 0, None, covered, alike)
    if answers.unlike:
        notes.append(f"{answers.unlike:,} labels cannot be compared with their answer")
    if not len(rows):
        return replace(found, notes=tuple(notes))
    metric = known.metrics.get(section.metric, known.metrics["loss"])
    seen = np.append(metric.expectation.known, False)[rows["codes"]]
    admitted = admit(rows, most=section.max_caller_share, seen=seen)
    rows = rows.where(admitted.rows)
    notes += [admitted.note] if admitted.note else []
    notes += _hardly_known(rows["codes"], known, metric)
    refused = admitted.refused or (alike.reason if alike.differs else "")
    if not len(rows):
        return replace(found, refused=refused, notes=tuple(notes))
    window = _auc(rows, known) if section.metric == "auc" else _skill(rows, rule, known, section)
    if window is None:
        notes.append("all labels are of one class: there is no AUC")
    slices = () if section.metric != "loss" else tuple(_slices(rows, rule, known, section))
    return replace(found, labelled=len(rows), window=window, refused=refused, slices=slices, notes=tuple(notes))


def _hardly_known(codes: Codes, known: QualityReference, metric: MetricReference) -> list[str]:
    """Say of which classes of labels there are so few test rows that a loss in them hardly shows."""
    counts = np.rint(metric.expectation.shares * known.rows).astype(int)
    rare = [code for code in np.unique(codes).tolist() if counts[code] < FEWEST]
    told = [f"{counts[code]:,} of {known.classes.name_of(code)}" for code in rare]
    return [f"few test rows show little of what to expect: {some_of(told, 4)}"] if told else []


def _selection(sample: Rows, *, now: float, window_s: float) -> Selection:
    scored = np.isfinite(sample["scores"])
    rows = sample.where(scored)
    return selection(
        rows["scores"],
        rows["received"] <= now,
        ages=rows["asked"] // (window_s / _STRATA),
        clusters=rows["clusters"],
        weights=rows["weights"],
    )


def _skill(
    rows: Rows, rule: AnswerLoss, known: QualityReference, section: SkillSection, *, of: Slice | None = None
) -> Window | None:
    metric = known.slices[of] if of is not None else known.metrics[section.metric]
    weights = rows["weights"]
    shares = label_shares(rows["codes"], classes=known.classes.count, weights=weights)
    numbers = rows["numbers"] if rule.kind == "number" else None
    frozen = section.reference == "frozen"
    reference = base_loss(rule, section.metric, metric, shares, frozen=frozen, numbers=numbers, weights=weights)
    if not reference > 0:
        return None
    return window_skill(
        rows["codes"],
        rows["losses"],
        clusters=rows["requests"],
        expectation=metric.expectation,
        reference=reference,
        weights=weights,
    )


def _slices(rows: Rows, rule: AnswerLoss, known: QualityReference, section: SkillSection) -> list[SliceSkill]:
    windows = {}
    for each, reference in known.slices.items():
        chosen = rows[each.name] & reference.expectation.known[rows["codes"]]
        found = _skill(rows.where(chosen), rule, known, section, of=each) if chosen.any() else None
        if found is not None:
            windows[each.name] = found
    return judge_slices(windows, margin=section.margin)


def _auc(rows: Rows, known: QualityReference) -> Window | None:
    """Return the skill of AUC, 2 AUC - 1, in which a loss is what AUC lacks to 1; None of one class."""
    if known.scores is None or len(np.unique(rows["codes"])) < 2:
        return None
    rows = _some(rows)
    _, place = np.unique(rows["requests"], return_inverse=True)
    codes = rows["codes"]
    window = np.zeros((int(place.max()) + 1, 2, 1 + 2 * SCORES))
    for column in (np.zeros_like(codes), 1 + codes * SCORES + histogram(rows["scores"])):
        np.add.at(window, (place, codes, column), rows["weights"])
    counted = known.scores
    reference = np.zeros((len(counted), 2, 1 + 2 * SCORES))
    reference[..., 0] = counted.sum(axis=-1)
    for code in (0, 1):
        reference[:, code, 1 + code * SCORES : 1 + (code + 1) * SCORES] = counted[:, code]
    lost, error = metric_lost(
        window, reference, metric=_metric, base=lambda counts: np.full(len(counts), 0.5), perfect=1
    )
    whole, means = window.sum(axis=0), reference.sum(axis=0)
    expected = (whole[:, :1] * means / means[:, :1]).sum(axis=0)
    losses = Moments.of(pseudo_values(window.sum(axis=1), lambda sums: 1 - _metric(sums)))
    ends = [float(1 - _metric(sums[None])[0]) for sums in (whole.sum(axis=0), expected)]
    return Window(ends[0], 0.5, ends[1], lost, error, losses)


def _metric(sums: Floats) -> Floats:
    return auc_of(sums[..., 1:].reshape(-1, 2, SCORES))


def _some(rows: Rows) -> Rows:
    every, drawn = 1, rows["requests"] >> 32
    while len(np.unique(rows["requests"][drawn & (every - 1) == 0])) > _MOST_CLUSTERS:
        every *= 2
    return rows.where(drawn & (every - 1) == 0)
