"""A registration says how far it is where it takes long, and nothing where it does not."""

from __future__ import annotations

import re

from raymlops.lifecycle.registration.progress import StageProgress


def test_stages_are_told_after_ten_seconds_and_batches_every_ten():
    """With the time so far and the memory of the process."""
    now, lines = [0.0], []
    progress = StageProgress(lines.append, clock=lambda: now[0])
    progress.stage("reading the weights")
    now[0] = 9.0
    progress.stage("evaluating", batches=1200)
    progress.tick()
    now[0] = 11.0
    progress.tick()
    now[0] = 12.0
    progress.tick()
    progress.stage("writing")
    now[0] = 30.0
    progress.alive()
    progress.tick()
    now[0] = 41.0
    progress.alive()
    assert [re.sub(r"memory [\d.]+ .?B", "memory M", line) for line in lines] == [
        "evaluating: 2 of 1,200 batches (0:11, memory M)",
        "writing (0:12, memory M)",
        "writing (0:30, memory M)",
        "writing: 1 batches (0:41, memory M)",
    ]
