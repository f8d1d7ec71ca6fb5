"""The tracker against a real MLflow database."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import math
import pickle
import socket
import sqlite3
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from raymlops.config.schema import ProjectSpec
from raymlops.errors import ConfigError, NotFoundError, TrackingError
from raymlops.tracking.client import Tracker, steps_of, tracker
from raymlops.tracking.entities import metric_key
from raymlops.tracking.failures import refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(storage_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{storage_path}/mlflow.db", artifacts=f"{storage_path}/mlartifacts")


def spec(**sections: Any) -> ProjectSpec:
    return ProjectSpec.model_validate({"project": {"name": "tiny"}, "recipe": {"import": "tiny:Tiny"}, **sections})


def test_a_run_is_written_and_read_back(store: Tracker) -> None:
    """Tags, params, metrics and text of a child run, by a tracker that went through pickle."""
    store = pickle.loads(pickle.dumps(store))
    parent = store.start_run("exp", name="parent", tags={"raymlops.kind": "sweep"})
    run_id = store.start_run("exp", name="child", tags={"a": "b"}, parent_run_id=parent)
    store.log_batch(run_id, params={f"p{index}": str(index) for index in range(150)})
    store.log_batch(run_id, [("train/loss", 1 / step, step, step) for step in range(1, 1501)])
    store.log_batch(run_id, [("odd name: é!", math.nan, 0, 1)])
    store.log_text(run_id, "hello", "notes/hello.txt")
    store.log_batch(run_id, tags={"c": "d" * 9000})
    store.end_run(run_id, "FINISHED")

    run = store.run(run_id)
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 150
    assert run.data.metrics["train/loss"] == 1 / 1500
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert len(run.data.tags["c"]) == 5000
    assert store.read_text(run_id, "notes/hello.txt") == "hello"
    assert run.info.artifact_uri.startswith(str(store.artifacts))


def test_params_points_and_tags_travel_together_as_far_as_they_fit(store: Tracker) -> None:
    """A request takes a thousand things, a hundred of them no points; tags come last: what they say is then true."""
    run_id = store.start_run("exp", name="run", tags={})
    requests = []
    send = store.client.log_batch
    store.client.log_batch = lambda run_id, metrics=(), params=(), tags=(): (
        requests.append((len(params), len(metrics), len(tags))),
        send(run_id, metrics=metrics, params=params, tags=tags),
    )
    points = [("loss", 1.0, step, step) for step in range(2000)]
    store.log_batch(run_id, points, {f"t{number}": "x" for number in range(150)}, params={"a": "1"})
    assert requests == [(1, 900, 0), (0, 900, 0), (0, 200, 100), (0, 0, 50)]
    assert len(store.client.get_metric_history(run_id, "loss")) == 2000
    assert steps_of(store.run(run_id)) == {"loss": 1999}
    requests.clear()
    store.log_batch(run_id, [("loss", 1.0, 2000, 1)], {"u": "x"}, params={f"p{number}": "x" for number in range(199)})
    store.log_batch(run_id, [("loss", 1.0, 2001, 1)], {"u": "y"}, params={"b": "2"})
    assert requests == [(100, 1, 0), (99, 0, 1), (1, 1, 1)]
    assert len(store.run(run_id).data.params) == 201


def test_the_children_of_a_run_are_found(store: Tracker) -> None:
    """All of them; only those with given tags; none that was deleted."""
    parent = store.start_run("exp", name="parent", tags={})
    store.start_run("exp", name="other", tags={"n": "1"}, parent_run_id=store.start_run("exp", name="p", tags={}))
    runs = [store.start_run("exp", name=n, tags={"n": n}, parent_run_id=parent, start_time_ms=5) for n in "01234"]
    store.delete_run(runs[4])
    assert {run.info.run_id for run in store.children_of(parent)} == set(runs[:4])
    (found,) = store.children_of(parent, tags={"n": "1"})
    assert (found.info.run_id, found.info.start_time) == (runs[1], 5)
    assert store.children_of(runs[0]) == []
    with pytest.raises(NotFoundError):
        store.children_of("nope")


def test_an_experiment_is_looked_up_once(store: Tracker) -> None:
    """A sweep opens thousands of runs in it."""
    store.start_run("exp", name="run", tags={})
    looked_up = []
    store.client.get_experiment_by_name = looked_up.append
    store.start_run("exp", name="run", tags={})
    assert looked_up == []


def test_a_repeated_request_doubles_nothing(store: Tracker) -> None:
    """MLflow's client repeats a request by itself; its store knows a point with the same time again, NaN too."""
    run_id = store.start_run("exp", name="run", tags={})
    for _ in range(2):
        store.log_batch(run_id, [("loss", 0.1, 1, 5), ("loss", math.nan, 2, 6), ("loss", 0.1, 3, 0)], {"a": "b"})
    assert [point.step for point in store.client.get_metric_history(run_id, "loss")] == [3, 1, 2]
    assert steps_of(store.run(run_id)) == {"loss": 3}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("train/loss", "train/loss"),
        ("é!", "é_"),
        ("a//b/", "a/b"),
        ("../x", "x"),
        ("/a/../b", "b"),
        (".", "_"),
        ("", "_"),
    ],
)
def test_any_name_is_made_one_that_mlflow_takes(store: Tracker, name: str, key: str) -> None:
    """One odd name among its metrics would cost a run the whole batch."""
    run_id = store.start_run("exp", name="run", tags={})
    store.log_batch(run_id, [(name, 1.0, 7, 7)])
    assert steps_of(store.run(run_id)) == {key: 7} == {metric_key(name): 7}


