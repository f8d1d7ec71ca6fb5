"""From a pull request to the live model, by the shell steps of the workflows that ``init`` writes, on a cluster."""

import json

import pytest
from github_steps import project_runner

pytestmark = [pytest.mark.e2e, pytest.mark.soak]

COMMENT = "pr comment 7 --edit-last --create-if-none --body-file raymlops-ci/report.md\n"


def test_a_pull_request_is_trained_and_what_is_merged_is_deployed(cluster, cluster_user):
    """The gate answers in a comment; a version that it refuses ends the stage as the gate does, and is not deployed."""
    folder, address = cluster_user.cwd, cluster.env["RAY_API_SERVER_ADDRESS"]
    secrets = {"secrets.RAY_API_SERVER_ADDRESS": address, "secrets.RAY_AUTH_TOKEN": cluster.token}
    pull_request = {"github.event_name": "pull_request", "github.event.pull_request.number": "7"}
    runner = project_runner(folder, {**secrets, **pull_request})
    runner.variables["MLFLOW_TRACKING_URI"] = cluster.env["MLFLOW_TRACKING_URI"]
    assert runner.job("raymlops-train", "train") == 0, runner.log
    assert "late-parcels version 1 passes the gate" in runner.summary
    assert "| pass | test/accuracy |" in runner.summary
    assert (folder / "gh.log").read_text() == COMMENT

    runner.contexts["github.event_name"] = "push"
    assert runner.job("raymlops-deploy", "deploy", **{"deploy-options": ""}) == 0, runner.log
    (live,) = json.loads(cluster_user.raymlops("status", "--json").stdout)["desired"]
    assert (live["name"], live["champion"]) == ("late-parcels", 1)

    config = runner.checkout / "config.yaml"
    config.write_text(config.read_text().replace("{min: 0.75}", "{min: 0.999}"))
    runner.contexts["github.event_name"], runner.summary = "pull_request", ""
    assert runner.job("raymlops-train", "train") == 4, runner.log
    assert "The gate refused the version" in runner.summary
    assert "test/accuracy" in runner.summary
    assert (folder / "gh.log").read_text() == COMMENT * 2
    assert runner.job("raymlops-deploy", "deploy") == 2
