"""The controller as a detached actor of the cluster: started when it is needed, one for each state database.

Owns where it runs, what it is told, and that only one moves what is live of a state. It is told where things are and
where credentials are to be read, never a credential: whoever may look at the cluster may look at an actor's arguments.
Its name has the state's id, so that states on one cluster leave each other's alone, and it works on that state alone:
it does not touch another database at the same place. It ends with its cluster. On one that this process started
itself, that is when this process lets go of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.config.credentials import holds_credential
from raymlops.config.paths import local_path
from raymlops.errors import ClusterError, RaymlopsError
from raymlops.lifecycle.rollout.controller import Controller, utc_now
from raymlops.lifecycle.rollout.legacy_counts import ensure_relay, is_upgraded
from raymlops.lifecycle.sources import spec_of
from raymlops.records import Record
from raymlops.serving.telemetry.rollout_counts import CONTROLLER, NAMESPACE, controller_of
from raymlops.state.database import state_url
from raymlops.state.identity import SHORT
from raymlops.state.lease import holder_of, lease
from raymlops.state.rollouts import running
from raymlops.state.store import State
from raymlops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.live.lineup import Follow
    from raymlops.lifecycle.sources import Source

LEASE = "controller"
MARKING = "controller-marks"
"""Held besides by a controller that knows of other states on its cluster. One of an earlier raymlops has the first one
alone, and is replaced."""
RETRY_S = 5.0
ANSWER_S = 30.0
"""How long a controller that is started may take to answer: it imports what it needs first."""
JOB_S = 120.0
"""How long a job that starts it may take: a cluster that is busy, or that grows first, runs none at once."""
WITHOUT = "weights do not move, warm versions are not taken down, and interrupted changes are not completed"

_ELSEWHERE = (
    f"a controller answers on the cluster and has not taken the lease of this state database, so that {WITHOUT}: what "
    "storage.state names means another database there"
)
_POLL_S = 0.5

_log = logging.getLogger(__name__)


def ensure_controller(spec: ProjectSpec, *, dashboard_url: str, needed: bool) -> str | None:
    """Start the controller where none runs, and return why there is none for this state; None where all is well.

    With ``needed`` it is asked whether it answers; otherwise one that holds its lease is taken for granted. Those of
    other states on the cluster are left alone.
    """
    try:
        if not needed and holder_of(state_url(spec), MARKING) is not None:
            return None
        with State.open(state_url(spec)) as state:
            state_id, upgraded = state.owner().id, is_upgraded(state)
        return _ensure(spec, state_id, upgraded=upgraded, dashboard_url=dashboard_url, needed=needed)
    except Exception as error:  # what was to be live is, whatever becomes of the controller
        why = error.message if isinstance(error, RaymlopsError) else f"{type(error).__name__}: {error}"
        return f"the controller could not be started, so that {WITHOUT}: {why}"


@dataclass(frozen=True)
class ControllerRecord(Record):
    """The controller that moves what is live of one state database."""

    dashboard_url: str
    holder: str
    """Who holds its lease: user, machine and process."""


def start_controller(source: Source) -> ControllerRecord:
    """Start the controller on the running cluster where none answers, and return who it is.

    Raises:
        ConfigError, StorageError: the configuration, or the state.
        ClusterError: there is no cluster, or the controller cannot run there.
    """
    from raymlops.cluster.dashboard import dashboard

    spec = spec_of(source)
    with dashboard(spec) as found:
        without = ensure_controller(spec, dashboard_url=found.url, needed=True)
    holder = None if without else _holder(spec)
    if holder is None:
        raise ClusterError(without or _ELSEWHERE, hint="raymlops status and the cluster's log say more.")
    return ControllerRecord(found.url, holder)


def steered(spec: ProjectSpec, state: State, *, dashboard_url: str) -> tuple[str, ...]:
    """See to it that a controller runs where anything should be live; return what is to be said where there is none.

    It moves rollouts, ends what is kept warm, sends what was cut off, and keeps the prediction log to its days.
    """
    if not state.deployments():
        return ()
    with state.reading() as connection:
        moving = bool(running(connection))
    without = ensure_controller(spec, dashboard_url=dashboard_url, needed=moving)
    return () if without is None else (without,)


def told(spec: ProjectSpec, *, dashboard_url: str) -> dict[str, Any]:
    """Return the configuration that the controller is given: places by their full names, references as they are."""
    data = spec.to_dict()
    folder = local_path(spec.storage.path)
    if folder is not None:
        data["storage"]["path"] = str(folder.absolute())
    data["cluster"]["dashboard"] = dashboard_url
    found = os.environ.get("MLFLOW_TRACKING_URI", "")
    if data["tracking"]["uri"] is None and found and not holds_credential(found):
        data["tracking"]["uri"] = found
    absolute: dict[str, Any] = _absolute(data)
    return absolute


def mark_of(spec: ProjectSpec) -> str:
    """Return what an earlier raymlops has stand for a state database, without naming it: its URL, hashed."""
    return hashlib.sha256(state_url(spec).encode()).hexdigest()[:16]


class Steering:
    """The actor. Reports come in by threads of their own, while one thread takes step after step."""

    def __init__(self, data: Mapping[str, Any], state_id: str = "") -> None:
        from raymlops.lifecycle.rollout.evidence import Reports

        self._data = data
        self._former = not state_id  # an earlier raymlops started it, and Ray restarts it on this one's code
        self._id = state_id
        self._reports = Reports()
        self._word = "starting"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymlops-controller", daemon=True)
        self._thread.start()

    def report(self, name: str, replica: str, sequence: int, report: dict[str, Any]) -> None:
        """Take the counts of one replica."""
        self._reports.take(name, replica, sequence, report)

    def status(self) -> dict[str, Any]:
        """Return what it is doing, for whoever starts it."""
        mark = {"mark": mark_of(spec_of(self._data))} if self._former else {}
        return {"state": self._id, "word": self._word, "pid": os.getpid(), "release": __version__, **mark}

    def stop(self) -> None:
        """End its work and give the lease back."""
        self._stopped.set()
        self._thread.join(ANSWER_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._hold()
            except Exception as error:  # the state may be away for now, or another controller at work
                text = f"{type(error).__name__}: {error}"
                if text != self._word:
                    _log.warning("waiting: %s", text)
                self._word = text
                self._stopped.wait(RETRY_S)

    def _hold(self) -> None:
        spec = spec_of(self._data)
        url = state_url(spec)
        with State.open(url) as state:
            found = state.owner().id
            self._id = self._id or found
            if found != self._id:
                raise ClusterError(
                    f"the database of this controller's state {self._id[:SHORT]} is another one by now: {found[:SHORT]}"
                )
            why = "moves what is live"
            with ExitStack() as held:
                held.enter_context(lease(url, LEASE, purpose=why))
                if not self._former:  # one under the old name is replaced: new replicas do not find it
                    held.enter_context(lease(url, MARKING, purpose=why))
                controller = self._controller(spec, state)
                self._word = "running"
                while not self._stopped.is_set():
                    self._stopped.wait(controller.step(utc_now()))

    def _controller(self, spec: ProjectSpec, state: State) -> Controller:
        from raymlops.lifecycle.rollout.label_losses import LabelLosses
        from raymlops.lifecycle.rollout.log_maintenance import Upkeep
        from raymlops.lifecycle.rollout.loss_task import ask_in_task
        from raymlops.serving.control.rest_api import ServeApi

        def follow(name: str) -> Follow:
            from raymlops.registry.versions import Registry
            from raymlops.tracking.client import tracker

            return lambda version: Registry(tracker(spec)).set_alias(name, "champion", version)

        return Controller(
            state,
            ServeApi(_dashboard(spec)),
            reports=self._reports,
            follow=follow,
            losses=LabelLosses(state, ask_recipe=ask_in_task),
            maintain=Upkeep(state, state_url(spec)),
        )


def _ensure(spec: ProjectSpec, state_id: str, *, upgraded: bool, dashboard_url: str, needed: bool) -> str | None:
    import ray

    from raymlops.cluster.connect import connect, find

    if not ray.is_initialized() and find(spec)[0] is None:
        return _ensure_by_job(spec, dashboard_url=dashboard_url)
    with connect(spec):
        _end_former(spec)
        if upgraded:
            ensure_relay(state_id)
        _end_of_other_release(state_id)
        actor = _actor(spec, state_id, dashboard_url=dashboard_url)
        if not needed:
            return None
        try:
            status = ray.get(actor.status.remote(), timeout=ANSWER_S)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise ClusterError(f"the controller does not answer: {type(error).__name__}") from error
        if status["word"] not in {"starting", "running"}:
            return f"the controller waits, so that {WITHOUT} meanwhile: {status['word']}"
    return None


def _end_former(spec: ProjectSpec) -> None:
    """End the controller that an earlier raymlops started for this state: it knows of no other state on the cluster.

    It is known by the place of its database. One of another place is left alone, as is one that does not answer.
    """
    _end(CONTROLLER, unless=lambda status: status.get("mark") != mark_of(spec))


def _end_of_other_release(state_id: str) -> None:
    """End this state's controller where another release started it: after an upgrade its modules are not its own."""
    _end(controller_of(state_id), unless=lambda status: status.get("release") == __version__)


