"""Requests a second and latency of a served model, beside other ways to serve the same weights.

Run it: ``python tests/benchmarks/serve_latency.py [--quick] [--peers asgi,fastapi,...] [--seconds 2] [--rounds 3]``;
about ten minutes on two cores, and some more at the first run.
The first of the peers stays up; each other one is started beside it, measured against it and ended, so that no third
server takes CPU time from the two. One process or replica with one torch thread each; rounds of load alternate, so that
a noisy neighbour hits both. A figure is the median of its rounds, a ratio to the first that of the same rounds, any
other ratio one of two such. Every answer is compared with the model's own before anything is measured.

=================== ===============================================================================================
raymlops-haproxy    one row a request, as ``raymlops up`` starts it: prediction log, access log, metrics on
raymlops-python     the same behind Serve's Python proxy; and each without the prediction log
ray-haproxy         FastAPI on Ray Serve with a pydantic body, access logs off, in Ray's throughput mode
ray-python          the same as Ray starts it by default
asgi                uvicorn, one worker, no router and no checks: the limit of a Python server
fastapi             uvicorn, one worker, a pydantic body
mlflow              ``mlflow models serve``, one worker, a pyfunc with type hints
litserve, bentoml   in environments of their own below ``--venvs``, made at the first run
=================== ===============================================================================================

``cpu us`` is the CPU time a request of all processes of a server, which says more than its rate where the machine is
shared; ``client`` the share of a core that the load generator took: near 1 it is what limits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import serve_latency_net as net
from serve_latency_load import load
from serve_latency_report import table
from serve_latency_servers import NAMES, Model, Server, start

CONNECTIONS = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default=",".join(NAMES), help="which of the servers, by name")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round of load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of half a second, to see that it works")
    parser.add_argument("--venvs", type=Path, default=Path.home() / ".cache" / "raymlops-benchmarks")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 0.5, 1
    names = options.peers.split(",")
    if unknown := set(names) - set(NAMES):
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    folder = Path(tempfile.mkdtemp(prefix="rmb", dir="/tmp"))
    try:
        result = asyncio.run(run(names, folder, options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result) if options.json else table(result))


async def run(names: list[str], folder: Path, options) -> dict:
    """Start everything in its turn, measure, and end what was started."""
    model, loaded = make_model(folder)
    columns = loaded.signature.parse_rows([net.ROW])
    expected = float(loaded.predict(columns)["y"][0])
    result: dict = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "bare_us": []}
    rounds: dict[int, dict[str, list[dict]]] = {connections: {} for connections in CONNECTIONS}
    base = await up(names[0], model, expected=expected, venvs=options.venvs)
    if base is None:
        sys.exit(f"{names[0]}, which all others are measured against, is not up")
    try:
        for name in names:
            server = base if name == names[0] else await up(name, model, expected=expected, venvs=options.venvs)
            if server is None:
                continue
            try:
                print(f"measuring {name}", file=sys.stderr, flush=True)
                await measure(base, server, rounds=rounds, seconds=options.seconds, turns=options.rounds)
                result["bare_us"].append(bare_us(loaded, columns, seconds=options.seconds / 2))
            finally:
                if server is not base:
                    server.end()
    finally:
        base.end()
    result["bare_us"] = statistics.median(result["bare_us"])
    return {**result, "load_after": os.getloadavg()[0], "rounds": rounds}


async def up(name: str, model: Model, *, expected: float, venvs: Path) -> Server | None:
    """Return a server that answers what the model does, None where it cannot be had."""
    print(f"starting {name}", file=sys.stderr, flush=True)
    server: Server | None = None
    try:
        server = start(name, model, venvs=venvs)
        for target, answer in (await server.ready()).items():
            if not math.isclose(answer, expected, rel_tol=1e-5):
                sys.exit(f"{target} answers {answer}, the model {expected}")
    except BaseException as error:
        if server is not None:
            server.end()
        if not isinstance(error, RuntimeError):
            raise
        print(f"without {name}: {error}", file=sys.stderr, flush=True)
        return None
    return server


async def measure(
    base: Server, server: Server, *, rounds: dict[int, dict[str, list[dict]]], seconds: float, turns: int
) -> None:
    """Add the figures of all that is on a server, each with those of the first server's first target in that turn."""
    first = next(iter(base.targets))
    targets = {first: base} | dict.fromkeys(server.targets, server)
    for name, its in targets.items():
        await load(its.targets[name], connections=8, seconds=min(1.0, seconds))
    for connections, runs in rounds.items():
        for turn in range(turns):
            figures: dict[str, dict] = {}
            for name in list(targets) if turn % 2 == 0 else reversed(targets):
                its = targets[name]
                before = its.cpu_s()
                one = await load(its.targets[name], connections=connections, seconds=seconds)
                figures[name] = {**one._asdict(), "cpu_us": (its.cpu_s() - before) / one.requests * 1e6}
            for name, one in figures.items():
                runs.setdefault(name, []).append(one if name == first else {**one, "base": figures[first]})


def bare_us(loaded, columns, *, seconds: float) -> float:
    """Return the microseconds of one call of the loaded model in this process, nothing around it."""
    took = []
    until = time.perf_counter() + seconds
    while (start_s := time.perf_counter()) < until:
        loaded.predict(columns)
        took.append(time.perf_counter() - start_s)
    return statistics.median(took) * 1e6


def make_model(folder: Path):
    """Return one set of weights, as a file and as a bundle, and the bundle loaded."""
    import numpy as np
    import torch
    from serve_latency_model import Bench

    from raymlops.bundle.load import load as load_bundle
    from raymlops.bundle.write import BundleContents, write_bundle

    torch.manual_seed(0)
    torch.set_num_threads(1)
    recipe = Bench()
    weights = recipe.model().state_dict()
    torch.save(weights, folder / "weights.pt")
    bundle = write_bundle(
        str(folder / "storage"),
        BundleContents(
            weights=weights,
            state={},
            signature=recipe.signature(),
            example=[net.ROW],
            recipe_class=Bench,
            recipe_config={},
            seed=0,
            config_yaml="project: {name: bench}\n",
            references={},
            evaluation={},
            row_hashes=np.zeros(1, dtype=np.uint64),
            lineage={},
        ),
    )
    loaded = load_bundle(bundle.uri, bundle.digest, cache=folder / "cache")
    return Model(folder, bundle.uri, bundle.digest), loaded


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
