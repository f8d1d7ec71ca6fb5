from __future__ import annotations

import json
import shlex
import socket
import threading

import httpx
import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from pyarrow import parquet
from serving_fakes import Computes, front_of

from raymlops.arrays import Column
from raymlops.errors import ClusterError, InvalidRowsError, NotFoundError, UsageError
from raymlops.lifecycle.predict_file import ask_file, curl_line
from raymlops.serving.client.client import Client
from raymlops.serving.refusal import Limits
from raymlops.signature import Signature


class Echo(Computes):
    """Answers every row with what arrived of it."""

    signature = Signature(
        inputs=(
            Column("carrier", "string", nullable=True),
            Column("seats", "int", nullable=True),
            Column("miles", "float"),
        ),
        outputs=(Column("seen", "string"),),
    )
    example = [{"carrier": "AA", "seats": 1, "miles": 1.0}]  # noqa: RUF012

    def predict(self, columns):
        rows = zip(columns["carrier"], columns["seats"], columns["miles"], strict=True)
        return {"seen": np.array([f"{carrier} {seats:g} {miles:g}" for carrier, seats, miles in rows], dtype=object)}


class Endpoint:
    """One route under which ``version`` answers, at most two rows a request; the route moves on after three answers."""

    def __init__(self):
        limits = Limits(max_rows=2)
        self.fronts = [front_of(Echo(), name="echo", version=n, limits=limits) for n in (7, 8)]
        self.asked = 0
        for front in self.fronts:
            front.warm_up()

    async def __call__(self, scope, receive, send):
        if scope["path"].endswith("/predict"):
            self.asked += 1
        await self.fronts[self.asked > 3](scope, receive, send)


@pytest.fixture
def endpoint(monkeypatch):
    """Serve the route from a thread, until the test is over."""
    monkeypatch.delenv("RAYMLOPS_API_KEY", raising=False)
    served = Endpoint()
    server = uvicorn.Server(uvicorn.Config(served, lifespan="off", ws="none", log_level="error"))
    # It listens before the thread runs: the first request waits in the socket's queue until it is served.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield served
        server.should_exit = True
        thread.join(timeout=30)
    for front in served.fronts:
        front.handler.close()


def asked(endpoint, file, *, name="echo", **options):
    with Client(endpoint.url, **options) as client:
        return ask_file(client, name, file)


def seen(answers):
    return [row["seen"] for row in answers.outputs]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"rows": rows}], ids=["list", "object"])
def test_json_rows_are_asked_as_they_are(endpoint, tmp_path, wrap):
    """Bare or as the endpoint's own body."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(wrap([{"carrier": "AA", "seats": 3, "miles": 1.5}, {"miles": 2}])))
    answers = asked(endpoint, file)
    assert seen(answers) == ["AA 3 1.5", "None nan 2"]
    assert (answers.model_versions, len(answers.request_ids)) == (["7"], 1)


def test_csv_cells_are_read_by_the_signature(endpoint, tmp_path):
    """NA is a carrier, an empty cell is missing, 3.0 is a whole number, and the label goes nowhere."""
    file = tmp_path / "rows.csv"
    file.write_text("late,carrier,seats,miles\n1,NA,3.0,1e1\n0,,,2\n", encoding="utf-8-sig")
    assert seen(asked(endpoint, file)) == ["NA 3 10", "None nan 2"]


def test_a_csv_cell_that_does_not_fit_is_named(endpoint, tmp_path):
    """By its row in the file and its field, before anything is sent."""
    file = tmp_path / "rows.csv"
    file.write_text("seats,miles\n1,1\n1,1\n1.5,1\n1,far\n")
    with pytest.raises(InvalidRowsError) as error:
        asked(endpoint, file)
    assert [(problem.row, problem.field) for problem in error.value.problems] == [(2, "seats"), (3, "miles")]
    assert endpoint.asked == 0


@pytest.mark.parametrize("seats", [pa.array([3, None]), pa.array([3.0, float("nan")])], ids=["null", "nan"])
def test_a_whole_number_with_gaps_survives_parquet(endpoint, tmp_path, seats):
    """As Arrow stores it, and as pandas does, which makes floats of it."""
    file = tmp_path / "rows.parquet"
    table = pa.table({"carrier": ["NA", None], "seats": seats, "miles": [1.0, 2.0], "late": [True, False]})
    parquet.write_table(table, file)
    assert seen(asked(endpoint, file)) == ["NA 3 1", "None nan 2"]


def test_bytes_and_times_of_parquet_are_sent(tmp_path):
    """As they are in the file; the printed line has them as JSON does."""
    import base64
    from datetime import datetime

    signature = Signature((Column("blob", "bytes"), Column("at", "datetime")), (Column("y", "float"),))
    file = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"blob": [b"\0\1"], "at": pa.array([datetime(2026, 11, 27)])}), file)  # noqa: DTZ001
    sent = []

    def answer(request):
        if request.method == "GET":
            described = {"signature": signature.to_dict(), "version": 7, "model_version": "7"}
            return httpx.Response(200, json=described)
        sent.append(json.loads(request.content)["rows"])
        return httpx.Response(200, json={"outputs": [{"y": 1.0}], "model_version": "7", "request_id": "r"})

    with Client("http://host", transport=httpx.MockTransport(answer)) as client:
        answers = ask_file(client, "echo", file)
    rows = [{"blob": base64.b64encode(b"\0\1").decode(), "at": "2026-11-27T00:00:00+00:00"}]
    assert sent == [rows]
    assert json.loads(shlex.split(answers.curl)[-1]) == {"rows": rows}


def test_requests_are_no_larger_than_the_endpoint_takes_and_every_version_is_named(endpoint, tmp_path):
    """Seven rows, two a request: three requests to version 7, then the route moves to 8."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"miles": n} for n in range(7)]))
    answers = asked(endpoint, file)
    assert seen(answers) == [f"None nan {n}" for n in range(7)]
    assert answers.model_versions == ["7", "8"]
    assert len(set(answers.request_ids)) == 4


