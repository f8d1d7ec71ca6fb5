"""The record of ``raymlops up``: one file, ``up.json``, that ``down``, ``status`` and every later command read.

Owns the home folder's layout and the environment that a shell is to export. Starts and ends nothing.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from raymlops.cluster.auth import MLFLOW_AUTH, environment, mlflow_header
from raymlops.cluster.processes import MARK, ProcessRecord
from raymlops.errors import ClusterError
from raymlops.records import SCHEMA_VERSION, Record
from raymlops.storage.filesystem import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requests import PreparedRequest

    from raymlops.cluster.endpoint.haproxy import Proxy
    from raymlops.cluster.endpoint.tls import TlsFiles

HOME = "RAYMLOPS_HOME"
"""Variable that moves everything of ours from ``~/.raymlops`` to another folder."""


def home(root: Path | str | None = None) -> Path:
    """Return the folder that holds our state on this machine, or ``root`` as an absolute path."""
    return Path(root or os.environ.get(HOME) or "~/.raymlops").expanduser().absolute()


@dataclass(frozen=True)
class UpRecord(Record):
    """What ``raymlops up`` started."""

    root: str
    cluster_id: str
    state: Literal["starting", "up"]
    started_at: float
    """Seconds since the epoch."""
    ray_address: str
    dashboard_url: str
    mlflow_url: str
    serve_url: str
    token_path: str
    scratch: str
    """Folder of sockets: short, because a socket's path has at most 107 bytes. ``down`` removes it."""
    haproxy: bool
    tls_cert: str | None = None
    """Certificate of the endpoint; None where it is not encrypted."""
    tls_key: str | None = None
    grpc_port: int | None = None
    """Port of Serve's gRPC; None where it does not listen for it."""
    num_cpus: int | None = None
    """CPUs that Ray may use; None where an older raymlops did not write it down."""
    made_database: bool = False
    """Whether MLflow's database was not there before: interrupted while it is made, it could never be used again."""
    processes: tuple[ProcessRecord, ...] = ()
    opens: tuple[str, ...] = ()
    """What Ray Serve binds to all interfaces, without an option to bind it elsewhere, once something is deployed."""
    already_up: bool = False
    """Whether nothing had to be started."""

    @property
    def env(self) -> dict[str, str]:
        """Return what a shell is to export: addresses and paths, never the token."""
        return {
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,  # what `ray job submit` asks first
            "RAY_ADDRESS": self.ray_address,  # what `ray.init()` and `ray status` read
            "RAY_DASHBOARD_ADDRESS": self.dashboard_url,  # what `serve status` reads
            **environment(self.token_path),
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_TRACKING_AUTH": MLFLOW_AUTH,
            HOME: self.root,
        }

    @property
    def inherited(self) -> dict[str, str]:
        """Return what every process of the cluster has in its environment: whose it is, and where the others are."""
        return {
            MARK: self.cluster_id,
            HOME: self.root,
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_TRACKING_AUTH": MLFLOW_AUTH,
            # For Ray's state API in workers, which gives up without it as soon as another Ray runs on the machine.
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
        }

    @property
    def drivers(self) -> Path:
        """Return the folder in which each driver of this machine has a socket, by which ``down`` asks it to leave."""
        return Path(self.scratch) / "drivers"

    @property
    def grpc_address(self) -> str | None:
        """Return where Serve listens for gRPC, None where it does not."""
        host = urlsplit(self.serve_url).hostname
        return None if self.grpc_port is None else f"{host}:{self.grpc_port}"

    @property
    def urls(self) -> dict[str, str]:
        """Return what to open in a browser or ask by HTTP."""
        return {"ray": self.dashboard_url, "mlflow": self.mlflow_url, "serve": self.serve_url}

    @property
    def ports(self) -> dict[str, int]:
        """Return the port of each service, by the name that messages give it."""
        places = {
            "Serve": self.serve_url,
            "Ray's dashboard": self.dashboard_url,
            "MLflow": self.mlflow_url,
            "Ray": self.ray_address,
        }
        found = {name: int(place.rpartition(":")[2]) for name, place in places.items()}
        return found if self.grpc_port is None else {**found, "gRPC": self.grpc_port}

    @property
    def alive(self) -> bool:
        """Return whether the Ray head that was started still runs."""
        return any(record.name == "ray" and record.find() for record in self.processes)

    def differences(
        self,
        *,
        ports: Mapping[str, int | None],
        proxy: Proxy | None = None,
        tls: TlsFiles | None = None,
        num_cpus: int | None = None,
    ) -> list[str]:
        """Return how what runs differs from a request, a phrase each; None requests nothing."""
        running = self.ports
        found = [
            f"{name} on port {running[name]}, not {port}" if name in running else f"Serve without {name}"
            for name, port in ports.items()
            if port is not None and port != running.get(name)
        ]
        if proxy is not None and (proxy == "haproxy") != self.haproxy:
            found.append("Serve behind HAProxy" if self.haproxy else "Serve without HAProxy")
        if tls is not None and tls != (self.tls_cert, self.tls_key):
            found.append(f"TLS with {self.tls_cert}" if self.tls_cert else "Serve without TLS")
        if None not in {num_cpus, self.num_cpus} and num_cpus != self.num_cpus:
            found.append(f"Ray with {self.num_cpus} CPUs, not {num_cpus}")
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a record; keys that a newer version wrote are ignored."""
        processes = tuple(map(ProcessRecord.from_dict, data.get("processes", ())))
        return super().from_dict({**data, "processes": processes, "opens": tuple(data.get("opens", ()))})


class MlflowAuth:
    """MLflow's plugin by which each client of this machine sends the password, and to the server of ``up`` alone."""

    def get_name(self) -> str:
        """Return the value of ``MLFLOW_TRACKING_AUTH`` that names it."""
        return MLFLOW_AUTH

    def get_auth(self) -> Self:
        """Return what ``requests`` calls with each request."""
        return self

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Add the password to a request to that server."""
        if (record := read()) is not None and str(request.url).startswith(f"{record.mlflow_url}/"):
            request.headers["Authorization"] = mlflow_header(Path(record.root))
        return request


def exports(record: UpRecord) -> str:
    """Return the environment as lines for a shell."""
    return "\n".join(f"export {key}={shlex.quote(value)}" for key, value in record.env.items())


def path(root: Path) -> Path:
    """Return where the record of a home folder lies."""
    return root / "up.json"


def read(root: Path | None = None) -> UpRecord | None:
    """Return the record of a home folder, or None when nothing was started there.

    Raises:
        ClusterError: the record cannot be read.
    """
    file = path(root or home())
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return UpRecord.from_dict(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"cannot read {file}: {error}",
            hint="find what runs with `ss -ltnp`, end it by hand, then remove the file",
        ) from error


def write(record: UpRecord) -> None:
    """Write a record so that a reader sees the old one or the new one, never half of it."""
    file = path(Path(record.root))
    data = json.dumps({"schema_version": SCHEMA_VERSION, **record.to_dict()}, indent=2)
    write_bytes(file, data.encode(), mode=0o600)


def remove(root: Path) -> None:
    """Forget what was started."""
    path(root).unlink(missing_ok=True)
