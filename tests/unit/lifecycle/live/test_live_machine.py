"""Fifty drawn histories of what is live, the same in each run; ``tests/soak`` draws a thousand others."""

from __future__ import annotations

from live_machine import LiveMachine, draw_histories


def test_whatever_happens_all_agree_once_nothing_moves():
    """The desired state, Serve, the aliases and the audit record."""
    draw_histories(LiveMachine, 50, derandomize=True)
