"""From a pull request to the live model, by the shell steps of the workflows that ``init`` writes, on a cluster."""

import json

import pytest
from github_steps import project_runner

pytestmark = [pytest.mark.e2e, pytest.mark.soak]

COMMENT = "pr comment 7 --body-file raymlops-ci/comment.md\n"
RENEWED = "api --silent --method PATCH repos/me/late/issues/comments/12 -F body=@raymlops-ci/comment.md\n"


def test_a_pull_request_is_trained_and_what_is_merged_is_deployed(cluster, cluster_user):
    """The gate answers in a comment; a version that it refuses ends the stage as the gate does, and is not deployed."""
    folder, address = cluster_user.cwd, cluster.env["RAY_API_SERVER_ADDRESS"]
    secrets = {"secrets.RAY_API_SERVER_ADDRESS": address, "secrets.RAY_AUTH_TOKEN": cluster.token}
    pull_request = {
        "github.event_name": "pull_request",
        "github.event.pull_request.number": "7",
        "github.repository": "me/late",
    }
    runner = project_runner(folder, {**secrets, **pull_request})
    runner.variables |= cluster.mlflow
    assert runner.job("raymlops-train", "train") == 0, runner.log
    assert "late-parcels version 1 passes the gate" in runner.summary
    assert "| pass | test/accuracy |" in runner.summary
    assert (folder / "gh.log").read_text() == COMMENT
    assert (
        (runner.checkout / "raymlops-ci/comment.md").read_text().startswith("<!-- raymlops train config.yaml  -->\n###")
    )
    (folder / "comments").write_text("12\n13\n")

    runner.contexts["github.event_name"] = "push"
    assert runner.job("raymlops-deploy", "deploy", **{"deploy-options": "--bake 1s --wait"}) == 0, runner.log
    (live,) = json.loads(cluster_user.raymlops("status", "--json").stdout)["desired"]
    assert (live["name"], live["champion"]) == ("late-parcels", 1)

    version = runner.checkout / "raymlops-ci/version"
    handed_on = version.read_text()
    version.write_text(f"1@{'e' * 64}\n")
    assert runner.job("raymlops-deploy", "deploy") == 4
    assert (
        f"has digest {handed_on.strip().removeprefix('1@')} by MLflow, and {'e' * 64} was to be deployed" in runner.log
    )
    (still,) = json.loads(cluster_user.raymlops("status", "--json").stdout)["desired"]
    assert still == live

    config = runner.checkout / "config.yaml"
    config.write_text(config.read_text().replace("{min: 0.75}", "{min: 0.999}"))
    runner.contexts["github.event_name"], runner.summary = "pull_request", ""
    assert runner.job("raymlops-train", "train") == 4, runner.log
    assert "The gate refused the version" in runner.summary
    assert "test/accuracy" in runner.summary
    assert (folder / "gh.log").read_text() == COMMENT + RENEWED
    assert runner.job("raymlops-deploy", "deploy") == 2
