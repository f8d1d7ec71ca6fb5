import itertools

import pytest
from fake_kubernetes import FakeKubernetes, pod, warning
from fake_serve import FakeServe
from kuberay import refusals

from raymlops.cluster.kubernetes.api_server import ApiServer
from raymlops.cluster.kubernetes.submit import submit
from raymlops.errors import ClusterError, NotFoundError, RefusedError, UsageError


@pytest.fixture
def kubernetes():
    fake = FakeKubernetes(FakeServe())
    yield fake
    fake.close()


RUNS = {"jobDeploymentStatus": "Running", "rayClusterName": "its-cluster"}


class Clock:
    """A clock that moves while somebody sleeps, and more than that."""

    now = 0.0

    def sleep(self, seconds):
        self.now += 20 * seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def written():
    return []


@pytest.fixture
def told(written, clock):
    return written, clock


@pytest.fixture
def run(kubernetes, place, written, clock):
    def make(*words, overrides=(), **options):
        spec = place(*overrides).spec
        server = ApiServer(kubernetes.url, "models", quiet_s=0.05)
        given = {"write": written.append, "sleep": clock.sleep, "clock": lambda: clock.now}
        return submit(spec, words, server=server, env="prod", **given, **options)

    return make


def test_a_job_is_followed_until_it_ends(kubernetes, run, written, place):
    """Its log comes line by line, and then what became of it; a training has a cluster of its own."""
    job = run("train", "train.lr=0.1")
    (made,) = kubernetes.jobs.values()
    assert (job.status, written[1:]) == ("SUCCEEDED", ["one"])
    assert f"Ctrl-C leaves it, and --name {job.name} follows it again" in written[0]
    assert made["spec"]["entrypoint"] == (
        f"exec env RAYMLOPS_CONFIG_DIGEST={place().digest} "
        "raymlops train train.lr=0.1 --config /etc/raymlops/project.yaml"
    )
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
    job = run("train")
    assert (job.succeeded, job.status, job.message) == (False, "FAILED", "exit code 1")


def test_the_same_name_again_follows_the_job(kubernetes, run):
    """As after a lost connection, while it runs; another command or configuration of that name is refused."""
    run("train", name="mine")
    kubernetes.jobs["mine"]["status"] = RUNS
    assert run("train", name="mine").succeeded
    assert len(kubernetes.jobs) == 1
    for words, overrides in ((("sweep",), ()), (("train",), ("train.lr=9.0",))):
        with pytest.raises(RefusedError, match="mine already exists, with another command or configuration: exec env"):
            run(*words, name="mine", overrides=overrides)


def test_a_job_that_ended_is_not_the_one_of_this_call(kubernetes, run, written):
    """A second night trains anew, or says that it does not."""
    kubernetes.ends = {"jobStatus": "SUCCEEDED", "endTime": "2026-11-28T10:00:09Z"}
    run("train", name="nightly")
    del written[:]
    with pytest.raises(RefusedError, match="ended at 2026-11-28T10:00:09Z: SUCCEEDED; nothing was run") as raised:
        run("train", name="nightly")
    assert "kubectl -n models delete rayjob nightly" in raised.value.hint
    assert len(written) == 1


def test_a_job_whose_answer_was_lost_is_the_one_of_this_call(kubernetes, run, written):
    """Also where it ended before anybody asked again."""
    handle, kubernetes.looks = kubernetes.handle, 5

    def handled(method, path, *rest):
        found = handle(method, path, *rest)
        if method == "POST" and found[0] == 201:
            kubernetes.jobs["mine"]["status"] = {"jobDeploymentStatus": "Complete", **kubernetes.ends}
            return 503, "the answer is lost"
        return found

    kubernetes.handle = handled
    assert run("train", name="mine").succeeded
    assert (len(kubernetes.jobs), written.count("one")) == (1, 1)


SECRET = "kubectl -n models create secret generic raymlops --from-literal="
MISSING = 'secret "raymlops" not found'
NO_KEY = "couldn't find key auth_token in Secret models/raymlops"
NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}


