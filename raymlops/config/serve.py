"""The ``serve`` section of a configuration: replicas, limits, traffic, rollouts, the prediction log.

Owns every field with its range, default and one-line description. Imports no ray, torch or mlflow.
"""

from __future__ import annotations

import ipaddress
import itertools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from raymlops.config.base import Spec, Uri, frozen

GRPC_SERVICER = "raymlops.serving.protocols.grpc_messages:add_servicer"
MOST_S = 1e9
"""31 years: what is counted from now on must have a date."""
Texts = Annotated[tuple[str, ...], BeforeValidator(frozen)]
Percents = Annotated[tuple[float, ...], BeforeValidator(frozen)]


class LogSection(Spec):
    """The prediction log: every answered request as Parquet under ``storage.path``."""

    enabled: bool = Field(True, description="write the prediction log")
    flush_s: float = Field(1.0, ge=0.05, le=60, description="a replica that is killed loses at most about this much")
    max_pending_rows: int = Field(200_000, ge=1, description="rows held unwritten; more are dropped and counted")
    retention_days: float | None = Field(90.0, gt=0, description="older predictions are removed; null keeps them all")
    redact: Texts = Field((), description="fields of inputs and outputs that are not written")
    sample: float = Field(
        1.0, gt=0, le=1, description="share of the requests that is written; each row has its inverse as weight"
    )


class TrafficSection(Spec):
    """Who is answered by which version while several are up."""

    sticky: Literal["request", "key", "header"] = Field(
        "request", description="what keeps to one version: nothing, callers by their API key, or a header's value"
    )
    sticky_header: str = Field(
        "x-session-id", pattern=r"^[a-z0-9-]{1,64}$", description="the header of sticky: header, in lower case"
    )
    canary_timeout_s: float = Field(1.0, gt=0, description="a canary later than this is answered by the champion")
    max_shadow_requests: int = Field(16, ge=1, description="copies in flight to one shadow at most; more are dropped")


class RolloutSection(Spec):
    """How a canary is moved, and what stops it."""

    steps: Percents = Field((10.0, 50.0, 100.0), description="percent of the traffic, step by step")
    bake_s: float = Field(600.0, ge=0, le=MOST_S, description="seconds that a step lasts at least")
    max_wait_s: float = Field(3600.0, gt=0, description="how long a step waits for a verdict")
    on_no_verdict: Literal["hold", "abort"] = Field(
        "hold", description="after max_wait_s: keep the canary's share until there is a verdict, or abort"
    )
    alpha: float = Field(0.01, gt=0, lt=0.5, description="how often an equally good version may be aborted")
    error_margin: float = Field(0.05, gt=0, lt=1, description="share of errors it may have above the champion")
    slow_margin: float = Field(0.10, gt=0, lt=1, description="share of slow answers it may have above the champion")
    slow_s: float = Field(0.25, gt=0, description="seconds in the model from which on an answer is slow")
    quality_margin: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description="part of the champion's gain over a blind predictor that it may lose; null: labels are not read",
    )

    @model_validator(mode="after")
    def _steps(self) -> RolloutSection:
        rising = all(a < b for a, b in itertools.pairwise(self.steps))
        if not self.steps or not rising or self.steps[0] <= 0 or self.steps[-1] > 100:
            msg = f"steps {list(self.steps)} must rise within 0 to 100 percent"
            raise ValueError(msg)
        return self


