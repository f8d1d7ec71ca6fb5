"""What ``up`` refuses before it starts anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raymlops.cluster import local, ports, upfile
from raymlops.cluster.local import status, up
from raymlops.cluster.ports import Listener, free_port
from raymlops.cluster.upfile import UpRecord
from raymlops.errors import ClusterError, StorageError, UsageError


def test_a_folder_of_the_cluster_before_that_cannot_be_removed_is_named(tmp_path):
    """Another user may have written into it."""
    (tmp_path / "ray").touch()
    asked = {f"{name}_port": free_port() for name in ("http", "dashboard", "mlflow", "ray")}
    with pytest.raises(StorageError, match=r"cannot replace .*/ray: File exists"):
        up(root=tmp_path, **asked)
    assert upfile.read(tmp_path) is None


def test_haproxys_own_ports_keep_nobody_from_starting(tmp_path, monkeypatch):
    """Others have 8404 and 9101: it gets free ones, which are said."""
    asked, said = [], []
    monkeypatch.setattr(ports, "_free", lambda port: port not in {8404, 9101})
    monkeypatch.setattr(local, "chosen", lambda _: "haproxy")
    monkeypatch.setattr(local, "_start", lambda record, **rest: asked.append(rest["haproxy_ports"]))
    up(root=tmp_path, on_step=said.append)
    (own,) = asked
    assert not {8404, 9101} & {*own}
    assert f"statistics on port {own[0]} and its metrics on {own[1]}" in said[-1]


def test_no_port_is_one_that_rays_workers_take(tmp_path):
    """Every one that is is named, before anything starts."""
    asked = {f"{name}_port": 15_000 + at for at, name in enumerate(("http", "dashboard", "mlflow", "ray", "grpc"))}
    said = "10002 to 19999, got Serve: 15000, Ray's dashboard: 15001, MLflow: 15002, Ray: 15003, gRPC: 15004"
    with pytest.raises(UsageError, match=said):
        up(root=tmp_path, **asked)
    assert upfile.read(tmp_path) is None


@pytest.mark.parametrize("name", ["a b", "a#b", "a'b", "ä"])
def test_haproxys_files_have_plain_paths(name):
    """Whatever the folder is called: Serve quotes nothing in HAProxy's configuration."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:
        root = Path(short, name)
        root.mkdir()
        scratch = Path(local._scratch(root))
        assert scratch.resolve() == root / "ray" / "s"
        assert name not in str(scratch)
        shutil.rmtree(scratch.parent)


@pytest.mark.parametrize("haproxy", [False, True])
def test_what_answers_without_tls_is_listed(tmp_path, monkeypatch, haproxy):
    """Replicas and Serve's fallback proxy behind HAProxy; not HAProxy itself, nor what Ray's own calls go to."""
    places = dict.fromkeys(("dashboard_url", "mlflow_url", "serve_url"), "http://127.0.0.1:9")
    known = {"cluster_id": "none", "state": "up", "started_at": 1.0, "ray_address": "127.0.0.1:9", "token_path": "t"}
    files = {"tls_cert": "/c", "tls_key": "/k"}
    upfile.write(UpRecord(root=str(tmp_path), scratch="s", haproxy=haproxy, **known, **places, **files))
    sockets = [
        Listener("127.0.0.1", port, 1, process)
        for port, process in (
            (8000, "haproxy -db"),
            (10_007, "ray::ProxyActor"),
            (10_008, "ray::ServeReplica:m"),
            (30_001, "ray::ServeReplica:m"),
            (51_234, "ray::ProxyActor"),
        )
    ]
    monkeypatch.setattr(local, "listeners", lambda _: sockets)
    listed = ["127.0.0.1:30001", "127.0.0.1:51234"] if haproxy else ["127.0.0.1:30001"]
    found = status(root=tmp_path)
    assert [item.partition(" ")[0] for item in found.plain] == listed
    assert found.certificate == "cannot read a certificate in /c: No such file or directory"


@pytest.mark.parametrize("alive", [False, True])
def test_a_head_that_ends_before_serve_runs_is_shown_by_its_log(tmp_path, monkeypatch, alive):
    """Its dashboard answered: Serve is not asked for before a node is up, nor is its silence the whole answer then."""
    code = "import time; print('The current node timed out', flush=True); time.sleep(0.5); raise SystemExit(1)"
    log = tmp_path / "logs" / "ray.log"
    asked = []

    def start_head(**rest):
        log.parent.mkdir()
        with log.open("wb") as output:
            return subprocess.Popen([sys.executable, "-c", code], stdout=output)

    def start_serve(*arguments, **rest):
        asked.append(arguments)
        raise ClusterError("Ray did not start Serve: it gave no answer")

    mlflow = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for name, fake in {
        "start_head": start_head,
        "start_mlflow": lambda **rest: mlflow,
        "ray_ready": lambda *_, **rest: True,
        "node_alive": lambda *_, **rest: alive,
        "start_serve": start_serve,
    }.items():
        monkeypatch.setattr(local.services, name, fake)
    places = dict.fromkeys(("dashboard_url", "mlflow_url", "serve_url"), "http://127.0.0.1:9")
    known = {"cluster_id": "none", "state": "starting", "started_at": 1.0, "ray_address": "127.0.0.1:9"}
    record = UpRecord(root=str(tmp_path), token_path="t", scratch=str(tmp_path / "s"), haproxy=False, **known, **places)
    record.drivers.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pytest.raises(ClusterError, match=r"Ray ended with exit code 1 while starting\n.*node timed out"):
            local._start(record, num_cpus=1, haproxy_ports=(1, 2), timeout_s=60, say=lambda _: None)
    finally:
        mlflow.communicate()
    assert len(asked) == alive
