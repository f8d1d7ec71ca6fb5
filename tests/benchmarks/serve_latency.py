"""Requests a second and latency of a served model, beside a bare FastAPI-on-Ray-Serve deployment of the same model.

Run it: ``python tests/benchmarks/serve_latency.py [--proxy python|haproxy|both] [--seconds 3] [--rounds 3]``. About two
minutes for both proxy modes on two cores. Each mode gets a Ray of its own, in which both applications are up at the
same time with equal replicas, CPUs and concurrency; rounds of load alternate between them, so that a noisy
neighbour hits both. A figure is the median of the rounds; the ratio is ours over the peer's, round by round.

The peer is what Ray Serve's documentation shows: ``@serve.ingress`` over FastAPI, a pydantic model as body and as
answer (which FastAPI writes in Rust), an async method, access logs off. Both answer one row a request, with the same
weights. The proxy runs with raymlops' guard for both; it hands over the bodies of requests to /models/ alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONNECTIONS = (1, 8, 64)
PORTS = {"python": 21100, "haproxy": 21200}
ROW = {"a": 0.5, "b": -1.25, "c": 3.0, "d": 0.0, "e": 12.5, "f": -0.75, "g": None, "colour": "green"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--proxy", choices=["python", "haproxy", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one round of load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--inside", choices=["python", "haproxy"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.inside, seconds=options.seconds, rounds=options.rounds)))
        return
    modes = ["python", "haproxy"] if options.proxy == "both" else [options.proxy]
    results = {mode: run_mode(mode, seconds=options.seconds, rounds=options.rounds) for mode in modes}
    print(json.dumps(results) if options.json else "\n\n".join(table(mode, rows) for mode, rows in results.items()))


def run_mode(mode: str, *, seconds: float, rounds: int) -> list[dict]:
    """Run one proxy mode in a process of its own: Serve reads its mode from the environment when it is imported."""
    folder = tempfile.mkdtemp(prefix="rmb", dir="/tmp")
    environment = {
        **os.environ,
        "HOME": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAYMLOPS_BENCH_FOLDER": folder,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        **serve_environment(mode, folder),
    }
    command = [sys.executable, __file__, "--inside", mode, f"--seconds={seconds}", f"--rounds={rounds}"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        sys.exit(f"{mode}: exit {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def serve_environment(mode: str, folder: str) -> dict[str, str]:
    from raymlops.cluster import services

    if mode == "python":
        return {**services.GUARD, **services.SPEED}
    port = PORTS[mode]
    return {
        **services.GUARD,
        **services.SPEED,
        **services.serve_environment(scratch=folder, stats_port=port + 10, metrics_port=port + 11),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port + 20),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 60),
    }


def measure(mode: str, *, seconds: float, rounds: int) -> list[dict]:
    import ray

    from raymlops.serving.api import ServeApi
    from raymlops.serving.apply import apply
    from raymlops.serving.proxy import start_proxy
    from raymlops.state.store import Deployment

    bundle = make_bundle(Path(os.environ["RAYMLOPS_BENCH_FOLDER"]))
    serve_settings = {"min_replicas": 1, "max_replicas": 1}
    context = ray.init(
        address="local", num_cpus=2, include_dashboard=True, dashboard_port=PORTS[mode], log_to_driver=False
    )
    try:
        port = start_proxy("127.0.0.1", PORTS[mode] + 1, proxy=mode)
        api = ServeApi(f"http://{context.dashboard_url}")
        peer = {
            "name": "peer",
            "route_prefix": "/peer",
            "import_path": "serve_latency:peer_app",
            "args": {"uri": bundle.uri, "digest": bundle.digest},
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
            "deployments": [
                {
                    "name": "Peer",
                    "autoscaling_config": {"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 16},
                    "max_ongoing_requests": 64,
                    "max_queued_requests": 128,
                    "ray_actor_options": {"num_cpus": 0.2, "num_gpus": 0.0},
                }
            ],
        }
        api.put(
            {
                "proxy_location": "HeadOnly",
                "http_options": {"host": "127.0.0.1", "port": port},
                "applications": [peer],
            }
        )
        ours = Deployment("bench", 1, bundle, "0" * 32, "champion", serve_settings)
        apply([ours], api=api, wait_s=120)
        wait_for(api, "peer")
        return asyncio.run(rounds_of_load(port, seconds=seconds, rounds=rounds))
    finally:
        ray.shutdown()


def wait_for(api, name: str) -> None:
    deadline = time.monotonic() + 120
    while api.get()["applications"][name]["status"] != "RUNNING":
        if time.monotonic() > deadline:
            sys.exit(f"{name} did not come up")
        time.sleep(0.2)


async def rounds_of_load(port: int, *, seconds: float, rounds: int) -> list[dict]:
    paths = {"raymlops": ("/models/bench/predict", {"rows": [ROW]}), "fastapi": ("/peer/predict", {"rows": [ROW]})}
    answers = {}
    for name, (path, body) in paths.items():
        answers[name] = json.loads(await once(port, path, body))["outputs"]
        await load(port, path, body, connections=8, seconds=1.0)
    if not np.isclose(answers["raymlops"][0]["y"], answers["fastapi"][0]["y"], rtol=1e-5):
        sys.exit(f"the two do not answer alike: {answers}")
    rows = []
    for connections in CONNECTIONS:
        runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in paths}
        for turn in range(rounds):
            order = list(paths) if turn % 2 == 0 else list(reversed(paths))
            for name in order:
                path, body = paths[name]
                runs[name].append(await load(port, path, body, connections=connections, seconds=seconds))
        row: dict = {"connections": connections}
        for name, figures in runs.items():
            rate, p50, p99 = (statistics.median(column) for column in zip(*figures, strict=True))
            row[name] = {"requests_per_s": round(rate, 1), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
        ratios = [one[0] / other[0] for one, other in zip(runs["raymlops"], runs["fastapi"], strict=True)]
        row["ratio"] = round(statistics.median(ratios), 2)
        rows.append(row)
    return rows


class Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection that sends the same request again and again."""

    def __init__(self, request: bytes, latencies: list[float], until: float) -> None:
        self.request = request
        self.latencies = latencies
        self.until = until
        self.buffer = b""
        self.body = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        start = head.index(b"content-length:") + 15
        stop = head.find(b"\r\n", start)
        length = int(head[start : stop if stop >= 0 else len(head)])
        if len(self.buffer) < end + 4 + length:
            return
        if not head.startswith(b"http/1.1 200"):
            self.done.set_exception(RuntimeError(f"got {self.buffer[:300]!r}"))
            self.transport.close()
            return
        self.body, self.buffer = self.buffer[end + 4 : end + 4 + length], b""
        now = time.perf_counter()
        self.latencies.append(now - self.sent)
        if now < self.until:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.done.set_result(None)


