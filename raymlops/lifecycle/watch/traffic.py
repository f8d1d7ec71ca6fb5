"""A model's traffic by the windows that are asked for: no other hour of its log is read, and none twice.

Owns in which storages they are looked for. What they are compared with is ``normal``'s.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raymlops.errors import StorageError
from raymlops.lifecycle.watch.windows import place_of
from raymlops.predictions.hourly import hourly_profiles
from raymlops.predictions.paths import first_hour, prediction_hours
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from raymlops.lifecycle.watch.hours import Hours
    from raymlops.lifecycle.watch.windows import Windows
    from raymlops.predictions.paths import Folder
    from raymlops.profiles.layout import Layout

_log = logging.getLogger(__name__)


class Traffic:
    """The hours of one model."""

    def __init__(
        self,
        name: str,
        uris: Sequence[str],
        layouts: Mapping[str, Layout],
        *,
        window_s: float,
        into: Iterable[Windows],
    ) -> None:
        """Take the storages, the newest first, and the windows to which hours are added."""
        self._name = name
        self._uris = uris
        self._layouts = layouts
        self._window_s = window_s
        self._into = tuple(into)
        self._read: set[int] = set()

    def read(self, first: int, last: int, *, without: Container[int] = ()) -> None:
        """Add the hours of the windows between two places, both included, that have not been read.

        ``without`` are places of windows that nobody needs.

        Raises:
            StorageError: the newest storage cannot be used.
        """
        start = None
        for at in range(first, last + 2):
            if at <= last and at not in self._read and at not in without:
                start = at if start is None else start
                self._read.add(at)
            elif start is not None:
                self.add(self._begin(start), self._begin(at), into=self._into)
                start = None

    def first_hour(self, version: int | None = None) -> datetime | None:
        """Return when the first hour that has rows begins, of a version or of all.

        Raises:
            StorageError: the newest storage cannot be used.
        """
        found: list[datetime] = []

        def look(store: Store) -> None:
            if (hour := first_hour(store, self._name, version=version)) is not None:
                found.append(hour)

        self._each(look)
        return min(found, default=None)

    def hours(self, since: datetime, until: datetime | None = None) -> list[tuple[Store, Folder]]:
        """Return the hours that have rows since and before the given times, with their storages.

        Raises:
            StorageError: the newest storage cannot be used.
        """
        found: list[tuple[Store, Folder]] = []

        def look(store: Store) -> None:
            found.extend((store, hour) for hour in prediction_hours(store, self._name, since=since, until=until))

        self._each(look)
        return found

    def ahead(self, now: datetime) -> int:
        """Return how many hours have rows that are from later than now: by a clock that is wrong.

        Raises:
            StorageError: the newest storage cannot be used.
        """
        return len({hour.start for _, hour in self.hours(now) if hour.start > now})

    def add(self, since: datetime, until: datetime, *, into: Iterable[Windows | Hours]) -> None:
        """Add the hours between two times.

        Raises:
            StorageError: the newest storage cannot be used.
        """

        def read(store: Store) -> None:
            for hour in hourly_profiles(store, self._name, self._layouts, since=since, until=until):
                for each in into:
                    each.add(hour)

        self._each(read)

    def _each(self, do: Callable[[Store], None]) -> None:
        for at, uri in enumerate(self._uris):
            try:
                do(Store(uri))
            except StorageError as error:
                if at == 0:
                    raise
                # The model left it; it may be gone for good.
                _log.warning("the predictions of %s in an earlier storage: %s", self._name, error)

    def _begin(self, at: int) -> datetime:
        return datetime.fromtimestamp(at * self._window_s, UTC)


def last_ended(now: datetime, window_s: float) -> int:
    """Return the place of the newest window that has ended."""
    return place_of(now, window_s) - 1