@pytest.mark.parametrize(
    ("waiting", "said"),
    [
        (
            [pod("head", reason="CreateContainerConfigError", message=MISSING)],
            f"pod/head waits: CreateContainerConfigError: {MISSING}\n  {SECRET}",
        ),
        (
            [pod("head", reason="CreateContainerConfigError", message=NO_KEY)],
            "--dry-run=client -o yaml | kubectl -n models apply -f -",
        ),
        (
            [pod("head", reason="ImagePullBackOff", message='Back-off pulling image "flights:2"')],
            'ImagePullBackOff: Back-off pulling image "flights:2"\n  docker push raymlops:',
        ),
        (
            [pod("head", reason="CrashLoopBackOff", message="back-off 10s restarting failed container")],
            "kubectl -n models logs pod/head --all-containers --previous",
        ),
        ([pod("head", reason="ContainerCreating")], f"pod/head waits: FailedMount: {MISSING}\n  {SECRET}"),
        ([pod("head")], f"pod/head waits: FailedMount: {MISSING}"),
    ],
    ids=["secret", "key", "image", "crash", "volume", "nothing said"],
)
def test_what_a_job_waits_for_is_said_at_once_and_not_for_ever(kubernetes, run, told, waiting, said):
    """With what mends it: KubeRay makes no submitter before the cluster of the job is ready."""
    (written, clock), kubernetes.cluster_pods = told, waiting
    kubernetes.events = [warning("Pod", "head", reason="FailedMount", message=MISSING)]
    with pytest.raises(ClusterError, match="did not start within 5 minutes: pod/head:") as raised:
        run("train", name="mine")
    assert said in "\n".join(written)
    assert len(written) == 2
    assert clock.now < 350
    assert "--name mine follows it again; kubectl -n models delete rayjob mine ends it" in raised.value.hint
    assert list(kubernetes.jobs) == ["mine"]


def test_a_job_starts_once_what_it_waits_for_is_there(kubernetes, run, written, clock):
    """The Secret is made while it is followed."""
    kubernetes.waits = MISSING
    real, clock.sleep = clock.sleep, lambda s: (setattr(kubernetes, "waits", ""), real(s))
    assert run("train").succeeded
    assert [line.partition("\n")[0] for line in written[1:]] == [
        f"pod/submitter waits: CreateContainerConfigError: {MISSING}",
        "one",
    ]


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [(pod("head", condition=NO_NODE), "Unschedulable"), (pod("head", reason="ContainerCreating"), "FailedScheduling")],
    ids=["none yet", "found, and its image is pulled"],
)
def test_a_pod_without_a_node_waits_for_one(kubernetes, run, told, waiting, reason):
    """Longer than for what somebody has to mend: an autoscaler adds nodes, and others become free."""
    (written, clock), kubernetes.cluster_pods = told, [waiting]
    kubernetes.events = [warning("Pod", "head", reason="FailedScheduling", message="0/3 nodes are available")]

    def sleep(seconds, real=clock.sleep):
        real(seconds)
        if clock.now > 1000:
            kubernetes.cluster_pods = []

    clock.sleep = sleep
    assert run("train").succeeded
    assert written[1:] == [
        f"pod/head waits: {reason}: 0/3 nodes are available\n  kubectl -n models describe pod/head",
        "one",
    ]


@pytest.mark.parametrize(
    ("reason", "message"),
    [("FailedMount", MISSING), ("FailedScheduling", "0/3 nodes are available")],
    ids=["made as the hint says", "found"],
)
def test_what_has_passed_is_waited_for_no_longer(kubernetes, run, told, reason, message):
    """The event stays for an hour, and an image may be pulled for minutes: only what is repeated is still so."""
    written, clock = told
    on_node = {"type": "PodScheduled", "status": "True"}
    kubernetes.cluster_pods = [pod("head", reason="ContainerCreating", condition=on_node)]
    kubernetes.events = [warning("Pod", "head", reason=reason, message=message) | {"count": 7}]

    def sleep(seconds, real=clock.sleep):
        real(seconds)
        if clock.now > 1000:
            kubernetes.cluster_pods = []

    clock.sleep = sleep
    assert run("train").succeeded
    waits = [line.partition("\n")[0] for line in written if " waits: " in line]
    assert waits == ([f"pod/head waits: {reason}: {message}"] if reason == "FailedMount" else [])


def back_off(clock):
    """A kubelet pulls an image in vain, and waits until it tries again."""
    reason = "ErrImagePull" if clock.now % 80 else "ImagePullBackOff"
    return pod("head", reason=reason, message="no such manifest")


def crash(clock):
    """A container runs, and crashes."""
    return pod("head", phase="Running", reason=None if clock.now % 80 else "CrashLoopBackOff", message="back-off")


