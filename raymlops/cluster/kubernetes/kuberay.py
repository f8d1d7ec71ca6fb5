"""What KubeRay's operator refuses although its CRDs take it, so that it is known before anything is applied.

Each rule is one of the operator's own (``ray-operator/controllers/ray/utils/validation.go`` of KubeRay 1.7), which it
checks before it makes a pod; the function is named. Feature gates have their defaults, except that of
``networkPolicy``, which a configuration asks for by name. What only the spec of a RayService may not have is
raymlops' own. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = {"RayCluster": 53, "RayService": 47, "RayJob": 47}
SUFFIX = 5
"""Characters that Kubernetes adds to ``generateName``."""
INCREMENTAL = "NewClusterWithIncrementalUpgrade"
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SIZES = ("num-cpus", "num-gpus", "memory", "resources")
_V2 = "RAY_enable_autoscaler_v2"
_GATED = {
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
Found = Mapping[str, Any]


def refusals(found: Found) -> list[str]:
    """Return why KubeRay would refuse an object, a sentence each; empty for one of another kind."""
    kind, spec = found.get("kind"), found.get("spec") or {}
    if kind not in LONGEST:
        return []
    said = [*_metadata(kind, found["metadata"])]
    annotations = found["metadata"].get("annotations") or {}
    if kind == "RayCluster":
        said += _cluster(spec, annotations)
    elif kind == "RayService":
        said += [*_cluster(spec.get("rayClusterConfig") or {}, annotations), *_service(spec, annotations)]
    else:
        said += _job(spec, annotations)
    return [f"{kind} {found['metadata'].get('name') or found['metadata'].get('generateName')}: {one}" for one in said]


def _metadata(kind: str, metadata: Found) -> Iterator[str]:
    """ValidateRayClusterMetadata, ValidateRayServiceMetadata, ValidateRayJobMetadata."""
    name = metadata.get("name") or metadata.get("generateName", "") + "x" * SUFFIX
    if len(name) > LONGEST[kind]:
        yield f"its name has {len(name)} characters, at most {LONGEST[kind]}"
    if not _DNS_1035.fullmatch(name):
        yield "its name is no DNS label (RFC 1035): a-z, 0-9 and -, beginning with a letter"


def _cluster(spec: Found, annotations: Found) -> Iterator[str]:
    """ValidateRayClusterSpec."""
    head = spec.get("headGroupSpec") or {}
    groups = spec.get("workerGroupSpecs") or []
    scaled = bool(spec.get("enableInTreeAutoscaling"))
    second = (spec.get("autoscalerOptions") or {}).get("version") == "v2"
    for name, group in (("head", head), *((group.get("groupName", ""), group) for group in groups)):
        if not _pod(group).get("containers"):
            yield f"group {name} has no container"
        yield from _group(name, group)
        if scaled and second and _pod(group).get("restartPolicy") not in {None, "", "Never"}:
            yield f"group {name} has a restartPolicy, which autoscaler v2 sets: Never, or none"
    for group in groups:
        yield from _workers(group, spec, scaled=scaled, second=second)
    yield from _head(spec, head, annotations, scaled=scaled)
    yield from _fault_tolerance(spec, head, annotations)
    yield from _authentication(spec)
    yield from _network_policy(spec)
    for field, gate in _GATED.items():
        if spec.get(field):
            yield f"{field} needs the feature gate {gate}, which is off by default"


def _group(name: str, group: Found) -> Iterator[str]:
    """Check as validateRayGroupResources and validateRayGroupLabels do."""
    params = group.get("rayStartParams") or {}
    if group.get("resources") and any(params.get(key) for key in _SIZES):
        yield f"group {name} has resources twice, in rayStartParams and beside it"
    if "labels" in params:
        yield f"group {name} has labels in rayStartParams; labels stand beside it"
    for key, value in (group.get("labels") or {}).items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL.fullmatch(value):
            yield f"group {name} has {key}={value}, which is no label of Kubernetes"


def _workers(group: Found, spec: Found, *, scaled: bool, second: bool) -> Iterator[str]:
    """ValidateRayClusterSpec, its loop over the groups; validateWorkerGroupIdleTimeout, validateWorkerGroupPriority."""
    name, least, most = group.get("groupName", ""), group.get("minReplicas"), group.get("maxReplicas")
    if not scaled and None in {least, most}:
        yield f"group {name} needs minReplicas and maxReplicas where nothing scales it"
    for key, value in (("minReplicas", least), ("maxReplicas", most)):
        if value is not None and value < 0:
            yield f"group {name} has {key} {value}, below 0"
    if least is not None and most is not None and least > most:
        yield f"group {name} has minReplicas {least} above maxReplicas {most}"
    if group.get("suspend") and scaled:
        yield f"group {name} is suspended, which the autoscaler does not allow"
    if (idle := group.get("idleTimeoutSeconds")) is not None and (idle < 0 or not second):
        yield f"group {name} has idleTimeoutSeconds {idle}; it is at least 0, with autoscaler v2"
    if group.get("priority") and not (second and _at_least(spec.get("rayVersion"), "2.56.0")):
        yield f"group {name} has a priority, which needs autoscaler v2 and rayVersion 2.56.0"


def _head(spec: Found, head: Found, annotations: Found, *, scaled: bool) -> Iterator[str]:
    """ValidateRayClusterSpec, on the head's environment and the autoscaler."""
    env, options = _env(head), spec.get("autoscalerOptions") or {}
    if not scaled and env.get(_V2) in {"1", "true"}:
        yield f"{_V2} is set, and enableInTreeAutoscaling is not"
    if scaled and options.get("version") and _V2 in env:
        yield f"autoscalerOptions.version and {_V2} are both set; only the former is needed"
    if (idle := options.get("idleTimeoutSeconds")) is not None and idle < 0:
        yield f"autoscalerOptions.idleTimeoutSeconds is {idle}, below 0"
    if any(one.get("name") == "KUBERAY_GEN_AUTOSCALER_START_CMD" for one in options.get("env") or []):
        yield "autoscalerOptions.env has KUBERAY_GEN_AUTOSCALER_START_CMD, which is KubeRay's"
    if "REDIS_USERNAME" in env or (head.get("rayStartParams") or {}).get("redis-username"):
        yield "the head has a Redis user in its environment; it is gcsFaultToleranceOptions.redisUsername"
    if (
        not spec.get("gcsFaultToleranceOptions")
        and annotations.get("ray.io/ft-enabled") != "true"
        and "RAY_REDIS_ADDRESS" in env
    ):
        yield "the head has RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"


