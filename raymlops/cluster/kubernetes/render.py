"""``render kubernetes``: the files of a project, for one environment and those beside it.

Owns the folder's layout and reads the configurations of the environments. What the objects are is ``manifests``'.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.cluster.kubernetes.checks import checked
from raymlops.cluster.kubernetes.documents import yaml_text
from raymlops.cluster.kubernetes.manifests import MANAGER, jobs, manifests
from raymlops.cluster.kubernetes.published import publish
from raymlops.config.load import dump, load
from raymlops.errors import ConfigError
from raymlops.records import Record
from raymlops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.cluster.kubernetes.place import Place
    from raymlops.config.schema import ProjectSpec

ENVIRONMENTS = ("dev", "staging", "prod")
ARGO_CD = {
    "ignoreDifferences": [
        {
            "group": "ray.io",
            "kind": "RayService",
            "jsonPointers": ["/spec/serveConfigV2"],
            "managedFieldsManagers": [MANAGER],
        }
    ],
    "syncPolicy": {"syncOptions": ["RespectIgnoreDifferences=true", "ServerSideApply=true"]},
}
"""For the ``spec`` of an Application: what is live is the reconciler's, and no difference."""


@dataclass(frozen=True)
class Rendered(Record):
    """What was rendered."""

    folder: str
    env: str
    """Folder of the environment in it."""
    namespace: str
    secret: str
    secret_keys: tuple[str, ...]
    create_secret: str
    """The command that makes it, with FILE for that of each value."""
    changed: tuple[str, ...]
    """Files that were written or removed."""
    notes: tuple[str, ...] = ()
    """Which environments are not there, and why."""

    def text(self) -> str:
        """Return what to do next."""
        lines = [
            f"{self.folder}: {len(self.changed)} files changed" if self.changed else f"{self.folder}: nothing changed",
            f"kubectl create namespace {self.namespace}",
            self.create_secret,
            f"kubectl apply --server-side -k {self.folder}/{self.env}",
        ]
        return "\n".join([*lines, *self.notes])


def render_kubernetes(
    file: str | Path, *, to: str | Path, env: str | None = None, overrides: Sequence[str] = (), force: bool = False
) -> Rendered:
    """Write a project's manifests into a folder, for this environment and for each other that has a configuration.

    Raises:
        ConfigError: the configuration, or what of it cannot run on Kubernetes.
        RefusedError: somebody edited a file of an earlier rendering, or the folder is another project's; ``force``
            replaces it.
        StorageError: the folder cannot be written.
    """
    spec = load(file, overrides=overrides, env=env).spec
    chosen = checked(spec, env=env, release=__version__)
    own, notes = {env or "base": chosen}, []
    for name in ENVIRONMENTS:
        if name == env:
            continue
        if not (Path(file).parent / "env" / f"{name}.yaml").exists():
            notes.append(f"no folder {name}: there is no env/{name}.yaml beside {file}")
            continue
        try:
            own[name] = checked(load(file, overrides=overrides, env=name).spec, env=name, release=__version__)
        except ConfigError as error:
            notes.append(f"no folder {name}: {error.problems[0].path}: {error.problems[0].message}")
    files = files_of(own)
    changed = publish(Path(to), files, of=spec.project.name, force=force)
    return Rendered(
        str(to),
        env or "base",
        chosen.namespace,
        chosen.section.secret,
        tuple(chosen.secret_keys()),
        chosen.create_secret(chosen.namespace),
        tuple(changed),
        tuple(notes),
    )


def files_of(environments: Mapping[str, Place]) -> dict[str, str]:
    """Return every file by its path in the folder: a folder that ``kubectl apply -k`` takes for each environment."""
    found: dict[str, str] = {}
    ray = ray_version()
    for env, place in environments.items():
        applied = manifests(place, config=configuration(place.spec), ray_version=ray)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": place.namespace,
            "resources": [f"{name}.yaml" for name in sorted(applied)],
        }
        texts = {**applied, "kustomization": [kustomization]}
        found |= {f"{env}/{name}.yaml": yaml_text(objects) for name, objects in texts.items()}
        for name, created in jobs(place, ray_version=ray).items():
            placed = [{**one, "metadata": {**one["metadata"], "namespace": place.namespace}} for one in created]
            found[f"jobs/{env}/{name}.yaml"] = yaml_text(placed)
    found["argocd.yaml"] = "# Into spec of the Application.\n" + yaml_text([ARGO_CD])
    return found


def configuration(spec: ProjectSpec) -> str:
    """Return the configuration as the pods read it: a shared folder is shared there."""
    if "://" not in spec.storage.path:
        spec = spec.model_copy(update={"storage": spec.storage.model_copy(update={"shared": True})})
    return dump(spec)


def ray_version() -> str:
    """Return the version of Ray that the image has, which is this one's."""
    return version("ray")
