import json
import re
import shutil

import httpx
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.soak]


def test_a_recipe_outside_the_package_goes_live_by_configuration_alone(cluster, cluster_user, repository):
    """The example is swept, trained, registered, gated and served, and the endpoint names the run that it came from.

    Beside its replica a scaffolded project, whose contract test passes, goes live as it stands, by a job.
    """
    user = cluster_user
    shutil.copytree(repository / "examples" / "own_recipe", user.cwd / "own")
    user.cwd /= "own"
    arguments = ["--config", "config.yaml", "sweep.num_trials=2", "train.cpus_per_worker=0.5", "--json", "--yes"]
    record = json.loads(user.raymlops("pipeline", *arguments).stdout)
    assert [trial["status"] for trial in record["sweep"]["trials"]].count("failed") == 0
    assert record["run"]["config_sha"]
    assert record["decision"]["passed"]

    (user.cwd / "rows.csv").write_text("garden,petal_cm,species\npond,1.4,0\nnever seen,,2\n")
    outputs = [json.loads(line) for line in user.raymlops("predict", "iris-like", "-f", "rows.csv").stdout.splitlines()]
    assert [round(sum(row.values()), 5) for row in outputs] == [1.0, 1.0]
    about = httpx.get(f"{cluster.url}/models/iris-like").json()
    assert (about["digest"], about["run_id"]) == (record["version"]["bundle"]["digest"], record["run"]["run_id"])
    assert "iris-like" in user.raymlops("status").stdout
    actions = [
        event["action"]
        for event in json.loads(user.raymlops("audit", "--config", "config.yaml", "--json").stdout)["events"]
        if event["subject"].startswith("iris-like")
    ]
    assert actions == ["register", "gate.pass", "deploy.start", "deploy"]

    user.cwd = user.cwd.parent
    user.raymlops("init", "my-model")
    user.cwd /= "my-model"
    assert "passed" in user.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider").stdout
    user.raymlops("validate", "config.yaml")
    trials = _pipeline_as_a_job(user)["sweep"]["trials"]
    assert [trial["status"] for trial in trials].count("failed") == 0
    for name in ("my-model", "iris-like"):
        user.raymlops("deploy", name, "--remove", "--yes")


def _pipeline_as_a_job(user):
    """Any project's verb runs on the cluster; the last line that it prints is its result."""
    words = ["raymlops", "pipeline", "--config", "config.yaml", "sweep.num_trials=2", "--yes"]
    log = user.run("ray", "job", "submit", "--working-dir", ".", "--", *words).stdout
    own = [line for line in log.splitlines() if not re.search(r" cli\.py:\d+ -- ", line)]
    assert own[-1].startswith("RAYMLOPS_RESULT ")
    return json.loads(own[-1].removeprefix("RAYMLOPS_RESULT "))
