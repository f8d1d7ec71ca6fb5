"""The verdict on a version by a window of its labelled answers and those before it, as it is kept. Pure.

A window's sums are kept with it, so that the verdict on all windows since the promotion needs no log.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.lifecycle.watch.window_drift import cut, plain, printable
from raymlops.monitor.skill.expected import Window
from raymlops.monitor.skill.verdict import Verdict, above, judge
from raymlops.state.watch.windows import JudgedWindow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from raymlops.config.data import SkillSection
    from raymlops.lifecycle.quality.measure import Measured
    from raymlops.monitor.skill.reference import QualityReference

AGAINST = "its test rows"
OUTCOMES = {"worse": "alarm", "as before": "ok", "not enough labels": "insufficient", "no verdict": "waiting"}
"""Of a verdict, as those of drift are called."""
_DAY_H = 24
_KEPT_SLICES, _KEPT_NOTES = 20, 5


def judged(
    found: Measured,
    before: Sequence[JudgedWindow],
    section: SkillSection,
    *,
    name: str,
    version: int,
    start: datetime,
    stop: datetime,
    now: datetime,
    known: QualityReference | None = None,
) -> tuple[JudgedWindow, tuple[str, ...]]:
    """Return the verdict of a version by a window and those ``before`` it, oldest first, and what is an alarm.

    By its test rows it is ``known`` how much days differ; weeks show that by themselves.

    Windows whose labels are not to be believed, or that were measured by another metric, are no part of it.
    """
    window = None if found.refused else found.window
    windows = [*believed(before, section), *([] if window is None else [window])]
    metric = known.metrics.get(section.metric) if known is not None and section.window_h == _DAY_H else None
    days = None if metric is None else metric.days
    verdict = judge(windows, margin=section.margin, refused=printable(found.refused), known=days)
    beyond = [] if window is None else list(_beyond(verdict, windows, section))
    if found.refused:
        outcome, reason = "waiting", found.refused
    elif window is None:
        outcome, reason = "insufficient", f"none of {found.rows:,} rows has a label that counts"
    else:
        outcome = "alarm" if beyond else OUTCOMES[verdict.outcome]
        reason = "; ".join(one["text"] for one in beyond) or verdict.reason
    kept = JudgedWindow(
        name=name,
        side="outputs",
        kind="skill",
        version=version,
        start=start,
        stop=stop,
        judged_by=version,
        outcome=outcome,
        reason=printable(reason)[:2000],
        rows=found.labelled,
        judged_at=now,
        against=AGAINST,
        details=plain(_details(found, verdict, section) | {"beyond": beyond}),
    )
    return kept, tuple(one["bound"] for one in beyond)


def believed(windows: Sequence[JudgedWindow], section: SkillSection) -> list[Window]:
    """Return the sums of windows that count for a verdict by the metric of ``section``."""
    ours = (section.metric, section.reference)
    return [
        Window.from_dict(one.details["window"])
        for one in windows
        if one.details.get("window")
        and not one.details.get("unbelieved")
        and (one.details.get("metric"), one.details.get("reference")) == ours
    ]


def verdict_of(window: JudgedWindow) -> Verdict:
    """Return the verdict that was kept with a window."""
    return Verdict(**window.details["verdict"])


def _beyond(verdict: Verdict, windows: Sequence[Window], section: SkillSection) -> Iterator[dict[str, Any]]:
    if verdict.outcome == "worse":
        yield {"bound": "skill", "text": verdict.reason}
    losses = [one.losses for one in windows]
    newest = windows[-1]
    if section.min is not None:
        allowed = np.array([(1 - section.min) * one.reference for one in windows])
        if above(losses, allowed)[0]:
            yield {"bound": "min", "text": f"skill {newest.skill:.3f} in the last window, {section.min:g} is allowed"}
    if section.max_loss is not None and above(losses, section.max_loss)[0]:
        yield {"bound": "max_loss", "text": f"{section.metric} {newest.loss:.4g}, {section.max_loss:g} is allowed"}


def _details(found: Measured, verdict: Verdict, section: SkillSection) -> dict[str, Any]:
    window, cover = found.window, found.coverage
    numbers = {}
    if window is not None:
        low, high = window.interval()
        numbers = {"skill": window.skill, "expected_skill": window.expected_skill, "low": low, "high": high}
    return {
        **numbers,
        "metric": section.metric,
        "reference": section.reference,
        "window": None if window is None else window.to_dict(),
        "unbelieved": printable(found.refused),
        "verdict": asdict(verdict),
        "answered": found.rows,
        "coverage": {
            "labelled": cover.labelled / cover.requests if cover.requests else 0.0,
            "by_age_s": [list(pair) for pair in zip(cover.ages_s, cover.shares, strict=True)],
            "half_lag_s": cover.lags_s[0],
            "lag_s": cover.lags_s[1],
        },
        "selection": asdict(found.selection),
        "slices": [asdict(one) for one in found.slices[:_KEPT_SLICES]],
        "notes": [cut(printable(note)) for note in found.notes[:_KEPT_NOTES]],
    }
