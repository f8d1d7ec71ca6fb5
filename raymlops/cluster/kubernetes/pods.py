"""The pods of Ray's nodes, of the controller and of a job's submitter: containers, environment, probes, placing.

A node's container runs KubeRay's own ``ray start`` by ``raymlops env``, so that it starts in the environment of every
other launcher. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.place import CONFIG_FILE, CONFIG_FOLDER, TOKEN_KEY, USER
from raymlops.config.paths import STATE_FILE

if TYPE_CHECKING:
    from raymlops.cluster.kubernetes.place import Place
    from raymlops.config.platforms.kubernetes import Node

RAY_SERVICE = "RAYMLOPS_RAYSERVICE"
"""Variable with the name of the RayService of this namespace whose ``serveConfigV2`` is ours to write."""
OVERWRITE = "ray.io/overwrite-container-cmd"
"""KubeRay then leaves the command, and its own is in KUBERAY_GEN_RAY_START_CMD (``common/pod.go``, ``BuildPod``)."""
AGENT_PORT, DASHBOARD_PORT, GCS_PORT, METRICS_PORT, CLIENT_PORT = 52365, 8265, 6379, 8080, 10001
PORTS = frozenset({AGENT_PORT, DASHBOARD_PORT, GCS_PORT, METRICS_PORT, 8404, 8500, 9101, 9500})
"""Of Ray and, by the defaults of Ray Serve (``serve/_private/constants.py``), of HAProxy and its fallback."""
WORKER_PORTS = range(CLIENT_PORT, 20000)
"""Of Ray Client, and of workers by the defaults of ``ray start``."""
HEALTH = "/api/healthz"
"""Of a node since Ray 2.53: its raylet, on a head the GCS too (``utils.RayNodeHealthPath``)."""
HEARTBEAT = "/tmp/controller"  # noqa: S108 - a file in a container of its own
STALE_S = 300
"""Starting a controller takes a job, and a minute or two."""


def node_pod(place: Place, node: Node, *, component: str, serves: bool, gpus: int = 0) -> Any:
    """Return the template of a node: the head, or a worker.

    KubeRay would add probes of its own that run ``wget`` in the image; a node's agent and its proxy are asked here. It
    makes each worker of a RayService that is ready an endpoint (``BuildPod`` of ``common/pod.go``), so that a worker is
    ready once it has a proxy, which Serve starts with the node's first replica. A head gets that label by its proxy.
    """
    head = component == "head"
    limits: dict[str, Any] = {"cpu": str(node.cpus), "memory": f"{node.memory_gib}Gi"}
    if gpus:
        limits["nvidia.com/gpu"] = str(gpus)
    env = [*_secrets(place, own=head and serves), {"name": "RAY_START_ULIMIT_OPEN_FILES", "value": "65536"}]
    if head and serves:
        env += [{"name": RAY_SERVICE, "value": place.name}, {"name": STATE_FILE, "value": place.state_file}]
    agent = {"httpGet": {"path": HEALTH, "port": AGENT_PORT}}
    answers = {"httpGet": {"path": "/-/healthz", "port": place.spec.serve.port}}
    ports = [("metrics", METRICS_PORT)]
    if serves:
        # KubeRay's service has each port whose name begins so (``isServingPort`` of ``common/service.go``).
        grpc = place.spec.serve.grpc_port
        ports += [("serve", place.spec.serve.port), *([("serve-grpc", grpc)] if grpc else [])]
    if head:
        ports += [("gcs-server", GCS_PORT), ("dashboard", DASHBOARD_PORT), ("client", CLIENT_PORT)]
    named = f"--proxy {place.spec.serve.proxy} " if place.spec.serve.proxy else ""
    container: dict[str, Any] = {
        "name": f"ray-{'head' if head else 'worker'}",
        "image": place.image,
        "command": ["/bin/bash", "-c", "--"],
        "args": [f'ulimit -n 65536; eval exec raymlops env {named}"$KUBERAY_GEN_RAY_START_CMD"'],
        "env": env,
        "ports": [{"name": name, "containerPort": port} for name, port in ports],
        "resources": {"limits": limits, "requests": limits},
        "startupProbe": {**agent, "periodSeconds": 5, "failureThreshold": 60, "timeoutSeconds": 5},
        "livenessProbe": {**agent, "periodSeconds": 10, "failureThreshold": 12, "timeoutSeconds": 5},
        "readinessProbe": {
            **(answers if serves and not head else agent),
            "periodSeconds": 5,
            "failureThreshold": 2,
            "timeoutSeconds": 5,
        },
        "securityContext": locked_down(),
        "volumeMounts": _mounts(place, own=head and serves),
    }
    role = f"{'serve' if serves else 'job'}-{component}"
    account = "node" if not head else "head" if serves else "job"
    pod: dict[str, Any] = {
        # A head's is the autoscaler's too, to which KubeRay gives its rights; a worker asks Kubernetes for nothing.
        "serviceAccountName": f"{place.name}-{account}",
        **({} if head else {"automountServiceAccountToken": False}),
        "securityContext": not_root(),
        "containers": [container],
        "volumes": _volumes(place, own=head and serves),
        "topologySpreadConstraints": spread(place, role),
        "terminationGracePeriodSeconds": 120,
    }
    if gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    template = {"metadata": {"labels": place.labels(role), "annotations": {OVERWRITE: "true"}}, "spec": pod}
    return merged(merged(template, place.section.pod.model_dump()), node.pod.model_dump())


def controller_pod(place: Place, *, digest: str) -> Any:
    """Return the template of the controller; another ``digest`` of the configuration starts it again."""
    container = {
        "name": "controller",
        "image": place.image,
        "command": ["raymlops", "controller", "--keep", "--heartbeat", HEARTBEAT],
        "args": ["--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}"],
        "env": [*_secrets(place, own=True), *_token(place), {"name": RAY_SERVICE, "value": place.name}],
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "512Mi"}},
        "livenessProbe": {
            "exec": {
                "command": [
                    "/bin/sh",
                    "-c",
                    f"test $(( $(date +%s) - $(stat -c %Y {HEARTBEAT}) )) -lt {STALE_S}",
                ]
            },
            "initialDelaySeconds": 60,
            "periodSeconds": 30,
            "timeoutSeconds": 5,
        },
        "securityContext": locked_down(),
        "volumeMounts": _mounts(place, own=True),
    }
    template = {
        "metadata": {
            "labels": place.labels("controller"),
            "annotations": {"raymlops.io/config": digest},
        },
        "spec": {
            "serviceAccountName": f"{place.name}-controller",
            "securityContext": not_root(),
            "containers": [container],
            "volumes": _volumes(place, own=True),
            "topologySpreadConstraints": spread(place, "controller"),
        },
    }
    return merged(template, place.section.pod.model_dump())


def submitter_pod(place: Place) -> Any:
    """Return the template of a job's submitter, which hands it to Ray and prints its log."""
    template = {
        "metadata": {"labels": place.labels("submitter")},
        "spec": {
            "serviceAccountName": f"{place.name}-node",
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "securityContext": not_root(),
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": place.image,
                    "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
                    "securityContext": locked_down(),
                }
            ],
        },
    }
    return merged(template, place.section.pod.model_dump())


