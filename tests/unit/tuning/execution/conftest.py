"""Draws are waited for: on a busy machine a short one takes long."""

from __future__ import annotations

import math

import pytest

from raymlops.tuning.execution import trial_queue


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    monkeypatch.setattr(trial_queue, "DRAW_S", math.inf)
