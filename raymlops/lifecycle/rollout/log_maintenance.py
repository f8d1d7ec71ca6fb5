"""What the prediction log of live models needs once an hour: small files merged, old hours removed.

Owns which models and how long. It may take minutes, so that the controller does it in a thread of its own.
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
"""Hours that ended before were merged by earlier calls, or by the first one of this process, which looks into all;
each costs on an object store."""

_log = logging.getLogger(__name__)


class Upkeep:
    """Looks after the logs, one thread at a time."""

    def __init__(self, state: State, url: str) -> None:
        """Take the state, and its URL for the lease that keeps two from compacting at once."""
        self._state = state
        self._url = url
        self._thread: threading.Thread | None = None
        self._seen: set[str] = set()
        """Models of which no hour is left from before this process began."""

    def __call__(self, now: datetime) -> None:
        """Begin, unless the last time has not ended yet."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self.run, args=(now,), name="raymlops-upkeep", daemon=True)
            self._thread.start()

    def run(self, now: datetime) -> None:
        """Look after every live model; what fails for one is put on the record, and the others go on."""
        for name in sorted({item.name for item in self._state.deployments()}):
            try:
                self._look_after(name, now)
            except RefusedError as error:
                _log.info("%s", error)  # somebody else is at it
            except Exception as error:
                _log.warning("the log of %s", name, exc_info=error)
                self._tell(name, f"the log was not looked after: {type(error).__name__}: {error}")

    def _look_after(self, name: str, now: datetime) -> None:
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

    def _tell(self, name: str, why: str) -> None:
        try:
            self._state.record(action="controller.error", subject=name, why=why[:2000])
        except RaymlopsError as error:
            _log.warning("that is not in the audit record: %s", error)
