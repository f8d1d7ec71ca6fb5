"""KubeRay's objects: the specification of a Ray cluster, the RayService, the RayJobs.

Owns what is asked of KubeRay (1.7). A RayService has no ``serveConfigV2`` here: what is live is the reconciler's.
Pure.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.network import node_rules
from raymlops.cluster.kubernetes.place import CONFIG_FILE, CONFIG_FOLDER, REDIS_KEY
from raymlops.cluster.kubernetes.pods import locked_down, node_pod, secret_key, submitter_pod
from raymlops.config.paths import CONFIG_DIGEST
from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.cluster.kubernetes.place import Place
    from raymlops.config.platforms.kubernetes import CpuNodes

API = "ray.io/v1"
INCREMENTAL = "NewClusterWithIncrementalUpgrade"
IDLE_S = 300
KEEP_S = 3600
"""How long an ended job's object is kept; its cluster ends with it."""
VERBS = ("train", "sweep")
"""Jobs with a cluster of their own. What touches the endpoint runs on its cluster (``raymlops submit``)."""


def cluster_of(service: Mapping[str, Any], *, name: str, namespace: str) -> str:
    """Return the cluster that a RayService has now.

    It has an active one, and a pending one while it is upgraded or before it first serves. While there is a pending one
    KubeRay sends it alone the configuration (``Reconcile`` of ``rayservice_controller.go``).

    Raises:
        ClusterError: it has none yet.
    """
    status = service.get("status") or {}
    for which in ("pendingServiceStatus", "activeServiceStatus"):
        if cluster := (status.get(which) or {}).get("rayClusterName"):
            return str(cluster)
    reasons = [one["message"] for one in status.get("conditions") or () if one.get("status") == "False"]
    raise ClusterError(
        f"the RayService {name} has no Ray cluster yet{f': {reasons[0]}' if reasons and reasons[0] else ''}",
        hint=f"kubectl -n {namespace} describe rayservice {name}",
    )


def replaced_by(cluster: str, service: Mapping[str, Any]) -> str | None:
    """Return the active cluster of a RayService, which another one that gets the configuration is to replace."""
    active = ((service.get("status") or {}).get("activeServiceStatus") or {}).get("rayClusterName")
    return str(active) if active and active != cluster else None


def cluster_spec(place: Place, *, serves: bool, ray_version: str) -> dict[str, Any]:
    """Return the specification of a Ray cluster: that of the endpoint, or that of a job.

    No group has ``replicas``: the autoscaler's number is in the RayCluster, and a manifest must not reset it.
    """
    section = place.section
    groups = [_group(place, "cpu", section.cpu, serves=serves)]
    if place.uses_gpus:
        groups.append(_group(place, "gpu", section.gpu, serves=serves, gpus=section.gpu.gpus))
    found: dict[str, Any] = {
        "rayVersion": ray_version,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": IDLE_S,
            "upscalingMode": "Default",
            "securityContext": locked_down(),
            "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "200m", "memory": "512Mi"}},
        },
        "authOptions": {"mode": "token", "secretName": section.secret},
        "headGroupSpec": {
            # 0 CPUs: no trial, worker or replica lands here, so that none of them can take the cluster down with it.
            "rayStartParams": {"num-cpus": "0", "disable-usage-stats": "true"},
            "template": node_pod(place, section.head, component="head", serves=serves),
        },
        "workerGroupSpecs": groups,
    }
    if section.redis is not None and serves:
        found["gcsFaultToleranceOptions"] = {
            "redisAddress": section.redis if "://" in section.redis else f"redis://{section.redis}",
            "redisPassword": secret_key(place, REDIS_KEY),
        }
    if section.network_policy == "kuberay":
        role = "serve" if serves else "job"
        head, worker = node_rules(place, role, head=True), node_rules(place, role, head=False)
        found["networkPolicy"] = {
            "mode": "DenyAllIngress",
            "head": {"ingressRules": head},
            "worker": {"ingressRules": worker},
        }
    return found


def ray_service(place: Place, *, ray_version: str) -> dict[str, Any]:
    """Return the RayService. Its upgrades bring up another cluster, and move there when all of it runs."""
    return {
        "apiVersion": API,
        "kind": "RayService",
        "metadata": place.meta(),
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": 120,
            # The head has a proxy on every cluster, and the only one while all models are scaled to zero.
            "excludeHeadPodFromServeSvc": place.spec.serve.min_replicas > 0,
            "rayClusterConfig": cluster_spec(place, serves=True, ray_version=ray_version),
        },
    }


def ray_cluster(place: Place, *, ray_version: str) -> dict[str, Any]:
    """Return a cluster that stays, for many jobs: `raymlops submit --cluster` names it."""
    return {
        "apiVersion": API,
        "kind": "RayCluster",
        "metadata": place.meta("-jobs", "jobs"),
        "spec": cluster_spec(place, serves=False, ray_version=ray_version),
    }


def ray_job(
    place: Place, words: Sequence[str], *, ray_version: str, cluster: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Return a RayJob that runs ``raymlops WORDS``, on a cluster of its own unless one is named.

    Its driver is on a worker, unless the job is about the endpoint: only that cluster's head has the state's
    credentials. A job ends with its head; ``train --resume`` continues at the last checkpoint.
    """
    verb = words[0]
    # A verb may have two words, and options may be ended by --.
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    named = [*words[:first], "--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}", *words[first:]]
    command = ["env", f"{CONFIG_DIGEST}={place.digest}", "raymlops", *named]
    # Also those of pods, which a queue reads here: kueue.x-k8s.io/queue-name.
    labels = {**(place.section.pod.metadata.get("labels") or {}), **place.labels("job")}
    called = {"name": name} if name is not None else {"generateName": f"{place.name}-{verb}-"}
    found: dict[str, Any] = {
        "entrypoint": f"exec {shlex.join(command)}",
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": submitter_pod(place),
    }
    if verb in VERBS:
        found["entrypointNumCpus"] = 1
    if cluster is not None:
        found["clusterSelector"] = {"ray.io/cluster": cluster}
    else:
        found |= {
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEEP_S,
            "backoffLimit": 0,
            "rayClusterSpec": cluster_spec(place, serves=False, ray_version=ray_version),
        }
    return {"apiVersion": API, "kind": "RayJob", "metadata": {**called, "labels": labels}, "spec": found}


def _group(place: Place, name: str, nodes: CpuNodes, *, serves: bool, gpus: int = 0) -> dict[str, Any]:
    # No worker before work needs it: a worker without a proxy is not ready, and KubeRay submits a job only once every
    # pod of a new cluster was ready (``calculateStatus`` of ``raycluster_controller.go``).
    return {
        "groupName": name,
        "minReplicas": 0,
        "maxReplicas": nodes.max_nodes,
        "rayStartParams": {"disable-usage-stats": "true"},
        "template": node_pod(place, nodes, component=name, serves=serves, gpus=gpus),
    }
