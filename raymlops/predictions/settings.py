"""Settings of a replica's prediction log. Pure, and light to import: no Arrow, no files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from raymlops.signature import Signature


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Where answered requests are stored, how soon, and without which fields; all may change in place."""

    enabled: bool = False
    uri: str = ""
    """``storage.path``: the log is in ``predictions/NAME`` below it, or its state's own below: see ``owner``."""
    state: str = ""
    """Id of the state whose log it is, and by which a sample is drawn; empty if unknown."""
    flush_s: float = 1.0
    max_pending_rows: int = 200_000
    """Rows held while the storage is unavailable; beyond that the oldest are dropped and counted."""
    redact: tuple[str, ...] = ()
    """Fields of inputs and outputs to omit."""
    sample: float = 1.0
    """Share of the requests to write, in (0, 1]."""

    def weight_of(self, request_id: str) -> float | None:
        """Return for how many requests one stands in the log; None for one that is not written."""
        return 1.0 / self.sample if in_sample(request_id, self.sample, salt=self.state) else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "redact": list(self.redact)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LogSettings:
        """Read plain data; missing keys keep their default, unknown keys are ignored."""
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**known, "redact": tuple(known.get("redact", ()))})


def in_sample(request_id: str, share: float, *, salt: str = "") -> bool:
    """Return whether a request is in a sample of this share.

    It depends on its id, which a caller may choose, and on a salt of at most 64 bytes, which no caller knows and all
    versions share: all that answered it are in it or none is, and it is known which labels are of requests that were
    left out. A smaller sample is part of a larger one.
    """
    if share >= 1:
        return True
    digest = blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def unknown_redactions(redact: Collection[str], signature: Signature) -> list[str]:
    """Return the names to redact that are not fields of inputs or outputs, such as misspelt ones."""
    known = {column.name for column in (*signature.inputs, *signature.outputs)}
    return sorted(set(redact) - known)
