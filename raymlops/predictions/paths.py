"""Paths of predictions and labels below ``storage.path``, and the folders of a window of time.

::

    predictions/NAME/version=7/date=2026-11-25/hour=12/   by the hour of arrival, in UTC
    labels/NAME/date=2026-11-25/                          by the day of arrival

Owns these paths. Knows nothing of the files in them; folders of other names are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.storage.store import Store

PREDICTIONS, LABELS = "predictions", "labels"
HOUR_S = 3600


@dataclass(frozen=True)
class Folder:
    """The files of one hour or day, from ``start`` until before ``end``."""

    path: str
    start: datetime
    end: datetime
    version: int | None = None

    def parents(self) -> Iterator[str]:
        """Yield its parent folders, up to the model's."""
        path = self.path
        while path.count("/") > 2:
            path = path.rpartition("/")[0]
            yield path


def prediction_folder(name: str, version: int, hour: int) -> str:
    """Return the folder of one version in one hour, counted since 1970."""
    start = datetime.fromtimestamp(hour * HOUR_S, UTC)
    return f"{PREDICTIONS}/{name}/version={version}/{start:date=%Y-%m-%d/hour=%H}"


def label_folder(name: str, at: datetime) -> str:
    """Return the folder of the labels received on a day."""
    return f"{LABELS}/{name}/{at.astimezone(UTC):date=%Y-%m-%d}"


def prediction_hours(
    store: Store,
    name: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    version: int | None = None,
) -> list[Folder]:
    """Return the hours that have rows since and before the given times, the oldest first, an hour's versions in order.

    Raises:
        StorageError: the storage cannot be used.
    """
    found = []
    for number in versions_of(store, name) if version is None else [version]:
        top = f"{PREDICTIONS}/{name}/version={number}"
        for day in _days(store, top):
            if _within(day, since, until):
                hours = _hours(store, day, number)
                found += [hour for hour in hours if _within(hour, since, until)]
    return sorted(found, key=lambda hour: (hour.start, hour.version or 0))


def first_hour(store: Store, name: str, *, version: int | None = None) -> datetime | None:
    """Return when the first hour that has rows begins, of a version or of all; the other days are not listed.

    Raises:
        StorageError: the storage cannot be used.
    """
    found = list[datetime]()
    for number in versions_of(store, name) if version is None else [version]:
        days = sorted(_days(store, f"{PREDICTIONS}/{name}/version={number}"), key=lambda day: day.start)
        hours = (min((hour.start for hour in _hours(store, day, number)), default=None) for day in days)
        if (first := next((hour for hour in hours if hour is not None), None)) is not None:
            found.append(first)
    return min(found, default=None)


def label_days(store: Store, name: str, *, since: datetime | None = None) -> list[Folder]:
    """Return the days on which labels were received, the oldest first.

    Raises:
        StorageError: the storage cannot be used.
    """
    return [day for day in _days(store, f"{LABELS}/{name}") if _within(day, since, None)]


def versions_of(store: Store, name: str) -> list[int]:
    """Return the versions that have predictions.

    Raises:
        StorageError: the storage cannot be used.
    """
    folders = store.folders(f"{PREDICTIONS}/{name}")
    return sorted(int(found[1]) for text in folders if (found := re.fullmatch(r"version=([0-9]{1,18})", text)))


def names_in(store: Store) -> set[str]:
    """Return the models that have predictions or labels.

    Raises:
        StorageError: the storage cannot be used.
    """
    return {*store.folders(PREDICTIONS), *store.folders(LABELS)}


def check_known(store: Store, name: str, *, version: int | None = None) -> None:
    """Reject a model, or a version of it, that has no predictions.

    Raises:
        NotFoundError: it has none; the message suggests similar names.
        StorageError: the storage cannot be used.
    """
    there = versions_of(store, name)
    if not there:
        others = [other for other in store.folders(PREDICTIONS) if versions_of(store, other)]
        near = get_close_matches(name, others, n=3) or others[:8]
        hint = (
            f"Models with predictions: {', '.join(near)}."
            if near
            else "Each answered request is logged once serve.log is on."
        )
        raise NotFoundError(f"there are no predictions of {name!r} in {store.uri!r}", hint=hint)
    if version is not None and version not in there:
        raise NotFoundError(
            f"there are no predictions of {name!r} by version {version}",
            hint=f"Versions with predictions: {', '.join(map(str, there))}.",
        )


def _days(store: Store, top: str) -> list[Folder]:
    starts = {text: _day(text) for text in store.folders(top)}
    return [
        Folder(f"{top}/{text}", start, start + timedelta(days=1)) for text, start in starts.items() if start is not None
    ]


def _hours(store: Store, day: Folder, version: int) -> Iterator[Folder]:
    for text in store.folders(day.path):
        if found := re.fullmatch(r"hour=([01][0-9]|2[0-3])", text):
            start = day.start + timedelta(hours=int(found[1]))
            yield Folder(f"{day.path}/{text}", start, start + timedelta(hours=1), version)


def _day(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "date=%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def _within(folder: Folder, since: datetime | None, until: datetime | None) -> bool:
    return (since is None or folder.end > since) and (until is None or folder.start < until)
