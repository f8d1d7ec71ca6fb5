"""Names, labels and paths on Kubernetes that a project's objects share, and what of a project cannot run there.

Pure: a specification in, words out. Knows no object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.config.base import SecretRef
from raymlops.config.serve import is_loopback
from raymlops.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.platforms.kubernetes import KubernetesSection
    from raymlops.config.schema import ProjectSpec

HOME = "/home/ray"
"""Home folder of the images' user, in which ``~`` of a configuration lies there."""
USER = 1000
CONFIG_FOLDER = "/etc/raymlops"
CONFIG_FILE = "project.yaml"
TOKEN_KEY = "auth_token"  # noqa: S105 - the name of a Secret's key, which KubeRay fixes
REDIS_KEY = "redis_password"
STATE_KEY = "state_url"
LONGEST = 40
"""KubeRay takes 47 characters of a RayService or RayJob; jobs add a verb."""
_SHAPE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class Place:
    """Where a project's objects are, and what they are called."""

    spec: ProjectSpec
    env: str | None
    image: str

    @property
    def name(self) -> str:
        """Return the name of the RayService; of every other object it is the beginning."""
        return self.spec.project.name.replace("_", "-")

    @property
    def section(self) -> KubernetesSection:
        """Return the ``kubernetes`` section."""
        return self.spec.kubernetes

    @property
    def namespace(self) -> str:
        """Return the namespace of all of it."""
        return self.section.namespace or (self.name if self.env is None else f"{self.name}-{self.env}")

    @property
    def folder(self) -> str | None:
        """Return the folder of ``storage.path`` in a container, None where that is a bucket."""
        path = self.spec.storage.path
        if "://" in path and not path.startswith("file:"):
            return None
        return in_home(re.sub(r"^file:(//(localhost)?)?", "", path))

    @property
    def claim(self) -> str:
        """Return the name of that folder's volume claim."""
        return self.section.claim or f"{self.name}-storage"

    @property
    def every_node(self) -> bool:
        """Return whether a node with a replica has a proxy."""
        return self.spec.serve.proxy_location == "every_node"

    @property
    def uses_gpus(self) -> bool:
        """Return whether workers or replicas reserve GPUs."""
        return self.spec.train.gpus_per_worker > 0 or self.spec.serve.gpus_per_replica > 0

    def labels(self, component: str) -> dict[str, str]:
        """Return the labels of an object: whose it is, and which part of it."""
        return {
            "app.kubernetes.io/name": "raymlops",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": component,
        }

    def meta(self, suffix: str = "", component: str = "service") -> dict[str, Any]:
        """Return an object's metadata. The namespace is the overlay's."""
        return {"name": f"{self.name}{suffix}", "labels": self.labels(component)}

    def variables(self) -> list[str]:
        """Return the variables that the configuration refers to, which are keys of the Secret: the state's is none."""
        return sorted({ref.env for field, ref in references(self.spec) if ref.env and field != "storage.state"})

    def files(self) -> dict[str, str]:
        """Return the files that the configuration refers to: path in a container to key of the Secret."""
        named = {in_home(ref.file): field for field, ref in references(self.spec) if ref.file}
        return {
            path: STATE_KEY if field == "storage.state" else field.replace(".", "_")
            for path, field in sorted(named.items())
        }

    @property
    def state_file(self) -> str:
        """Return the file of the state's URL, in the head and the controller alone."""
        ref = self.spec.storage.state
        assert isinstance(ref, SecretRef)
        assert ref.file is not None  # ``checked``
        return in_home(ref.file)

    def secret_keys(self) -> list[str]:
        """Return what the Secret must have."""
        redis = [REDIS_KEY] if self.section.redis else []
        return sorted({TOKEN_KEY, *redis, *self.variables(), *self.files().values()})


def in_home(path: str) -> str:
    """Return a path of a container: its ``~`` is the image's, not this machine's."""
    return HOME + path[1:] if path == "~" or path.startswith("~/") else path


def references(spec: ProjectSpec) -> Iterator[tuple[str, SecretRef]]:
    """Yield each reference to a credential, with its dotted path."""
    for name in type(spec).model_fields:
        yield from _found(getattr(spec, name), name)


def _found(value: Any, path: str) -> Iterator[tuple[str, SecretRef]]:
    if isinstance(value, SecretRef):
        yield path, value
    elif hasattr(type(value), "model_fields"):
        for name in type(value).model_fields:
            yield from _found(getattr(value, name), f"{path}.{name}")


def checked(spec: ProjectSpec, *, env: str | None, release: str) -> Place:
    """Return where a project is on Kubernetes.

    Raises:
        ConfigError: with everything of it that cannot run there.
    """
    place = Place(spec, env, spec.kubernetes.image or f"raymlops:{release}")
    problems = list(_problems(place))
    if problems:
        raise ConfigError(problems, hint="An overlay env/NAME.yaml for the cluster has these; --env NAME names it.")
    return place


def _problems(place: Place) -> Iterator[Problem]:
    spec, serve, state = place.spec, place.spec.serve, place.spec.storage.state
    if len(place.name) > LONGEST or not _SHAPE.fullmatch(place.name):
        yield Problem(
            "project.name",
            f"got {spec.project.name!r}; on Kubernetes at most {LONGEST} of a-z, 0-9, _ and -, beginning with a letter",
        )
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
    if place.folder is not None and not place.folder.startswith("/"):
        yield Problem(
            "storage.path", f"got {spec.storage.path!r}; a bucket's URI, or the whole path of a shared folder"
        )
    if is_loopback(serve.host):
        yield Problem("serve.host", f"got {serve.host!r}, which the rest of the cluster cannot reach; 0.0.0.0")
    if serve.port < 1024:
        yield Problem("serve.port", f"got {serve.port}; a fixed port that needs no root: 1024 to 65535")
    if serve.tls is not None:
        yield Problem("serve.tls_cert", "on Kubernetes TLS ends at the Ingress or Gateway: leave it out")
    if spec.cluster.address is not None or spec.cluster.dashboard is not None:
        yield Problem("cluster", "address and dashboard are the cluster's own there: leave them out")
