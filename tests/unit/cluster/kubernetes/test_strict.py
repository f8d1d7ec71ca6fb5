"""A strict API server and KubeRay's operator: they accept what is rendered, and see each mistake."""

import pytest

from .conftest import POD

WHOLE = ("kubernetes.host=models.example.com", "serve.gpus_per_replica=1.0")


@pytest.mark.parametrize("env", ["dev", "staging", "prod"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        WHOLE,
        (*WHOLE, "kubernetes.gateway_class=cilium", "kubernetes.network_policy=kuberay"),
        ("kubernetes.redis=null", "kubernetes.network_policy=none", "storage.path=/srv/models"),
        ("kubernetes.variables=[A]", f"kubernetes.pod={POD}"),
        ("serve.grpc_port=9000", "kubernetes.serve_cidrs=[10.0.0.0/8]", "kubernetes.dashboard_namespaces=[argo]"),
    ],
    ids=["default", "whole", "gateway", "folder", "pod", "callers"],
)
def test_what_is_rendered_is_accepted(place, objects, strict, env, overrides):
    """By the schemas of the stored version, the rules in them, KubeRay's own checks, and the names in it."""
    assert strict(objects(place(*overrides, env=env))) == []


def head(service):
    return service["spec"]["rayClusterConfig"]["headGroupSpec"]


def first_group(service):
    return service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]


def container(group):
    return group["template"]["spec"]["containers"][0]


def put(**fields):
    return lambda one: one["spec"].update(fields)


def cluster(**fields):
    return lambda one: one["spec"]["rayClusterConfig"].update(fields)


