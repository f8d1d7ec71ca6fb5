"""Follow a RayJob: what its pods wait for, its log, and how it ended.

Nothing that passes ends it: a stream that is cut is taken up where it was, and an API server that is away is asked
again. Owns how long either may last. What ends, the job survives.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from raymlops.cluster.kubernetes.pod_log import PodLog
from raymlops.cluster.kubernetes.ray import API
from raymlops.cluster.kubernetes.waits import Wait, event_wait, is_of, kind_and_stamp, pod_waits, silent, still_said
from raymlops.errors import ApiServerAwayError, ClusterError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from raymlops.cluster.kubernetes.api_server import ApiServer
    from raymlops.cluster.kubernetes.place import Place

T = TypeVar("T")
POLL_S = 2.0
AWAY_S = 600.0
"""A control plane of one zone is upgraded in minutes."""
STUCK_S = 300.0
"""How long the same thing may be missing before a job starts: somebody may be about to make it."""
PASSED_S = 420.0
"""After which what was not said again has passed. A kubelet tries what it waits for every 122 seconds, and its events
of one object are thinned out to one in 300 (client-go, ``EventCorrelator``); one that crashes is started after 300."""
IDLE_S = 30.0
"""After which an operator would have taken a job up."""
LAST_TRIES = 5
"""At the log of a job that has ended."""
ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
"""Values of ``status.jobDeploymentStatus`` that stay."""


class Follower:
    """A RayJob that is followed."""

    def __init__(
        self, server: ApiServer, name: str, *, place: Place, write: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        """Take the job's name; ``write`` gets the lines of its log, and what is said about it."""
        self._server, self._name, self._place, self._write, self._clock = server, name, place, write, clock
        self._log = PodLog(server)
        self._told: set[str] = set()
        self._said: dict[tuple[str, str], tuple[float, float]] = {}
        """When something was said first and last, by of what, and its kind."""
        self._stamps: dict[str, str] = {}
        self._begin = clock()

    def follow(self, sleep: Callable[[float], None]) -> Mapping[str, Any]:
        """Return the job's ``status`` once it has ended.

        Raises:
            ApiServerAwayError: nothing answered for minutes.
            ClusterError: the job does not start for minutes, for one reason; the job stays.
            NotFoundError: somebody deleted the job.
        """
        tries = 0
        while True:
            job, submitters = self.patiently(self._read, sleep)
            status: Mapping[str, Any] = job.get("status") or {}
            started = [one for one in submitters if _phase(one) not in {None, "Pending"}]
            whole = not started or self._copy_log(started[-1]["metadata"]["name"])
            if status.get("jobDeploymentStatus") in ENDED:
                tries += 1
                if (whole and self._log.rest is None) or tries > LAST_TRIES:
                    if self._log.rest:
                        self._write(self._log.rest)
                    return status
            if not started:
                self._wait(job, submitters)
            sleep(POLL_S)

    def patiently(self, ask: Callable[[], T], sleep: Callable[[float], None]) -> T:
        """Return an answer of the API server, which may be away for minutes.

        Raises:
            ApiServerAwayError: it was away for longer.
        """
        since = self._clock()
        while True:
            try:
                return ask()
            except ApiServerAwayError as error:
                self._tell(f"waiting: {error.message}; the job {self._name} is not touched by that")
                if self._clock() - since > AWAY_S:
                    raise ApiServerAwayError(error.message, hint=self._continues()) from error
            sleep(POLL_S)

    def _read(self) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
        path = f"/apis/{API}/namespaces/{self._server.namespace}/rayjobs/{self._name}"
        return self._server.get(path), self._pods(f"batch.kubernetes.io/job-name={self._name}")

    def _pods(self, selector: str) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self._server.namespace}/pods"
        found: list[dict[str, Any]] = self._server.get(path, labelSelector=selector)["items"]
        return sorted(found, key=lambda one: str(one["metadata"].get("creationTimestamp")))

    def _copy_log(self, pod: str) -> bool:
        """Write what is new of the submitter's log, which follows that of the driver (``BuildJobSubmitCommand``).

        Return whether it could be read.
        """
        try:
            for line in self._log.lines(pod):
                self._write(line)
        except (ApiServerAwayError, NotFoundError, RefusedError) as error:
            self._tell(f"no log for now: {error.message}")
            return False
        return True

    def _wait(self, job: Mapping[str, Any], submitters: list[dict[str, Any]]) -> None:
        """Say what is waited for.

        Raises:
            ClusterError: it is the same again after long, and does not pass by itself.
        """
        now, found = self._clock(), {}
        with suppress(ApiServerAwayError):
            found = {(one.what, one.kind): one for one in self._waits(job, submitters)}
        self._said = {key: said for key, said in self._said.items() if now - said[1] <= PASSED_S}
        for key, one in found.items():
            self._tell(str(one), key=" ".join(key))
            first, _ = self._said.get(key, (now, now))
            self._said[key] = first, now
            if now - first > STUCK_S and not one.may_pass:
                raise ClusterError(
                    f"the job {self._name} did not start within {STUCK_S / 60:g} minutes: "
                    f"{one.what}: {one.reason}: {one.message}",
                    hint=f"{one.mend}\n{self._continues()}",
                )
        if not self._said and now - self._begin > STUCK_S:
            self._tell(
                f"the job {self._name} has not started, and nothing says why\n"
                f"  kubectl -n {self._server.namespace} describe rayjob,raycluster,pod"
            )
        if not (job.get("status") or {}).get("jobDeploymentStatus") and now - self._begin > IDLE_S:
            self._tell(
                "no operator has taken the job up\n"
                "  kubectl get pods --all-namespaces -l app.kubernetes.io/component=kuberay-operator"
            )

    def _waits(self, job: Mapping[str, Any], submitters: list[dict[str, Any]]) -> Iterator[Wait]:
        """Yield what the submitter waits for, or the cluster: there is no submitter before that is ready.

        A pod that says nothing waits for a volume, of which there are events, and what makes no pod says so in events
        of its own. Those stay for an hour: a pod's counts each time that it is repeated, and once.
        """
        place, namespace = self._place, self._server.namespace
        cluster = (job.get("status") or {}).get("rayClusterName")
        pods = submitters or ([] if cluster is None else self._pods(f"ray.io/cluster={cluster}"))
        yield from pod_waits(pods, place=place, namespace=namespace)
        quiet = silent(pods)
        for what in quiet if pods else [self._name, *([cluster] if cluster else [])]:
            with suppress(ClusterError):  # an account may read pods, and no events
                warnings = self._server.get(
                    f"/api/v1/namespaces/{namespace}/events",
                    fieldSelector=f"type=Warning,involvedObject.name={what}",
                )["items"]
                if what in quiet:
                    warnings = [one for one in still_said(warnings, quiet[what]) if self._repeated(one)]
                elif what == self._name:
                    warnings = [one for one in warnings if is_of(one, job)]
                if (found := event_wait(warnings, place=place, namespace=namespace)) is not None:
                    yield found

    def _repeated(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is another one than at the last look."""
        key, stamp = kind_and_stamp(event)
        before, self._stamps[key] = self._stamps.get(key), stamp
        return stamp != before

    def _tell(self, text: str, *, key: str = "") -> None:
        """Say something once."""
        if (key or text) not in self._told:
            self._told.add(key or text)
            self._write(text)

    def _continues(self) -> str:
        named = f"{self._name} of the namespace {self._server.namespace}"
        return (
            f"The job {named} is there, and starts or runs on by itself: --name {self._name} follows it again; "
            f"kubectl -n {self._server.namespace} delete rayjob {self._name} ends it."
        )


def _phase(pod: Mapping[str, Any]) -> str | None:
    phase: str | None = (pod.get("status") or {}).get("phase")
    return phase