def test_the_printed_curl_line_asks_for_the_first_row(endpoint, tmp_path):
    """Its body is what the endpoint takes, quotes included."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"carrier": "O'Hare", "miles": 1}, {"miles": 2}]))
    answers = asked(endpoint, file)
    command = shlex.split(answers.curl)
    assert command[:3] == ["curl", "-s", f"{endpoint.url}/models/echo/predict"]
    name, _, value = command[command.index("-H") + 1].partition(": ")
    again = httpx.post(command[2], content=command[command.index("-d") + 1], headers={name: value}, trust_env=False)
    assert again.json()["outputs"] == answers.outputs[:1]


def test_the_printed_curl_line_names_a_key_by_its_variable():
    """What is printed lands in logs."""
    with Client("http://host", api_key="rk_secret") as client:
        curl = curl_line(client, "echo", [{"miles": 1}])
    assert '-H "authorization: Bearer $RAYMLOPS_API_KEY"' in curl
    assert "rk_secret" not in curl


def test_a_number_beyond_64_bits_is_a_float(endpoint, tmp_path):
    """JSON has them; a float column takes them."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"miles": 2**70}]))
    assert seen(asked(endpoint, file)) == ["None nan 1.18059e+21"]


@pytest.mark.parametrize(
    ("row", "field"),
    [({"miles": 10**400}, "miles"), ({"miles": 1, "seats": 10**30}, "seats"), ({"miles": "1"}, "miles")],
)
def test_a_json_value_that_cannot_be_sent_is_named(endpoint, tmp_path, row, field):
    """Integers beyond what its column holds among them."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"miles": 1}, row]))
    with pytest.raises(InvalidRowsError) as error:
        asked(endpoint, file)
    assert [(problem.row, problem.field) for problem in error.value.problems] == [(1, field)]


@pytest.mark.parametrize(("name", "text"), [("rows.json", "[]"), ("rows.csv", "carrier,miles\n")])
def test_no_rows_are_the_endpoints_to_refuse(endpoint, tmp_path, name, text):
    """It says what it expects."""
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InvalidRowsError, match="non-empty list of rows"):
        asked(endpoint, file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.json", "", "cannot be read"),
        ("rows.json", "3", "expected a list of rows"),
        ("rows.json", '[{"carrier": "\\ud800", "miles": 1}]', "surrogates"),
        ("rows.json", "[" * 100_000, "cannot be read"),
        ("rows.csv", "", "none of the model's columns: carrier, seats, miles"),
        ("rows.csv", "miles,seats\n1,2,3\n", "line 2 has more cells"),
        ("rows.parquet", "", "cannot be read"),
        ("rows.txt", "", r"ends in \.json, \.csv, \.parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(endpoint, tmp_path, name, text, message):
    """With the reason."""
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        asked(endpoint, file)
    assert name in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    """Before anyone is asked."""
    with pytest.raises(UsageError, match="no such file"):
        ask_file(Client("http://127.0.0.1:9"), "echo", tmp_path / "rows.csv")


def test_an_endpoint_that_is_not_there_is_said_so(endpoint, tmp_path):
    """A route without a model, and a port without a server."""
    file = tmp_path / "rows.json"
    file.write_text("[]")
    with pytest.raises(NotFoundError):
        asked(endpoint, file, name="nothing")
    with pytest.raises(ClusterError, match="cannot connect"):
        ask_file(Client("http://127.0.0.1:9", retries=0), "echo", file)


def test_one_version_is_asked_by_curl_too(endpoint, tmp_path):
    """The line asks whom the command asked."""
    file = tmp_path / "rows.json"
    file.write_text('[{"miles": 2}]')
    with Client(endpoint.url) as client:
        answers = ask_file(client, "echo", file, version=7)
    assert shlex.split(answers.curl)[5:7] == ["-H", "x-raymlops-version: 7"]


def test_a_version_that_is_not_up_is_told_those_that_are(endpoint, tmp_path):
    """The model does answer: it is the version that is not there."""
    file = tmp_path / "rows.json"
    file.write_text('[{"miles": 2}]')
    with Client(endpoint.url) as client, pytest.raises(NotFoundError) as error:
        ask_file(client, "echo", file, version="99")
    assert "version '99' is not up; live versions: 7" in error.value.message
    assert "no model answers" not in error.value.message
