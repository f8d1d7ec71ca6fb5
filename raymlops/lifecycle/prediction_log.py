"""Compact the prediction log of a model, and parse the times of its window.

Knows that one compaction of a log runs at a time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from raymlops.config.durations import parse_duration
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec
    from raymlops.predictions.compact import CompactRecord


def compact_predictions(name: str, spec: ProjectSpec) -> CompactRecord:
    """Merge the small files of past hours of a model.

    Raises:
        NotFoundError: no such model has predictions.
        RefusedError: another compaction is running.
        StorageError: the storage cannot be used.
    """
    from raymlops.predictions.compact import compact
    from raymlops.predictions.paths import check_known
    from raymlops.state.database import state_url
    from raymlops.state.lease import lease
    from raymlops.storage.store import Store

    check_known(Store(spec.storage.path), name)
    with lease(state_url(spec), f"predictions-{name}", purpose="compaction"):
        return compact(spec.storage.path, name, now=datetime.now(UTC))


def parse_moment(text: str, *, now: datetime) -> datetime:
    """Parse a time: a duration such as ``1h`` counts back from now; an ISO time without a zone is UTC.

    Raises:
        UsageError: it is neither.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - timedelta(seconds=parse_duration(text))
        except (UsageError, OverflowError) as error:
            raise UsageError(
                f"{text[:40]!r} is no time; expected a length of time or an ISO time",
                hint="For example 1h, 7d, 2026-11-25 or 2026-11-25T12:00.",
            ) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
