"""The objects of a project on Kubernetes: a pure function from its specification to plain data.

Owns which objects there are beside KubeRay's. The same specification gives the same objects, in the same order.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.network import COMPONENTS, entry, policies
from raymlops.cluster.kubernetes.place import CONFIG_FILE, DIGEST_FILE
from raymlops.cluster.kubernetes.pods import METRICS_PORT, controller_pod
from raymlops.cluster.kubernetes.ray import VERBS, ray_cluster, ray_job, ray_service

if TYPE_CHECKING:
    from raymlops.cluster.kubernetes.place import Place

RBAC = "rbac.authorization.k8s.io"
CONTROLLERS = 2
"""One that holds the lease, and one that takes it over."""
STORAGE = "100Gi"
MANAGER = "raymlops"
"""Field manager of what the reconciler writes."""


def manifests(place: Place, *, config: str, ray_version: str) -> dict[str, list[dict[str, Any]]]:
    """Return the objects that are applied, by file; ``config`` is the project's configuration as YAML."""
    files = {
        "config": [_config_map(place, config)],
        "accounts": _accounts(place),
        "rayservice": [ray_service(place, ray_version=ray_version)],
        "controller": [_controller(place, config)],
        "disruption": [_budget(place)],
        "metrics": _metrics(place),
        "network": policies(place) if place.section.network_policy == "objects" else _controller_policy(place),
        "entry": entry(place),
        "storage": _claim(place),
    }
    return {name: objects for name, objects in files.items() if objects}


def jobs(place: Place, *, ray_version: str) -> dict[str, list[dict[str, Any]]]:
    """Return the objects that are created when they are wanted, by file; nothing applies them again.

    Applied again, a RayCluster would lose the number of nodes that the autoscaler wrote into it.
    """
    found = {verb: [ray_job(place, [verb], ray_version=ray_version)] for verb in VERBS}
    return {**found, "raycluster": [ray_cluster(place, ray_version=ray_version)]}


def _config_map(place: Place, config: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": place.meta("-config", "config"),
        "data": {CONFIG_FILE: config, DIGEST_FILE: place.digest},
    }


def _accounts(place: Place) -> list[dict[str, Any]]:
    """Return who the pods are. The endpoint's head and the controller may write into their one RayService.

    The Role of who submits jobs is bound to nobody: a job on the endpoint's cluster can read the state's database.
    """
    names = ("head", "job", "node", "controller")
    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": place.meta(f"-{name}", "account")} for name in names
    ]
    meta = place.meta("-reconciler", "account")
    rules = [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayservices"],
            "resourceNames": [place.name],
            "verbs": ["get", "patch"],
        }
    ]
    role = {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": meta, "rules": rules}
    submitter = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "Role",
        "metadata": place.meta("-submitter", "account"),
        "rules": [
            {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]},
            {"apiGroups": ["ray.io"], "resources": ["rayclusters", "rayservices"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        ],
    }
    subjects = [
        {"kind": "ServiceAccount", "name": f"{place.name}-{name}", "namespace": place.namespace}
        for name in ("head", "controller")
    ]
    named = {"apiGroup": RBAC, "kind": "Role", "name": meta["name"]}
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "roleRef": named,
        "subjects": subjects,
    }
    return [*accounts, role, binding, submitter]


def _controller(place: Place, config: str) -> dict[str, Any]:
    labels = place.labels("controller")
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": place.meta("-controller", "controller"),
        "spec": {
            "replicas": CONTROLLERS,
            "selector": {"matchLabels": labels},
            "template": controller_pod(place, digest=hashlib.sha256(config.encode()).hexdigest()[:16]),
        },
    }


def _budget(place: Place) -> dict[str, Any]:
    """Return how many controllers may be away at once.

    Ray's pods have no budget: a RayCluster has no scale subresource, so that ``maxUnavailable`` would block every
    eviction (``getExpectedScale`` of ``disruption.go``), and a number would block that of the last node.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": place.meta("-controller", "disruption"),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": place.labels("controller")}},
    }


def _metrics(place: Place) -> list[dict[str, Any]]:
    """Return what Prometheus' operator finds the metrics of the endpoint's nodes by."""
    labels = place.labels("metrics")
    nodes = [f"serve-{one}" for one in COMPONENTS]
    service = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": place.meta(f"-{component}-metrics", "metrics"),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": place.labels(component),
                "ports": [{"name": "metrics", "port": METRICS_PORT, "targetPort": METRICS_PORT}],
            },
        }
        for component in nodes
        if component != "serve-gpu" or place.uses_gpus
    ]
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": place.meta("-metrics", "metrics"),
        "spec": {"selector": {"matchLabels": labels}, "endpoints": [{"port": "metrics", "interval": "15s"}]},
    }
    return [*service, monitor]


def _controller_policy(place: Place) -> list[dict[str, Any]]:
    """Return the policy of the pods that are not Ray's, where KubeRay makes those of its own."""
    return policies(place)[-1:] if place.section.network_policy == "kuberay" else []


def _claim(place: Place) -> list[dict[str, Any]]:
    if place.folder is None or place.section.claim is not None:
        return []
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": STORAGE}}}
    meta = place.meta("-storage", "storage")
    return [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}]
