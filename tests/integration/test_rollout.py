"""Rollouts with real requests: promoted, aborted, left by their controller, rolled back while the champion hangs.

The tests build on each other in one Serve, in the order in which they stand here. Nobody asserts a time; the seconds
of each rollback are printed.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from asking import asked
from labelled_load import labelled_load
from own_versions import (
    EXAMPLE,
    config_in,
    controller_pid,
    edited_in,
    end_controllers,
    end_serving,
    make_version,
)

import raymlops as rm
from raymlops.errors import NotFoundError, RefusedError
from raymlops.lifecycle.overview import events, overview
from raymlops.lifecycle.remove import remove
from raymlops.lifecycle.restore import restore
from raymlops.lifecycle.rollout.follow import follow_rollout
from raymlops.lifecycle.sources import spec_of
from raymlops.registry.versions import Registry
from raymlops.serving.client.client import Client
from raymlops.serving.control.rest_api import ServeApi
from raymlops.state.database import state_url
from raymlops.state.store import State
from raymlops.tracking.client import tracker

pytestmark = pytest.mark.integration

ROWS = [{"garden": "north", "petal_cm": 1.4}]
LONG = [{"garden": "north", "petal_cm": 99.0}]
ENCODE = "        ids = {"
OUTPUT = '"virginica"'
SHARES = 'model(batch["features"]).softmax(1)'
LABELLED = [
    ({"garden": "north", "petal_cm": 1.4}, "setosa"),
    ({"garden": "south", "petal_cm": 4.3}, "versicolor"),
    ({"garden": "pond", "petal_cm": 5.8}, 2),
]
"""Rows and what is true of them: by the output's name, and by its index."""
FLOWERS, SPECIES = [row for row, _ in LABELLED], [label for _, label in LABELLED]
WAIT_S = 300.0
CALLERS = 4
PAUSE_S = 0.01
"""Between two requests of a caller: without one it takes the CPU from the controller and new replicas."""
LABELS = 20
"""That a caller sends at once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipe is edited, and end Serve and its controller afterwards."""
    with edited_in(tmp_path_factory.mktemp("rollout")) as folder:
        yield folder
    end_serving()


@pytest.fixture(scope="module")
def config(folder, ray_local, mlflow_database):
    """Return the configuration: wide margins and short steps, so that a few hundred requests are a verdict."""
    data = config_in(folder, name="flower", dashboard_url=ray_local.dashboard_url, mlflow_database=mlflow_database)
    rollout = {"error_margin": 0.4, "slow_margin": 0.6, "slow_s": 5.0, "steps": [30, 60, 100], "bake_s": 2.0}
    traffic = {"canary_timeout_s": 10.0}
    return {
        **data,
        "serve": {
            **data["serve"],
            "rollout": {**rollout, "max_wait_s": 240.0, "on_no_verdict": "abort"},
            "traffic": traffic,
        },
    }


@pytest.fixture(scope="module")
def versions(config, folder):
    """Return five versions: two equally good ones, one that fails at long petals, one that gives something else,
    and one to which all species are equally likely.
    """
    source = EXAMPLE.read_text()
    assert source.count(ENCODE) == 1
    assert source.count(OUTPUT) == 1
    assert source.count(SHARES) == 1
    failing = f'        if (columns["petal_cm"] > 50).any():\n            raise ValueError("too long")\n{ENCODE}'
    sources = [
        source,
        source,
        source.replace(ENCODE, failing),
        source.replace(OUTPUT, '"other"'),
        source.replace(SHARES, f"({SHARES} * 0 + 1 / 3)"),
    ]
    return [make_version(config, folder, text, compare_answers=False).version for text in sources]


def load(config, rows=ROWS, *, labels=()):
    """Ask from several callers at once, without repeats, until the block ends; with the labels of every answer."""

    def following(client):
        kept = []

        def follow(answer):
            found = ({"request_id": answer.request_id, "row": row, "label": label} for row, label in enumerate(labels))
            kept.extend(found)
            if len(kept) >= LABELS:
                client.feedback("flower", kept)
                kept.clear()

        return follow

    return asked(config, "flower", rows, callers=CALLERS, pause_s=PAUSE_S, following=following)


