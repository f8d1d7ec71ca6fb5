"""Read the files of a sealed folder, whole or by range, and check what is read: nothing else is read, nothing twice.

Owns the blocks: what is wanted of a file is read in whole blocks, each compared with its digest in the manifest. Knows
nothing of what is in the files.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from raymlops.errors import NotFoundError
from raymlops.storage import filesystem, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class VerifiedFolder:
    """A checkpoint's files on any filesystem. Use it as a context, which closes them.

    Raises:
        NotFoundError: there is no folder, or no manifest, which is the same.
        DamagedError: what is read is not what was written, or a file is missing.
        StorageError: the storage cannot be read, or a newer raymlops wrote the folder.
    """

    def __init__(self, uri: str, *, on_progress: Callable[[], object] = lambda: None) -> None:
        self.uri = uri
        self.files = manifest.contents(uri)
        self._on_progress = on_progress
        self._open: dict[str, _File] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        found = io.BytesIO()
        opened = filesystem.reader(filesystem.join(self.uri, name))
        problem = manifest.mismatch(opened, self._entry(name), found, manifest.Ticks(self._on_progress))
        if problem is not None:
            raise self._damaged(name, *problem)
        return found.getvalue()

    def range(self, name: str, offset: int, length: int) -> bytes:
        """Return a part of a file; that of one without digests of blocks is checked as a whole first."""
        if name not in self._open:
            self._open[name] = self._opened(name)
        return self._open[name].range(offset, length)

    def _opened(self, name: str) -> _File:
        entry = self._entry(name)
        uri = filesystem.join(self.uri, name)
        blocks = entry.blocks or ((entry.sha256,) if entry.size <= manifest.BLOCK_BYTES else ())
        if not blocks:
            problem = manifest.mismatch(filesystem.reader(uri), entry, manifest.Ticks(self._on_progress))
            if problem is not None:
                raise self._damaged(name, *problem)
        try:
            stream: Any = self._stack.enter_context(filesystem.reader(uri, seekable=True))
        except NotFoundError as error:
            raise self._damaged(name, f"a file of {entry.size} bytes", "nothing") from error
        return _File(
            stream,
            blocks,
            size=entry.size,
            on_progress=self._on_progress,
            damaged=lambda want, got: self._damaged(name, want, got),
        )

    def _entry(self, name: str) -> manifest.FileEntry:
        entry = self.files.get(name)
        if entry is None:
            raise manifest.unusable(self.uri, f"{manifest.MANIFEST} does not name {name}")
        return entry

    def _damaged(self, name: str, expected: str, got: str) -> Exception:
        return manifest.unusable(self.uri, manifest.damaged(name, expected, got))


class _File:
    """One file, and the last block that was read of it: what is wanted next often begins there."""

    def __init__(
        self,
        stream: BinaryIO,
        blocks: Sequence[str],
        *,
        size: int,
        on_progress: Callable[[], object],
        damaged: Callable[[str, str], Exception],
    ) -> None:
        self._stream, self._blocks, self._size = stream, blocks, size
        self._on_progress, self._damaged = on_progress, damaged
        self._last: tuple[int, bytes] = (-1, b"")

    def range(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if not self._blocks:
            return self._read(offset, end - offset)
        found = bytearray()
        while (at := offset + len(found)) < end:
            number, start = divmod(at, manifest.BLOCK_BYTES)
            found += self._block(number)[start : start + end - at]
        return bytes(found)

    def _block(self, number: int) -> bytes:
        if self._last[0] != number:
            start = number * manifest.BLOCK_BYTES
            block = self._read(start, min(manifest.BLOCK_BYTES, self._size - start))
            digest = hashlib.sha256(block).hexdigest()
            if digest != self._blocks[number]:
                where = f" of block {number}" if len(self._blocks) > 1 else ""
                raise self._damaged(f"SHA-256 {self._blocks[number]}{where}", digest)
            self._last = number, block
        return self._last[1]

    def _read(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        data = self._stream.read(length)
        self._on_progress()
        if len(data) != length:
            raise self._damaged(f"{self._size} bytes", f"{offset + len(data)} bytes")
        return bytes(data)
