import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from spread import at_most, spread

from raymlops.cluster.endpoint.node_environment import node_environment
from raymlops.cluster.kubernetes.manifests import manifests
from raymlops.cluster.kubernetes.render import configuration, ray_version, render_kubernetes
from raymlops.config.load import load
from raymlops.errors import ConfigError, RefusedError

from .conftest import POD, ROOT, pods

FLIGHTS = ROOT / "configs" / "flights.yaml"


@pytest.fixture
def render(tmp_path):
    return lambda *overrides, **options: render_kubernetes(
        FLIGHTS, to=tmp_path / "out", env="prod", overrides=overrides, **options
    )


def texts(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_rendered_twice_it_is_the_same(render, tmp_path):
    """To the byte, and the second time nothing is written."""
    assert render().changed
    before = texts(tmp_path / "out")
    assert render().changed == ()
    assert render_kubernetes(FLIGHTS, to=tmp_path / "other", env="prod").changed
    assert texts(tmp_path / "out") == texts(tmp_path / "other") == before
    assert json.loads(before[".rendered.json"])["project"] == "flights"


def test_what_is_live_is_in_no_manifest(render, tmp_path):
    """A manifest that is applied again in the middle of a canary has nothing to say of it."""
    render()
    assert not [
        name for name, text in texts(tmp_path / "out").items() if "serveConfigV2" in text and name != "argocd.yaml"
    ]
    argo = yaml.safe_load((tmp_path / "out" / "argocd.yaml").read_text())
    assert argo["ignoreDifferences"][0]["jsonPointers"] == ["/spec/serveConfigV2"]


def test_an_edited_manifest_is_shown_and_kept(render, tmp_path):
    """With --force alone it is replaced."""
    render()
    file = tmp_path / "out" / "prod" / "controller.yaml"
    file.write_text(file.read_text().replace("replicas: 2", "replicas: 5"))
    with pytest.raises(RefusedError, match=r"prod/controller.yaml in .* is not as rendered") as raised:
        render("serve.timeout_s=20.0")
    assert "-  replicas: 5\n+  replicas: 2" in raised.value.message
    assert "replicas: 5" in file.read_text()
    assert "timeout_s: 30.0" in (tmp_path / "out" / "prod" / "config.yaml").read_text()
    changed = render("serve.timeout_s=20.0", force=True).changed
    assert [name for name in changed if not name.startswith("jobs/")] == [
        "dev/config.yaml",
        "dev/controller.yaml",
        "prod/config.yaml",
        "prod/controller.yaml",
        "staging/config.yaml",
        "staging/controller.yaml",
    ]
    assert "replicas: 2" in file.read_text()


@at_most(3)
def test_a_rendering_that_was_killed_edited_nothing(render, tmp_path, monkeypatch, most):
    """Whichever write it dies before: the next one completes it, also with another configuration."""
    from raymlops.cluster.kubernetes import published

    real = published.write_bytes
    render()
    for last in spread(range(8), most):
        count = 0

        def die(path, data, *, last=last):
            nonlocal count
            if count == last:
                raise KeyboardInterrupt
            count += 1
            real(path, data)

        monkeypatch.setattr(published, "write_bytes", die)
        with contextlib.suppress(KeyboardInterrupt):
            render(f"serve.max_replicas={30 + last}", "kubernetes.host=a.example.com")
        monkeypatch.setattr(published, "write_bytes", real)
        render(f"serve.max_replicas={50 + last}")
        assert not (tmp_path / "out" / "prod" / "entry.yaml").exists()


def test_everything_that_cannot_run_there_is_said_at_once(tmp_path):
    """With what is allowed instead."""
    with pytest.raises(ConfigError) as raised:
        render_kubernetes(FLIGHTS, to=tmp_path, overrides=["serve.port=80", "cluster.address=local"])
    assert [problem.path for problem in raised.value.problems] == [
        "storage.state",
        "storage.optuna",
        "tracking.uri",
        "serve.host",
        "serve.proxy_location",
        "serve.port",
        "cluster",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_state_is_reached_from_the_head_and_the_controller_alone(place):
    """No trial, worker or replica, and no job's cluster, gets its credentials."""
    found = manifests(place(), config="", ray_version="2.60.0")
    holders = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for pod in pods(list(found.values()))
        if "state_url" in json.dumps(pod)
    }
    assert holders == {"serve-head", "controller"}


@pytest.mark.parametrize(
    ("override", "given"),
    [
        ("tracking.database={env: MLFLOW_DATABASE}", "MLFLOW_DATABASE"),
        ("tracking.database={file: ~/mlflow_database}", "tracking_database"),
    ],
)
def test_the_tracking_servers_database_is_reached_where_a_backup_runs_alone(place, objects, override, given):
    """Whoever writes into it writes any model's record."""
    holders = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for pod in pods(objects(place(override)))
        if given in json.dumps(pod)
    }
    assert holders == {"serve-head", "controller"}
    assert given in place(override).secret_keys()


def test_a_variable_that_others_need_too_is_in_every_pod(place, objects):
    """Where it is MLflow's database and Optuna's."""
    found = objects(place("tracking.database={env: RAYMLOPS_OPTUNA_URL}"))
    assert {"RAYMLOPS_OPTUNA_URL" in json.dumps(pod) for pod in pods(found) if "serve-cpu" in json.dumps(pod)} == {True}


