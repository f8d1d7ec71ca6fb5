"""Hourly maintenance of prediction logs: small files merged, past hours counted, old hours removed.

Owns which models and how far it looks back. The data counts, not whether the model is live: rows of one that was
removed are merged and removed like others, with the settings it had last. Runs in a thread of its own, since it may
take minutes.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from raymlops.errors import RefusedError, StorageError
from raymlops.lifecycle.live.lineup import champion_of, monitored
from raymlops.lifecycle.live.log_owner import claim
from raymlops.lifecycle.live.recorded_failures import RecordedFailures
from raymlops.lifecycle.prediction_log import changing, counted_on, remove_old, stored_log, subjects
from raymlops.predictions.owner import OWNERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from raymlops.lifecycle.prediction_log import StoredLog
    from raymlops.state.store import State

LOOK_BACK = timedelta(days=2)
"""Older hours were merged by earlier calls, or by the first one of this process, which lists all of them: each listing
costs on an object store."""

_log = logging.getLogger(__name__)


class LogMaintenance:
    """Compact the logs and remove old hours, in one thread at a time."""

    def __init__(self, state: State, url: str, *, then: Callable[[datetime], None] = lambda _now: None) -> None:
        """Take the state, and its URL for the lease under which one process compacts a log.

        ``then`` is called once the hours of all logs are counted.
        """
        self._state = state
        self._url = url
        self._then = then
        self._turn = threading.Lock()
        self._next: datetime | None = None
        self._runs = False
        self._seen: dict[tuple[str, str], object] = {}
        """Models and storages whose older hours have been merged, with what their hours were counted on."""
        self._failures = RecordedFailures(state)

    def __call__(self, now: datetime) -> None:
        """Start a run; while one is still running, the newest that was asked for follows it."""
        with self._turn:
            self._next, begins = now, not self._runs
            self._runs = True
        if begins:
            threading.Thread(target=self._turns, name="raymlops-log-maintenance", daemon=True).start()

    def _turns(self) -> None:
        while (now := self._asked_for()) is not None:
            try:
                self.run(now)
            except Exception as error:  # the state may be unavailable: the next hour tries again
                _log.warning("the logs were not maintained", exc_info=error)

    def _asked_for(self) -> datetime | None:
        with self._turn:
            now, self._next = self._next, None
            self._runs = now is not None
        return now

    def run(self, now: datetime) -> None:
        """Maintain the log of every model, and then go on; record what fails for one, and continue with the others."""
        for name in subjects(self._state):
            if (log := self._claimed(name)) is None:
                continue
            for uri in log.uris:
                try:
                    self._maintain(replace(log, uris=(uri,)), now)
                    self._failures.over(log.name, place=uri)
                except RefusedError as error:
                    _log.info("%s", error)  # another process changes its files
                except Exception as error:
                    _log.warning("the log of %s in %s", log.name, uri, exc_info=error)
                    why = f"the log was not maintained: {type(error).__name__}: {error}"
                    self._failures.put(log.name, why, place=uri)
        self._then(now)

    def _claimed(self, name: str) -> StoredLog | None:
        """Return the log of a model, once it is marked as this state's in each storage."""
        log = stored_log(self._state, name)
        for root in () if log is None else log.roots:
            place = f"{root}/{OWNERS}"
            try:
                claim(self._state, name, [root])
                self._failures.over(name, place=place)
            except StorageError as error:
                why = f"the log was not maintained: {type(error).__name__}: {error}"
                self._failures.put(name, why, place=place)
        return stored_log(self._state, name)

    def _maintain(self, log: StoredLog, now: datetime) -> None:
        from raymlops.predictions.compact import compact

        (uri,) = log.uris
        with changing(self._url, log.name, purpose="hourly compaction") as open_store:
            try:
                if (before := log.kept_since(now)) is not None:
                    remove_old(self._state, log, before=before)
            finally:  # neither waits for the other: a full disk takes no merged file until old hours are gone
                live, window = self._live(log.name)
                since = None
                if (log.name, uri) in self._seen:
                    # A new version's columns are counted in all of the open window, and in the one before it.
                    since = now - (LOOK_BACK if self._seen[log.name, uri] == live else max(LOOK_BACK, 2 * window))
                layouts = counted_on(self._state, log.name)
                compact(uri, log.name, now=now, since=since, open_store=open_store, counted_on=layouts)
                self._seen[log.name, uri] = live

    def _live(self, name: str) -> tuple[frozenset[int], timedelta]:
        """Return the versions of a model that are live, and how long its windows are."""
        items = self._state.deployments(name)
        champion = champion_of(items)
        hours = 0 if champion is None else monitored(champion).window_h
        return frozenset(item.version for item in items), timedelta(hours=hours)
