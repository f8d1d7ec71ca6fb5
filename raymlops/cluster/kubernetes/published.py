"""Files that are rendered again and again, and that somebody may have edited in between.

Owns the record of what was written, and for which project. A file that is not as it was written is somebody's work: it
is shown, and replaced by ``--force`` alone. Knows nothing of what the files hold.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import TYPE_CHECKING

from raymlops.errors import RefusedError, StorageError
from raymlops.storage.filesystem import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RECORD = ".rendered.json"
MOST_LINES = 60


def publish(folder: Path, files: Mapping[str, str], *, of: str, force: bool = False) -> list[str]:
    """Write files into a folder, and return the paths of those that changed; ``of`` is the project that they are of.

    What was rendered before and is no more goes. The record names what a file was and what it becomes before anything
    is written, so that a process that is killed in between leaves no file that looks edited.

    Raises:
        RefusedError: somebody edited files, with the difference, or they are another project's; nothing was written.
        StorageError: the folder cannot be read or written.
    """
    try:
        owner, record = _read(folder)
        if owner not in {None, of} and not force:
            raise RefusedError(
                f"{folder} has the manifests of the project {owner}, and these are of {of}; nothing was written",
                hint="Choose another --to; --force replaces them.",
            )
        present = {name: text for name in {*files, *record} if (text := _text(folder / name)) is not None}
        edited = [
            name
            for name, text in present.items()
            if text != files.get(name) and _digest(text) not in record.get(name, [])
        ]
        if edited and not force:
            raise _refused(folder, sorted(edited), present, files)
        changed = sorted(name for name in {*files, *present} if present.get(name) != files.get(name))
        if changed or not (folder / RECORD).exists():
            now = {name: [_digest(text)] for name, text in files.items()}
            _write(folder, of, {name: [*record.get(name, []), *now.get(name, [])] for name in {*record, *now}})
            for name in changed:
                if name in files:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(folder / name, files[name].encode())
                else:
                    (folder / name).unlink(missing_ok=True)
            _write(folder, of, now)
    except OSError as error:
        raise StorageError(
            f"cannot write manifests to {folder}: {error.strerror or error}", hint="Choose another --to."
        ) from error
    return changed


def _refused(folder: Path, edited: list[str], present: Mapping[str, str], files: Mapping[str, str]) -> RefusedError:
    shown: list[str] = []
    for name in edited:
        lines = (present[name].splitlines(), files.get(name, "").splitlines())
        shown += difflib.unified_diff(*lines, f"{name} (as it is)", f"{name} (rendered)", lineterm="")
    rest = [f"... and {len(shown) - MOST_LINES} lines more"] if len(shown) > MOST_LINES else []
    return RefusedError(
        f"{', '.join(edited)} in {folder} {'is' if len(edited) == 1 else 'are'} not as rendered; nothing was written:\n"
        + "\n".join([*shown[:MOST_LINES], *rest]),
        hint="Put changes of your own into a kustomization of yours, or into the configuration; --force replaces them.",
    )


def _read(folder: Path) -> tuple[str | None, dict[str, list[str]]]:
    text = _text(folder / RECORD)
    try:
        record = {} if text is None else dict(json.loads(text))
        return record.get("project"), dict(record.get("files", {}))
    except (ValueError, TypeError):
        return None, {}  # then every file that differs counts as edited


def _write(folder: Path, of: str, files: Mapping[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"schema_version": 1, "project": of, "files": {name: files[name] for name in sorted(files)}}
    write_bytes(folder / RECORD, f"{json.dumps(data, indent=1)}\n".encode())


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
