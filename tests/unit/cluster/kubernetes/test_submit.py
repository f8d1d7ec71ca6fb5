import pytest
from fake_kubernetes import FakeKubernetes
from fake_serve import FakeServe

from raymlops.cluster.kubernetes.api_server import ApiServer
from raymlops.cluster.kubernetes.kuberay import refusals
from raymlops.cluster.kubernetes.submit import submit
from raymlops.errors import ClusterError, RefusedError, UsageError


@pytest.fixture
def kubernetes():
    fake = FakeKubernetes(FakeServe())
    yield fake
    fake.close()


@pytest.fixture
def run(kubernetes, place):
    written = []

    def make(*words, **options):
        server = ApiServer(kubernetes.url, "models")
        job = submit(
            place().spec, words, server=server, env="prod", write=written.append, sleep=lambda _: None, **options
        )
        return job, written

    return make


def test_a_job_is_followed_until_it_ends(kubernetes, run):
    """Its log comes line by line, and then what became of it; a training has a cluster of its own."""
    job, written = run("train", "train.lr=0.1")
    (made,) = kubernetes.jobs.values()
    assert (job.status, written) == ("SUCCEEDED", ['"one"'])
    assert made["spec"]["entrypoint"] == "exec raymlops train --config /etc/raymlops/project.yaml train.lr=0.1"
    assert "clusterSelector" not in made["spec"]
    assert refusals(made) == []


def test_what_is_about_the_endpoint_runs_on_its_cluster(kubernetes, run):
    """Whose head has the state's credentials, and whose name KubeRay gave."""
    run("deploy", "--yes")
    (made,) = kubernetes.jobs.values()
    assert made["spec"]["clusterSelector"] == {"ray.io/cluster": "flights-a"}
    assert "entrypointNumCpus" not in made["spec"]
    assert refusals(made) == []


def test_a_job_that_failed(kubernetes, run):
    """In Ray's words, with KubeRay's reason."""
    kubernetes.ends = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 1"}
    job, _ = run("train")
    assert (job.succeeded, job.status, job.message) == (False, "FAILED", "exit code 1")


def test_the_same_name_again_follows_the_job(kubernetes, run):
    """As after a lost connection; another command of that name is refused."""
    run("train", name="mine")
    assert run("train", name="mine")[0].succeeded
    assert len(kubernetes.jobs) == 1
    with pytest.raises(RefusedError, match="already exists"):
        run("sweep", name="mine")


def test_a_secret_that_is_missing_is_said(kubernetes, run):
    """Rather than waited for."""
    kubernetes.waits = 'secret "raymlops" not found'
    with pytest.raises(ClusterError, match='waits: secret "raymlops" not found'):
        run("train")


@pytest.mark.parametrize("words", [(), ("--yes",), ("train", "--config", "x.yaml")])
def test_what_is_no_verb_is_refused(kubernetes, run, words):
    """Before anything is made."""
    with pytest.raises(UsageError):
        run(*words)
    assert kubernetes.jobs == {}
