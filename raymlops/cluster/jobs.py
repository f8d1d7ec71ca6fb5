"""Ray jobs: work that outlives the process that submitted it.

Owns the folder that a job is given, the command that it runs, and what its states and its last words mean. Knows
nothing of what the work is.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from raymlops.cluster import auth, upfile
from raymlops.cluster.connect import find
from raymlops.cluster.dashboard import VARIABLES, Dashboard, dashboard
from raymlops.cluster.grace_period import STOP_WAIT_S, VARIABLE
from raymlops.display import quiet
from raymlops.errors import (
    ClusterError,
    ConfigError,
    InvalidRowsError,
    NotFoundError,
    Problem,
    RaymlopsError,
    UsageError,
    error_class,
)
from raymlops.records import Record
from raymlops.storage.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import BundleRef

SUBMISSION = "RAYMLOPS_SUBMISSION_ID"
"""Variable: which job a command runs in."""
CONFIG = "raymlops-job.yaml"
"""The configuration, in a job's folder."""
_POLL_S = 0.5
_RUN = "from raymlops.cli.main import run; run()"
_LOG_LINES = 15
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")


@dataclass(frozen=True)
class JobState(Record):
    """How a job is, in Ray's words: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED."""

    submission_id: str
    status: str
    message: str = ""

    @property
    def ended(self) -> bool:
        """Return whether its driver runs no more."""
        return self.status in {"SUCCEEDED", "FAILED", "STOPPED"}


class Jobs:
    """The jobs of one cluster. Holds no connection: each question is a request of its own."""

    def __init__(self, place: Dashboard, *, python: str = "python") -> None:
        self.url = place.url
        self._place = place
        self._python = python

    @classmethod
    def of(cls, spec: ProjectSpec) -> Self:
        """Return the jobs of the cluster that ``spec`` means: as ``cluster.dashboard``'s, so never one of our own.

        Raises:
            ClusterError: no cluster outlives this process.
        """
        named = spec.cluster.dashboard or any(map(os.environ.get, VARIABLES))
        if not named and find(spec)[0] is None:
            raise ClusterError(
                "there is no running cluster to send a job to",
                hint="`raymlops up` starts one on this machine, which outlives this process; wait=True needs "
                "none and works in this process.",
            )
        with dashboard(spec) as place:
            record = upfile.read()
            here = record is not None and record.dashboard_url.rstrip("/") == place.url.rstrip("/")
            return cls(place, python=sys.executable if here else "python")

    def submit(self, arguments: Sequence[str], *, folder: Path, submission_id: str) -> None:
        """Run ``raymlops`` with these arguments in a copy of ``folder``, as a job of its own.

        Raises:
            ClusterError: the cluster does not answer, or rejects the request.
            UsageError: the folder is larger than Ray takes.
        """
        # Without exec the shell between Ray and the driver would be stopped too, and end before it.
        command = f"exec {shlex.join([self._python, '-c', _RUN, *arguments])}"
        variables = {SUBMISSION: submission_id, VARIABLE: str(STOP_WAIT_S)}
        with self._client() as client, quiet(*_CHATTY, level=logging.WARNING):
            try:
                client.submit_job(
                    entrypoint=command,
                    submission_id=submission_id,
                    runtime_env={"working_dir": str(folder), "env_vars": variables},
                )
            except ValueError as error:
                raise UsageError(f"the job's folder cannot be sent: {error}", hint="Keep data out of it.") from error

    def state(self, submission_id: str) -> JobState:
        """Return how a job is.

        Raises:
            NotFoundError: the cluster does not know it.
            ClusterError: the cluster does not answer.
        """
        with self._client() as client:
            details = client.get_job_info(submission_id)
        return JobState(submission_id, str(details.status.value), details.message or "")

    def log(self, submission_id: str) -> str:
        """Return all that a job has printed.

        Raises:
            NotFoundError, ClusterError: as ``state``.
        """
        with self._client() as client:
            return str(client.get_job_logs(submission_id))

    def stop(self, submission_id: str, *, sleep: Callable[[float], None] = time.sleep) -> JobState:
        """Ask a job to end, as Ctrl-C would, and return once it has; Ray kills one that takes too long.

        Raises:
            NotFoundError, ClusterError: as ``state``.
        """
        if not self.state(submission_id).ended:
            with self._client() as client:
                client.stop_job(submission_id)
        return self.wait(submission_id, sleep=sleep)

    def wait(
        self, submission_id: str, *, timeout_s: float = math.inf, sleep: Callable[[float], None] = time.sleep
    ) -> JobState:
        """Return how a job is once it has ended, or how it is then when it has not within ``timeout_s``.

        Raises:
            NotFoundError, ClusterError: as ``state``.
        """
        deadline = time.monotonic() + timeout_s
        while not (state := self.state(submission_id)).ended and time.monotonic() < deadline:
            sleep(_POLL_S)
        return state

    def failure(self, state: JobState, *, what: str, kind: type[RaymlopsError] = ClusterError) -> RaymlopsError:
        """Return the error that a job of ours ended with: as it was raised there, else ``what`` and its last lines.

        Raises:
            NotFoundError, ClusterError: as ``state``.
        """
        log = self.log(state.submission_id)
        message = f"the job {state.submission_id} {what}: {state.message or state.status}\n{tail(log)}"
        return last_error(log) or kind(message)

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """Yield Ray's client; its errors, of which each is another kind, become ours."""
        import requests
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        try:
            # Ray's client prefers this variable to the address that it is given.
            with auth.variables_set({VARIABLES[0]: self.url}):
                client = JobSubmissionClient(self.url, headers=auth.headers(self._place.token_path))
            yield client
        except AuthenticationError as error:
            raise ClusterError(
                f"the cluster at {self.url} rejects the credentials: {str(error).splitlines()[0]}",
                hint=f"Set {auth.MODE}=token and {auth.TOKEN_PATH}; raymlops doctor says more.",
            ) from error
        except (requests.RequestException, ConnectionError) as error:
            raise ClusterError(
                f"the cluster at {self.url} does not answer: {error}", hint="raymlops doctor says more."
            ) from error
        except RuntimeError as error:
            if "status code 404" in str(error):
                raise NotFoundError(f"the cluster at {self.url} does not know this job", hint=str(error)) from error
            raise ClusterError(f"the cluster at {self.url} rejects the request: {error}") from error


