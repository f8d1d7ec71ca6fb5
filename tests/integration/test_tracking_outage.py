"""A run's points over an MLflow server that goes away, and over a network that loses its answers."""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from mlflow_server import Server

from raymlops.tracking.client import Tracker, steps_of
from raymlops.training.events import Event
from raymlops.training.runs.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

NAMES = ("train/loss", "train/lr", "time/data")


@pytest.fixture(autouse=True)
def _impatient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client repeats a failed request once, after two seconds, and not three times in fourteen."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    server = Server(folder)
    server.start()
    yield server
    server.stop()


def step_event(step: int) -> Event:
    return Event("step", step=step, steps=10_000, metrics=dict.fromkeys(NAMES, 1 / step), timestamp_ms=10_000 + step)


def assert_whole(store: Tracker, run_id: str, *, steps: int) -> None:
    """Every step of every name is there, once, in order."""
    for name in NAMES:
        found = [(point.step, point.value) for point in store.client.get_metric_history(run_id, name)]
        assert found == [(step, 1 / step) for step in range(1, steps + 1)]


def go_on_until(write: Callable[[], None], happened: Callable[[], Any], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline
        write()
        time.sleep(0.01)


@pytest.mark.soak
def test_a_server_that_restarts_in_mid_run_loses_and_doubles_nothing(server: Server) -> None:
    """Points are made while it is up, while it is down and after it came back, by a run that then is reopened."""
    store = Tracker(server.url)
    run_id = store.start_run("outage", name="run", tags={})
    told: list[str] = []
    writer = RunWriter(store, run_id, on_event=lambda event: told.append(event.message))
    step = 0

    def write() -> None:
        nonlocal step
        step += 1
        started = time.monotonic()
        writer(step_event(step))
        assert time.monotonic() - started < 1  # whatever MLflow does

    go_on_until(write, lambda: steps_of(store.run(run_id)).get("train/loss"))
    server.stop()
    go_on_until(write, lambda: any("buffered until it does" in text for text in told))
    at_outage = step
    for _ in range(1000):
        write()
    server.start()
    go_on_until(write, lambda: any("accepts data again" in text for text in told))
    writer.close("FINISHED", tags={"a": "b"})
    assert step > at_outage + 1000
    assert_whole(store, run_id, steps=step)
    run = store.run(run_id)
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")

    previous = store.reopen_run(run_id)
    assert steps_of(previous) == dict.fromkeys(NAMES, step)
    again = RunWriter(store, run_id, previous=previous)
    for replayed in range(step - 20, step + 21):
        again(step_event(replayed))
    again.close("FINISHED", tags={})
    assert_whole(store, run_id, steps=step + 20)


class Forgetful(BaseHTTPRequestHandler):
    """Hands requests on, and closes the connection instead of giving the answer to some that write metrics."""

    protocol_version = "HTTP/1.1"
    port = 0
    to_lose = 0
    lost = 0

    def do_GET(self) -> None:
        self._hand_on()

    def do_POST(self) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if self.path.endswith("log-batch") and type(self).to_lose:
            type(self).to_lose -= 1
            type(self).lost += 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def network(server: Server) -> Iterator[str]:
    Forgetful.port, Forgetful.to_lose, Forgetful.lost = server.port, 0, 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Forgetful) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
        thread.join()


@pytest.mark.parametrize("lost", [1, 3])
def test_an_answer_that_is_lost_doubles_nothing(network: str, server: Server, lost: int) -> None:
    """MLflow's client repeats a request once by itself; after that the writer asks what became of it."""
    store = Tracker(network)
    run_id = store.start_run("outage", name="run", tags={})
    Forgetful.to_lose = lost
    writer = RunWriter(store, run_id)
    for step in range(1, 3001):
        writer(step_event(step))
    writer.close("FINISHED", tags={"a": "b"})
    assert Forgetful.lost == lost
    assert_whole(Tracker(server.url), run_id, steps=3000)
    assert store.run(run_id).data.tags["a"] == "b"