def _fault_tolerance(spec: Found, head: Found, annotations: Found) -> Iterator[str]:
    """ValidateRayClusterSpec on gcsFaultToleranceOptions, and validateGcsFaultToleranceBackend."""
    options = spec.get("gcsFaultToleranceOptions")
    if not options:
        return
    if annotations.get("ray.io/ft-enabled"):
        yield "ray.io/ft-enabled and gcsFaultToleranceOptions are both set; only the latter is needed"
    if annotations.get("ray.io/external-storage-namespace"):
        yield "ray.io/external-storage-namespace is set beside gcsFaultToleranceOptions, which has a field for it"
    if (head.get("rayStartParams") or {}).get("redis-password"):
        yield "rayStartParams has redis-password beside gcsFaultToleranceOptions.redisPassword"
    for name in sorted({"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & _env(head).keys()):
        yield f"the head has {name} in its environment beside gcsFaultToleranceOptions"
    if options.get("backend") == "rocksdb":
        yield "backend rocksdb needs the feature gate GCSFaultToleranceEmbeddedStorage, which is off by default"
    elif options.get("storage"):
        yield "gcsFaultToleranceOptions.storage is of the backend rocksdb alone"


def _authentication(spec: Found) -> Iterator[str]:
    """ValidateRayClusterSpec on authOptions."""
    auth = spec.get("authOptions") or {}
    if auth.get("mode") == "token" and not _at_least(spec.get("rayVersion"), "2.52.0"):
        yield f"authOptions.mode token needs rayVersion 2.52.0 at least, got {spec.get('rayVersion') or 'none'}"
    if auth.get("enableK8sTokenAuth"):
        if auth.get("mode") != "token" or auth.get("secretName"):
            yield "authOptions.enableK8sTokenAuth needs mode token, and no secretName"
        if not _at_least(spec.get("rayVersion"), "2.55.0"):
            yield "authOptions.enableK8sTokenAuth needs rayVersion 2.55.0 at least"


def _network_policy(spec: Found) -> Iterator[str]:
    """ValidateNetworkPolicy."""
    policy = spec.get("networkPolicy")
    if not policy:
        return
    mode = policy.get("mode", "DenyAll")
    names = [group.get("groupName", "") for group in spec.get("workerGroupSpecs") or []]
    open_way = {"DenyAllEgress": "ingressRules", "DenyAllIngress": "egressRules"}.get(mode, "")
    own = policy.get("workerGroups") or []
    for where, rules in (
        ("head", policy.get("head")),
        ("worker", policy.get("worker")),
        *(("workerGroups", one) for one in own),
    ):
        if (rules or {}).get(open_way):
            yield f"networkPolicy.{where} has {open_way}, and mode {mode} leaves that way open"
    for name in names:
        if not _DNS_1123.fullmatch(name) or len(name) > 63:
            yield f"group {name} must be a DNS label, since a NetworkPolicy is called after it"
    for one in own:
        if one.get("groupName") not in names:
            yield f"networkPolicy.workerGroups names {one.get('groupName')}, and there is no such group"


def _service(spec: Found, annotations: Found) -> Iterator[str]:
    """ValidateRayServiceSpec, ValidateRayClusterUpgradeOptions, validateInitializingTimeout; what raymlops keeps."""
    cluster, upgrade = spec.get("rayClusterConfig") or {}, spec.get("upgradeStrategy") or {}
    if (cluster.get("authOptions") or {}).get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth is not for a RayService"
    if (((cluster.get("headGroupSpec") or {}).get("headService") or {}).get("metadata") or {}).get("name"):
        yield "the head's service has a name, which KubeRay gives"
    if (cluster.get("upgradeStrategy") or {}).get("type"):
        yield "rayClusterConfig.upgradeStrategy is not for a RayService"
    if (delay := spec.get("rayClusterDeletionDelaySeconds")) is not None and delay < 0:
        yield f"rayClusterDeletionDelaySeconds is {delay}, below 0"
    if (timeout := annotations.get("ray.io/initializing-timeout")) and not re.fullmatch(
        r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+|[1-9]\d*", timeout
    ):
        yield f"ray.io/initializing-timeout is {timeout}; a duration such as 30m, or seconds"
    if upgrade.get("type") == INCREMENTAL:
        yield (
            f"upgradeStrategy {INCREMENTAL} shares requests out by cluster, and sends the active one no serveConfigV2 "
            "meanwhile, so that no rollback of a version could reach who answers; use NewCluster"
        )
    elif upgrade.get("type") not in {None, "NewCluster", "None"}:
        yield f"upgradeStrategy {upgrade['type']} is none of NewCluster and None"
    if "serveConfigV2" in spec:
        yield "serveConfigV2 is what is live, which the reconciler alone writes; leave it out"


def _job(spec: Found, annotations: Found) -> Iterator[str]:
    """ValidateRayJobSpec, but for the syntax of runtimeEnvYAML."""
    selector, cluster, ends = (
        spec.get("clusterSelector"),
        spec.get("rayClusterSpec"),
        spec.get("shutdownAfterJobFinishes"),
    )
    mode = spec.get("submissionMode", "K8sJobMode")
    if spec.get("suspend") and (not ends or selector):
        yield "suspend needs shutdownAfterJobFinishes and a cluster of its own"
    if spec.get("ttlSecondsAfterFinished", 0) < 0 or (spec.get("ttlSecondsAfterFinished") and not ends):
        yield "ttlSecondsAfterFinished is at least 0, and needs shutdownAfterJobFinishes"
    if not cluster and not selector:
        yield "one of rayClusterSpec and clusterSelector is needed"
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector names no cluster: ray.io/cluster"
    if selector and (spec.get("backoffLimit") or 0) > 0:
        yield "backoffLimit is not for a job with a clusterSelector"
    if mode == "InteractiveMode" and (spec.get("backoffLimit") or 0) > 0:
        yield "backoffLimit is not for InteractiveMode"
    if mode == "SidecarMode" and (selector or spec.get("submitterPodTemplate") or spec.get("submitterConfig")):
        yield "SidecarMode has no clusterSelector, submitterPodTemplate or submitterConfig"
    head = (cluster or {}).get("headGroupSpec") or {}
    if mode == "SidecarMode" and _pod(head).get("restartPolicy") not in {None, "", "Never"}:
        yield "SidecarMode needs a head whose restartPolicy is Never, or none"
    for field, least in (("activeDeadlineSeconds", 1), ("preRunningDeadlineSeconds", 1), ("backoffLimit", 0)):
        if (value := spec.get(field)) is not None and value < least:
            yield f"{field} is {value}, at least {least}"
    yield from _deletion(spec)
    if cluster:
        if (cluster.get("authOptions") or {}).get("enableK8sTokenAuth"):
            yield "authOptions.enableK8sTokenAuth is not for a RayJob"
        yield from _cluster(cluster, annotations)


def _deletion(spec: Found) -> Iterator[str]:
    """Check as validateDeletionConfiguration and validateLegacyDeletionPolicies do; single rules are not looked at."""
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules, ends = strategy.get("deletionRules"), spec.get("shutdownAfterJobFinishes")
    when = {name: strategy[name] for name in ("onSuccess", "onFailure") if strategy.get(name) is not None}
    policies = {one.get("policy") for one in when.values()}
    if rules and ends:
        yield "shutdownAfterJobFinishes and deletionStrategy.deletionRules exclude each other"
    if rules and when:
        yield "deletionStrategy has deletionRules beside onSuccess or onFailure"
    elif not rules and len(when) < 2:
        yield "deletionStrategy needs deletionRules, or both onSuccess and onFailure"
    if None in policies:
        yield "deletionStrategy has no policy in onSuccess or onFailure"
    if spec.get("clusterSelector") and policies & {"DeleteCluster", "DeleteWorkers"}:
        yield "deletionStrategy deletes nothing of a cluster that clusterSelector names"
    if "DeleteWorkers" in policies and (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"):
        yield "deletionStrategy DeleteWorkers is not for a cluster with an autoscaler"
    if ends and "DeleteNone" in policies:
        yield "deletionStrategy DeleteNone and shutdownAfterJobFinishes exclude each other"


def _pod(group: Found) -> Found:
    pod: Found = (group.get("template") or {}).get("spec") or {}
    return pod


def _env(group: Found) -> dict[str, Any]:
    """Return the variables of a group's first container, which is Ray's."""
    first: Found = (_pod(group).get("containers") or [{}])[0]
    return {one["name"]: one.get("value") for one in first.get("env") or []}


def _at_least(version: str | None, least: str) -> bool:
    try:
        return version is not None and Version(version) >= Version(least)
    except InvalidVersion:
        return False
