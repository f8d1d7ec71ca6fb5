from __future__ import annotations

import re
import signal
import subprocess
import sys

import orjson
import pytest

from raymlops.predictions.served import RequestRecord
from raymlops.serving.telemetry.access_log import AccessLog, line

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def served(**more) -> RequestRecord:
    facts = {
        "request_id": "r1",
        "ts": 1_700_000_000.25,
        "version": 7,
        "route": "champion",
        "protocol": "native",
        "status": 200,
        "code": "",
        "rows": 2,
        "body_bytes": 345,
        "seconds": 0.0041234,
        "model_seconds": 0.002,
    }
    return RequestRecord(**(facts | more))


def access_log(folder, **more) -> AccessLog:
    return AccessLog(folder, name="flights", version=7, replica="abc#1", **more)


def lines(path):
    return [orjson.loads(text) for text in path.read_bytes().split(b"\n")[:-1]]


def test_a_line_says_who_asked_what_answered_and_how_long_it_took(tmp_path):
    """Every field, and nothing of the rows themselves."""
    log = access_log(tmp_path)
    request = served(
        key_id="k3",
        client="192.0.2.1, 10.0.0.1",
        fallback_from=8,
        traceparent=TRACE,
        columns={"secret": [1]},
        outputs={"secret": [2]},
        code="x",
    )
    log.take([request])
    log.close()
    assert log.path == tmp_path / "raymlops-access-flights--v7-abc_1.log"
    assert lines(log.path) == [
        {
            "ts": "2023-11-14T22:13:20.250000Z",
            "request_id": "r1",
            "model": "flights",
            "version": 7,
            "route": "champion",
            "protocol": "native",
            "status": 200,
            "code": "x",
            "rows": 2,
            "bytes": 345,
            "ms": 4.123,
            "model_ms": 2.0,
            "key_id": "k3",
            "client": "192.0.2.1, 10.0.0.1",
            "fallback_from": 8,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
        }
    ]


@pytest.mark.parametrize("text", ["a\nb\r\x00", "a\u2028b\x85c", "\x1b[31m\x9b2J", "\ud800", '"}\n{"x":1', "é" * 300])
def test_no_text_breaks_a_line(text):
    """Whatever a request calls itself, its line is one, printable and JSON."""
    written = line(served(request_id=text, key_id=text, traceparent=text), "flights")
    assert written.endswith(b"\n")
    assert re.fullmatch(rb"[ -~]+", written[:-1])
    assert orjson.loads(written)["trace_id"] is None


def test_the_files_are_bounded(tmp_path):
    """Forty lines at about 260 bytes into files of 1,000: three files, the newest lines, all of them whole."""
    log = access_log(tmp_path, max_bytes=1000)
    for number in range(40):
        log.take([served(request_id=f"r{number:02}")])
    log.close()
    files = sorted(tmp_path.iterdir(), key=lambda path: path.name, reverse=True)
    assert [path.name[len(log.path.name) :] for path in files] == [".2", ".1", ""]
    assert all(path.stat().st_size <= 1000 for path in files)
    kept = [item["request_id"] for path in files for item in lines(path)]
    assert kept == [f"r{number:02}" for number in range(40)][-len(kept) :]
    assert len(kept) >= 7


def test_a_restarted_replica_goes_on_in_its_file(tmp_path):
    """What is there stays, and counts towards the bound."""
    for number in range(2):
        log = access_log(tmp_path)
        log.take([served(request_id=f"r{number}")])
        log.close()
    assert [item["request_id"] for item in lines(log.path)] == ["r0", "r1"]


def test_a_full_disk_loses_lines_but_spoils_none(tmp_path):
    """A write that fails half way leaves whole lines, and the next one is kept."""
    resource = pytest.importorskip("resource")
    log = access_log(tmp_path)
    log.take([served(request_id="before")])
    size = log.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))  # room for half a line
    try:
        with pytest.raises(OSError, match="File too large"):
            log.take([served(request_id="lost")] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    log.take([served(request_id="after")])
    log.close()
    assert [item["request_id"] for item in lines(log.path)] == ["before", "after"]


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path):
    """The log starts once the folder can be made."""
    (tmp_path / "serve").write_text("in the way")
    log = access_log(tmp_path / "serve")
    with pytest.raises(OSError):
        log.take([served()])
    (tmp_path / "serve").unlink()
    log.take([served()])
    log.close()
    assert len(lines(log.path)) == 1


def test_switched_off_or_idle_it_makes_no_file(tmp_path):
    """It can be switched while it runs."""
    log = access_log(tmp_path, enabled=False)
    log.take([served()])
    log.enabled = True
    log.take([])
    assert list(tmp_path.iterdir()) == []
    log.take([served()])
    log.close()
    assert len(lines(log.path)) == 1


def test_without_a_cluster_there_is_no_folder():
    """It says so, instead of writing into wherever the process stands."""
    program = "from raymlops.serving.telemetry.access_log import log_folder; log_folder()"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120)
    assert "this process is not part of a Ray cluster; pass a folder" in done.stderr
