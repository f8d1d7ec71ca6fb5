"""Hourly maintenance of the prediction log of live models: small files merged, old hours removed.

Owns which models, and how many hours are kept. Runs in a thread of its own, since it may take minutes.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from raymlops.errors import RaymlopsError, RefusedError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.serving.control.render import settings_of
from raymlops.state.lease import lease
from raymlops.storage.filesystem import root_of

if TYPE_CHECKING:
    from datetime import datetime

    from raymlops.state.store import Deployment, State

LOOK_BACK = timedelta(days=2)
"""Older hours were merged by earlier calls, or by the first one of this process, which lists all of them: each listing
costs on an object store."""

_log = logging.getLogger(__name__)


class LogMaintenance:
    """Compact the logs and remove old hours, in one thread at a time."""

    def __init__(self, state: State, url: str) -> None:
        """Take the state, and its URL for the lease under which one process compacts a log."""
        self._state = state
        self._url = url
        self._thread: threading.Thread | None = None
        self._seen: set[str] = set()
        """Models whose older hours have been merged."""

    def __call__(self, now: datetime) -> None:
        """Start a run, unless the previous one is still running."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self.run, args=(now,), name="raymlops-log-maintenance", daemon=True)
            self._thread.start()

    def run(self, now: datetime) -> None:
        """Maintain the log of every live model; record what fails for one, and continue with the others."""
        for name in sorted({item.name for item in self._state.deployments()}):
            try:
                self._maintain(name, now)
            except RefusedError as error:
                _log.info("%s", error)  # another process compacts it
            except Exception as error:
                _log.warning("the log of %s", name, exc_info=error)
                self._record_error(name, f"the log was not compacted: {type(error).__name__}: {error}")

    def _maintain(self, name: str, now: datetime) -> None:
        from raymlops.predictions.compact import compact, retain

        items = self._state.deployments(name)
        if not items:
            return
        newest: Deployment = champion_of(items) or items[-1]
        uri, days = root_of(newest.bundle.uri), settings_of(newest).log.retention_days
        with lease(self._url, f"predictions-{name}", purpose="hourly compaction"):
            compact(uri, name, now=now, since=now - LOOK_BACK if name in self._seen else None)
            self._seen.add(name)
            if days is None:
                return
            removed = retain(uri, name, before=now - timedelta(days=days)).removed
        if removed:
            self._state.record(
                action="predictions.retain", subject=name, why=f"{len(removed)} hours over {days:g} days"
            )

    def _record_error(self, name: str, why: str) -> None:
        try:
            self._state.record(action="controller.error", subject=name, why=why[:2000])
        except RaymlopsError as error:
            _log.warning("the audit record lacks that: %s", error)
