import copy
import json
from pathlib import Path

import jsonschema
import pytest
from kuberay import refusals
from published_schemas import published

from raymlops.cluster.kubernetes.checks import checked
from raymlops.cluster.kubernetes.manifests import jobs, manifests
from raymlops.config.load import dump, load

ROOT = Path(__file__).parents[4]
POD = (
    "{metadata: {labels: {team: ml}, annotations: {karpenter.sh/do-not-disrupt: 'true'}}, "
    "spec: {imagePullSecrets: [{name: registry}], tolerations: [{key: team, operator: Equal, value: ml}], "
    "nodeSelector: {disk: ssd}, volumes: [{name: ca, configMap: {name: flights-config}}], "
    "containers: [{volumeMounts: [{name: ca, mountPath: /ca}]}]}}"
)
"""What a company asks of every pod."""
FOREIGN = {"gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1"}
"""Kinds whose schemas are not at hand."""


@pytest.fixture
def place():
    """Return where a project is, by ``key.path=value``."""

    def make(*overrides, env="prod"):
        spec = load(ROOT / "configs" / "flights.yaml", env=env, overrides=overrides).spec
        return checked(spec, env=env, release="1.2.3")

    return make


@pytest.fixture
def objects():
    """Return the objects of a place, those that are applied and those that are created."""

    def make(place, *, ray_version="2.60.0"):
        applied = manifests(place, config=dump(place.spec), ray_version=ray_version)
        created = jobs(place, ray_version=ray_version)
        return [copy.deepcopy(one) for files in (applied, created) for found in files.values() for one in found]

    return make


@pytest.fixture(scope="session")
def strict():
    """Return what a strict API server and KubeRay's operator say against objects, and about the names in ``beside``."""
    crds = published("ray.io_ray[cjs]*.yaml")
    built_in = BuiltIn(Path(pytest.importorskip("kubernetes_validate").__file__).parent)

    def check(found, *, beside=None):
        # The operator sees only what the server took.
        said = [problem for one in found for problem in crds.problems(one) or built_in.problems(one) or refusals(one)]
        return [*said, *dangling(found if beside is None else beside)]

    return check


class BuiltIn:
    """The strict schemas of kubernetes-validate, which reads all of them for each object."""

    def __init__(self, package):
        self.folder = max(
            (package / "kubernetes-json-schema").glob("v*-local-strict"),
            key=lambda path: int(path.name.removeprefix("v").split("-")[0].split(".")[1]),
        )
        self.definitions = json.loads((self.folder / "_definitions.json").read_text())["$defs"]
        self.validators = {}

    def problems(self, found):
        version = found["apiVersion"]
        if version in FOREIGN or version.partition("/")[0] == "ray.io":
            return []
        group, _, number = version.rpartition("/")
        name = f"{found['kind'].lower()}-{'-'.join(filter(None, (group.partition('.')[0], number)))}.json"
        if not (self.folder / name).exists():
            return [f"{found['kind']}: there is no such kind in {version}"]
        if name not in self.validators:
            text = (self.folder / name).read_text().replace("/api/_definitions.json#", "#")
            schema = {**json.loads(text), "$defs": self.definitions}
            schema.pop("$id", None)
            self.validators[name] = jsonschema.Draft202012Validator(schema)
        return [f"{found['kind']}: {one.json_path}: {one.message}" for one in self.validators[name].iter_errors(found)]


def dangling(found):
    """Yield names in objects that no object has: what an API server accepts and never runs."""
    named = {(one["kind"], one["metadata"].get("name")) for one in found}
    templates = list(pods(found))
    for pod in templates:
        spec, labels = pod["spec"], pod["metadata"]["labels"]
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        if ("ServiceAccount", spec["serviceAccountName"]) not in named:
            yield f"there is no ServiceAccount {spec['serviceAccountName']}"
        for volume in spec.get("volumes", ()):
            if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in named:
                yield f"there is no ConfigMap {volume['configMap']['name']}"
        for container in spec["containers"]:
            yield from _mounted(container, volumes)
            security = spec.get("securityContext", {}), container.get("securityContext", {})
            if not security[0].get("runAsNonRoot") or security[1].get("allowPrivilegeEscalation", True):
                yield f"{labels}: {container['name']} may run as root"
            for one in container.get("env", ()):
                if any(word in one["name"] for word in ("PASSWORD", "TOKEN", "SECRET", "URL")) and "value" in one:
                    yield f"{one['name']} is a credential in a manifest"
    for one in found:
        if one["kind"] == "RoleBinding" and ("Role", one["roleRef"]["name"]) not in named:
            yield f"there is no Role {one['roleRef']['name']}"
    yield from _empty_selectors(found, templates)


def _mounted(container, volumes):
    """Yield what an API server refuses of a container's lists, whose keys it wants once."""
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"{container['name']} mounts {mount['name']}, which is no volume"
        if not mount["mountPath"].startswith("/") or ":" in mount["mountPath"]:
            yield f"{container['name']} mounts at {mount['mountPath']}"
    for field, key in (("env", "name"), ("ports", "containerPort"), ("volumeMounts", "mountPath")):
        keys = [one[key] for one in container.get(field, ())]
        for one in {one for one in keys if keys.count(one) > 1}:
            yield f"{container['name']} has {field} {one} twice"


def _empty_selectors(found, templates):
    for one in found:
        selector = (
            one["spec"].get("selector") if one["kind"] in {"PodDisruptionBudget", "Service", "Deployment"} else None
        )
        if selector is not None:
            wanted = (selector.get("matchLabels", selector)).items()
            if not any(wanted <= pod["metadata"]["labels"].items() for pod in templates):
                yield f"{one['kind']} {one['metadata']['name']} selects no pod"


def pods(found):
    """Yield every pod template in objects."""
    if isinstance(found, dict):
        if "containers" in found.get("spec", {}):
            yield found
        for value in found.values():
            yield from pods(value)
    elif isinstance(found, list):
        for value in found:
            yield from pods(value)