def followed(config, record):
    """Return what a rollout ended as."""
    lines = []
    deadline = time.monotonic() + WAIT_S

    def line(text):
        lines.append(text)
        assert time.monotonic() < deadline, "\n".join(lines)

    return follow_rollout(config, record.rollout_id, on_line=line)


def look(config):
    (model,) = overview(config)
    return model


def until(condition):
    """Look again and again until something is so."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def actions(config):
    return [event.action for event in events(config)]


def replica_pid(config, version):
    details = ServeApi(config["cluster"]["dashboard"]).get()
    (replica,) = details["applications"][f"flower--v{version}"]["deployments"]["front"]["replicas"]
    return replica["pid"]


def test_a_version_as_good_as_the_champion_is_promoted(config, versions):
    """By the controller alone, through both steps, without one failed request; the alias follows.

    Each step bakes for two seconds, and passes on labels that came in meanwhile.
    """
    rm.deploy(config, str(versions[0]))
    record = rm.deploy(config, str(versions[1]), steps=[30, 60, 100])
    assert (record.weight, record.warnings, look(config).canaries) == (0.3, (), {versions[1]: 0.3})
    with load(config, FLOWERS, labels=SPECIES) as got:
        ended = followed(config, record)
    assert (ended.status, got.failed) == ("promoted", [])
    assert set(got.versions) == {"1", "2"}
    labelled = [step["canary_losses"] for step in ended.evidence["steps"]]
    assert len([losses for losses in labelled if losses]) == 2
    assert "gains" in ended.reason
    print(f"promoted on {labelled}: {ended.reason}")
    model = look(config)
    assert (model.champion, model.canaries, list(model.warm)) == (2, {}, [1])
    assert model.by.startswith("controller of ")
    moved = [action for action in actions(config) if action.startswith("rollout.")]
    assert moved[-3:] == ["rollout.start", "rollout.advance", "rollout.promote"]
    until(lambda: Registry(tracker(spec_of(config))).get("flower", "@champion").version == 2)


def test_a_version_that_errs_is_aborted_and_nobody_notices(config, versions):
    """Each request that it failed was answered by the champion, which has everything again."""
    record = rm.deploy(config, str(versions[2]), canary=30, bake_s=60)
    with pytest.raises(RefusedError, match=record.rollout_id):
        rm.deploy(config, str(versions[0]), canary=10)
    with load(config, LONG) as got:
        ended = followed(config, record)
    assert (ended.status, got.failed, set(got.versions)) == ("aborted", [], {"2"})
    assert "error" in ended.reason
    model = look(config)
    assert (model.champion, model.canaries, model.aborted["version"]) == (2, {}, 3)
    assert 3 in model.warm
    (doubt,) = rm.deploy(config, str(versions[2]), shadow=0, again=True).warnings
    assert doubt.startswith("the last rollout of version 3 was aborted: ")


@pytest.mark.soak
def test_a_controller_that_is_killed_goes_on(config, versions):
    """kill -9 in the middle of a step: Ray starts it anew, and it takes the rollout to its end."""
    record = rm.deploy(config, str(versions[0]), canary=30, steps=[30, 60])
    with load(config, FLOWERS, labels=SPECIES) as got:
        until(lambda: look(config).rollout["evidence"].get("steps"))
        killed = controller_pid(config)
        os.kill(killed, signal.SIGKILL)
        ended = followed(config, record)
    assert (ended.status, got.failed) == ("promoted", [])
    assert controller_pid(config) != killed
    assert look(config).champion == 1


def test_a_rollout_that_nobody_moves_is_moved_again_by_a_restore(config, versions):
    """Its controller is gone with the cluster that it was on, which status says; nobody has to start one."""
    rm.deploy(config, str(versions[0]))  # in the long tier it is champion already
    rm.deploy(config, str(versions[1]), canary=30, bake_s=600)
    end_controllers()
    until(lambda: look(config).moved_by is None)
    stood = look(config).rollout
    with load(config) as got:
        restore(config)
        until(lambda: look(config).rollout["evidence"] != stood["evidence"])
    assert got.failed == []
    assert look(config).moved_by is not None
    assert rm.rollback(config).version == 2
    assert look(config).champion == 1


def test_a_canary_that_gives_something_else_is_refused(config, versions):
    """Callers would not find what they know; as champion it needs a word that they have changed."""
    for options in ({"canary": 10}, {"shadow": 100}, {}):
        with pytest.raises(RefusedError, match="output 'virginica' is no longer returned"):
            rm.deploy(config, str(versions[3]), **options)
    assert look(config).champion == 1


def test_rollback_takes_the_canary_away_first(config, versions):
    """A share that is held; then the route."""
    record = rm.deploy(config, str(versions[2]), canary=25, shadow=50, again=True)
    assert (record.weight, record.shadow, record.rollout_id) == (0.25, 0.5, None)
    taken = rm.rollback(config)
    assert (taken.version, taken.weight, look(config).champion) == (3, 0.0, 1)
    assert look(config).shadows == {3: 0.5}
    rm.deploy(config, str(versions[2]), shadow=0, again=True)
    start = time.monotonic()
    assert rm.rollback(config).version == 2
    print(f"rollback to a warm version: {time.monotonic() - start:.2f} s with the alias")


def test_rollback_while_the_champion_hangs(config, versions):
    """Its process is stopped, and requests to it hang; the version before answers, and nobody waited for the other.

    What was rolled back from is not gone back to until it was live anew, so that both are deployed once more first.
    """
    with pytest.raises(NotFoundError, match="rolled back from: 1"):
        rm.rollback(config)
    for version in (versions[0], versions[1]):
        rm.deploy(config, str(version), again=True)
    pid = replica_pid(config, 2)
    os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        assert rm.rollback(config).version == 1
        print(f"rollback while the champion hangs: {time.monotonic() - start:.2f} s with the alias")
        with Client(f"http://127.0.0.1:{config['serve']['port']}") as client:
            assert client.predict("flower", ROWS).model_version == "1"
    finally:
        os.kill(pid, signal.SIGCONT)


def judged(config, version):
    """Roll a version out at a half while every answer is labelled; return the rollout and its finding on quality."""
    record = rm.deploy(config, str(version), canary=50, steps=[50], bake_s=8)
    with labelled_load(f"http://127.0.0.1:{config['serve']['port']}", "flower", LABELLED) as failed:
        ended = followed(config, record)
    assert failed == []
    print(ended.reason)
    return ended, ended.evidence["numbers"]["questions"]["quality"]


@pytest.mark.soak
def test_a_constant_is_aborted_by_the_labels_of_its_answers(config, versions):
    """Neither errors nor slowness say anything of it."""
    ended, quality = judged(config, versions[4])
    assert (ended.status, quality["harmful"]) == ("aborted", True), ended.reason
    assert quality["canary"]["value"] == pytest.approx(1 / 3, abs=0.005)  # each in hundredths, their mean is kept
    assert "labelled requests" in ended.reason


@pytest.mark.soak
def test_a_trained_model_takes_over_from_a_constant(config, versions):
    """Its answers are better, surely, before the rollout would have to end without a verdict on them."""
    rm.deploy(config, str(versions[4]), again=True)
    ended, quality = judged(config, versions[0])
    assert (ended.status, quality["passed"]) == ("promoted", True), ended.reason
    assert quality["canary"]["value"] < quality["champion"]["value"] == pytest.approx(1 / 3, abs=0.005)
    assert (ended.ended_at - ended.step_started_at).total_seconds() < 240
    assert look(config).champion == 1


def test_what_is_kept_warm_is_taken_down(config, versions):
    """With nothing to keep it for, the controller takes down all that lost its traffic, and says so."""
    rm.deploy({**config, "serve": {**config["serve"], "keep_warm_s": 0.0}}, str(versions[0]))
    until(lambda: not look(config).warm)
    assert "keep_warm.end" in actions(config)
    with State.open(state_url(spec_of(config))) as state:
        assert [item.version for item in state.deployments()] == [1]
    remove(config)
