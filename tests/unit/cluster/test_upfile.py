from __future__ import annotations

import stat
from dataclasses import replace

import pytest

from raymlops.cluster import upfile
from raymlops.cluster.processes import ProcessRecord
from raymlops.cluster.upfile import UpRecord
from raymlops.errors import ClusterError


@pytest.fixture
def record(tmp_path):
    return UpRecord(
        root=str(tmp_path),
        cluster_id="c",
        state="up",
        started_at=1.0,
        ray_address="127.0.0.1:6379",
        dashboard_url="http://127.0.0.1:8265",
        mlflow_url="http://127.0.0.1:5000",
        serve_url="http://127.0.0.1:8000",
        token_path=f"{tmp_path}/auth/token",
        scratch="/tmp/x",
        haproxy=False,
        processes=(ProcessRecord("ray", 1, 2.0),),
    )


def test_a_record_comes_back_as_it_was_written(record, tmp_path):
    """Processes included, in a file that only its owner reads."""
    upfile.write(record)
    assert upfile.read(tmp_path) == record
    assert stat.S_IMODE(upfile.path(tmp_path).stat().st_mode) == 0o600


def test_no_record_means_that_nothing_is_up(tmp_path):
    """Also where the folder is missing."""
    assert upfile.read(tmp_path / "missing") is None


def test_keys_of_a_newer_version_are_ignored(record):
    """An older raymlops can still end what a newer one started."""
    assert UpRecord.from_dict({**record.to_dict(), "invented_later": 1}) == record


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_is_named(tmp_path, text):
    """Rather than taken for a cluster that is down."""
    upfile.path(tmp_path).write_text(text)
    with pytest.raises(ClusterError, match=r"up\.json"):
        upfile.read(tmp_path)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, []),
        ({"ports": {"Serve": 8000, "Ray": 6379}, "num_cpus": 2}, []),
        ({"ports": {"Serve": 8001, "MLflow": None}}, ["Serve on port 8000, not 8001"]),
        ({"proxy": "haproxy", "num_cpus": 3}, ["Serve without HAProxy", "Ray with 2 CPUs, not 3"]),
        ({"proxy": "python"}, []),
        ({"tls": ("/a", "/b")}, ["Serve without TLS"]),
        ({"ports": {"gRPC": None}}, []),
        ({"ports": {"gRPC": 9000}}, ["Serve without gRPC"]),
    ],
)
def test_what_runs_otherwise_than_asked_is_named(record, asked, found):
    """What is not asked for is as it may be."""
    running = replace(record, num_cpus=2)
    assert running.differences(**{"ports": {}, **asked}) == found
    fast = replace(running, haproxy=True, tls_cert="/a", tls_key="/b", serve_url="https://127.0.0.1:8000")
    assert fast.differences(ports={"Serve": 8000}, proxy="python", tls=("/c", "/b")) == [
        "Serve behind HAProxy",
        "TLS with /a",
    ]


def test_a_port_for_grpc_is_one_of_the_clusters(record):
    """It is there only where it was asked for, and cannot be changed while it runs."""
    running = replace(record, grpc_port=9000)
    assert "gRPC" not in record.ports
    assert (record.grpc_address, running.grpc_address) == (None, "127.0.0.1:9000")
    assert running.ports["gRPC"] == 9000
    assert running.differences(ports={"gRPC": 9000}) == []
    assert running.differences(ports={"gRPC": 9001}) == ["gRPC on port 9000, not 9001"]


def test_a_record_without_cpus_differs_in_nothing_by_them(record):
    """An older raymlops wrote it."""
    assert record.differences(ports={}, num_cpus=3) == []


def test_what_is_printed_can_be_sourced_by_a_shell(record):
    """A path with a space is quoted."""
    text = upfile.exports(replace(record, token_path="/a b/token"))
    assert "export RAY_AUTH_TOKEN_PATH='/a b/token'" in text.splitlines()
    assert "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265" in text.splitlines()


def test_home_moves_with_its_variable(monkeypatch, tmp_path):
    """One variable for everything of ours."""
    monkeypatch.setenv(upfile.HOME, str(tmp_path / "x"))
    assert upfile.home() == tmp_path / "x"
