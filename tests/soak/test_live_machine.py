"""A thousand drawn histories of what is live, and two hundred on a Postgres server."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from live_machine import LiveMachine, draw_histories, on_server
from postgres import NEEDS_POSTGRES, postgres

pytestmark = pytest.mark.soak


def test_a_thousand_histories():
    """Once nothing moves, the desired state, Serve, the aliases and the audit record agree."""
    draw_histories(LiveMachine, 1000, database=None)


@NEEDS_POSTGRES
def test_two_hundred_histories_on_a_server():
    """The same with Postgres, whose transactions wait for each other otherwise than SQLite's."""
    # Not in pytest's folder: another pytest of root that starts meanwhile closes it to the server's user.
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder)) as url:
        new = on_server(url)
        draw_histories(lambda: LiveMachine(new), 200, database=None)
