"""Skill by slices of the rows: where it was lost. Pure.

A slice, such as one carrier, is compared with the reference rows of the same slice: some are always harder. Each has
one p-value, that its skill is lower by no more than the margin, and Holm keeps the chance that any of them is named
without a reason at ``level``, at one look. So it says where to look, after a verdict or in a report, and is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from raymlops.monitor.outcome import holm
from raymlops.monitor.skill.clusters import FEWEST
from raymlops.monitor.skill.verdict import MARGIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.monitor.skill.expected import Window

LEVEL = 0.05


@dataclass(frozen=True)
class SliceSkill:
    """What one slice lost of its skill.

    Attributes:
        name: Of the slice.
        clusters: Labelled requests, as many as those of equal weight that they are worth.
        skill: Of the window.
        expected: Had the model stayed as it was there.
        low: Lower bound at 95% of what was lost.
        high: Upper bound.
        p: After Holm, that no more than the margin was lost; None where requests are too few to be judged.
        flagged: Whether it is named.
    """

    name: str
    clusters: float
    skill: float
    expected: float
    low: float
    high: float
    p: float | None
    flagged: bool


def judge_slices(slices: Mapping[str, Window], *, level: float = LEVEL, margin: float = MARGIN) -> list[SliceSkill]:
    """Return each slice, flagged ones first, then by what was lost.

    Each window is of the rows of the slice, with the expectation of the reference rows of the slice.
    """
    estimates = {name: window.lost.estimate() for name, window in slices.items()}
    judged = [name for name, found in estimates.items() if found.effective >= FEWEST]
    scores = [
        replace(estimates[name], variance=estimates[name].variance + slices[name].error ** 2).z(margin)
        for name in judged
    ]
    p = dict(zip(judged, holm(special.ndtr(-np.array(scores, dtype=np.float64))).tolist(), strict=True))
    found = []
    for name, window in slices.items():
        worth, one = float(np.nan_to_num(estimates[name].effective)), p.get(name)
        told = (name, worth, window.skill, window.expected_skill, *window.interval(), one)
        found.append(SliceSkill(*told, flagged=one is not None and one <= level))
    return sorted(found, key=lambda one: (not one.flagged, one.skill - one.expected))
