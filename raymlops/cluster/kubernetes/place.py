"""Names, labels and paths on Kubernetes that a project's objects share.

Pure: a specification in, words out. Knows no object.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.config.base import SecretRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.config.platforms.kubernetes import KubernetesSection
    from raymlops.config.schema import ProjectSpec

HOME = "/home/ray"
"""Home folder of the images' user, in which ``~`` of a configuration lies there."""
USER = 1000
CONFIG_FOLDER = "/etc/raymlops"
CONFIG_FILE = "project.yaml"
DIGEST_FILE = "digest"
"""Beside it, what tells it from another one."""
TOKEN_KEY = "auth_token"  # noqa: S105 - the name of a Secret's key, which KubeRay fixes
REDIS_KEY = "redis_password"
STATE_KEY = "state_url"
OWN = frozenset({"storage.state", "tracking.database"})
"""Fields whose credentials the endpoint's head and the controller alone have: the state, and what `backup` copies."""
PROGRAM = "/opt/raymlops"
"""Where the image has raymlops."""
LONGEST = 35
"""KubeRay takes 47 characters of a RayService or RayJob: NAME-train- and the 5 that Kubernetes adds."""
LONGEST_LABEL = 63
_DIGEST = 6


@dataclass(frozen=True)
class Place:
    """Where a project's objects are, and what they are called."""

    spec: ProjectSpec
    env: str | None
    image: str

    @property
    def name(self) -> str:
        """Return the name of the RayService; of every other object it is the beginning."""
        return label(self.spec.project.name, LONGEST)

    @property
    def section(self) -> KubernetesSection:
        """Return the ``kubernetes`` section."""
        return self.spec.kubernetes

    @property
    def namespace(self) -> str:
        """Return the namespace of all of it: the project's name, and the environment's, which is behind the last dash.

        Where that is not so it has a digest: an environment with a dash, or none and a dash in the project's name.
        """
        if self.section.namespace:
            return self.section.namespace
        env = self.env or ""
        plain = "-" not in (env or self.name)
        text = f"{self.name}-{env}" if env else self.name
        return label(text, LONGEST_LABEL, of=None if plain else f"{self.name}/{env}")

    @property
    def digest(self) -> str:
        """Return what tells the configuration from another one, but for where it runs: jobs may have another image."""
        plain = {name: section for name, section in self.spec.to_dict().items() if name != "kubernetes"}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

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
        """Return an object's metadata. The namespace is the kustomization's."""
        return {"name": f"{self.name}{suffix}", "labels": self.labels(component)}

    def variables(self, *, own: bool = True) -> list[str]:
        """Return the variables that the configuration refers to or names, which are keys of the Secret.

        Without ``own`` those alone that workers, trials and replicas need too.
        """
        found = {ref.env for field, ref in references(self.spec) if ref.env and (own or field not in OWN)}
        return sorted(found | {*self.section.variables})

    def files(self, *, own: bool = True) -> dict[str, str]:
        """Return the files that the configuration refers to: path in a container to key of the Secret."""
        found = sorted((field, in_home(ref.file)) for field, ref in references(self.spec) if ref.file)
        named = {path: field for field, path in found if own or field not in OWN}
        return {
            path: STATE_KEY if field == "storage.state" else field.replace(".", "_")
            for path, field in sorted(named.items())
        }

    @property
    def state_file(self) -> str:
        """Return the file of the state's URL, in the head and the controller alone."""
        ref = self.spec.storage.state
        assert isinstance(ref, SecretRef)
        assert ref.file is not None  # ``checks``
        return in_home(ref.file)

    def secret_keys(self) -> list[str]:
        """Return what the Secret must have."""
        redis = [REDIS_KEY] if self.section.redis else []
        return sorted({TOKEN_KEY, *redis, *self.variables(), *self.files().values()})

    def create_secret(self, namespace: str) -> str:
        """Return the command that makes the Secret.

        Ray, Redis and KubeRay take a value to its last character: the shell leaves out the line end of its file. What
        the pods read as a file may have lines.
        """
        files = self.files().values()
        values = (
            f"--from-file={key}=FILE" if key in files else f'--from-literal={key}="$(cat FILE)"'
            for key in self.secret_keys()
        )
        return f"kubectl -n {namespace} create secret generic {self.section.secret} {' '.join(values)}"


def label(text: str, longest: int, *, of: str | None = None) -> str:
    """Return a text as a DNS label: itself where it is one, else with a digest, so that no two texts share a label.

    Where several may come to one text, ``of`` is what tells them apart: the digest is of that.
    """
    plain = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if plain == text and len(text) <= longest and of is None:
        return text
    end = hashlib.sha256((of or text).encode()).hexdigest()[:_DIGEST]
    return f"{plain[: longest - _DIGEST - 1].rstrip('-')}-{end}"


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