def test_a_run_is_opened_again(store: Tracker) -> None:
    """It is RUNNING; tags that spoke of its end go, others and its metrics stay."""
    run_id = store.start_run("exp", name="run", tags={"why": "x", "kept": "y"})
    store.end_run(run_id, "FAILED", end_time_ms=1234)
    assert store.run(run_id).info.end_time == 1234
    store.reopen_run(run_id, without_tags=["why", "not there"])
    run = store.run(run_id)
    assert run.info.status == "RUNNING"
    assert "why" not in run.data.tags
    assert run.data.tags["kept"] == "y"


def test_a_database_that_is_moved_away_is_an_error_and_prints_nothing(
    store: Tracker, storage_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sender tries again each second; MLflow would print a traceback each time, into the progress display."""
    run_id = store.start_run("exp", name="a", tags={})
    for file in storage_path.glob("mlflow.db*"):
        file.rename(storage_path / f"moved-{file.name}")
    with pytest.raises(TrackingError):
        store.log_batch(run_id, [("loss", 0.5, 1, 1)])
    assert capfd.readouterr() == ("", "")


def test_a_refusal_is_told_from_an_outage(store: Tracker) -> None:
    """Trying again helps where nobody listens, and not where the answer is no."""
    run_id = store.start_run("exp", name="run", tags={})
    store.client.delete_run(run_id)
    with pytest.raises(TrackingError) as no:
        store.log_batch(run_id, tags={"a": "b"})
    with pytest.raises(TrackingError) as nobody:
        Tracker("http://127.0.0.1:9").check()
    assert (refused(no.value), refused(nobody.value)) == (True, False)


def test_what_is_not_there_is_not_found(store: Tracker) -> None:
    """An unknown run and an unknown artifact are NotFoundErrors that say where was looked."""
    run_id = store.start_run("exp", name="run", tags={})
    with pytest.raises(NotFoundError, match="no run 'nope'"):
        store.run("nope")
    with pytest.raises(NotFoundError, match=r"no artifact 'a/b\.txt'"):
        store.read_text(run_id, "a/b.txt")


def test_a_server_that_is_down_is_said_within_seconds() -> None:
    """MLflow's own client would retry for minutes."""
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        Tracker("http://127.0.0.1:9").check()
    assert time.monotonic() - started < 10


def test_what_mlflow_says_of_a_server_that_is_down_is_cut_to_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own line has 350 characters, with a path and two exceptions around the cause."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(TrackingError) as nobody:
        Tracker("http://127.0.0.1:9").run("r")
    assert nobody.value.message == "MLflow at http://127.0.0.1:9 does not answer: connection refused"
    assert "raymlops up" in str(nobody.value.hint)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TrackingError) as late:
        Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}").run("r")
    assert late.value.message.endswith("does not answer: timed out")


def test_a_server_in_trouble_is_no_missing_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP 503 is a TrackingError: whoever asks whether something is there must not hear that it is not."""

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: Any) -> None:
            return

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever).start()
        busy = Tracker(f"http://127.0.0.1:{server.server_port}")
        for ask in (lambda: busy.run("r"), lambda: busy.read_text("r", "evaluation/test.json")):
            with pytest.raises(TrackingError, match="503"):
                ask()
        server.shutdown()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_denies_access_is_told_at_once(status: int) -> None:
    """With the settings that hold credentials; any other answer but 200 is an error, too."""

    class Denying(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(status)

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        threading.Thread(target=server.serve_forever).start()
        with pytest.raises(TrackingError, match=f"error code {status}") as raised:
            Tracker(f"http://127.0.0.1:{server.server_port}").check()
        server.shutdown()
    assert ("tracking.password" in str(raised.value.hint)) == (status != 404)


@pytest.fixture
def own_authority(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1, its own authority, with its key in the same file; server and client may show it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mlflow")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "mlflow.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_whatever_mlflow_is_told_of_credentials_and_certificates_counts(
    own_authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its credentials file, its variables for the server's and the client's certificate."""
    seen: list[str | None] = []

    class Private(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own_authority)
    context.load_verify_locations(own_authority)
    context.verify_mode = ssl.CERT_REQUIRED
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = ann\nmlflow_tracking_password = secret\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Private) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
        tracker = Tracker(f"https://127.0.0.1:{server.server_port}")
        with pytest.raises(TrackingError, match="CERTIFICATE_VERIFY_FAILED"):
            tracker.check()
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(own_authority))
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(own_authority))
        tracker.check()
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        tracker.check()
        server.shutdown()
    assert seen == [f"Basic {base64.b64encode(b'ann:secret').decode()}"] * 2


