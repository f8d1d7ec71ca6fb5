"""A whole turn of the loop: a person's reason, a job that trains, the gate, the replay, a rollout and the bake.

On a cluster from ``up``, with requests all the while, none of which fails. Nobody asserts a time; the seconds of each
stage are printed.
"""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest
from asking import asked
from own_versions import end_controllers

import raymlops as rm
from raymlops.cluster.connect import connect
from raymlops.lifecycle.remove import remove
from raymlops.lifecycle.sources import spec_of, state_of
from raymlops.registry.versions import Registry
from raymlops.state.loop import retrainings_of
from raymlops.tracking.client import tracker

pytestmark = pytest.mark.e2e

WAIT_S = 420.0


@pytest.fixture
def config(cluster, tmp_path, monkeypatch):
    """Return the configuration: wide margins and short steps, so that a few hundred requests are a verdict."""
    for name, value in {**cluster.env, "HOME": cluster.owner.env["HOME"]}.items():
        monkeypatch.setenv(name, value)
    rollout = {"error_margin": 0.4, "slow_margin": 0.6, "slow_s": 5.0, "steps": [50, 100], "bake_s": 1.0}
    found = {
        "project": {"name": "seasons"},
        "recipe": {"import": "seasons:Seasons"},
        "train": {"epochs": 2, "lr": 0.01, "num_workers": 0, "metric": "validation/loss", "mode": "min"},
        "gate": {"margin": 5.0},
        "serve": {
            "port": cluster.ports["http"],
            "cpus_per_replica": 0.1,
            "max_replicas": 1,
            "rollout": {**rollout, "quality_margin": None},
            "log": {"enabled": True, "flush_s": 0.5},
        },
        "retrain": {"autonomy": "act", "bake_h": 0.0003, "replay_h": 1.0, "window": {"days": 30}},
        "storage": {"path": str(tmp_path / "storage")},
    }
    yield found
    remove(found)
    with connect(spec_of(found)):
        end_controllers()


def newest(config):
    with state_of(spec_of(config)) as state:
        return retrainings_of(state, "seasons")[0]


def seconds(one):
    """Return how long each stage took, by what the retraining says."""
    times = [datetime.fromisoformat(entry["at"]) for entry in one.stages]
    names = [entry["stage"] for entry in one.stages]
    return {name: (b - a).total_seconds() for name, a, b in zip(names, times, times[1:], strict=False)}


def test_a_person_says_so_and_a_better_version_answers(config):
    """Every stage once; no request fails; the run says what it is of, and the alias follows."""
    version = rm.register(config, rm.train(config).run_id)
    rm.gate(config)
    rm.deploy(config, str(version.version))
    with asked(config, "seasons", [{"soil": 0.3}]) as got:
        rm.retrain("seasons", why="a test of the loop", config=config)
        deadline = time.monotonic() + WAIT_S
        while (one := newest(config)).is_open:
            assert time.monotonic() < deadline, one
            time.sleep(0.5)
    print(json.dumps(seconds(one)), f"{(one.ended_at - one.made_at).total_seconds():.1f} s in all")
    assert (one.stage, one.version, got.failed) == ("done", 2, []), one
    assert set(got.versions) == {"1", "2"}
    assert one.found["replaying"]["checks"][0]["name"] == "answers logged requests"
    assert "tested on later rows" in [check["name"] for check in one.found["gating"]["checks"]]
    tags = tracker(spec_of(config)).run(one.run_id).data.tags
    assert (tags["raymlops.retraining"], tags["raymlops.retrain_of"]) == (one.id, version.run_id)
    assert Registry(tracker(spec_of(config))).by_alias("seasons", "champion").version == 2
