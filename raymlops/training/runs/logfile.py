"""The log of a run: one line per event, beside the run's other files.

Owns writing it, and reading it while it grows. Knows nothing of the content of the lines.

A local file is appended to at once. Object stores cannot append: lines are kept in memory, and a thread rewrites the
object periodically and when the log is closed.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, StorageError
from raymlops.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

UPLOAD_EVERY_S = 30.0
CLOSE_WAIT_S = 20.0
MAX_LINES = 10_000
"""The newest lines, which an object keeps."""
POLL_S = 0.5
REMOTE_POLL_S = 5.0
CLOSED = "event=closed"


class RunLog:
    """Appends lines to the log at ``uri``. A write error becomes a notice and never stops the training."""

    def __init__(self, uri: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._failed = False
        self._notices: list[str] = []
        self._uri = uri
        self._path = local_path(uri)
        self._clock = clock
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._before: list[str] | None = None
        self._next_s = -math.inf
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def append(self, text: str) -> None:
        """Append a line, prefixed with the time."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{stamp} {text}\n".replace("\r", " ")
        with self._lock:
            if self._path is not None:
                self._append_local(self._path, line)
                return
            self._lines.append(line)
            if self._clock() >= self._next_s and (self._thread is None or not self._thread.is_alive()):
                self._next_s = self._clock() + UPLOAD_EVERY_S
                self._thread = self._start()

    def notices(self) -> list[str]:
        """Return what happened since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def close(self) -> None:
        """Upload the remaining lines; give up after a while if the storage hangs."""
        if self._path is None:
            if self._thread is not None:
                self._thread.join(CLOSE_WAIT_S)
            if self._thread is None or not self._thread.is_alive():
                self._thread = self._start()
                self._thread.join(CLOSE_WAIT_S)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._upload, name="raymlops-runlog", daemon=True)
        thread.start()
        return thread

    def _append_local(self, path: Path, line: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened for each of its few lines, so that a file that was moved or removed is created again.
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)
        except OSError as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        if not self._failed:
            self._notices.append(f"cannot write the run's log {self._uri!r}: {error}")
        self._failed = True

    def _upload(self) -> None:
        try:
            if self._before is None:
                # A run that resumes has a log already.
                self._before = (_text(self._uri) or "").splitlines(keepends=True)
            with self._lock:
                lines = [*self._before, *self._lines][-MAX_LINES:]
            filesystem.write_bytes(self._uri, "".join(lines).encode(errors="backslashreplace"))
        except StorageError as error:
            self._lost(error)


def read(
    uri: str, *, follow: bool = False, ended: Callable[[], bool] = lambda: False, poll_s: float | None = None
) -> Iterator[str]:
    """Yield the lines of a log without their newlines; with ``follow`` also future lines.

    Following stops after the line of a closed run, or once ``ended`` returns True.

    Raises:
        NotFoundError: there is no log.
        StorageError: it cannot be read.
    """
    path = local_path(uri)
    new_lines, pause_s = (_remote_lines(uri), REMOTE_POLL_S) if path is None else (_local_lines(path), POLL_S)
    latest = ""
    while True:
        # Evaluated first, so that everything written before it became true is read below.
        over = not follow or ended()
        lines = new_lines()
        yield from lines
        if over or (not lines and latest.split(" ")[1:2] == [CLOSED]):
            return
        latest = lines[-1] if lines else latest
        time.sleep(pause_s if poll_s is None else poll_s)


def _local_lines(path: Path) -> Callable[[], list[str]]:
    """Return a function that reads the lines since its last call; an incomplete one is left for the next."""
    position = 0

    def new_lines() -> list[str]:
        nonlocal position
        try:
            with path.open("rb") as file:
                if file.seek(0, 2) < position:
                    position = 0  # it was removed and created again
                file.seek(position)
                data = file.read()
        except FileNotFoundError as error:
            raise _missing(str(path)) from error
        except OSError as error:
            raise StorageError(f"cannot read the log {str(path)!r}: {error}") from error
        whole = data[: data.rfind(b"\n") + 1]
        position += len(whole)
        return whole.decode(errors="replace").split("\n")[:-1]

    return new_lines


def _remote_lines(uri: str) -> Callable[[], list[str]]:
    """Return a function that reads the object again and returns the lines after the last known one."""
    latest: str | None = None

    def new_lines() -> list[str]:
        nonlocal latest
        text = _text(uri)
        if text is None:
            raise _missing(uri)
        lines = text.split("\n")[:-1]
        known = next((index for index in reversed(range(len(lines))) if lines[index] == latest), -1)
        latest = lines[-1] if lines else latest
        return lines[known + 1 :]

    return new_lines


def _text(uri: str) -> str | None:
    try:
        return filesystem.read_bytes(uri).decode(errors="replace")
    except NotFoundError:
        return None


def _missing(where: str) -> NotFoundError:
    return NotFoundError(
        f"there is no log at {where!r}", hint="Check the run id, and that storage.path is the one of the run."
    )
