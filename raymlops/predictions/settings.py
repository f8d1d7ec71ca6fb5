"""Settings of a replica's prediction log. Pure, and light to import: no Arrow, no files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from raymlops.signature import Signature


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Where answered requests are stored, how soon, and without which fields; all may change in place."""

    enabled: bool = False
    uri: str = ""
    """``storage.path``: the log is in ``predictions/NAME`` below it."""
    flush_s: float = 1.0
    max_pending_rows: int = 200_000
    """Rows held while the storage is unavailable; beyond that the oldest are dropped and counted."""
    redact: tuple[str, ...] = ()
    """Fields of inputs and outputs to omit."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "redact": list(self.redact)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LogSettings:
        """Read plain data; missing keys keep their default, unknown keys are ignored."""
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**known, "redact": tuple(known.get("redact", ()))})


def unknown_redactions(redact: Collection[str], signature: Signature) -> list[str]:
    """Return the names to redact that are not fields of inputs or outputs, such as misspelt ones."""
    known = {column.name for column in (*signature.inputs, *signature.outputs)}
    return sorted(set(redact) - known)