def explicit(spec: ProjectSpec, *, tags: Mapping[str, str]) -> ProjectSpec:
    """Return the spec with values from this process's environment filled in, so that it means the same in a job.

    A tracking URI with a password is left out: it has to be set on the cluster.
    """
    from raymlops.config.credentials import holds_credential
    from raymlops.config.paths import sqlite_url
    from raymlops.storage.filesystem import absolute
    from raymlops.tracking.client import tracking_uri
    from raymlops.tracking.database import database_file

    path = absolute(spec.storage.path)
    tracking, project = spec.tracking, spec.project
    if tracking.uri is None or isinstance(tracking.uri, str):
        uri = tracking_uri(spec)
        file = database_file(uri)
        uri = uri if file is None else sqlite_url(file)
        tracking = tracking if holds_credential(uri) else tracking.model_copy(update={"uri": uri})
    if tags:
        project = project.model_copy(update={"tags": {**project.tags, **tags}})
    storage = spec.storage.model_copy(update={"path": path})
    return spec.model_copy(update={"storage": storage, "tracking": tracking, "project": project})


def bundled_code(bundle: BundleRef) -> dict[str, bytes]:
    """Return the recipe's code in a bundle, by path; none where the recipe is installed. Nothing of it is run.

    Raises:
        BundleError: the bundle is not what its digest vouches for.
        StorageError: the storage cannot be read.
    """
    from raymlops.bundle.verify import CODE, BundleFiles

    files = BundleFiles(bundle.uri, bundle.digest)
    return {name.removeprefix(f"{CODE}/"): files.read(name) for name in files.manifest if name.startswith(f"{CODE}/")}


@contextmanager
def job_folder(config: str, *, code: Mapping[str, bytes], working_dir: Path | None = None) -> Iterator[Path]:
    """Yield a folder for a job: its configuration, the recipe's code, and for the rest what ``working_dir`` holds.

    What is in ``working_dir`` is linked to, not copied: Ray follows links when it packs a folder, and leaves out what
    ``.gitignore`` and ``.rayignore`` there say. Code that is there too is taken from there.
    """
    with scratch() as folder:
        for path in sorted(working_dir.absolute().iterdir()) if working_dir else ():
            (folder / path.name).symlink_to(path)
        (folder / CONFIG).unlink(missing_ok=True)
        (folder / CONFIG).write_text(config, encoding="utf-8")
        linked = {path.name for path in folder.iterdir() if path.is_symlink()}
        for name, data in code.items():
            # Through a link it would be the user's own folder that is written to.
            if name.partition("/")[0] not in linked:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        yield folder


def last_error(log: str) -> RaymlopsError | None:
    """Return the error that a command printed with ``--json`` at its end, as it was raised; None without one."""
    for line in reversed(log.splitlines()):
        try:
            found = json.loads(line)["error"]
            return _raised(found)
        except (ValueError, KeyError, TypeError):
            continue
    return None


def tail(log: str) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.strip().splitlines()[-_LOG_LINES:])


def _raised(data: Mapping[str, Any]) -> RaymlopsError:
    kind = error_class(data["type"])
    message, hint = str(data["message"]), data.get("hint")
    if kind is ConfigError:
        problems = [Problem(item["path"], item["message"], item.get("place", "")) for item in data["problems"]]
        return ConfigError(problems, hint=hint)
    if kind is not None and kind is not InvalidRowsError:
        return kind(message, hint=hint)
    return RaymlopsError(f"{data['type']}: {message}", hint=hint)