def test_a_refused_file_is_no_missing_artifact(store: Tracker) -> None:
    """An artifact that is there and cannot be read is a TrackingError; a folder under its name is such for root too."""
    run_id = store.start_run("exp", name="run", tags={})
    store.log_text(run_id, "x", "notes/hello.txt/inner")
    with pytest.raises(TrackingError, match="IsADirectoryError"):
        store.read_text(run_id, "notes/hello.txt")


def test_an_old_schema_is_refused_at_the_first_use_and_left_alone(storage_path: Path, store: Tracker) -> None:
    """MLflow would upgrade some old databases unasked; we say how, and touch nothing, whatever is asked first."""
    database = sqlite3.connect(storage_path / "mlflow.db")
    database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    database.commit()
    for ask in (store.check, lambda: store.run("r"), lambda: store.client):
        with pytest.raises(TrackingError, match="has the schema 0584bdc529eb") as raised:
            ask()
        assert "mlflow db upgrade sqlite:///" in str(raised.value.hint)
    assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("0584bdc529eb",)]
    database.close()


def test_a_deleted_experiment_is_said(store: Tracker) -> None:
    """With the command that restores it, once MLflow has refused the experiment that was known."""
    store.start_run("exp", name="run", tags={})
    store.client.delete_experiment(store.client.get_experiment_by_name("exp").experiment_id)
    with pytest.raises(TrackingError, match="Current state is deleted"):
        store.start_run("exp", name="run", tags={})
    with pytest.raises(TrackingError, match="'exp' was deleted") as raised:
        store.start_run("exp", name="run", tags={})
    assert "mlflow experiments restore" in str(raised.value.hint)


def test_the_default_is_sqlite_under_storage(tmp_path: Path) -> None:
    """Database and artifacts are in storage.path."""
    found = tracker(spec(storage={"path": str(tmp_path / "new")}))
    assert found.uri == f"sqlite:///{tmp_path}/new/mlflow.db"
    assert found.artifacts == f"{tmp_path}/new/mlartifacts"


def test_a_sqlite_file_keeps_artifacts_beside_itself(
    storage_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that tracking.uri names is no reason to write to the working directory, which MLflow would."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    found = tracker(spec(tracking={"uri": f"sqlite:///{storage_path}/mlflow.db"}, storage={"path": "elsewhere"}))
    run_id = found.start_run("exp", name="run", tags={})
    found.log_text(run_id, "hello", "hello.txt")
    assert found.run(run_id).info.artifact_uri.startswith(f"{storage_path}/mlartifacts/exp/")
    assert list(cwd.iterdir()) == []


def test_a_database_server_keeps_artifacts_under_storage() -> None:
    """It has no folder of its own; an MLflow server says itself where they go."""
    postgres = tracker(spec(tracking={"uri": "postgresql://db/mlflow"}, storage={"path": "file:///data"}))
    assert postgres.artifacts == "/data/mlartifacts"
    assert tracker(spec(tracking={"uri": "http://mlflow:5000"}, storage={"path": "/data"})).artifacts is None


def test_sqlite_cannot_live_in_a_bucket() -> None:
    """A URI as storage.path needs a tracking.uri beside it."""
    with pytest.raises(ConfigError, match=r"tracking\.uri: is required"):
        tracker(spec(storage={"path": "s3://bucket/raymlops"}))


def test_credentials_come_by_reference_and_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A password in the URI's variable is used and never printed; a missing variable is a ConfigError."""
    monkeypatch.setenv("MY_MLFLOW", "postgresql://user:hunter2@127.0.0.1:9/mlflow")
    found = tracker(spec(tracking={"uri": {"env": "MY_MLFLOW"}}))
    assert "hunter2" not in repr(found)
    with pytest.raises(TrackingError) as raised:
        found.check()
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match="NOT_SET is not set"):
        tracker(spec(tracking={"uri": {"env": "NOT_SET"}}))
