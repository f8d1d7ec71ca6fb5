"""``submit``: a RayJob for a verb, and its log until it ends.

Owns the job's name, its cluster and how it ended. What a RayJob is made of is ``ray``'s. A process that is interrupted
leaves the job running; the same ``--name`` again follows it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.checks import checked
from raymlops.cluster.kubernetes.place import LONGEST
from raymlops.cluster.kubernetes.ray import API, VERBS, cluster_of, ray_job
from raymlops.cluster.kubernetes.render import ray_version
from raymlops.errors import ClusterError, NotFoundError, RefusedError, UsageError
from raymlops.records import Record
from raymlops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.cluster.kubernetes.api_server import ApiServer
    from raymlops.cluster.kubernetes.place import Place
    from raymlops.config.schema import ProjectSpec

POLL_S = 2.0
ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
"""Values of ``status.jobDeploymentStatus`` that stay."""


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
) -> SubmittedJob:
    """Run ``raymlops WORDS`` as a RayJob, hand each line of its log to ``write``, and return how it ended.

    ``train`` and ``sweep`` bring a cluster of their own unless one is named. Every other verb is about the endpoint,
    and runs on the RayService's cluster.

    Raises:
        ConfigError: what of the project cannot run on Kubernetes.
        UsageError: no verb, or its own ``--config`` or ``--env``: the job has the cluster's.
        RefusedError, NotFoundError, ClusterError: of the API server.
    """
    place = checked(spec, env=env, release=__version__)
    if not words or words[0].startswith("-"):
        raise UsageError("no verb is given", hint="raymlops submit --config FILE -- train")
    if {"--config", "-c", "--env"} & set(words):
        raise UsageError("the job has the configuration of the cluster", hint="Give --config and --env before the --.")
    if cluster is None and words[0] not in VERBS:
        cluster = _live_cluster(place, server)
    name = name or f"{place.name[: LONGEST - 2]}-{words[0][:3]}-{secrets.token_hex(2)}"
    path = f"/apis/{API}/namespaces/{server.namespace}/rayjobs"
    job = ray_job(place, words, ray_version=ray_version(), cluster=cluster, name=name)
    try:
        server.create(path, job)
    except RefusedError:
        before = _found(server, f"{path}/{name}")
        if before is None or before["spec"].get("entrypoint") != job["spec"]["entrypoint"]:
            raise
    _follow(server, name, write=write, path=f"{path}/{name}", sleep=sleep)
    while True:
        status = server.get(f"{path}/{name}").get("status") or {}
        if status.get("jobDeploymentStatus") in ENDED:
            said = status.get("jobStatus") or status["jobDeploymentStatus"]
            return SubmittedJob(name, server.namespace, said, str(status.get("message") or ""))
        sleep(POLL_S)


def _follow(
    server: ApiServer, name: str, *, path: str, write: Callable[[str], None], sleep: Callable[[float], None]
) -> None:
    """Write the log of the job's submitter, which follows that of its driver (``BuildJobSubmitCommand``)."""
    pods = f"/api/v1/namespaces/{server.namespace}/pods"
    while True:
        found = server.get(f"{pods}?labelSelector=batch.kubernetes.io/job-name%3D{name}")["items"]
        started = [one for one in found if (one.get("status") or {}).get("phase") not in {None, "Pending"}]
        if started:
            break
        if ((server.get(path).get("status") or {}).get("jobDeploymentStatus")) in ENDED:
            return
        for reason in {reason for one in found for reason in _waits(one)}:
            if "secret" in reason.lower() and "not found" in reason.lower():
                raise ClusterError(
                    f"the job {name} waits: {reason}", hint="`raymlops render kubernetes` prints the Secret's keys."
                )
        sleep(POLL_S)
    with server.lines(f"{pods}/{started[-1]['metadata']['name']}/log", follow="true") as lines:
        for line in lines:
            write(line)


def _waits(pod: dict[str, Any]) -> list[str]:
    """Return why the containers of a pod do not start."""
    states = [one.get("state") or {} for one in (pod.get("status") or {}).get("containerStatuses") or ()]
    return [state["waiting"]["message"] for state in states if (state.get("waiting") or {}).get("message")]


def _live_cluster(place: Place, server: ApiServer) -> str:
    path = f"/apis/{API}/namespaces/{server.namespace}/rayservices/{place.name}"
    return cluster_of(server.get(path), name=place.name, namespace=server.namespace)


def _found(server: ApiServer, path: str) -> dict[str, Any] | None:
    try:
        return server.get(path)
    except NotFoundError:
        return None