def _end(name: str, *, unless: Callable[[Mapping[str, Any]], bool]) -> None:
    import ray

    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return
    try:
        if unless(ray.get(actor.status.remote(), timeout=ANSWER_S)):
            return
        ray.get(actor.stop.remote(), timeout=ANSWER_S)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        _log.warning("a controller of an earlier raymlops does not answer, and is left: %s", type(error).__name__)
        return
    ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + ANSWER_S
    with suppress(ValueError):  # its name is free
        while time.monotonic() < deadline:
            ray.get_actor(name, namespace=NAMESPACE)
            time.sleep(_POLL_S)


def _ensure_by_job(spec: ProjectSpec, *, dashboard_url: str) -> str | None:
    """Start it from a job: the one way into a cluster of which nothing but the dashboard can be reached from here.

    The job is told what the controller is, and reads every reference on the cluster.
    """
    from raymlops.cluster.jobs import CONFIG, SUBMISSION, Jobs, job_folder
    from raymlops.config.load import dump

    if SUBMISSION in os.environ:
        raise ClusterError("this job does not find the cluster that it runs on")
    if state_url(spec).startswith("sqlite"):
        raise ClusterError(
            "the cluster of this dashboard cannot be joined from here, and the state is a SQLite file of this machine",
            hint="Set cluster.address or RAY_ADDRESS where it is this machine's, else storage.state to a database that "
            "the cluster reaches too.",
        )
    data = told(spec, dashboard_url=dashboard_url)
    data["cluster"]["address"] = None  # a job is told by Ray where it is
    jobs = Jobs.of(spec)
    submission_id = f"raymlops-controller-{uuid.uuid4().hex[:8]}"
    with job_folder(dump(spec_of(data)), code={}) as folder:
        jobs.submit(["controller", "--config", CONFIG, "--json"], folder=folder, submission_id=submission_id)
    job = jobs.wait(submission_id, timeout_s=JOB_S)
    if not job.ended:
        return f"the job {submission_id}, which starts the controller, has not ended within {JOB_S:g} s: {job.status}"
    if job.status != "SUCCEEDED":
        raise jobs.failure(job, what="did not start the controller")
    return None if _holder(spec) else _ELSEWHERE


