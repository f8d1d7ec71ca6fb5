"""Lists of entries in one MLflow tag: the newest few, as JSON that fits. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymlops.tracking.entities import MAX_TAG_CHARS

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ENTRIES = 20


def entries(tags: Mapping[str, str], key: str) -> list[dict[str, Any]]:
    """Return the entries of a tag, oldest first; none if the tag is missing or was changed to something else."""
    try:
        found = json.loads(tags.get(key) or "[]")
    except ValueError:
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def appended(tags: Mapping[str, str], key: str, entry: Mapping[str, Any]) -> str:
    """Return the new text of a tag: with one more entry, and without the oldest where it would be too long."""
    kept = [*entries(tags, key), dict(entry)][-MAX_ENTRIES:]
    while len(text := json.dumps(kept, ensure_ascii=False, separators=(",", ":"))) > MAX_TAG_CHARS and len(kept) > 1:
        del kept[0]
    return text
