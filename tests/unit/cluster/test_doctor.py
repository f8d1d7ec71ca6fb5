from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from answering_cluster import answering_cluster

from raymlops.cluster import doctor, upfile
from raymlops.cluster.local import status
from raymlops.cluster.processes import ProcessRecord

GIB = 2**30
URL = "http://127.0.0.1:8265"


def disk(free_bytes):
    return doctor.enough("disk", free_bytes, least_gib=5, where="free at /r", fix="export RAYMLOPS_HOME=/another/disk")


@pytest.mark.parametrize(
    "finding",
    [
        *doctor.packages(["ray[serve]<2.61,>=2.60", "SQLAlchemy>=2.0.40", "nothing-like-it>=1; extra == 'recipes'"]),
        disk(50 * GIB),
        doctor.ray(URL, 200, version="2.60.0", installed="2.60.0"),
        doctor.guarded(URL, 401),
    ],
)
def test_what_is_well_has_no_fix(finding):
    """And every check still says what it looked at."""
    assert (finding.ok, finding.fix) == (True, "")
    assert finding.message


@pytest.mark.parametrize(
    ("finding", "says"),
    [
        (next(doctor.packages(["SQLAlchemy<2"])), "pip install 'SQLAlchemy<2'"),
        (next(doctor.packages(["nothing-like-it>=1"])), "pip install 'nothing-like-it>=1'"),
        (disk(GIB), "RAYMLOPS_HOME"),
        (doctor.ray(URL, None, version=None, installed="2.60.0"), "raymlops up"),
        (doctor.ray(URL, 401, version=None, installed="2.60.0"), "RAY_AUTH_TOKEN_PATH"),
        (doctor.ray(URL, 200, version="2.59.0", installed="2.60.0"), "pip install 'ray==2.59.0'"),
        (doctor.guarded(URL, 200), "RAY_AUTH_MODE=token"),
        (doctor.mlflow("http://127.0.0.1:1"), "tracking.uri"),
    ],
)
def test_what_is_wrong_is_found_with_its_fix(finding, says):
    """It says what to type."""
    assert not finding.ok
    assert says in finding.fix


