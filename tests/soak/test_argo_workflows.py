"""Argo's workflows on a real cluster: their commands, by our own runner in the place of Argo's pods."""

from __future__ import annotations

import json

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
