"""The schema of release 0.1, from which every later script upgrades."""

from __future__ import annotations

revision = "0005"
down_revision = None


def upgrade() -> None:
    """Do nothing: no older database exists, and a new one is created from ``schema`` as it is now."""
