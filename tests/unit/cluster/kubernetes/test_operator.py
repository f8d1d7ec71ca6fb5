"""What KubeRay and Kubernetes make of the rendered objects: what starts, who answers callers, what is evicted."""

import pytest
from fake_kubernetes import FakeKubernetes, FakeRayCluster
from fake_serve import FakeServe

from raymlops.cluster.kubernetes.api_server import ApiServer
from raymlops.cluster.kubernetes.manifests import manifests
from raymlops.cluster.kubernetes.submit import submit
from raymlops.errors import ClusterError, ConfigError

ENVIRONMENTS = ("dev", "staging", "prod")


@pytest.fixture
def ray(place):
    """Return the pods of an environment's RayService."""

    def make(env="prod", *overrides):
        (service,) = manifests(place(*overrides, env=env), config="", ray_version="2.60.0")["rayservice"]
        return FakeRayCluster(service)

    return make


@pytest.fixture
def kubernetes():
    fake = FakeKubernetes(FakeServe())
    yield fake
    fake.close()


def run(kubernetes, place, env):
    server, clock, written = ApiServer(kubernetes.url, "models", quiet_s=0.05), iter(range(0, 10**6, 60)), []
    spec = place(env=env).spec

    def sleep(_):
        if next(clock) > 1200:
            raise ClusterError(written[-1])

    return submit(spec, ["deploy"], server=server, env=env, write=written.append, sleep=sleep, clock=lambda: 0.0)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_first_deploy_starts(kubernetes, place, ray, env):
    """KubeRay submits it once every pod of the new cluster is ready, before any replica runs."""
    kubernetes.ray = ray(env)
    assert run(kubernetes, place, env).succeeded


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_callers_are_sent_to_proxies_alone(kubernetes, place, ray, env):
    """A worker without a replica gets none of them, and keeps no job waiting."""
    kubernetes.ray = cluster = ray(env)
    cluster.add("cpu", replica=True)
    cluster.add("cpu", replica=False)
    assert [name for name, proxy in cluster.endpoints() if not proxy] == []
    assert ("cpu", True) in cluster.endpoints()
    assert run(kubernetes, place, env).succeeded


@pytest.mark.parametrize(("env", "endpoints"), [("dev", ["head"]), ("prod", [])])
def test_a_model_that_may_be_scaled_to_zero_is_reached_by_the_head(ray, env, endpoints):
    """Its next request starts a replica, so that there is an endpoint without one."""
    cluster = ray(env)
    cluster.serves = True
    assert [name for name, _ in cluster.endpoints()] == endpoints


def test_a_proxy_on_the_head_alone_is_refused(place):
    """KubeRay's service has the workers in any case."""
    with pytest.raises(ConfigError) as raised:
        place("serve.proxy_location=head_only")
    assert [one.path for one in raised.value.problems] == ["serve.proxy_location"]


@pytest.mark.parametrize("overrides", [(), ("kubernetes.redis=null",), ("train.gpus_per_worker=1.0",)])
def test_every_pod_can_be_evicted(objects, place, overrides):
    """A budget by what may be unavailable needs an owner with a scale, and a RayCluster has none (disruption.go)."""
    found = objects(place(*overrides))
    scaled = [one["spec"]["selector"]["matchLabels"] for one in found if one["kind"] == "Deployment"]
    budgets = [one["spec"] for one in found if one["kind"] == "PodDisruptionBudget"]
    assert [one["selector"]["matchLabels"] for one in budgets] == scaled
    assert all(one["maxUnavailable"] >= 1 for one in budgets)


def test_grpc_is_a_port_of_the_service(ray):
    """KubeRay takes the ports whose names begin with serve, of head and workers alike."""
    config = ray("prod", "serve.grpc_port=9000").spec["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        ports = group["template"]["spec"]["containers"][0]["ports"]
        assert {one["name"]: one["containerPort"] for one in ports if one["name"].startswith("serve")} == {
            "serve": 8000,
            "serve-grpc": 9000,
        }


def test_the_default_nodes_fit_their_machines(ray):
    """Of an m6i.2xlarge 7.9 CPUs and about 30 GiB are allocatable, of a g5.xlarge 3.9 and about 15."""
    config = ray("prod", "train.gpus_per_worker=1.0").spec["rayClusterConfig"]
    requests = [
        one["template"]["spec"]["containers"][0]["resources"]["requests"]
        for one in (config["headGroupSpec"], *config["workerGroupSpecs"])
    ]
    assert [(one["cpu"], one["memory"]) for one in requests] == [("2", "8Gi"), ("7", "28Gi"), ("3", "13Gi")]
