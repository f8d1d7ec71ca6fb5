"""What feedback takes beside a prediction: python tests/benchmarks/feedback_latency.py [PAIRS] [python|haproxy]

A client on one connection asks for a prediction and sends its label, PAIRS times (1,500). Prints the median and the
99th percentile of both and their ratio, of the first 500 and of the last 500, by when a stream of single labels has
lasted; a label is on the disk before its answer comes, a prediction is not. Then the same for eight clients at once.

With the name of a proxy it is an endpoint behind that proxy, as callers see it; without one the front of one replica
with its recorders and its log, on uvicorn.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

import uvicorn
from endpoints import endpoint
from serving_bundles import MIXED_ROWS
from tiny_bundle import EXAMPLE, tiny_contents

from raymlops.bundle.load import load
from raymlops.bundle.write import write_bundle
from raymlops.predictions.settings import LogSettings
from raymlops.serving.replica.handler import Identity, RequestHandler
from raymlops.serving.replica.http_front import Front
from raymlops.serving.replica.recording import Recording
from raymlops.serving.settings import Settings

SLICE = 500


def main(pairs: int, proxy: str | None) -> None:
    """Print everything."""
    if proxy is not None:
        with endpoint(proxy) as served:  # type: ignore[arg-type]
            compare(served.url, MIXED_ROWS[:1], 1.0, pairs)
        return
    with tempfile.TemporaryDirectory() as folder:
        front, recording = made(folder)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(front, log_level="warning", access_log=False, lifespan="off"))
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
        while not server.started:
            time.sleep(0.01)
        compare(f"http://127.0.0.1:{listener.getsockname()[1]}", EXAMPLE[:1], "yes", pairs)
        server.should_exit = True
        recording.close()
        print(f"{sum(1 for _ in Path(folder, 'labels').rglob('*.parquet')):,} files of labels")


def compare(url: str, rows: list[dict], label: object, pairs: int) -> None:
    """Print both of one client, and of eight at once."""
    times = asked(url, rows, label, pairs)
    say("first", times[:SLICE])
    say("last", times[-SLICE:])
    per_client: list[list[tuple[float, float]]] = []
    clients = [threading.Thread(target=lambda: per_client.append(asked(url, rows, label, SLICE))) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    say("eight at once", [pair for times in per_client for pair in times])


def made(folder: str) -> tuple[Front, Recording]:
    """Return a front whose log is below a folder."""
    bundle = write_bundle(folder, tiny_contents())
    model = load(bundle.uri, bundle.digest)
    handler = RequestHandler(model, Identity("m", 1, bundle.digest, "run"), peers=None)  # type: ignore[arg-type]
    settings = Settings(log=LogSettings(enabled=True, uri=folder))
    recording = Recording(handler, replica="benchmark", folder=Path(folder))
    recording.configure(settings)
    handler.configure(settings)
    handler.record = recording.add
    front = Front(handler, labels=recording.labels)
    front.warm_up()
    return front, recording


def asked(url: str, rows: list[dict], label: object, pairs: int) -> list[tuple[float, float]]:
    """Return the seconds of each prediction and of its label."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    times = []
    for _ in range(pairs):
        answer, predict_s = sent(connection, f"{address.path}/predict", {"rows": rows}, 200)
        told = {"request_id": answer["request_id"], "row": 0, "label": label}
        times.append((predict_s, sent(connection, f"{address.path}/feedback", {"labels": [told]}, 202)[1]))
    return times


def sent(connection: http.client.HTTPConnection, path: str, body: object, status: int) -> tuple[dict, float]:
    """Return an answer and the seconds it took."""
    data = json.dumps(body)
    start = time.perf_counter()
    connection.request("POST", path, data, {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    seconds = time.perf_counter() - start
    if response.status != status:
        raise SystemExit(f"{path}: {response.status} {text.decode()}")
    return json.loads(text), seconds


def say(what: str, times: list[tuple[float, float]]) -> None:
    """Print one line."""
    predict, feedback = (sorted(side) for side in zip(*times, strict=True))
    middle, high = len(times) // 2, len(times) * 99 // 100
    print(
        f"{what:14} predict {predict[middle] * 1e3:6.2f} ms (p99 {predict[high] * 1e3:6.2f})  "
        f"feedback {feedback[middle] * 1e3:6.2f} ms (p99 {feedback[high] * 1e3:6.2f})  "
        f"ratio {feedback[middle] / predict[middle]:5.2f}",
        flush=True,
    )


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1500, sys.argv[2] if len(sys.argv) > 2 else None)
