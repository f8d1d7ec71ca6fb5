"""One Ray with Serve on it, for ``serve_latency``: raymlops' own way to start it, or what Ray gives by itself.

    python serve_latency_ray.py PORT python|haproxy raymlops FOLDER DIGEST    # /models/bench, /models/unlogged
    python serve_latency_ray.py PORT python|haproxy bare WEIGHTS              # /peer

Runs until it is told to end (SIGTERM). Serve reads how to start from the environment, which is ``environment``'s.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path

HOST = "127.0.0.1"
_given: list[int] = []
CPUS = {"num_cpus": 0.2}


def environment(kind: str, proxy: str, scratch: str) -> dict[str, str]:
    """Return the variables with which one is to be started."""
    from raymlops.cluster import services

    own = {**services.GUARD, **services.SPEED} if kind == "raymlops" else {}
    if proxy == "python":
        return own
    first = free_range(60)
    ours = services.serve_environment(scratch=scratch, stats_port=first, metrics_port=first + 1)
    # Bare Ray Serve gets the mode that its documentation has for speed; and ports that are free, as ours.
    kept = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_HAPROXY", "RAY_SERVE_FALLBACK")
    mode = {
        key: value
        for key, value in ours.items()
        if kind == "raymlops" or (key.startswith(kept) and "TIMEOUT" not in key and "TUNE" not in key)
    }
    return {
        **own,
        **mode,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first + 2),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 30),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first + 31),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + 59),
    }


def free_range(count: int) -> int:
    """Return the first of some ports in a row that nothing listens on now, and that were not given before."""
    for first in range(23000 if not _given else _given[-1] + count, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind((HOST, port))
        except OSError:
            continue
        _given.append(first)
        return first
    sys.exit("no free ports between 23000 and 32000")


def main(port: int, proxy: str, kind: str, *rest: str) -> None:
    """Start, serve and end."""
    import ray

    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    context = ray.init(
        address="local", num_cpus=2, dashboard_port=port + 1, include_dashboard=True, log_to_driver=False
    )
    try:
        if kind == "raymlops":
            serve_ours(f"http://{context.dashboard_url}", port, proxy, *rest)
        else:
            serve_bare(port, *rest)
        ended.wait()
    finally:
        ray.shutdown()


def serve_ours(dashboard: str, port: int, proxy: str, folder: str, digest: str) -> None:
    from serve_apply import apply

    from raymlops.records import BundleRef
    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.store import Deployment, Desired

    one = {"min_replicas": 1, "max_replicas": 1, "proxy": proxy}
    settings = {"bench": one, "unlogged": {**one, "log": {"enabled": False}}}
    bundle = BundleRef(folder, digest)
    desired = Desired(
        tuple(Deployment(name, 1, bundle, "0" * 32, "champion", serve) for name, serve in settings.items())
    )
    apply(desired, api=ServeApi(dashboard), wait_s=120, host=HOST, port=port)


def serve_bare(port: int, weights: str) -> None:
    from ray import serve
    from serve_latency_peer import Peer

    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port}, logging_config=quiet)
    # What raymlops gives a replica, whose defaults of 5 in flight and no bound behind that are for other models.
    app = Peer.options(num_replicas=1, max_ongoing_requests=64, max_queued_requests=128, ray_actor_options=CPUS).bind(
        weights
    )
    serve.run(app, name="peer", route_prefix="/peer", logging_config=quiet)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "fixtures")]
    main(int(sys.argv[1]), *sys.argv[2:])
