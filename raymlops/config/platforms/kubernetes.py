"""The ``kubernetes`` section: what ``render kubernetes`` cannot read elsewhere in a configuration.

Owns every field with its range, default and one-line description. Knows no manifest.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raymlops.config.base import Spec, frozen

Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A name that Kubernetes takes for an object of any kind (RFC 1123)."""
Host = Annotated[
    str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
]
"""Labels with dots between them; no IP address, which an Ingress does not take."""


class CpuNodes(Spec):
    """Worker nodes without GPUs."""

    cpus: int = Field(8, ge=1, description="CPUs of a node")
    memory_gib: int = Field(32, ge=1, description="memory of a node, in 2^30 bytes")
    min_nodes: int = Field(1, ge=0, description="nodes kept while they are idle")
    max_nodes: int = Field(4, ge=1, description="nodes at most; the autoscaler adds them when work waits")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_nodes < self.min_nodes:
            msg = f"max_nodes {self.max_nodes} is below min_nodes {self.min_nodes}"
            raise ValueError(msg)
        return self


class GpuNodes(CpuNodes):
    """Worker nodes with GPUs."""

    cpus: int = Field(4, ge=1, description="CPUs of a node")
    memory_gib: int = Field(16, ge=1, description="memory of a node, in 2^30 bytes")
    min_nodes: int = Field(0, ge=0, description="nodes kept while they are idle")
    max_nodes: int = Field(2, ge=1, description="nodes at most; the autoscaler adds them when work waits")
    gpus: int = Field(1, ge=1, description="GPUs of a node, nvidia.com/gpu")


class Toleration(Spec):
    """A taint of nodes that pods may run on all the same."""

    key: str | None = Field(None, description="key of the taint; null with Exists: every taint")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="whether the value counts")
    value: str | None = Field(None, description="value of the taint, with Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="effect of the taint; null: every one"
    )

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None) or (self.key is None and self.operator == "Equal"):
            msg = "Equal is written with a key and a value, Exists without a value"
            raise ValueError(msg)
        return self


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
    pull_secrets: Annotated[tuple[Label, ...], BeforeValidator(frozen)] = Field(
        (), description="Secrets by which nodes pull the image"
    )
    tolerations: Annotated[tuple[Toleration, ...], BeforeValidator(frozen)] = Field(
        (), description="taints of nodes that every pod may run on"
    )
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
    network_policy: Literal["objects", "kuberay", "none"] = Field(
        "objects", description="kuberay has the operator make the same policies: a feature gate of KubeRay 1.7, alpha"
    )