MISTAKES = {
    "a misspelt section": ("RayService", lambda one: one["spec"].update(rayClusterCfg={}), "rayClusterCfg"),
    "a misspelt field of a container": (
        "RayService",
        lambda one: container(head(one)).update(resource={}),
        "'resource'",
    ),
    "an old version": ("RayService", lambda one: one.update(apiVersion="ray.io/v1alpha1"), "not the stored version"),
    "another manager": ("RayService", put(managedBy="me"), "managedBy field value must be"),
    "two ways to delete": (
        "RayJob",
        put(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}, "deletionRules": []}),
        "cannot be used together",
    ),
    "an empty way to delete": ("RayJob", put(deletionStrategy={}), "BOTH onSuccess and onFailure"),
    "half a way to delete": (
        "RayJob",
        put(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}}),
        "BOTH onSuccess and onFailure",
    ),
    "rules to delete what ends": (
        "RayJob",
        put(deletionStrategy={"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}),
        "deletionStrategy.deletionRules exclude each other",
    ),
    "nothing deleted of what ends": (
        "RayJob",
        put(deletionStrategy={"onSuccess": {"policy": "DeleteNone"}, "onFailure": {"policy": "DeleteSelf"}}),
        "DeleteNone and shutdownAfterJobFinishes",
    ),
    "workers deleted beside an autoscaler": (
        "RayJob",
        put(deletionStrategy={"onSuccess": {"policy": "DeleteWorkers"}, "onFailure": {"policy": "DeleteSelf"}}),
        "not for a cluster with an autoscaler",
    ),
    "a cluster of another deleted": (
        "RayJob",
        put(
            clusterSelector={"ray.io/cluster": "x"},
            deletionStrategy={"onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteSelf"}},
        ),
        "deletes nothing of a cluster that clusterSelector names",
    ),
    "a port twice": (
        "RayService",
        lambda one: container(head(one))["ports"].append({"name": "x", "containerPort": 8265}),
        "has ports 8265 twice",
    ),
    "a variable twice": (
        "Deployment",
        lambda one: container(one["spec"])["env"].append(container(one["spec"])["env"][0]),
        "twice",
    ),
    "a relative path": (
        "RayService",
        lambda one: container(head(one))["volumeMounts"][0].update(mountPath="state_url"),
        "mounts at state_url",
    ),
    "a role that is not there": ("RoleBinding", lambda one: one["roleRef"].update(name="x"), "no Role x"),
    "more nodes than a number has": ("RayService", lambda one: first_group(one).update(maxReplicas=10**11), "maximum"),
    "a third autoscaler": ("RayService", cluster(autoscalerOptions={"version": "v3"}), "'v3' is not one of"),
    "more nodes at least than at most": (
        "RayService",
        lambda one: first_group(one).update(minReplicas=9),
        "above maxReplicas",
    ),
    "resources twice": (
        "RayService",
        lambda one: head(one).update(resources={"CPU": "0"}),
        "has resources twice",
    ),
    "a submitter beside a head that is restarted": (
        "RayJob",
        lambda one: (
            one["spec"].update(submissionMode="SidecarMode"),
            one["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(restartPolicy="Always"),
        ),
        "SidecarMode needs a head",
    ),
    "a restart policy": (
        "RayService",
        lambda one: first_group(one)["template"]["spec"].update(restartPolicy="Always"),
        "restartPolicy",
    ),
    "Redis' password twice": (
        "RayService",
        lambda one: container(head(one))["env"].append({"name": "REDIS_PASSWORD", "valueFrom": {}}),
        "REDIS_PASSWORD",
    ),
    "a Ray without tokens": ("RayService", cluster(rayVersion="2.40.0"), "needs rayVersion 2.52.0"),
    "a policy for a way that is open": (
        "RayService",
        cluster(networkPolicy={"mode": "DenyAllEgress", "head": {"ingressRules": [{}]}}),
        "leaves that way open",
    ),
    "what is live in a manifest": ("RayService", put(serveConfigV2="applications: []"), "reconciler alone writes"),
    "an incremental upgrade": (
        "RayService",
        put(upgradeStrategy={"type": "NewClusterWithIncrementalUpgrade"}),
        "use NewCluster",
    ),
    "a long name": ("RayService", lambda one: one["metadata"].update(name="a" * 48), "at most 47"),
    "retries on another's cluster": (
        "RayJob",
        put(clusterSelector={"ray.io/cluster": "x"}, backoffLimit=2),
        "backoffLimit",
    ),
    "a time to live of what does not end": ("RayJob", put(shutdownAfterJobFinishes=False), "needs shutdownAfterJob"),
    "a job on no cluster": ("RayJob", lambda one: one["spec"].pop("rayClusterSpec"), "one of rayClusterSpec"),
    "the autoscaler's version twice": (
        "RayService",
        lambda one: container(head(one))["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
        "are both set",
    ),
    "a suspended group": ("RayService", lambda one: first_group(one).update(suspend=True), "does not allow"),
    "a feature that is off": ("RayService", cluster(tlsOptions={"enabled": True}), "RayClusterMTLS"),
    "labels among the parameters": (
        "RayService",
        lambda one: first_group(one)["rayStartParams"].update(labels="a=b"),
        "labels in rayStartParams",
    ),
    "a number as text": (
        "RayService",
        lambda one: first_group(one).update(minReplicas="1"),
        "is not of type 'integer'",
    ),
    "a deployment without a selector": ("Deployment", lambda one: one["spec"].pop("selector"), "selector"),
    "a misspelt field of a deployment": ("Deployment", put(replica=2), "replica"),
    "a path of no type": (
        "Ingress",
        lambda one: one["spec"]["rules"][0]["http"]["paths"][0].pop("pathType"),
        "pathType",
    ),
    "a kind that is no more": (
        "PodDisruptionBudget",
        lambda one: one.update(apiVersion="policy/v1beta1"),
        "no such kind",
    ),
    "a port of no number": ("NetworkPolicy", lambda one: one["spec"]["ingress"][0].update(ports=[{"port": {}}]), "ort"),
    "a volume that is not there": (
        "Deployment",
        lambda one: one["spec"]["template"]["spec"].update(volumes=[]),
        "which is no volume",
    ),
    "an account that is not there": (
        "RayService",
        lambda one: head(one)["template"]["spec"].update(serviceAccountName="root"),
        "no ServiceAccount",
    ),
    "a budget of nothing": (
        "PodDisruptionBudget",
        lambda one: one["spec"]["selector"]["matchLabels"].update({"app.kubernetes.io/component": "x"}),
        "selects no pod",
    ),
    "a credential": (
        "Deployment",
        lambda one: container(one["spec"])["env"].append({"name": "DB_PASSWORD", "value": "x"}),
        "credential in a manifest",
    ),
    "root": ("Deployment", lambda one: one["spec"]["template"]["spec"].pop("securityContext"), "may run as root"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_caught(place, objects, strict, name):
    """And named, by whoever would see it: the schema, a rule in it, KubeRay, or nobody until a pod does not start."""
    kind, make, said = MISTAKES[name]
    found = objects(place(*WHOLE))
    wrong = next(one for one in found if one["kind"] == kind)
    make(wrong)
    assert any(said in problem for problem in strict([wrong], beside=found))
