from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from raymlops.cluster import auth, upfile
from raymlops.cluster.connect import find
from raymlops.cluster.processes import ProcessRecord
from raymlops.cluster.upfile import UpRecord
from raymlops.config.schema import ProjectSpec
from raymlops.errors import ClusterError


def _spec(**cluster):
    return ProjectSpec.model_validate({"project": {"name": "x"}, "recipe": {"import": "a:B"}, "cluster": cluster})


@pytest.fixture
def up(monkeypatch, tmp_path):
    """Record a cluster whose head is this very process, in a home of its own."""
    monkeypatch.setenv(upfile.HOME, str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    record = UpRecord(
        root=str(tmp_path),
        cluster_id="c",
        state="up",
        started_at=1.0,
        ray_address="127.0.0.1:22001",
        dashboard_url="http://127.0.0.1:22002",
        mlflow_url="",
        serve_url="",
        token_path="/t",
        scratch="",
        haproxy=False,
        processes=(ProcessRecord.of("ray", os.getpid()),),
    )
    upfile.write(record)
    return record


def test_what_is_up_is_joined_with_its_token(up):
    """No variable needs to be exported for it."""
    assert find(_spec()) == ("127.0.0.1:22001", auth.environment("/t"))


def test_an_address_of_the_environment_comes_before_what_is_up(up, monkeypatch):
    """It is how a job finds the cluster that runs it."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find(_spec()) == ("10.0.0.1:6379", {})


def test_the_configuration_comes_first(up, monkeypatch):
    """And a loopback address is not to be rewritten by Ray."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find(_spec(address="127.0.0.1:7777")) == ("127.0.0.1:7777", {auth.LOOPBACK: "0"})


def test_local_asks_for_a_cluster_of_our_own(up):
    """Whatever else is up."""
    assert find(_spec(address="local")) == (None, {})


def test_a_dead_cluster_is_not_joined(up):
    """Its head's pid has another start time now."""
    upfile.write(replace(up, processes=(ProcessRecord("ray", os.getpid(), 1.0),)))
    assert find(_spec()) == (None, {})


@pytest.mark.parametrize("named", ["", "auto", "local"])
def test_auto_joins_what_is_up(up, monkeypatch, named):
    """Where the environment names no cluster."""
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert find(_spec(address="auto")) == ("127.0.0.1:22001", auth.environment("/t"))


def test_auto_prefers_the_environment(up, monkeypatch):
    """It is where a job was submitted to."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find(_spec(address="auto")) == ("10.0.0.1:6379", {})


def test_auto_never_starts_a_cluster(up):
    """A production run must not train on the laptop that it was started from."""
    upfile.write(replace(up, processes=(ProcessRecord("ray", os.getpid(), 1.0),)))
    with pytest.raises(ClusterError, match="has died"):
        find(_spec(address="auto"))
    upfile.remove(Path(up.root))
    with pytest.raises(ClusterError, match="has started none"):
        find(_spec(address="auto"))


@pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265", "head", ":6379", "head:port"])
def test_an_address_of_another_form_is_refused(up, address):
    """Before Ray tries for a minute."""
    with pytest.raises(ClusterError, match="host:port"):
        find(_spec(address=address))
