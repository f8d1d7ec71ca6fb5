"""Jobs of a Ray cluster by its REST API: submitted once, followed, stopped.

Knows nothing of Airflow, and needs no Ray. Ray refuses a submission id that it has, so who asks for the same work a
second time is given the job that does it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

RESULT = "RAYMLOPS_RESULT "
"""How the last line of what a verb of raymlops prints begins, in a job."""
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
FINAL = {2, 3, 4}
"""Exit codes after which the same again ends alike: configuration, not found, refused."""
STOP_WAIT_S = 30
"""Between asking a job to stop and killing it: time for its last checkpoint."""


class RayJobsError(RuntimeError):
    """The cluster does not answer, refuses, or does not know a job; ``final`` where trying again is of no use."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class JobFailedError(RayJobsError):
    """A job did not succeed."""


def submission_id(name: str, *parts: object) -> str:
    """Return the id of the job that does what ``parts`` say, with a name for people in front."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{digest}"


def result_of(log: str) -> dict[str, Any] | None:
    """Return what a verb answered, from the log of its job; None where it did not say."""
    # Not splitlines, which also ends a line where a text in the result holds U+2028 or its like.
    lines = [line.removeprefix(RESULT) for line in re.split(r"[\r\n]+", log) if line.startswith(RESULT)]
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def check(job: Mapping[str, Any], log: str, *, answers: Collection[int] = (0,)) -> dict[str, Any] | None:
    """Return the result of a job that ended with one of the exit codes ``answers``.

    Raises:
        JobFailedError: it did not, with what the verb said of it, or else the last lines of its log.
    """
    found = result_of(log)
    code = (found or {}).get("exit_code", job.get("driver_exit_code"))
    if job["status"] == "SUCCEEDED" or (job["status"] == "FAILED" and code in answers):
        return found
    said = (found or {}).get("error", {}).get("message") or "\n".join(log.splitlines()[-15:]) or job.get("message")
    message = f"the job {job['submission_id']} is {job['status']}, exit code {code}: {said}"
    raise JobFailedError(message, final=job["status"] == "FAILED" and code in FINAL)


@dataclass(frozen=True)
class RayJobs:
    """The jobs of the cluster at ``url``.

    Each request is answered in ``timeout_s`` or asked again, for at most ``patience_s``: as long as a head may take to
    come back.
    """

    url: str
    token: str = field(default="", repr=False)
    timeout_s: float = 10.0
    patience_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def start(self, first: str, command: str, *, working_dir: str = "") -> tuple[str, bool]:
        """Submit a job, or attach to the one that does this work; return its id, and whether it was there before.

        A job that failed or was stopped is followed by another one, with a number behind its id.

        Raises:
            RayJobsError: the command has no words, or the cluster does not answer, or refuses the job.
        """
        entrypoint = _entrypoint(command)
        for number in count(1):
            name = first if number == 1 else f"{first}-{number}"
            job = self.find(name)
            if job is None:
                return name, not self._submit(name, entrypoint, working_dir)
            if job["status"] not in {"FAILED", "STOPPED"}:
                return name, True
        raise AssertionError

    def find(self, name: str) -> dict[str, Any] | None:
        """Return how a job is; None for one that the cluster does not know.

        Raises:
            RayJobsError: the cluster does not answer, or refuses.
        """
        answer = self._ask("GET", f"/api/jobs/{name}")
        return None if answer.status_code == httpx.codes.NOT_FOUND else answer.json()

    def log(self, name: str) -> str:
        """Return all that a job printed.

        Raises:
            RayJobsError: the cluster does not answer, or has not got it.
        """
        answer = self._ask("GET", f"/api/jobs/{name}/logs")
        if answer.status_code != httpx.codes.OK:
            raise RayJobsError(f"the cluster at {self.url} has no log of the job {name}: {_last_line(answer)}")
        return answer.json()["logs"] or ""

    def stop(self, name: str) -> None:
        """Ask a job to end; one that is not known, or has ended, is left alone.

        Raises:
            RayJobsError: the cluster does not answer, or refuses.
        """
        self._ask("POST", f"/api/jobs/{name}/stop")

    def _submit(self, name: str, entrypoint: str, working_dir: str) -> bool:
        """Return False where somebody else submitted it in between."""
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
        if working_dir:
            environment["working_dir"] = working_dir
        body = {"entrypoint": entrypoint, "submission_id": name, "runtime_env": environment}
        answer = self._ask("POST", "/api/jobs/", json=body)
        if answer.status_code == httpx.codes.OK:
            return True
        if "already exists" in answer.text:
            return False
        raise RayJobsError(f"the cluster at {self.url} refuses the job {name}: {_last_line(answer)}")

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        deadline, wait_s = self.clock() + self.patience_s, 1.0
        while True:
            try:
                answer = httpx.request(method, self.url + path, headers=headers, timeout=self.timeout_s, **body)
            except httpx.TransportError as error:
                said = str(error) or type(error).__name__
            else:
                if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
                    raise RayJobsError(f"the cluster at {self.url} rejects the token: {_last_line(answer)}")
                if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    return answer
                said = _last_line(answer)
            if self.clock() >= deadline:
                raise RayJobsError(f"the cluster at {self.url} has not answered for {self.patience_s:g} s: {said}")
            self.sleep(wait_s)
            wait_s = min(2 * wait_s, 10.0)


class Follower:
    """Follows one job and says the lines of its log as they come; each look is a few requests.

    Ray gives a log as a whole: verbs of raymlops print a line every ten seconds at most.
    """

    def __init__(self, jobs: RayJobs, name: str, say: Callable[[str], None]) -> None:
        self._jobs, self._name, self._say, self._said = jobs, name, say, 0

    def look(self) -> dict[str, Any] | None:
        """Return how the job is once it has ended, None until then.

        Raises:
            RayJobsError: the cluster does not answer, or does not know the job.
        """
        job = self._jobs.find(self._name)
        if job is None:
            raise RayJobsError(
                f"the cluster at {self._jobs.url} does not know the job {self._name}: nobody submitted it, or the "
                "cluster was started again since, and the job ended with it. A cleared task submits its own anew."
            )
        whole = self._jobs.log(self._name)[self._said :]
        lines = whole[: len(whole) if job["status"] in ENDED else whole.rfind("\n") + 1]
        self._said += len(lines)
        for line in lines.splitlines():
            self._say(line)
        return job if job["status"] in ENDED else None


def _entrypoint(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError as error:
        said = str(error)
    else:
        # Without exec the shell between Ray and the driver would be stopped too, and end before it.
        if words:
            return f"exec {shlex.join(words)}"
        said = "it is empty"
    raise RayJobsError(
        f"nothing was submitted, since the command has no words as a shell reads them ({said}): {command} - quote an "
        'apostrophe or a space in a parameter: "key=it\'s"',
        final=True,
    )


def _last_line(answer: httpx.Response) -> str:
    return f"{answer.status_code} {(answer.text.strip().splitlines() or ['without a reason'])[-1][:500]}"