@pytest.mark.parametrize("waits", [back_off, crash])
def test_reasons_that_come_by_turns_are_one(kubernetes, run, told, waits):
    """What is the same after five minutes ends the command, also where it was away in between."""
    written, clock = told
    kubernetes.pods = lambda selector: [waits(clock)] if selector.startswith("ray.io/") else []
    with pytest.raises(ClusterError, match="did not start within 5 minutes: pod/head:"):
        run("train")
    assert len(written) == 2
    assert clock.now < 420


@pytest.mark.parametrize(("every", "ends"), [(122, True), (366, True), (1e9, False)])
def test_an_event_counts_each_time_that_it_is_repeated(kubernetes, run, told, every, ends):
    """Those of a day ago are thinned out; one that is not repeated has passed, and a volume is attached late."""
    (_, clock), handle = told, kubernetes.handle
    kubernetes.cluster_pods = [pod("head", reason="ContainerCreating")]

    def handled(*request):
        kubernetes.events = [
            warning("Pod", "head", reason="FailedMount", message=MISSING) | {"count": clock.now // every}
        ]
        kubernetes.cluster_pods = kubernetes.cluster_pods if clock.now < 1000 else []
        return handle(*request)

    kubernetes.handle = handled
    if not ends:
        assert run("train").succeeded
        return
    with pytest.raises(ClusterError, match="did not start within 5 minutes: pod/head: FailedMount"):
        run("train")
    assert clock.now < 800


@pytest.mark.parametrize(("uid", "ends"), [("of this one", True), ("of an earlier one", False)])
def test_an_event_of_an_earlier_job_of_that_name_says_nothing(kubernetes, run, told, uid, ends):
    """It stays for an hour, and a job may wait in a queue."""
    _, clock = told
    real = kubernetes.pods
    kubernetes.pods = lambda selector: real(selector) if clock.now > 1000 else []
    event = warning("RayJob", "mine", reason="InvalidRayJobSpec", message="no entrypoint")
    kubernetes.uid, kubernetes.events = (
        "of this one",
        [event | {"involvedObject": {**event["involvedObject"], "uid": uid}}],
    )
    if not ends:
        assert run("train", name="mine").succeeded
        return
    with pytest.raises(ClusterError, match="rayjob/mine: InvalidRayJobSpec"):
        run("train", name="mine")


def test_a_cluster_without_pods_says_why(kubernetes, run, written, clock):
    """In the events of what would make them; who may not read events waits without."""
    kubernetes.pods = lambda _: []
    kubernetes.events = [
        warning("RayCluster", "its-cluster", reason="FailedToCreateHeadPod", message="exceeded quota: models")
    ]
    with pytest.raises(ClusterError, match="raycluster/its-cluster: FailedToCreateHeadPod: exceeded quota"):
        run("train")


def test_a_job_that_does_not_start_without_a_word(kubernetes, run, written, clock):
    """Is not waited for silently: after minutes it is said where to look; nor is one that no operator takes up."""
    real = kubernetes.pods
    kubernetes.pods = lambda selector: [] if clock.now < 1000 else real(selector)
    assert run("train", name="mine").succeeded
    assert written[1:] == [
        "the job mine has not started, and nothing says why\n  kubectl -n models describe rayjob,raycluster,pod",
        "one",
    ]
    kubernetes.jobs["mine"]["status"], kubernetes.looks, clock.now = {}, -3, 0.0
    run("train", name="mine")
    assert written[4].startswith("no operator has taken the job up\n  kubectl get pods --all-namespaces")


def test_a_cluster_that_is_named_is_there(kubernetes, run):
    """KubeRay would wait for ever for it."""
    with pytest.raises(NotFoundError, match="there is no RayCluster its in the namespace models"):
        run("train", cluster="its")
    assert kubernetes.jobs == {}
    assert run("train", cluster="its-cluster").succeeded


@pytest.mark.parametrize("forgotten", [False, True], ids=["cut", "forgotten"])
def test_a_log_that_is_cut_is_taken_up_where_it_was(kubernetes, run, written, forgotten):
    """Each line once: a kubelet gives all lines of the second again, and several may have one time."""
    kubernetes.forgotten = forgotten
    kubernetes.log = [f"line {number}" for number in range(12)]
    kubernetes.cuts = [0, 1, 5, 3, 3, 4, 2]
    assert run("train").succeeded
    assert written[1:] == kubernetes.log


@pytest.mark.parametrize("until", [20, 31, 38, 51])
def test_a_log_that_is_cut_within_a_line_has_that_line_once_and_whole(kubernetes, run, written, until):
    """In its time, and in its text, on which a pipeline may depend; the last one may never have a line end."""
    kubernetes.log = ["RAYMLOPS_RESULT {}", "two"]
    kubernetes.cuts, kubernetes.bytes = [2, 2], [until, until + 10]
    assert run("train", name="mine").succeeded
    assert written[1:] == kubernetes.log
    kubernetes.bytes, kubernetes.jobs["mine"]["status"] = [-1] * 10, RUNS
    del written[:]
    run("train", name="mine")
    assert written[1:] == kubernetes.log


@pytest.mark.parametrize("code", [429, 500, 503])
def test_an_api_server_that_is_away_is_asked_again(kubernetes, run, written, code):
    """Whichever request it does not answer: each is asked again, and said once."""
    requests = 0
    for request in itertools.count(1):
        kubernetes.requests.clear()
        kubernetes.looks, kubernetes.away = 0, {request: code}
        assert run("train", name=f"mine-{request}").succeeded
        requests = len(kubernetes.requests)
        if request >= requests:
            break
    assert requests >= 7
    assert written.count("one") == request
    assert f"answered {code}: etcdserver: request timed out" in "".join(written)


@pytest.mark.parametrize(("failures", "found"), [(1, 1), (1000, 0)])
def test_the_end_of_the_log_of_a_job_that_ended(kubernetes, run, written, failures, found):
    """Is asked for again; one that never comes keeps no result back."""
    left, handle, kubernetes.looks = iter(range(failures)), kubernetes.handle, 5

    def handled(method, path, *rest):
        if path.endswith("/log") and next(left, None) is not None:
            for job in kubernetes.jobs.values():
                job["status"] = {"jobDeploymentStatus": "Complete", **kubernetes.ends}
            return 500, "the kubelet is away"
        return handle(method, path, *rest)

    kubernetes.handle = handled
    assert run("train", name="mine").succeeded
    assert written.count("one") == found
    assert "no log for now: " in "".join(written)


def test_an_api_server_that_stays_away(kubernetes, run, clock):
    """Is waited for in vain for ten minutes; the job stays."""
    kubernetes.away = dict.fromkeys(range(3, 10_000), 503)
    with pytest.raises(ClusterError, match="answered 503") as raised:
        run("train", name="mine")
    assert 600 < clock.now < 650
    assert "--name mine follows it again" in raised.value.hint


@pytest.mark.parametrize("words", [("train",), ("deploy", "--yes")])
@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({}, "this cluster has no KubeRay; KubeRay 1.7 is needed"),
        ({"ray.io": ["v1alpha1"]}, "serves v1alpha1 of ray.io; v1 is needed, of KubeRay 1.7"),
    ],
    ids=["none", "old"],
)
def test_the_version_of_kuberay_that_is_needed_is_said(kubernetes, run, words, groups, said):
    """Whatever is submitted."""
    kubernetes.groups = groups
    with pytest.raises(ClusterError, match=said):
        run(*words)


