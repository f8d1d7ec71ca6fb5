"""A cluster of which only MLflow has ended: what answers is left alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from socket import create_server

import pytest
from answering_cluster import answering_cluster

from raymlops.cluster import local, upfile
from raymlops.cluster.mlflow.restart import only_mlflow_ended
from raymlops.cluster.ports import free_port
from raymlops.cluster.processes import ProcessRecord
from raymlops.errors import PortTakenError


@pytest.fixture
def server():
    with answering_cluster() as running:
        yield running


@pytest.fixture
def head():
    """Yield a process in the place of Ray's head."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def record(server, head, tmp_path):
    """Return what is written of a cluster whose MLflow has ended."""
    processes = (ProcessRecord.of("ray", head.pid), ProcessRecord("mlflow", head.pid, 1.0))
    return server.record(tmp_path, mlflow_url=f"http://127.0.0.1:{free_port()}", processes=processes)


def test_ray_and_serve_are_not_ended_for_mlflow(record, head):
    """Also where MLflow cannot be started: the endpoints go on, and the record stays as it is."""
    with create_server(("127.0.0.1", record.ports["MLflow"])), pytest.raises(PortTakenError, match="MLflow: port"):
        local.up(root=record.root)
    assert head.poll() is None
    assert upfile.read(Path(record.root)) == record


def test_only_what_still_answers_is_kept(record, server):
    """Nothing is mended where Serve does not work, MLflow runs, Ray has ended too, or the start was never finished."""
    ray, mlflow = record.processes
    dead = replace(ray, created=1.0)
    assert only_mlflow_ended(record)
    assert not only_mlflow_ended(replace(record, processes=(ray,)))
    assert not only_mlflow_ended(replace(record, processes=(dead, mlflow)))
    assert not only_mlflow_ended(replace(record, state="starting"))
    server.proxy = "UNHEALTHY"
    assert not only_mlflow_ended(record)