def merged(ours: Any, theirs: Any, key: str = "") -> Any:
    """Return ``ours`` with ``theirs`` in it: mappings by key, containers by position, other lists appended."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        both = {name: merged(ours[name], theirs[name], name) for name in ours if name in theirs}
        return {**ours, **theirs, **both}
    if not (isinstance(ours, list) and isinstance(theirs, list)):
        return theirs
    if key != "containers":
        return [*ours, *theirs]
    paired = [merged(one, other) for one, other in zip(ours, theirs, strict=False)]
    return [*paired, *ours[len(paired) :], *theirs[len(paired) :]]


def not_root() -> dict[str, Any]:
    """Return a pod's security context. The group may read the Secret's files, which root owns."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def locked_down() -> dict[str, Any]:
    """Return a container's security context."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def spread(place: Place, component: str) -> list[dict[str, Any]]:
    """Return how pods of a component spread over zones and machines, as far as there is room."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": place.labels(component)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def secret_key(place: Place, key: str) -> dict[str, Any]:
    """Return a reference to a value of the Secret."""
    return {"valueFrom": {"secretKeyRef": {"name": place.section.secret, "key": key}}}


def _secrets(place: Place, *, own: bool) -> list[dict[str, Any]]:
    return [{"name": name, **secret_key(place, name)} for name in place.variables(own=own)]


def _token(place: Place) -> list[dict[str, Any]]:
    return [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", **secret_key(place, TOKEN_KEY)}]


def _mounts(place: Place, *, own: bool) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}]
    mounts += [
        {"name": "secret", "mountPath": path, "subPath": key, "readOnly": True}
        for path, key in place.files(own=own).items()
    ]
    if place.folder is not None:
        mounts.append({"name": "storage", "mountPath": place.folder})
    return mounts


def _volumes(place: Place, *, own: bool) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "config", "configMap": {"name": f"{place.name}-config"}}]
    if keys := sorted(place.files(own=own).values()):
        items = [{"key": key, "path": key} for key in keys]
        volumes.append(
            {"name": "secret", "secret": {"secretName": place.section.secret, "defaultMode": 0o440, "items": items}}
        )
    if place.folder is not None:
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": place.claim}})
    return volumes