def test_a_kuberay_that_lacks_a_field_is_too_old(kubernetes, run):
    """It would leave the field out without a word: a cluster without tokens."""
    kubernetes.unknown = 'unknown field "spec.rayClusterSpec.authOptions"'
    with pytest.raises(ClusterError, match=r"does not know spec.rayClusterSpec.authOptions; KubeRay 1.7 is needed"):
        run("train")
    assert kubernetes.jobs == {}


@pytest.mark.parametrize("words", [("./x",), ("Train",), ("x" * 60,)])
def test_a_generated_name_is_one_that_kuberay_takes(kubernetes, run, words):
    """Whatever the verb is, which the job itself refuses."""
    run(*words)
    assert [said for one in kubernetes.jobs.values() for said in refusals(one)] == []


def test_a_name_that_kuberay_refuses_is_refused(kubernetes, run):
    """Before anything is made."""
    with pytest.raises(UsageError, match="My_Job"):
        run("train", name="My_Job")
    assert kubernetes.jobs == {}


@pytest.mark.parametrize("words", [(), ("--yes",), ("train", "--config", "x.yaml"), ("train", "--env=dev")])
def test_what_is_no_verb_is_refused(kubernetes, run, words):
    """Before anything is made."""
    with pytest.raises(UsageError):
        run(*words)
    assert kubernetes.jobs == {}