@pytest.mark.parametrize(
    ("mode", "up", "has_token", "says"),
    [
        ("disabled", True, True, 'eval "$(raymlops up)"'),
        ("tokne", True, True, "export RAY_AUTH_MODE=token"),
        ("token", False, False, "export RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_a_shell_that_cannot_authenticate_is_found(mode, up, has_token, says):
    """Also one that was told not to."""
    (finding,) = doctor.token_mode(mode, up=up, has_token=has_token)
    assert not finding.ok
    assert says in finding.fix


def test_a_shell_without_a_mode_is_well():
    """What `up` started is joined with its token in any case."""
    assert [finding.ok for finding in doctor.token_mode("", up=True, has_token=True)] == [True]
    assert list(doctor.token_mode("", up=False, has_token=False)) == []


def test_a_token_that_others_could_read_is_replaced(tmp_path):
    """It may be known. `up` replaces its own token, and no other."""
    tmp_path.chmod(0o700)
    token = tmp_path / "token"
    assert "raymlops up" in doctor.token_file(token, ours=True).fix
    token.write_text("secret")
    token.chmod(0o600)
    assert doctor.token_file(token, ours=True).ok
    token.chmod(0o644)
    assert "others can read" in doctor.token_file(token, ours=True).message
    assert "raymlops up" in doctor.token_file(token, ours=True).fix
    assert "chmod 600" in doctor.token_file(token, ours=False).fix


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    """With the variable that moves it."""
    assert doctor.writable(tmp_path).ok
    (tmp_path / "file").touch()
    assert "RAYMLOPS_HOME" in doctor.writable(tmp_path / "file").fix


def test_a_cluster_that_is_partly_dead_is_found(tmp_path):
    """Its remedy is the smaller one only where Ray and Serve answer."""
    assert doctor.up_record(tmp_path)[1].ok
    upfile.path(tmp_path).write_text("{")
    assert doctor.up_record(tmp_path)[0] is None
    assert not doctor.up_record(tmp_path)[1].ok
    with answering_cluster() as running:
        upfile.write(running.record(tmp_path, processes=(ProcessRecord("mlflow", 1, 1.0),)))
        assert doctor.up_record(tmp_path)[1].fix == "raymlops up restarts MLflow alone"
        upfile.write(running.record(tmp_path, processes=(ProcessRecord("ray", 1, 1.0),)))
        assert doctor.up_record(tmp_path)[1].fix == "raymlops down, then raymlops up"
        upfile.write(running.record(tmp_path, state="starting"))
        assert "raymlops down" in doctor.up_record(tmp_path)[1].fix


def test_the_database_of_another_mlflow_is_found(tmp_path):
    """It is looked at, not upgraded; one that does not exist yet is not created."""
    file = tmp_path / "mlflow.db"
    assert doctor.mlflow(f"sqlite:///{file}").ok
    assert not file.exists()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('old')")
    before = file.read_bytes()
    finding = doctor.mlflow(f"sqlite:///{file}")
    assert not finding.ok
    assert "mlflow db upgrade" in f"{finding.message} {finding.fix}"
    assert file.read_bytes() == before


def test_an_empty_database_stays_empty(tmp_path):
    """MLflow would create its tables in it, which is the first run's to do; other databases are not looked into."""
    file = tmp_path / "mlflow.db"
    file.touch()
    assert doctor.mlflow(f"sqlite:///{file}").ok
    assert file.stat().st_size == 0
    assert doctor.mlflow("postgresql://u:secret@127.0.0.1:1/db").message == "postgresql database, not looked into"


def test_a_token_that_ray_wrote_by_itself_is_found(tmp_path):
    """Unless it is the one in use."""
    token = tmp_path / "auth_token"
    assert list(doctor.stray_token(token, ours=None)) == []
    token.touch()
    token.chmod(0o644)
    (finding,) = doctor.stray_token(token, ours=tmp_path / "other")
    assert f"chmod 600 {token}" in finding.fix
    assert list(doctor.stray_token(token, ours=token)) == []


def test_this_machine_can_be_looked_at(tmp_path, monkeypatch):
    """Every check, on a folder that does not exist yet and a port that nobody listens on."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:22003")
    found = {finding.name: finding for finding in doctor.diagnose(root=tmp_path / "new")}
    assert found["package ray"].ok
    assert found["storage"].ok
    assert not found["ray"].ok
    assert not (tmp_path / "new").exists()


@pytest.fixture
def record(tmp_path):
    """Return the record of a cluster of which nothing answers."""
    places = dict.fromkeys(("dashboard_url", "mlflow_url", "serve_url"), "http://127.0.0.1:9")
    known = {"cluster_id": "none", "state": "up", "started_at": 1.0, "ray_address": "127.0.0.1:9", "token_path": "t"}
    return upfile.UpRecord(root=str(tmp_path), scratch=str(tmp_path), haproxy=True, **known, **places)


def test_haproxy_that_could_not_be_reloaded_is_found(record, tmp_path):
    """By ``status`` too: it goes on with the replicas that it knew."""
    assert [*doctor.haproxy(record)] == []
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "refused").write_text("Ray Serve's configuration has 0 lines\n")
    (found,) = doctor.haproxy(record)
    assert found.message.endswith(
        "still sends requests to the previous replicas: Ray Serve's configuration has 0 lines"
    )
    upfile.write(record)
    assert status(root=tmp_path).refused == "Ray Serve's configuration has 0 lines"


def test_a_certificate_that_the_endpoint_does_not_show_is_found(record, tmp_path):
    """Nothing is looked at without one."""
    assert [*doctor.certificate(record)] == []
    (found,) = doctor.certificate(replace(record, tls_cert=str(tmp_path / "none")))
    assert (found.name, found.ok) == ("certificate", False)


def test_a_node_is_asked_as_a_containers_health_check_does(tmp_path):
    """By its agent where `up` started nothing, else by what that started; without a node there is nothing healthy."""
    with answering_cluster() as running:
        assert [(one.name, one.ok) for one in doctor.node(root=tmp_path, agent_url=running.url)] == [("node", True)]
        running.record(tmp_path)
        assert {one.name for one in doctor.node(root=tmp_path) if one.ok} == {"up", "ray", "mlflow", "serve"}
        running.proxy = "UNHEALTHY"
        assert [one.name for one in doctor.node(root=tmp_path) if not one.ok] == ["serve"]
    (gone,) = doctor.node(root=tmp_path / "empty", agent_url="http://127.0.0.1:1")
    assert (gone.ok, "raymlops env ray start" in gone.fix) == (False, True)
