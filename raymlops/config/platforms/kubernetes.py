"""The ``kubernetes`` section: what ``render kubernetes`` cannot read elsewhere in a configuration.

Owns every field with its range, default and one-line description. Knows no manifest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from raymlops.config.base import Spec, frozen

Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A name that Kubernetes takes for an object of any kind (RFC 1123)."""
Host = Annotated[
    str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
]
"""Labels with dots between them; no IP address, which an Ingress does not take."""
Cidr = Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+/\d{1,3}$")]


class Pod(Spec):
    """A template that is merged into pods: mappings by key, containers by position, other lists appended."""

    metadata: dict[str, Any] = Field(default_factory=dict, description="labels and annotations")
    spec: dict[str, Any] = Field(
        default_factory=dict, description="imagePullSecrets, tolerations, nodeSelector, volumes, containers"
    )


class Node(Spec):
    """The head. A pod requests all of its size: kubelet and daemon sets need the rest of the machine."""

    cpus: int = Field(2, ge=1, description="CPUs that a pod requests")
    memory_gib: int = Field(8, ge=1, description="memory that a pod requests, in 2^30 bytes")
    pod: Pod = Field(default_factory=Pod, description="merged into these pods, after kubernetes.pod")


class CpuNodes(Node):
    """Worker nodes without GPUs; the default fits a machine of 8 CPUs and 32 GiB."""

    cpus: int = Field(7, ge=1, description="CPUs that a pod requests")
    memory_gib: int = Field(28, ge=1, description="memory that a pod requests, in 2^30 bytes")
    max_nodes: int = Field(4, ge=1, description="nodes at most; the autoscaler adds them when work waits")


class GpuNodes(CpuNodes):
    """Worker nodes with GPUs; the default fits a machine of 4 CPUs and 16 GiB."""

    cpus: int = Field(3, ge=1, description="CPUs that a pod requests")
    memory_gib: int = Field(13, ge=1, description="memory that a pod requests, in 2^30 bytes")
    max_nodes: int = Field(2, ge=1, description="nodes at most; the autoscaler adds them when work waits")
    gpus: int = Field(1, ge=1, description="GPUs that a pod requests, nvidia.com/gpu")


class KubernetesSection(Spec):
    """What ``raymlops render kubernetes`` writes."""

    namespace: Label | None = Field(None, description="namespace; default: the project's name, then - and the --env")
    image: str | None = Field(
        None,
        pattern=r"^[^\s]+$",
        description="image with raymlops and the recipe; default: raymlops with this version as tag",
    )
    secret: Label = Field("raymlops", description="Secret with the credentials that the configuration refers to")
    variables: Annotated[tuple[str, ...], BeforeValidator(frozen)] = Field(
        (),
        description="more variables of every pod, keys of that Secret: AWS_ACCESS_KEY_ID of a bucket, where no role is",
    )
    pod: Pod = Field(default_factory=Pod, description="merged into every pod, of jobs too")
    head: Node = Field(default_factory=Node, description="head nodes")
    cpu: CpuNodes = Field(default_factory=CpuNodes, description="worker nodes without GPUs")
    gpu: GpuNodes = Field(
        default_factory=GpuNodes, description="worker nodes with GPUs, where workers or replicas reserve some"
    )
    redis: str | None = Field(
        "redis:6379",
        pattern=r"^(rediss?://)?[a-zA-Z0-9.-]+:\d{1,5}$",
        description="Redis by which a head that is started again resumes its cluster; null: a cluster ends with it",
    )
    claim: Label | None = Field(
        None, description="volume claim of storage.path where that is a folder; default: one is made"
    )
    host: Host | None = Field(None, description="host name of the endpoint, by TLS; null: inside the cluster alone")
    ingress_class: Label | None = Field(None, description="class of the Ingress; default: the cluster's own")
    gateway_class: Label | None = Field(None, description="class of a Gateway, which then replaces the Ingress")
    serve_cidrs: Annotated[tuple[Cidr, ...], BeforeValidator(frozen)] = Field(
        (), description="addresses beyond pods that reach the endpoint and its metrics: load balancers, node ports"
    )
    dashboard_namespaces: Annotated[tuple[Label, ...], BeforeValidator(frozen)] = Field(
        (), description="namespaces whose pods submit jobs to Ray's dashboard: Argo, Airflow, Jenkins"
    )
    network_policy: Literal["objects", "kuberay", "none"] = Field(
        "objects", description="kuberay has the operator make the same policies: a feature gate of KubeRay 1.7, alpha"
    )
