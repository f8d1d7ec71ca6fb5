"""Access log: one line of JSON per request, in files of bounded size in the folder of Serve's logs.

Owns the fields of a line, the file and its rotation. Features, answers and secrets never get here: a caller is
identified by the id of its key. Works in a recorder's thread, so that disks may be slow or full. Serve's own access log
has neither these fields (version, route, rows, code, fallback, trace id) nor a record of which version answered.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.serving.telemetry.tracing import trace_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.predictions.served import RequestRecord

MAX_BYTES = 50_000_000
FILES = 3
"""The current file and two rotated ones: at most 150 MB per replica."""


def log_folder() -> Path:
    """Return the folder of Serve's logs on this node, which Ray's dashboard shows too.

    Raises:
        RuntimeError: this process is not part of a Ray cluster.
    """
    import ray

    # Ray 2.60 has a worker's session folder only here; Serve finds its own log folder in the same way.
    node = ray._private.worker._global_node  # noqa: SLF001
    if node is None:
        msg = "no log folder: this process is not part of a Ray cluster; pass a folder"
        raise RuntimeError(msg)
    return Path(node.get_logs_dir_path()) / "serve"


class AccessLog:
    """Append a line for each request to ``raymlops-access-NAME--vN-REPLICA.log``.

    ``enabled`` may be set from any thread. A line that cannot be written (a full disk) is lost, which the
    recorder counts as an error; the file always ends with a whole line.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        name: str,
        version: int,
        replica: str,
        enabled: bool = True,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.enabled = enabled
        self.path = Path(folder) / f"raymlops-access-{name}--v{version}-{_file_safe(replica)}.log"
        self._name = name
        self._max_bytes = max_bytes
        self._file: int | None = None
        self._size = 0

    def take(self, batch: Sequence[RequestRecord]) -> None:
        """Write the lines of some requests at once.

        Raises:
            OSError: the file cannot be written; the next call tries again.
        """
        if not batch or not self.enabled:
            return
        self._write(b"".join([line(served, self._name) for served in batch]))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is not None and self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        if self._file is None:
            self._open()
        assert self._file is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._size)  # remove the partial line; needs no disk space
            raise
        self._size += len(data)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not buffered by Python: a forked child would write the buffer again.
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(FILES - 1, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")


def line(served: RequestRecord, name: str) -> bytes:
    """Return a request as one line of ASCII.

    ``orjson`` escapes control characters, and this function all other non-ASCII ones, so that no terminal or line
    reader can misread them.
    """
    fields: dict[str, Any] = {
        "ts": datetime.fromtimestamp(served.ts, UTC),
        "request_id": _ascii(served.request_id),
        "model": name,
        "version": served.version,
        "route": served.route,
        "protocol": served.protocol,
        "status": served.status,
        "code": served.code,
        "rows": served.rows,
        "bytes": served.body_bytes,
        "ms": round(served.seconds * 1e3, 3),
        "model_ms": round(served.model_seconds * 1e3, 3),
        "key_id": None if served.key_id is None else _ascii(served.key_id),
        "client": None if served.client is None else _ascii(served.client),
        "fallback_from": served.fallback_from,
        "trace_id": None if served.traceparent is None else trace_id_of(served.traceparent),
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def _ascii(text: str) -> str:
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode("ascii")


def _file_safe(text: str) -> str:
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in text)
