"""Runs in an MLflow database on Postgres: what is the same whichever way they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from postgres import NEEDS_POSTGRES, postgres
from written_runs import differences

from raymlops.tracking.client import Tracker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, NEEDS_POSTGRES]


def test_a_run_is_the_same_whichever_way_it_is_written(tmp_path: Path) -> None:
    """In everything that MLflow's client reads, and in each table, as on SQLite."""
    (tmp_path / "postgres").mkdir()
    with postgres(tmp_path / "postgres") as url:
        tracker = Tracker(url.replace("postgresql:", "postgresql+psycopg:"), artifacts=str(tmp_path / "artifacts"))
        assert differences(tracker) == {}
