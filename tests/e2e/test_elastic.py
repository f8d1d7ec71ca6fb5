"""Nodes come and go under a training, and its numbers stay what they would have been."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import elastic_cluster
import killed_cluster
import pytest
import store_cluster
from local_training import run_local
from supervised import project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.mark.soak
def test_an_elastic_run_follows_its_cluster(tmp_path: Path) -> None:
    """2 -> 1 where a node is killed, -> 2 when one comes, -> 1 when it is told to leave: the curve stays the same.

    A killed node costs the steps since the newest checkpoint, the other two changes none at all.
    """
    command = [sys.executable, elastic_cluster.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = report_of(done.stdout)
    print(*(restart["reason"] for restart in report["restarts"]), sep="\n")
    lost, grown, left = report["restarts"]
    assert [lost["workers"], grown["workers"], left["workers"]] == [1, 2, 1]
    assert re.match(r"resumed with 1 worker after \d+\.\d s: rank \d: its node \w+ .* died", lost["reason"])
    assert re.match(r"resumed with 2 workers after .* s: there has been room for 2 workers", grown["reason"])
    assert re.match(r"resumed with 1 worker after .* s: node \w+ is about to leave", left["reason"])
    assert report["left_behind"] == []
    alone = run_local(project(tmp_path, **{**elastic_cluster.TRAIN, "num_workers": 0}))
    assert len(report["history"]) == 25
    for elastic, fixed in zip(report["history"], alone.history, strict=True):
        assert elastic == pytest.approx(fixed, rel=1e-3)


@pytest.mark.soak
def test_whatever_is_killed_the_parameters_are_the_same(tmp_path: Path) -> None:
    """kill -9 of a worker, the mailbox or a node in mid-epoch: bit-equal to the undisturbed run."""
    command = [sys.executable, killed_cluster.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = report_of(done.stdout)
    whole = report.pop("nothing")
    assert whole["restarts"] == []
    for victim, ended in report.items():
        (restart,) = ended["restarts"]
        print(victim, restart["reason"])
        assert restart["step"] >= 20  # a checkpoint every 5 steps, killed after step 23
        assert ended["history"] == whole["history"], victim
        assert ended["weights"] == whole["weights"], victim
        assert ended["left_behind"] == []


def report_of(stdout: str) -> dict[str, Any]:
    """Return what a program reported; a cluster that is shut down may print a last word of its own after it."""
    (line,) = (line for line in stdout.splitlines() if line.startswith("{"))
    report: dict[str, Any] = json.loads(line)
    return report


@pytest.mark.soak
def test_a_checkpoint_in_a_store_is_read_once() -> None:
    """Four workers on two nodes read the shards once in total but for a block each, and a whole one once a node.

    At the end they read the best weights alone, a third of the state. Ray Train tells nodes apart by their address,
    and these two share one.
    """
    command = [sys.executable, store_cluster.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = report_of(done.stdout)
    print(report)
    assert 0.9 < report["fsdp"]["restore"] < 1.2
    assert 0.3 < report["fsdp"]["end"] < 0.7
    assert report["fsdp"]["files"] == 4
    assert report["ddp"]["restore"] in {1, 2}
    assert report["ddp"]["end"] == report["ddp"]["restore"]
    assert all(found["resumed"].startswith("resumed with 4 workers") for found in report.values())