class ServeSection(Spec):
    """How a version is served."""

    host: str = Field("127.0.0.1", description="address the proxy listens on; loopback by default")
    port: int = Field(8000, ge=0, le=65535, description="HTTP port of the proxy; 0 picks a free one")
    proxy: Literal["haproxy", "python"] | None = Field(
        None, description="set at a cluster's start; default: haproxy, several times as fast, where it is installed"
    )
    proxy_location: Literal["head_only", "every_node"] = Field(
        "head_only", description="every_node: the head and each node with a replica; set when Serve starts"
    )
    tls_cert: str | None = Field(
        None,
        pattern="^/",
        description="certificate of HTTP and gRPC with its chain, a file on each node with a proxy",
    )
    tls_key: str | None = Field(None, pattern="^/", description="file of its key, readable by its owner alone")
    grpc_port: int | None = Field(None, ge=1, le=65535, description="port of gRPC; none is opened unless it is set")
    auth: Literal["open", "keys"] | None = Field(
        None, description="keys asks every caller for an API key; default: open where Serve listens on loopback alone"
    )
    allowed_hosts: Texts = Field(
        (), description="names besides loopback's at which an open model on loopback answers: that of a local proxy"
    )
    update: Literal["beside", "replace"] = Field(
        "beside", description="replace ends the live version before the next one starts: no room for two, and an outage"
    )
    min_replicas: int = Field(1, ge=0, description="replicas kept; 0 lets an idle model go, its next request waits")
    max_replicas: int = Field(2, ge=1, description="replicas at most")
    target_ongoing_requests: int = Field(16, ge=1, description="in flight per replica that autoscaling aims at")
    max_ongoing_requests: int = Field(64, ge=1, description="in flight per replica at most")
    max_queued_requests: int = Field(128, ge=1, description="waiting per caller at most; more get 503")
    upscale_delay_s: float = Field(2.0, ge=0, description="how long load must last before replicas are added")
    downscale_delay_s: float = Field(300.0, ge=0, description="how long quiet must last before one is taken away")
    scale_to_zero_after_s: float = Field(900.0, ge=0, description="quiet before the last one goes, with min_replicas 0")
    cpus_per_replica: float = Field(0.2, gt=0, description="CPUs a replica reserves; fractions allowed")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs a replica reserves; fractions allowed")
    memory_gb: float | None = Field(
        None, gt=0, description="memory a replica reserves, in 10^9 bytes, and above which it is refused or replaced"
    )
    resources_per_replica: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="Ray's custom resources a replica reserves, which also place it"
    )
    max_replicas_per_node: int | None = Field(None, ge=1, le=100, description="a version's replicas on one node")
    threads_per_replica: int | None = Field(
        None, ge=1, description="torch threads in a replica; default: the CPUs it reserves, at least one"
    )
    compile: bool = Field(False, description="use torch.compile where it gives equal answers faster")
    max_batch_rows: int = Field(1024, ge=1, description="rows run through the model at once")
    max_batch_elements: int = Field(
        262_144, ge=1, description="of rows that differ in length: elements run at once, padded to the longest row"
    )
    max_rows: int = Field(5000, ge=1, description="rows in one request at most; more get 413")
    max_body_bytes: int = Field(8_000_000, ge=1024, description="bytes in one request body at most; more get 413")
    max_header_bytes: int = Field(16_384, ge=1024, description="bytes of path and headers; set at a cluster's start")
    max_waiting_rows: int = Field(20_000, ge=1, description="rows waiting in a replica at most; more get 503")
    timeout_s: float = Field(30.0, gt=0, description="deadline of one request, from its arrival")
    ready_timeout_s: float = Field(120.0, gt=0, le=MOST_S, description="time a new version has to become ready")
    keep_warm_s: float = Field(3600.0, ge=0, le=MOST_S, description="how long a version that lost the route stays up")
    access_log: bool = Field(True, description="write a JSON line a request into Ray's log folder")
    otlp_endpoint: Uri | None = Field(None, description="OpenTelemetry collector for traces, over HTTP")
    log: LogSection = Field(default_factory=LogSection, description="the prediction log")
    traffic: TrafficSection = Field(default_factory=TrafficSection, description="who is answered by which version")
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="how a canary is moved")

    @property
    def memory_bytes(self) -> int | None:
        """Return ``memory_gb`` in bytes."""
        return None if self.memory_gb is None else int(self.memory_gb * 1e9)

    @property
    def key_required(self) -> bool:
        """Return whether every caller needs an API key where Serve listens at this ``host``."""
        return self.key_required_at(None)

    def key_required_at(self, host: str | None) -> bool:
        """Return whether every caller needs an API key where Serve listens at ``host``; None is this one."""
        return self.auth == "keys" or (self.auth is None and not is_loopback(self.host if host is None else host))

    @property
    def tls(self) -> tuple[str, str] | None:
        """Return the files of the certificate and of its key; None without TLS."""
        return None if self.tls_cert is None or self.tls_key is None else (self.tls_cert, self.tls_key)

    @model_validator(mode="after")
    def _ports(self) -> ServeSection:
        if self.port == self.grpc_port:
            msg = f"port and grpc_port are both {self.port}: each needs one of its own"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _tls(self) -> ServeSection:
        if (self.tls_cert is None) != (self.tls_key is None):
            msg = "tls_cert and tls_key are given both or not at all"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _replicas(self) -> ServeSection:
        if self.max_replicas < self.min_replicas:
            msg = f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _reserved(self) -> ServeSection:
        """Reject what Ray would when a replica starts: with ``update: replace`` the live version has ended by then."""
        if self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            msg = f"gpus_per_replica is {self.gpus_per_replica:g}: a replica reserves a share of one GPU or whole GPUs"
            raise ValueError(msg)
        for name, field in (("CPU", "cpus_per_replica"), ("GPU", "gpus_per_replica"), ("memory", "memory_gb")):
            if name in self.resources_per_replica:
                msg = f"resources_per_replica has {name}, which {field} reserves"
                raise ValueError(msg)
        return self


def is_loopback(host: str) -> bool:
    """Return whether ``host`` names this machine alone."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def tls_options(cert: str, key: str) -> dict[str, str]:
    """Return what makes Serve's Python proxy need TLS, for HTTP and (see ``serve_patches``) for gRPC."""
    return {"ssl_certfile": cert, "ssl_keyfile": key}


def grpc_options(port: int) -> dict[str, Any]:
    """Return what makes Serve listen for gRPC, at the HTTP host (see ``mended``).

    Without server reflection: it would answer without a key, and knows no message of a pool of its own.
    """
    return {"port": port, "grpc_servicer_functions": [GRPC_SERVICER], "enable_reflection": False}
