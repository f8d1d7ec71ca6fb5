import json
import re
from concurrent.futures import ThreadPoolExecutor

import asking_forms
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlops.recipes.digits import Digits
from raymlops.serving.protocols.grpc_messages import request_class

pytestmark = [pytest.mark.e2e, pytest.mark.soak]

TINY = [
    "sweep.num_trials=1",
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


def test_every_job_script_runs_on_a_cluster_from_up(cluster, cluster_user):
    """sweep, pipeline, deploy and predict by ``ray job submit``, two at once; the endpoint answers over HTTP and gRPC.

    ``jobs/train.py`` is what ``test_job_stop`` stops and resumes.
    """
    user = cluster_user
    user.copy_project()

    def submit(verb, *arguments):
        command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{verb}.py"]
        return result_of(user.run(*command, "--config", "configs/digits.yaml", *arguments).stdout)

    http = f"serve.port={cluster.ports['http']}"
    with ThreadPoolExecutor() as at_once:
        sweep = at_once.submit(submit, "sweep", *TINY)
        first = submit("pipeline", *TINY, SMALL, "gate.thresholds.test/accuracy.min=0.1", http)
        assert len(sweep.result()["trials"]) == 1
        assert first["deployment"]["role"] == "champion"

        images = Digits().datasets().test["image"][:3].tolist()
        pq.write_table(pa.table({"image": images}), user.cwd / "rows.parquet")
        out = user.cwd / "out"
        batch = at_once.submit(submit, "predict", "--batch", f"{user.cwd}/rows.parquet", "--out", str(out))
        again = submit("deploy", "--version", "@champion", SMALL, http)
        assert (again["version"], again["changed"]) == (first["version"]["version"], False)
        assert batch.result()["rows"] == 3

    about = httpx.get(f"{cluster.url}/models/digits").json()
    assert about["digest"] == first["version"]["bundle"]["digest"]
    assert about["run_id"] == first["run"]["run_id"]
    (user.cwd / "rows.json").write_text(json.dumps([{"image": image} for image in images]))
    asked = user.raymlops("predict", "digits", "--file", "rows.json")
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    curl = next(line for line in asked.stderr.splitlines() if line.startswith("curl "))
    (output,) = json.loads(user.run("bash", "-c", curl).stdout)["outputs"]
    assert output == pytest.approx(answers[0], rel=1e-5)  # one row alone is not rounded as in a batch of three

    assert pq.read_table(out).column("digit").to_pylist() == [answer["digit"] for answer in answers]

    request = request_class("ModelInfer")(model_name="digits", raw_input_contents=[np.array(images, float).tobytes()])
    request.inputs.add(name="image", datatype="FP64", shape=[3, 8, 8])
    answer, _ = asking_forms.call(cluster.ports["grpc"], "ModelInfer", request, {"application": "raymlops"})
    assert asking_forms.rows_of_message(answer) == answers
    assert f"127.0.0.1:{cluster.ports['grpc']}" in user.raymlops("status").stdout
    user.raymlops("deploy", "digits", "--remove", "--yes")
