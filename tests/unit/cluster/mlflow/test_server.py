"""Who is answered by MLflow of ``raymlops up``, and which of its clients says who it is."""

from __future__ import annotations

import base64
import os
from importlib.metadata import entry_points

import pytest
import requests
from answering_cluster import answering_cluster
from flask import Flask, send_file
from werkzeug.test import Client

from raymlops.cluster.auth import mlflow_header
from raymlops.cluster.mlflow.server import owner_only
from raymlops.cluster.services import mlflow_ready
from raymlops.cluster.upfile import HOME, MlflowAuth

BASE = "http://127.0.0.1:5000"


def _basic(word):
    return "Basic " + base64.b64encode(word).decode()


ME = {"Authorization": _basic(b"raymlops:pass")}


@pytest.fixture
def served(tmp_path):
    """Serve files of a folder; the link in it has another owner than this process."""
    flask = Flask("mlflow")
    flask.add_url_rule("/<name>", view_func=lambda name: send_file(tmp_path / "artifacts" / name))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/token").write_text("token")
    (tmp_path / "secret/health").write_text("fine")
    return Client(owner_only(flask.wsgi_app, ME["Authorization"]))


def _link(path, monkeypatch, *, uid):
    """Let the artifacts be a link that is not this process's: as root by its owner, else by who is asked."""
    (path / "artifacts").symlink_to(path / "secret")
    if os.geteuid() == 0:
        os.lchown(path / "artifacts", uid, uid)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + uid)


@pytest.mark.parametrize("word", [b"raymlops:other", b"raymlops:", b"root:pass", b""])
def test_only_who_knows_the_password_is_answered(served, tmp_path, word):
    """A health check needs none; a browser is told how to ask for it."""
    (tmp_path / "secret").rename(tmp_path / "artifacts")
    refused = served.get("/token", base_url=BASE, headers={"Authorization": _basic(word)}, buffered=True)
    assert (refused.status_code, refused.www_authenticate.type) == (401, "basic")
    assert served.get("/token", base_url=BASE, buffered=True).status_code == 401
    assert served.get("/health", base_url=BASE, buffered=True).text == "fine"
    assert served.get("/token", base_url=BASE, headers=ME, buffered=True).text == "token"


@pytest.mark.parametrize(
    ("base", "origin", "status"),
    [
        ("http://localhost:9000", "http://localhost:9000", 200),
        (BASE, BASE, 200),
        (BASE, "http://localhost:5000", 403),
        (BASE, "null", 403),
        ("http://10.evil.com", None, 403),
        ("http://127.0.0.1.evil.com", None, 403),
    ],
)
def test_a_browser_asks_by_a_name_of_loopback_from_mlflows_own_pages(served, tmp_path, base, origin, status):
    """A page from elsewhere would have the password that the browser knows; a forwarded port may be another one."""
    (tmp_path / "secret").rename(tmp_path / "artifacts")
    headers = ME if origin is None else {**ME, "Origin": origin}
    assert served.get("/token", base_url=base, headers=headers, buffered=True).status_code == status


@pytest.mark.parametrize(("uid", "status"), [(0, 200), (65534, 403)])
def test_no_file_is_served_through_another_users_link(served, tmp_path, monkeypatch, uid, status):
    """Own links and the system's are part of ordinary paths."""
    _link(tmp_path, monkeypatch, uid=uid)
    assert served.get("/token", base_url=BASE, headers=ME, buffered=True).status_code == status


def test_clients_send_the_password_to_the_server_of_up_alone(tmp_path, monkeypatch):
    """MLflow finds the plugin by its name; no other address, port or name of the machine is sent anything."""
    (plugin,) = entry_points(group="mlflow.request_auth_provider", name="raymlops")
    sign = plugin.load()().get_auth()
    assert (plugin.load(), MlflowAuth().get_name()) == (MlflowAuth, plugin.name)
    monkeypatch.setenv(HOME, str(tmp_path))
    with answering_cluster() as up:
        record = up.record(tmp_path, mlflow_url="http://127.0.0.1:5000")
    assert record.env["MLFLOW_TRACKING_AUTH"] == record.inherited["MLFLOW_TRACKING_AUTH"] == plugin.name

    def sent(url):
        return sign(requests.Request("GET", url).prepare()).headers.get("Authorization")

    assert sent(f"{record.mlflow_url}/api") == mlflow_header(tmp_path)
    other = [f"{record.mlflow_url}1/api", record.mlflow_url.replace("127.0.0.1", "localhost") + "/api", "http://x/api"]
    assert [sent(url) for url in other] == [None, None, None]


def test_an_mlflow_that_asks_for_no_password_is_not_ready():
    """What was started by hand on our port is not taken for ours."""
    with answering_cluster() as up:
        assert mlflow_ready(up.url)
        up.asks = False
        assert not mlflow_ready(up.url)