def _holder(spec: ProjectSpec) -> str | None:
    """Return who holds the controller's lease; one that has just started takes it within its time to retry."""
    deadline = time.monotonic() + 2 * RETRY_S
    while (holder := holder_of(state_url(spec), LEASE)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return holder


def _actor(spec: ProjectSpec, state_id: str, *, dashboard_url: str) -> Any:
    """Return the state's controller on the cluster; where there is none, one is started."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {
        "name": controller_of(state_id),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 3,
        "max_concurrency": 8,
        "num_cpus": 0,
    }
    if state_url(spec).startswith("sqlite"):
        here = ray.get_runtime_context().get_node_id()  # the file is on this machine
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(Steering).options(**options).remote(told(spec, dashboard_url=dashboard_url), state_id)


def _dashboard(spec: ProjectSpec) -> str:
    """Return where the dashboard is for this process: what the cluster itself knows of it, or what it was told.

    Who started the controller may have reached it by another way, such as a forwarded port.
    """
    from ray._private.services import get_webui_url_from_internal_kv  # in a worker nothing public of Ray 2.60 knows it

    found: str | None = get_webui_url_from_internal_kv()
    if not found:
        return str(spec.cluster.dashboard)
    return found if "://" in found else f"http://{found}"


def _absolute(data: Any) -> Any:
    """Return data with the files of references by their full paths: another process has another folder."""
    if not isinstance(data, dict):
        return data
    if data.keys() == {"env", "file"}:
        return {"file": str(Path(data["file"]).expanduser().absolute())} if data["file"] else {"env": data["env"]}
    return {key: _absolute(value) for key, value in data.items()}
