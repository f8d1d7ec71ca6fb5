"""Read the prediction log of a model, and compact its files.

Knows where the log is, with or without a configuration, and that one compaction runs at a time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from raymlops.config.durations import parse_duration
from raymlops.errors import UsageError
from raymlops.lifecycle.sources import Source, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.predictions.compact import CompactRecord
    from raymlops.predictions.read import Reading


def predictions(
    name: str,
    source: Source | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    version: int | None = None,
    columns: Sequence[str] | None = None,
    labels: bool = True,
    limit: int | None = None,
) -> Reading:
    """Return the logged predictions of a model as an iterable of Arrow batches; see ``Reading``.

    ``source`` says where the log is; without one it is below ``RAYMLOPS_HOME``.

    Raises:
        NotFoundError: no such model or version has predictions; the message names near ones.
        UsageError: no such column, or a window that ends before it begins.
        StorageError: the storage cannot be used.
    """
    from raymlops.predictions.read import Reading

    return Reading(
        place_of(source).storage.path,
        name,
        since=since,
        until=until,
        version=version,
        columns=columns,
        labels=labels,
        limit=limit,
    )


def compact_predictions(
    name: str,
    source: Source | None = None,
    *,
    now: datetime | None = None,
    since: datetime | None = None,
) -> CompactRecord:
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

    spec = place_of(source)
    check_known(Store(spec.storage.path), name)
    with lease(state_url(spec), f"predictions-{name}", purpose="compaction"):
        return compact(spec.storage.path, name, now=now or datetime.now(UTC), since=since)


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