def test_what_a_company_asks_of_pods_is_in_each(place, objects):
    """Those of jobs, too, which no kustomization reaches; a queue reads the labels of the job itself."""
    found = objects(
        place(
            "kubernetes.variables=[AWS_ACCESS_KEY_ID]",
            f"kubernetes.pod={POD}",
            "kubernetes.gpu.pod={spec: {nodeSelector: {spot: 'true'}}}",
            "train.gpus_per_worker=1.0",
        )
    )
    for pod in pods(found):
        spec = pod["spec"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["tolerations"][-1] == {"key": "team", "operator": "Equal", "value": "ml"}
        gpu = pod["metadata"]["labels"]["app.kubernetes.io/component"].endswith("-gpu")
        assert spec["nodeSelector"] == ({"disk": "ssd", "spot": "true"} if gpu else {"disk": "ssd"})
        assert (pod["metadata"]["labels"]["team"], spec["volumes"][-1]["name"]) == ("ml", "ca")
        assert [one["volumeMounts"][-1]["name"] for one in spec["containers"]] == ["ca"]
        submits = spec["containers"][0]["name"] == "ray-job-submitter"
        assert submits or "AWS_ACCESS_KEY_ID" in [one["name"] for one in spec["containers"][0]["env"]]
    assert {one["metadata"]["labels"]["team"] for one in found if one["kind"] == "RayJob"} == {"ml"}


def test_who_submits_jobs_has_a_role_and_no_pod_has_it(place):
    """A job of the endpoint's cluster runs beside the state's credentials."""
    accounts = manifests(place(), config="", ray_version="2.60.0")["accounts"]
    (role,) = (one for one in accounts if one["metadata"]["name"] == "flights-submitter")
    assert {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]} == {
        ("rayjobs", "create"), ("rayjobs", "get"), ("rayservices", "get"), ("rayclusters", "get"),
        ("pods", "list"), ("events", "list"), ("pods/log", "get"),
    }  # fmt: skip
    assert [one["roleRef"]["name"] for one in accounts if one["kind"] == "RoleBinding"] == ["flights-reconciler"]


def test_gpu_nodes_are_there_where_something_reserves_gpus(place):
    """With their limits, and on tainted machines."""
    (service,) = manifests(place("train.gpus_per_worker=1.0"), config="", ray_version="2.60.0")["rayservice"]
    cpu, gpu = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "tolerations" not in cpu["template"]["spec"]
    (service,) = manifests(place(), config="", ray_version="2.60.0")["rayservice"]
    assert [group["groupName"] for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]] == ["cpu"]


def test_no_group_has_a_number_of_nodes(place):
    """That is the autoscaler's, which a manifest applied again would reset."""
    (service,) = manifests(place(), config="", ray_version="2.60.0")["rayservice"]
    assert all("replicas" not in group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"])


@pytest.mark.soak
@pytest.mark.parametrize("overrides", [(), ("kubernetes.host=models.example.com",)], ids=["default", "host"])
def test_kustomize_gives_each_environment_what_it_asks_for(render, tmp_path, place, overrides):
    """No more and no less than its own configuration comes to."""
    kubectl = os.environ.get("RAYMLOPS_KUBECTL") or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl")
    render(*overrides)
    for env in ("dev", "staging", "prod"):
        command = [kubectl, "kustomize", str(tmp_path / "out" / env)]
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}
        there = place(*overrides, env=env)
        wanted = {}
        config = configuration(load(FLIGHTS, env=env, overrides=overrides).spec)
        for objects in manifests(there, config=config, ray_version=ray_version()).values():
            for one in objects:
                one["metadata"]["namespace"] = there.namespace
                wanted[one["kind"], one["metadata"]["name"]] = one
        assert found.keys() == wanted.keys()
        assert [key for key in wanted if _untagged(found[key]) != _untagged(wanted[key])] == []


def _untagged(one):
    return json.loads(re.sub(r"raymlops:[^\"]*", "raymlops", json.dumps(one)))


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_a_node_starts_with_the_environment_of_every_launcher(place, tmp_path, kind):
    """Its container's line is run as it stands, on the command that KubeRay would have run."""
    (service,) = manifests(place(), config="", ray_version="2.60.0")["rayservice"]
    cluster = service["spec"]["rayClusterConfig"]
    group = cluster["headGroupSpec"] if kind == "head" else cluster["workerGroupSpecs"][0]
    container = group["template"]["spec"]["containers"][0]
    says = (
        'import json, os, sys; json.dump([dict(os.environ), sys.argv[1:]], open(os.environ["HOME"] + "/started", "w"))'
    )
    (tmp_path / "ray").write_text(f"#!{sys.executable}\n{says}\n")
    (tmp_path / "ray").chmod(0o700)
    (tmp_path / "raymlops").symlink_to(Path(sys.executable).with_name("raymlops"))
    start = "ray start --head --num-cpus=0" if kind == "head" else "ray start --address=head:6379"
    environment = {
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path}:{os.defpath}",
        "KUBERAY_GEN_RAY_START_CMD": f"{start} --redis-password=$REDIS_PASSWORD",
        "REDIS_PASSWORD": "secret",
        "RAY_REDIS_ADDRESS": "redis://redis:6379",
        "RAY_AUTH_TOKEN": "token",  # of the Secret that authOptions names
    }
    subprocess.run([*container["command"], *container["args"]], env=environment, check=True, timeout=120)
    started, words = json.loads((tmp_path / "started").read_text())
    scratch = Path(started["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"]).parent
    wanted = node_environment(proxy="haproxy", scratch=str(scratch), head=kind == "head")
    scratch.rmdir()
    assert wanted.keys() <= started.keys()
    drawn = ("_MAXCONN", "_PYTHON", "_STATS_PORT", "_METRICS_PORT")  # by what is free there, or of that process
    same = wanted.keys() - {name for name in wanted if name.startswith("RAY_SERVE_FALLBACK") or name.endswith(drawn)}
    assert {name: started[name] for name in same} == {name: wanted[name] for name in same}
    assert words == [*start.split()[1:], "--redis-password=secret"]
