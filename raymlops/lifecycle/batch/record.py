"""What is known of a finished batch prediction."""

from __future__ import annotations

from dataclasses import dataclass

from raymlops.records import Record


@dataclass(frozen=True)
class BatchRecord(Record):
    """One finished batch prediction; ``_manifest.json`` in a folder of output has the same fields."""

    name: str
    version: int
    digest: str
    """Digest of the version's bundle."""
    input: str
    """Of a Delta table with the version that was read."""
    output: str
    rows: int
    files: int
    """Number of output files."""
    duration_s: float
    table_version: int | None = None
    """The version of the Delta table that has the rows."""
    repeated: bool = False
    """Whether the table had them already, and nothing was written."""
