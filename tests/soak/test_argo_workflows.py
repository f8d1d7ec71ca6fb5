"""Argo's workflows on a real cluster: their commands, by our own runner in the place of Argo's pods."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from argo_steps import Workflow

pytestmark = pytest.mark.soak


def test_one_that_is_killed_between_two_steps_goes_on(cluster, delivered, tmp_path):
    """Submitted again for the same delivery it trains no second time; then the live model is watched at night."""
    user = delivered("argo-workflows")

    def workflow(name, uid, **parameters):
        file = user.cwd / f"argo-workflows/{name}.yaml"
        return Workflow(file, user.cwd, tmp_path / "pods", user.env, uid, parameters)

    given = {"delivery": "abc", "deploy-options": ""}
    workflow("train-to-deploy", "uid-1", **given).run(until="train")
    again = workflow("train-to-deploy", "uid-2", **given)
    again.run()
    print(again.log)
    words = [job["entrypoint"].split()[1] for job in cluster.jobs()]
    assert words == ["train", "models", "models", "deploy"]
    (live,) = json.loads(user.raymlops("status", "--json").stdout)["desired"]
    assert (live["name"], live["champion"]) == ("late-parcels", 1)

    night = workflow("nightly", "uid-3")
    night.run()
    assert [job["entrypoint"].split()[1] for job in cluster.jobs()[4:]] == ["drift", "quality"]


def test_two_of_one_delivery_at_once_share_its_jobs(cluster, delivered, tmp_path):
    """Whichever submits a job first, the other follows it to the same version."""
    user = delivered("argo-workflows")
    known = len(cluster.jobs())
    file = user.cwd / "argo-workflows/train-to-deploy.yaml"
    both = [Workflow(file, user.cwd, tmp_path / "pods", user.env, uid, {"delivery": "def"}) for uid in ("a", "b")]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(one.run, until="train") for one in both]:
            done.result()
    print(both[1].log)
    assert [job["entrypoint"].split()[1] for job in cluster.jobs()[known:]] == ["train", "models", "models"]
    assert both[0].outputs == both[1].outputs
