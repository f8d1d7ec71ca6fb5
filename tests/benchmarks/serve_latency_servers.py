"""The servers of ``serve_latency``: each in a process group of its own, started, waited for, and ended by its id.

Owns their command lines and environments, and what they cost in CPU time. Knows nothing of load.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from serve_latency_load import HOST, Target, once
from serve_latency_net import ROW
from serve_latency_ray import environment

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
WHEELS = {"litserve": ["litserve>=0.2,<0.3"], "bentoml": ["bentoml>=1.4,<1.5", "uvloop", "httptools"]}
REFUSED = ("HTTP/1.1 400", "HTTP/1.1 422")
"""A server that is up and does not take what it is sent."""
READY_S = 240
"""A Ray takes 15 s to start on an idle machine of two cores, and minutes on a busy one."""


class Model(NamedTuple):
    """One set of weights, in the forms that servers want."""

    folder: Path
    bundle: str
    digest: str

    @property
    def weights(self) -> str:
        return str(self.folder / "weights.pt")


class Server:
    """A running server, and the targets on it by the name under which they are reported."""

    def __init__(self, command: list[str], targets: dict[str, Target], *, log: Path, variables: dict[str, str]) -> None:
        self.targets = targets
        self._log = log
        path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=HERE,
                env={**inherited, "PATH": path, "PYTHONPATH": str(HERE), **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ready(self) -> dict[str, float]:
        """Return what each target answers, once it does."""
        answers: dict[str, float] = {}
        deadline = time.monotonic() + READY_S
        for name, target in self.targets.items():
            while name not in answers:
                try:
                    answers[name] = await once(target)
                except (OSError, RuntimeError, TimeoutError) as error:
                    hopeless = self._process.poll() is not None or str(error).startswith(REFUSED)
                    if hopeless or time.monotonic() > deadline:
                        lines = self._log.read_text(errors="replace").splitlines()[-12:]
                        raise RuntimeError("\n  | ".join([f"{name} does not answer: {error!r}", *lines])) from error
                    await asyncio.sleep(0.3)
        return answers

    def cpu_s(self) -> float:
        """Return the CPU time so far of this process and all below it; 0 where the system does not tell."""
        children: dict[int, list[int]] = defaultdict(list)
        ticks: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError):
                fields = stat.read_text().rpartition(")")[2].split()
                children[int(fields[1])].append(int(stat.parent.name))
                ticks[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
        total, todo = 0, [self._process.pid]
        while todo:
            pid = todo.pop()
            total += ticks.get(pid, 0)
            todo += children[pid]
        return total / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Ask its processes to end, and make sure that they did."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)  # it leads its group, whose id stays its own while any is left
            time.sleep(0.1)
        self._process.wait()


def start(name: str, model: Model, *, venvs: Path) -> Server:
    """Start one of ``NAMES``.

    Raises:
        RuntimeError: it cannot be installed.
    """
    port = free_port()
    variables, command, targets = {"SERVE_LATENCY_WEIGHTS": model.weights, "HOME": str(model.folder / name)}, [], {}
    (model.folder / name).mkdir(exist_ok=True)
    kind, _, proxy = name.partition("-")
    rows = {"rows": [ROW]}
    if kind in {"raymlops", "ray"}:
        kind = "bare" if kind == "ray" else kind
        rest = [model.weights] if kind == "bare" else [model.bundle, model.digest]
        scratch = model.folder / kind[0]  # short, see services.serve_environment
        variables |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
        variables |= environment(kind, proxy, str(scratch))
        command = [sys.executable, "serve_latency_ray.py", str(port), proxy, kind, *rest]
        if kind == "bare":
            targets = {name: Target(port, "/peer/predict", rows)}
        else:
            targets = {
                name: Target(port, "/models/bench/predict", rows),
                f"{name}, no log": Target(port, "/models/unlogged/predict", rows),
            }
    elif kind in {"fastapi", "asgi"}:
        app = "api" if kind == "fastapi" else "raw"
        command = [*uvicorn(port), f"serve_latency_uvicorn:{app}"]
        targets = {name: Target(port, "/predict", rows)}
    elif kind == "mlflow":
        folder = str(model.folder / "mlflow")
        variables |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        variables |= {"UVICORN_ACCESS_LOG": "0", "UVICORN_LOG_LEVEL": "warning"}
        save = [sys.executable, "serve_latency_mlflow.py", folder, model.weights]
        run(save, env={**os.environ, **variables}, cwd=HERE)
        command = [str(BIN / "mlflow"), "models", "serve", "-m", folder, "--env-manager", "local"]
        command += ["-h", HOST, "-p", str(port), "--workers", "1"]
        targets = {name: Target(port, "/invocations", {"inputs": [ROW]})}
    elif kind == "litserve":
        command = [str(python_of(kind, venvs)), "serve_latency_litserve.py", str(port), model.weights]
        targets = {name: Target(port, "/predict", ROW)}
    else:
        variables |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(model.folder / "bentoml")}
        command = [str(python_of(kind, venvs)), "-m", "bentoml", "serve", "serve_latency_bentoml:Bench"]
        command += ["--host", HOST, "--port", str(port)]
        targets = {name: Target(port, "/predict", rows)}
    return Server(command, targets, log=model.folder / f"{name}.log", variables=variables)


NAMES = ("raymlops-haproxy", "raymlops-python", "ray-haproxy", "ray-python", "asgi", "fastapi", "mlflow", *WHEELS)


def uvicorn(port: int) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", f"--host={HOST}", f"--port={port}", "--workers=1"]
    return [*command, "--no-access-log", "--log-level=warning"]


def python_of(name: str, venvs: Path) -> Path:
    """Return the Python of a peer's own environment, which is made where it is not there yet."""
    folder = venvs / name
    done = folder / "installed"
    if not done.exists():
        print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
        run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *WHEELS[name], "torch", "numpy"])
        done.touch()
    return folder / "bin" / "python"


def run(command: list[str], **options) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])}: exit {done.returncode}\n{done.stderr[-1500:]}")


def free_port() -> int:
    """Return a port that nothing listens on now; the one after it is free as well."""
    while True:
        with socket.socket() as probe, socket.socket() as after:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                after.bind((HOST, port + 1))
                return port