def request_bytes(path: str, body: dict) -> bytes:
    content = json.dumps(body).encode()
    headers = ["host: 127.0.0.1", "content-type: application/json", f"content-length: {len(content)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""]).encode() + content


async def once(port: int, path: str, body: dict) -> bytes:
    connection = Connection(request_bytes(path, body), [], 0.0)
    await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
    await connection.done
    return connection.body


async def load(port: int, path: str, body: dict, *, connections: int, seconds: float) -> tuple[float, float, float]:
    """Return requests a second, p50 and p99 in milliseconds."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    start = time.perf_counter()
    clients = [Connection(request_bytes(path, body), latencies, start + seconds) for _ in range(connections)]
    await asyncio.gather(*(loop.create_connection(lambda c=client: c, "127.0.0.1", port) for client in clients))
    await asyncio.gather(*(client.done for client in clients))
    elapsed = time.perf_counter() - start
    return len(latencies) / elapsed, *(float(value) * 1e3 for value in np.percentile(latencies, [50, 99]))


def make_bundle(folder: Path):
    import torch
    from serve_latency_model import Bench

    from raymlops.bundle.write import BundleContents, write_bundle

    torch.manual_seed(0)
    recipe = Bench()
    return write_bundle(
        str(folder),
        BundleContents(
            weights=recipe.model().state_dict(),
            state={},
            signature=recipe.signature(),
            example=[ROW],
            recipe_class=Bench,
            recipe_config={},
            seed=0,
            config_yaml="project: {name: bench}\n",
            profile={},
            evaluation={},
            row_hashes=np.zeros(1, dtype=np.uint64),
            lineage={},
        ),
    )


def peer_app(args: dict):
    """Build the peer: FastAPI on Ray Serve as its documentation shows."""
    from serve_latency_peer import Peer

    return Peer.bind(args)


def table(mode: str, rows: list[dict]) -> str:
    lines = [
        f"{mode} proxy",
        f"{'connections':>11}  {'':10} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>6}",
    ]
    for row in rows:
        for name in ("raymlops", "fastapi"):
            figures = row[name]
            shown = f"{row['ratio']:.2f}" if name == "raymlops" else ""
            lines.append(
                f"{row['connections']:>11}  {name:10} {figures['requests_per_s']:>10.1f} {figures['p50_ms']:>8.2f} "
                f"{figures['p99_ms']:>8.2f} {shown:>6}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
