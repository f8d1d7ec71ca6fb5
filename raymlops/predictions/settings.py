"""What a replica is told about its prediction log.

Owns how that data is read and written. Pure, and light to import: it knows nothing of Arrow or files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from raymlops.signature import Signature


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Where answered requests are kept, how soon, and without which fields; all of it may change in place."""

    enabled: bool = False
    uri: str = ""
    """``storage.path``: the log is in ``predictions/NAME`` below it."""
    flush_s: float = 1.0
    max_pending_rows: int = 200_000
    """Rows held while the storage does not answer; the oldest beyond are dropped and counted."""
    redact: tuple[str, ...] = ()
    """Fields of inputs and outputs that are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "redact": list(self.redact)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LogSettings:
        """Read plain data; what is missing keeps its default, unknown keys are ignored."""
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**known, "redact": tuple(known.get("redact", ()))})


def unknown_redactions(redact: Collection[str], signature: Signature) -> list[str]:
    """Return the names to redact that are no field of inputs or outputs: misspelt, so that what is meant is written."""
    known = {column.name for column in (*signature.inputs, *signature.outputs)}
    return sorted(set(redact) - known)
