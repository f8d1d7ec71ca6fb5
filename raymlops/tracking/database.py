"""Making MLflow's SQLite file: whole, or not at all.

MLflow builds its tables over some seconds and some fifty migrations. A process killed meanwhile leaves a file that no
MLflow opens again, so the file is made under another name and takes its own when it is done.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def ensure_database(path: Path, *, artifacts: str) -> None:
    """Make the MLflow database at ``path`` where there is none. Safe in several processes at once."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        SqlAlchemyStore(f"sqlite:///{temporary}", artifacts).engine.dispose()
        # A link, unlike a rename, does not replace what another process finished first.
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        for left in path.parent.glob(f"{temporary.name}*"):
            left.unlink()
