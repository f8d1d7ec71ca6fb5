"""What is known of a live model's quality, for whoever decides by it.

Owns the record and how it comes from the windows that the controller has judged. Reads the state alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.quality.model import promoted_at
from raymlops.lifecycle.quality.window import verdict_of
from raymlops.records import Record
from raymlops.state.watch.windows import windows_of_version

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.monitor.skill.verdict import Verdict
    from raymlops.state.store import State


@dataclass(frozen=True)
class QualityFacts(Record):
    """The quality of the champion's answers since its promotion."""

    version: int | None = None
    """The champion; None where nothing is live."""
    since: datetime | None = None
    """When it became champion."""
    verdict: Verdict | None = None
    """On all windows since then; None before the first one was judged."""
    windows: int = 0
    """How many were judged."""
    until: datetime | None = None
    """When the newest of them ends: whatever has the same ``version`` and ``until`` is the same evidence."""
    labelled_rows: int = 0
    """Rows with a label in them."""
    labels_half_lag_s: float | None = None
    """Seconds by which half of the labels that ever come have come, in the newest window; None without labels."""


def quality_facts(state: State, name: str, *, now: datetime) -> QualityFacts:
    """Return what is known by ``now`` of the quality of a model's champion.

    Raises:
        StorageError, UnreachableError: the state cannot be read.
    """
    champion = champion_of(state.deployments(name))
    if champion is None:
        return QualityFacts()
    since = promoted_at(state, champion)
    ours = windows_of_version(state, name, champion.version, kind="skill", since=since, until=now)
    found = QualityFacts(champion.version, since)
    if not ours:
        return found
    lags = (one.details["coverage"]["half_lag_s"] for one in reversed(ours))
    return replace(
        found,
        verdict=verdict_of(ours[-1]),
        windows=len(ours),
        until=ours[-1].stop,
        labelled_rows=sum(one.rows for one in ours),
        labels_half_lag_s=next((lag for lag in lags if lag is not None), None),
    )
