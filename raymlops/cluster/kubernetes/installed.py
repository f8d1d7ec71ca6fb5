"""Whether a cluster has KubeRay, in a version that takes our objects, and whether it has a project's RayService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.ray import API
from raymlops.errors import ClusterError, NotFoundError

if TYPE_CHECKING:
    from raymlops.cluster.kubernetes.api_server import ApiServer

KUBERAY = "KubeRay 1.7"
INSTALL = "helm upgrade --install kuberay-operator kuberay/kuberay-operator --version 1.7.0"
UPGRADE = f"kubectl replace -k github.com/ray-project/kuberay/ray-operator/config/crd?ref=v1.7.0; {INSTALL}"
"""Helm leaves CRDs that are there as they are."""


def check_kuberay(server: ApiServer) -> None:
    """Check that KubeRay's kinds are served.

    Raises:
        ClusterError: KubeRay is missing or too old, or the API server does not answer.
    """
    group, _, version = API.partition("/")
    try:
        served = [one["version"] for one in server.get(f"/apis/{group}")["versions"]]
    except NotFoundError:
        raise ClusterError(f"this cluster has no KubeRay; {KUBERAY} is needed", hint=INSTALL) from None
    if version not in served:
        raise ClusterError(
            f"this cluster's KubeRay serves {', '.join(served)} of {group}; {version} is needed, of {KUBERAY}",
            hint=UPGRADE,
        )


def check_cluster(server: ApiServer, name: str) -> None:
    """Check that there is a RayCluster: KubeRay waits for ever for one that a job names.

    Raises:
        NotFoundError: there is none.
        ClusterError: KubeRay is missing or too old, or the API server does not answer.
    """
    try:
        server.get(f"/apis/{API}/namespaces/{server.namespace}/rayclusters/{name}")
    except NotFoundError:
        check_kuberay(server)
        raise NotFoundError(
            f"there is no RayCluster {name} in the namespace {server.namespace}",
            hint=f"kubectl -n {server.namespace} get rayclusters",
        ) from None


def ray_service_of(server: ApiServer, name: str) -> dict[str, Any]:
    """Return the RayService of a project.

    Raises:
        NotFoundError: there is none.
        ClusterError: KubeRay is missing or too old, or the API server does not answer.
    """
    try:
        return server.get(f"/apis/{API}/namespaces/{server.namespace}/rayservices/{name}")
    except NotFoundError:
        check_kuberay(server)
        raise NotFoundError(
            f"there is no RayService {name} in the namespace {server.namespace}",
            hint="kubectl apply --server-side -k DIR/ENV, after `raymlops render kubernetes`.",
        ) from None
