"""``submit``: a RayJob for a verb, and its log until it ends.

Owns the job's name and its cluster. What a RayJob is made of is ``ray``'s. A process that is interrupted leaves the job
running; the same ``--name`` again follows it until it has ended.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.checks import SHAPE, checked
from raymlops.cluster.kubernetes.follow import ENDED, Follower
from raymlops.cluster.kubernetes.installed import KUBERAY, UPGRADE, check_cluster, check_kuberay, ray_service_of
from raymlops.cluster.kubernetes.place import label
from raymlops.cluster.kubernetes.ray import API, VERBS, cluster_of, ray_job
from raymlops.cluster.kubernetes.render import ray_version
from raymlops.errors import ClusterError, NotFoundError, RefusedError, UsageError
from raymlops.records import Record
from raymlops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.cluster.kubernetes.api_server import ApiServer
    from raymlops.config.schema import ProjectSpec

CALL = "raymlops.io/call"
"""Annotation of a job: which call made it."""
LONGEST_JOB = 47
VERB = 8
"""Characters of the verb in a job's name."""


@dataclass(frozen=True)
class SubmittedJob(Record):
    """A RayJob that ended."""

    name: str
    namespace: str
    status: str
    """In Ray's words: SUCCEEDED, FAILED, STOPPED; or KubeRay's, where it ran no driver."""
    message: str = ""

    @property
    def succeeded(self) -> bool:
        """Return whether its driver ended with 0."""
        return self.status == "SUCCEEDED"


def submit(
    spec: ProjectSpec,
    words: Sequence[str],
    *,
    server: ApiServer,
    env: str | None,
    name: str | None = None,
    cluster: str | None = None,
    write: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> SubmittedJob:
    """Run ``raymlops WORDS`` as a RayJob, hand each line of its log to ``write``, and return how it ended.

    ``train`` and ``sweep`` bring a cluster of their own unless one is named. Every other verb is about the endpoint,
    and runs on the RayService's cluster. What the job waits for is written too.

    Raises:
        ConfigError: what of the project cannot run on Kubernetes.
        UsageError: no verb, its own ``--config`` or ``--env``, which the job has from the cluster, or a name that
            KubeRay refuses.
        ClusterError: KubeRay is missing or too old, or the job does not start.
        NotFoundError: there is no such cluster, or no such namespace.
        RefusedError: there is another job of that name, or one that has ended.
    """
    place = checked(spec, env=env, release=__version__)
    if not words or words[0].startswith("-"):
        raise UsageError("no verb is given", hint="raymlops submit --config FILE -- train")
    if {"--config", "-c", "--env"} & {word.partition("=")[0] for word in words}:
        raise UsageError("the job has the configuration of the cluster", hint="Give --config and --env before the --.")
    if cluster is None and words[0] not in VERBS:
        cluster = cluster_of(ray_service_of(server, place.name), name=place.name, namespace=server.namespace)
    elif cluster is not None:
        check_cluster(server, cluster)
    name = name or f"{place.name}-{label(words[0], VERB)}-{secrets.token_hex(2)}"
    job = ray_job(place, words, ray_version=ray_version(), cluster=cluster, name=name)
    job["metadata"]["annotations"] = {CALL: secrets.token_hex(8)}
    if len(name) > LONGEST_JOB or not SHAPE.fullmatch(name):
        raise UsageError(
            f"KubeRay would refuse the name {name}: a-z, 0-9 and -, from a letter, at most {LONGEST_JOB} characters"
        )
    write(f"job {name} in the namespace {server.namespace}; Ctrl-C leaves it, and --name {name} follows it again")
    follower = Follower(server, name, place=place, write=write, clock=clock)
    follower.patiently(lambda: _create(server, job), sleep)
    status = follower.follow(sleep)
    said = status.get("jobStatus") or status["jobDeploymentStatus"]
    return SubmittedJob(name, server.namespace, said, str(status.get("message") or ""))


def _create(server: ApiServer, job: dict[str, Any]) -> None:
    """Create a job, unless this call did, whose answer was lost, or the same one runs, of an earlier call."""
    path, name = f"/apis/{API}/namespaces/{server.namespace}/rayjobs", job["metadata"]["name"]
    try:
        server.create(path, job)
    except NotFoundError as error:
        check_kuberay(server)
        raise NotFoundError(error.message, hint=f"kubectl create namespace {server.namespace}") from error
    except RefusedError as error:
        if unknown := re.findall(r'unknown field "([^"]*)"', error.message):
            raise ClusterError(
                f"this cluster's KubeRay does not know {', '.join(unknown)}; {KUBERAY} is needed", hint=UPGRADE
            ) from error
        before = _found(server, f"{path}/{name}")
        if before is None:
            raise
        if (before["metadata"].get("annotations") or {}).get(CALL) == job["metadata"]["annotations"][CALL]:
            return
        _check_same(before, job, namespace=server.namespace)


def _check_same(before: dict[str, Any], job: dict[str, Any], *, namespace: str) -> None:
    name, status, runs = job["metadata"]["name"], before.get("status") or {}, before["spec"].get("entrypoint")
    if runs != job["spec"]["entrypoint"]:
        raise RefusedError(
            f"the job {name} already exists, with another command or configuration: {runs}", hint="Give another --name."
        )
    if status.get("jobDeploymentStatus") in ENDED:
        said, at = status.get("jobStatus") or status["jobDeploymentStatus"], status.get("endTime")
        raise RefusedError(
            f"the job {name} already exists, and ended{f' at {at}' if at else ''}: {said}; nothing was run",
            hint="Give another --name, or none, to run it again.\n"
            f"kubectl -n {namespace} logs -l batch.kubernetes.io/job-name={name} --tail=-1 shows its log, "
            f"kubectl -n {namespace} delete rayjob {name} makes the name free.",
        )


def _found(server: ApiServer, path: str) -> dict[str, Any] | None:
    try:
        return server.get(path)
    except NotFoundError:
        return None
