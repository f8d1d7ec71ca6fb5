import json
import re

import httpx
import pytest

from raymlops.recipes.digits import Digits

pytestmark = pytest.mark.e2e

TINY = [
    "sweep.num_trials=2",
    "train.epochs=1",
    "train.num_workers=1",
    "train.cpus_per_worker=0.4",
]
SMALL = "serve.cpus_per_replica=0.1"


def result_of(log):
    """Return what the job's last log line says; lines of ``ray job submit`` itself begin with a time and its file."""
    own = [line for line in log.splitlines() if not re.search(r" cli\.py:\d+ -- ", line)]
    assert own[-1].startswith("RAYMLOPS_RESULT ")
    return json.loads(own[-1].removeprefix("RAYMLOPS_RESULT "))


def test_every_job_script_runs_on_a_cluster_from_up(user, repository):
    """train, sweep, pipeline and deploy by ``ray job submit``; the endpoint answers; ``down`` leaves nothing."""
    ports = user.up_with_project(repository)

    def submit(verb, *arguments):
        command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{verb}.py"]
        return result_of(user.run(*command, "--config", "configs/digits.yaml", *arguments).stdout)

    http = f"serve.port={ports['http']}"
    assert submit("train", *TINY)["metrics"]["validation/accuracy"] > 0.5
    assert len(submit("sweep", *TINY)["trials"]) == 2
    first = submit("pipeline", *TINY, SMALL, "gate.thresholds.test/accuracy.min=0.1", http)
    assert first["deployment"]["role"] == "champion"
    again = submit("deploy", "--version", "@champion", SMALL, http)
    assert (again["version"], again["changed"]) == (first["version"]["version"], False)

    about = httpx.get(f"http://127.0.0.1:{ports['http']}/models/digits").json()
    assert about["digest"] == first["version"]["bundle"]["digest"]
    assert about["run_id"] == first["run"]["run_id"]
    rows = Digits().datasets().test["image"][:3].tolist()
    (user.cwd / "rows.json").write_text(json.dumps([{"image": image} for image in rows]))
    asked = user.raymlops("predict", "digits", "--file", "rows.json")
    first = json.loads(asked.stdout.splitlines()[0])
    curl = next(line for line in asked.stderr.splitlines() if line.startswith("curl "))
    (output,) = json.loads(user.run("bash", "-c", curl).stdout)["outputs"]
    assert output == pytest.approx(first, rel=1e-5)  # one row alone is not rounded as in a batch of three
    assert json.loads(user.raymlops("down", "--json").stdout)["down"]["stopped"] > 0
    assert user.processes() == []
