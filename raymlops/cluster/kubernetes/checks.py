"""What of a project cannot run on Kubernetes, so that it is said at once and before anything is written.

Owns the problems of a specification there. Pure.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from raymlops.cluster.kubernetes.place import (
    CONFIG_FOLDER,
    HOME,
    PROGRAM,
    REDIS_KEY,
    STATE_KEY,
    TOKEN_KEY,
    Place,
    in_home,
    references,
)
from raymlops.cluster.kubernetes.pods import PORTS, RAY_SERVICE, WORKER_PORTS
from raymlops.config.base import SecretRef
from raymlops.config.paths import STATE_FILE, STATE_URL
from raymlops.config.serve import is_loopback
from raymlops.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.schema import ProjectSpec

SHAPE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = frozenset({"HOME", "PATH", RAY_SERVICE, STATE_FILE, STATE_URL, TOKEN_KEY, REDIS_KEY, STATE_KEY})
"""Variables that a container has for other things, and keys that the Secret has."""
_HELD = (HOME, CONFIG_FOLDER, PROGRAM, "/etc", "/tmp", "/usr/bin")  # noqa: S108 - a volume there would hide what it holds


def checked(spec: ProjectSpec, *, env: str | None, release: str) -> Place:
    """Return where a project is on Kubernetes.

    Raises:
        ConfigError: with everything of it that cannot run there.
    """
    place = Place(spec, env, spec.kubernetes.image or f"raymlops:{release}")
    problems = [*_problems(place), *_references(place), *_nodes(place)]
    if problems:
        raise ConfigError(problems, hint="An overlay env/NAME.yaml for the cluster has these; --env NAME names it.")
    return place


def _problems(place: Place) -> Iterator[Problem]:
    spec, serve, state = place.spec, place.spec.serve, place.spec.storage.state
    if not SHAPE.fullmatch(place.name):
        yield Problem("project.name", f"got {spec.project.name!r}; on Kubernetes a name that begins with a letter")
    if not (isinstance(state, SecretRef) and state.file):
        yield Problem(
            "storage.state",
            "on Kubernetes a database outside of it, by a file of the head alone: {file: ~/state_url}. A variable "
            "would give every trial, worker and replica the state's credentials, and SQLite cannot be shared by nodes",
        )
    if not isinstance(spec.storage.optuna, SecretRef):
        yield Problem(
            "storage.optuna", "on Kubernetes a database outside of it: {env: NAME}; NAME is a key of the Secret"
        )
    if spec.tracking.uri is None:
        yield Problem("tracking.uri", "on Kubernetes the MLflow server's URI: nodes cannot share a SQLite file")
    if place.folder is not None and not _free(place.folder):
        yield Problem(
            "storage.path",
            f"got {spec.storage.path!r}; a bucket's URI, or the whole path of a shared folder of its own: /srv/models",
        )
    if is_loopback(serve.host):
        yield Problem("serve.host", f"got {serve.host!r}, which the rest of the cluster cannot reach; 0.0.0.0")
    if serve.proxy_location != "every_node":
        yield Problem(
            "serve.proxy_location",
            f"got {serve.proxy_location!r}; every_node: KubeRay sends callers to every worker, so each needs a proxy",
        )
    for field, port in (("serve.port", serve.port), ("serve.grpc_port", serve.grpc_port)):
        if port is not None:
            yield from _port(field, port)
    if serve.tls is not None:
        yield Problem("serve.tls_cert", "on Kubernetes TLS ends at the Ingress or Gateway: leave it out")
    if spec.cluster.address is not None or spec.cluster.dashboard is not None:
        yield Problem("cluster", "address and dashboard are the cluster's own there: leave them out")


def _free(folder: str) -> bool:
    """Return whether a volume may be mounted at a folder of a container: it hides nothing that the pod needs."""
    if not _mountable(folder) or any(f"{one}/".startswith(f"{folder.rstrip('/')}/") for one in _HELD):
        return False
    return not folder.startswith((f"{CONFIG_FOLDER}/", f"{PROGRAM}/"))


def _mountable(path: str) -> bool:
    """Return whether Kubernetes mounts something at a path, which it does not where that has a colon."""
    return path.startswith("/") and ":" not in path and path.rstrip("/") == posixpath.normpath(path).rstrip("/")


def _port(field: str, port: int) -> Iterator[Problem]:
    if port < 1024:
        yield Problem(field, f"got {port}; a fixed port that needs no root: 1024 to 65535")
    elif port in PORTS or port in WORKER_PORTS:
        taken = ", ".join(map(str, sorted(PORTS)))
        yield Problem(field, f"got {port}; Ray and HAProxy have {taken} and 10001 to 19999 in a pod; for example 8000")


def _references(place: Place) -> Iterator[Problem]:
    """Yield what a container cannot have as a file or a variable of the Secret."""
    state = place.spec.storage.state
    for field, ref in references(place.spec):
        if ref.file is not None:
            path = in_home(ref.file)
            if not _mountable(path) or path == HOME or path.startswith((f"{CONFIG_FOLDER}/", f"{PROGRAM}/")):
                yield Problem(field, f"got {{file: {ref.file}}}; a whole path in the pods without a colon: ~/NAME")
            elif field != "storage.state" and isinstance(state, SecretRef) and path == in_home(state.file or ""):
                yield Problem(field, f"got {{file: {ref.file}}}, the state's, which only the head has; another file")
        elif ref.env is not None:
            yield from _variable(field, ref.env, f"{{env: {ref.env}}}")
    for name in place.section.variables:
        yield from _variable("kubernetes.variables", name, name)


def _variable(field: str, name: str, got: str) -> Iterator[Problem]:
    if not _VARIABLE.fullmatch(name) or name.startswith("RAY_"):
        yield Problem(field, f"got {got}; a variable of a-z, A-Z, 0-9 and _, none of Ray's own RAY_*")
    elif name in _OURS or name.startswith("REDIS_"):
        yield Problem(field, f"got {got}, which the pods have for something else; another name")


def _nodes(place: Place) -> Iterator[Problem]:
    """Yield what fits on no node, however many the autoscaler adds."""
    cpu, gpu, train, serve = place.section.cpu, place.section.gpu, place.spec.train, place.spec.serve
    for field, gpus in (
        ("train.gpus_per_worker", train.gpus_per_worker),
        ("serve.gpus_per_replica", serve.gpus_per_replica),
    ):
        if gpus > gpu.gpus:
            yield Problem(field, f"got {gpus:g}, more than a node of kubernetes.gpu has: its gpus are {gpu.gpus}")
    for field, cpus, gpus in (
        ("train.cpus_per_worker", train.cpus_per_worker, train.gpus_per_worker),
        ("serve.cpus_per_replica", serve.cpus_per_replica, serve.gpus_per_replica),
    ):
        kind, nodes = ("gpu", gpu) if gpus else ("cpu", cpu)
        if cpus > nodes.cpus:
            yield Problem(field, f"got {cpus:g}, more than a node of kubernetes.{kind} has: its cpus are {nodes.cpus}")
    kind, nodes = ("gpu", gpu) if serve.gpus_per_replica else ("cpu", cpu)
    if (serve.memory_bytes or 0) > nodes.memory_gib * 2**30:
        yield Problem(
            "serve.memory_gb",
            f"got {serve.memory_gb:g}, more than a node of kubernetes.{kind} has: its memory_gib is {nodes.memory_gib}",
        )
