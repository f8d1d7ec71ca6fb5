"""What ``up`` refuses before it starts anything."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from raymlops.cluster import local, ports, upfile
from raymlops.cluster.local import status, up
from raymlops.cluster.ports import Listener, free_port
from raymlops.cluster.upfile import UpRecord
from raymlops.errors import StorageError


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
