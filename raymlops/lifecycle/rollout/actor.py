"""The controller as a detached actor of the cluster, one per state database, started on demand.

Owns where it runs, its configuration, and that only one controller moves what is live of a state. Its configuration
refers to credentials and holds none: an actor's arguments are visible to everybody who can see the cluster. Its name
has the state's id, so that it does not touch the controllers and databases of other states. It ends with its cluster,
and with this process on a cluster that this process started itself.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raymlops.config.base import absolute_references
from raymlops.config.credentials import holds_credential
from raymlops.config.paths import local_path
from raymlops.errors import ClusterError, RaymlopsError
from raymlops.lifecycle.registration.aliases import MlflowAliases
from raymlops.lifecycle.rollout.controller import Controller
from raymlops.lifecycle.sources import spec_of, state_of
from raymlops.records import Record
from raymlops.serving.control.ray_service import serve_api
from raymlops.serving.telemetry.rollout_counts import NAMESPACE, controller_of
from raymlops.state.identity import SHORT
from raymlops.state.lease import holder_of, lease
from raymlops.state.rollouts import running
from raymlops.storage import clock
from raymlops.version import code_version

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from raymlops.cluster.jobs import Jobs
    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.sources import Source
    from raymlops.serving.control.rest_api import ServeApi
    from raymlops.state.store import State

LEASE = "controller"
RETRY_S = 5.0
REPLAY_S = 0.5
"""Between two steps of a replay, whose days pass in seconds."""
ANSWER_S = 30.0
"""How long a new controller may take to answer: it imports its modules first."""
JOB_S = 120.0
"""How long the job that starts it may take: a busy or growing cluster does not run it at once."""
CONSEQUENCE = "weights do not move, warm versions are not taken down, and interrupted changes are not completed"

_ELSEWHERE = (
    f"a controller answers on the cluster but does not hold the lease of this state database, so that {CONSEQUENCE}: "
    "storage.state resolves to another database there"
)
HEAD = "node:__internal_head__"
"""Ray's own resource, which the head has 1 of, and the next head after it."""
_POLL_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControllerRecord(Record):
    """The controller of one state database."""

    dashboard_url: str
    holder: str
    """Who holds its lease: user, machine and process."""


def start_controller(source: Source) -> ControllerRecord:
    """Start the controller on the running cluster unless one answers, and return its holder.

    Raises:
        ConfigError, StorageError: the configuration, or the state.
        ClusterError: no cluster is running, or the controller cannot run there.
    """
    from raymlops.cluster.connect import can_join
    from raymlops.cluster.dashboard import dashboard

    spec = spec_of(source)
    with dashboard(spec) as found, state_of(spec) as state:
        held = holder_of(state.url, LEASE)
        if held is not None and purpose() in held and not can_join(spec):
            return ControllerRecord(found.url, held)  # it cannot be asked from here, and lives as long as it holds that
        problem = ensure_running(spec, state, dashboard_url=found.url, must_answer=True)
        holder = None if problem else _holder(state)
    if holder is None:
        raise ClusterError(problem or _ELSEWHERE, hint="raymlops status and the cluster's log say more.")
    return ControllerRecord(found.url, holder)


def ensure_controller(spec: ProjectSpec, state: State, *, dashboard_url: str) -> tuple[str, ...]:
    """Start the controller if none is running, before anything is changed; return a warning if that fails.

    It completes changes, moves rollouts, ends warm versions, keeps aliases right, and compacts the prediction log.
    While a rollout is running it must answer; otherwise it is enough that one of this code holds the lease.
    """
    with state.reading() as connection:
        rolling_out = bool(running(connection))
    problem = ensure_running(spec, state, dashboard_url=dashboard_url, must_answer=rolling_out)
    return () if problem is None else (problem,)


def ensure_running(spec: ProjectSpec, state: State, *, dashboard_url: str, must_answer: bool) -> str | None:
    """Start the controller unless it is running, and return why that failed; None on success.

    Controllers of other states on the cluster are left alone.
    """
    try:
        if not must_answer and purpose() in (holder_of(state.url, LEASE) or ""):
            return None
        return _start(spec, state, dashboard_url=dashboard_url, must_answer=must_answer)
    except Exception as error:  # the change itself has been applied, whatever happens to the controller
        why = error.message if isinstance(error, RaymlopsError) else f"{type(error).__name__}: {error}"
        return f"the controller could not be started, so that {CONSEQUENCE}: {why}"


def purpose() -> str:
    """Return what a controller of this code says of itself as the lease's holder."""
    return f"controller {code_version()}"


def controller_config(spec: ProjectSpec, *, dashboard_url: str) -> dict[str, Any]:
    """Return the configuration of a controller: absolute paths, and references instead of credentials."""
    data = spec.to_dict()
    folder = local_path(spec.storage.path)
    if folder is not None:
        data["storage"]["path"] = str(folder)
    data["cluster"]["dashboard"] = dashboard_url
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if data["tracking"]["uri"] is None and uri and not holds_credential(uri):
        data["tracking"]["uri"] = uri
    absolute: dict[str, Any] = absolute_references(data)
    return absolute


class ControllerActor:
    """The actor. Reports arrive in threads of their own, while one thread runs the controller's loop."""

    def __init__(self, data: Mapping[str, Any], state_id: str) -> None:
        from raymlops.lifecycle.rollout.evidence import Reports

        self._data = data
        self._id = state_id
        self._reports = Reports()
        self._phase = "starting"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymlops-controller", daemon=True)
        self._thread.start()

    def report(self, name: str, replica: str, sequence: int, report: dict[str, Any]) -> None:
        """Store the counts of one replica."""
        self._reports.take(name, replica, sequence, report)

    def status(self) -> dict[str, Any]:
        """Return its state's id, its phase (starting, running, or the error it retries after), process and code."""
        return {"state": self._id, "phase": self._phase, "pid": os.getpid(), "release": code_version()}

    def stop(self) -> None:
        """Stop the loop and release the lease."""
        self._stopped.set()
        self._thread.join(ANSWER_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._loop()
            except Exception as error:  # the state may be unavailable, or another controller may hold the lease
                text = f"{type(error).__name__}: {error}"
                if text != self._phase:
                    _log.warning("retrying: %s", text)
                self._phase = text
                self._stopped.wait(RETRY_S)

    def _loop(self) -> None:
        spec = spec_of(self._data)
        with state_of(spec) as state:
            found = state.owner().id
            if found != self._id:
                raise ClusterError(f"the database of state {self._id[:SHORT]} now belongs to state {found[:SHORT]}")
            api = serve_api(_dashboard(spec))
            here = api.cluster_id()
            _check_home(state, here)
            with lease(state.url, LEASE, purpose=purpose()) as renew:
                controller = self._controller(spec, state, api)
                self._phase = "running"
                while not self._stopped.is_set():
                    renew()
                    _check_home(state, here)
                    pause_s = controller.step(state.now())
                    self._stopped.wait(min(pause_s, REPLAY_S) if clock.replayed() else pause_s)

    def _controller(self, spec: ProjectSpec, state: State, api: ServeApi) -> Controller:
        from raymlops.lifecycle.loop.act import Loop
        from raymlops.lifecycle.loop.decision import Decisions
        from raymlops.lifecycle.loop.stage_jobs import RayJobs
        from raymlops.lifecycle.quality.facts import quality_facts
        from raymlops.lifecycle.quality.judge import QualityJudge
        from raymlops.lifecycle.rollout.evidence import since_promotion
        from raymlops.lifecycle.rollout.label_losses import LabelLosses, ask_in_task
        from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
        from raymlops.lifecycle.watch.gauges import WatchGauges
        from raymlops.lifecycle.watch.judge import Judge
        from raymlops.lifecycle.watch.kept_report import KeptReports
        from raymlops.lifecycle.watch.messaging.outbox import Outbox
        from raymlops.tracking.client import tracker

        loop = Loop(
            state,
            api,
            serve=spec.serve,
            jobs=RayJobs(spec, jobs=_jobs_here, tracker=tracker),
            counted=partial(since_promotion, self._reports),
            quality=lambda state, name: quality_facts(state, name, now=state.now()),
        )
        outbox, gauges = Outbox(state, state.url), WatchGauges(state)
        judge, judge_quality = Judge(state), QualityJudge(state, ask=ask_in_task)
        keep_reports, decide = KeptReports(state, partial(tracker, spec)), Decisions(state)

        def tell(now: datetime) -> None:
            outbox(now)
            gauges()

        def watch(now: datetime) -> None:
            for each in (judge, judge_quality, decide, keep_reports):
                each(now)

        return Controller(
            state,
            api,
            serve=spec.serve,
            reports=self._reports,
            aliases=MlflowAliases(spec, state.owner()),
            losses=LabelLosses(state, ask_recipe=ask_in_task),
            retrainings=loop,
            maintain=LogMaintenance(state, state.url, then=watch),
            tell=tell,
            clock=clock.interval_s,
        )


def _check_home(state: State, here: str) -> None:
    """Refuse to move what is live on another cluster; its own controller does.

    Raises:
        ClusterError: naming the cluster.
    """
    owner = state.owner()
    if not owner.may_be_on(here):
        there = owner.cluster[:SHORT]
        raise ClusterError(f"the database of this controller's state is live on another cluster: {there}")


def _start(spec: ProjectSpec, state: State, *, dashboard_url: str, must_answer: bool) -> str | None:
    import ray

    from raymlops.cluster.connect import can_join, connect

    if not can_join(spec):
        return _start_by_job(spec, state, dashboard_url=dashboard_url)
    with connect(spec):
        _end_other_code(state.owner().id)
        actor = _actor(spec, state, dashboard_url=dashboard_url)
        if not must_answer:
            return None
        try:
            status = ray.get(actor.status.remote(), timeout=ANSWER_S)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise ClusterError(f"the controller does not answer: {type(error).__name__}") from error
        if (phase := status.get("phase", "starting")) not in {"starting", "running"}:
            return f"the controller is retrying, so that {CONSEQUENCE} meanwhile: {phase}"
    return None


def _end_other_code(state_id: str) -> None:
    """End this state's controller if it runs other code: another release, or another checkout of this one.

    After an upgrade the modules that it has yet to import are not its own, and it may not read what is stored by now.
    """
    import ray

    name = controller_of(state_id)
    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return
    try:
        if ray.get(actor.status.remote(), timeout=ANSWER_S).get("release") == code_version():
            return
        ray.get(actor.stop.remote(), timeout=ANSWER_S)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        _log.warning("the controller of other code does not answer, and is left: %s", type(error).__name__)
        return
    ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + ANSWER_S
    with suppress(ValueError):  # until its name is free
        while time.monotonic() < deadline:
            ray.get_actor(name, namespace=NAMESPACE)
            time.sleep(_POLL_S)


def _start_by_job(spec: ProjectSpec, state: State, *, dashboard_url: str) -> str | None:
    """Start it from a job, on a cluster of which only the dashboard can be reached from here.

    The job gets the controller's configuration, and resolves every reference on the cluster.
    """
    from raymlops.cluster.jobs import CONFIG, SUBMISSION, Jobs, job_folder
    from raymlops.config.load import dump

    if SUBMISSION in os.environ:
        raise ClusterError("this job does not find the cluster that it runs on")
    if state.url.startswith("sqlite"):
        raise ClusterError(
            "the cluster of this dashboard cannot be joined from here, and the state is a SQLite file of this machine",
            hint="Set cluster.address or RAY_ADDRESS where it is this machine's, else storage.state to a database that "
            "the cluster reaches too.",
        )
    data = controller_config(spec, dashboard_url=dashboard_url)
    data["cluster"]["address"] = None  # Ray tells a job its cluster
    jobs = Jobs.of(spec)
    submission_id = f"raymlops-controller-{uuid.uuid4().hex[:8]}"
    with job_folder(dump(spec_of(data)), code={}) as folder:
        jobs.submit(["controller", "--config", CONFIG, "--json"], folder=folder, submission_id=submission_id)
    job = jobs.wait(submission_id, timeout_s=JOB_S)
    if not job.ended:
        return f"the job {submission_id}, which starts the controller, has not ended within {JOB_S:g} s: {job.status}"
    if job.status != "SUCCEEDED":
        raise jobs.failure(job, what="did not start the controller")
    return None if _holder(state) else _ELSEWHERE


def _holder(state: State) -> str | None:
    """Return who holds the controller's lease; a new controller acquires it within its retry interval."""
    deadline = time.monotonic() + 2 * RETRY_S
    while (holder := holder_of(state.url, LEASE)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return holder


def _actor(spec: ProjectSpec, state: State, *, dashboard_url: str) -> Any:
    """Return the state's controller on the cluster; start it if it does not exist.

    It is on the head: the state's credentials are there alone, as is a SQLite file, and Serve's API, without which it
    can do nothing.
    """
    import ray

    state_id = state.owner().id
    options: dict[str, Any] = {
        "name": controller_of(state_id),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 3,
        "max_concurrency": 8,
        "num_cpus": 0,
        "resources": {HEAD: 0.001},
    }
    config = controller_config(spec, dashboard_url=dashboard_url)
    return ray.remote(ControllerActor).options(**options).remote(config, state_id)


def _jobs_here(spec: ProjectSpec) -> Jobs:
    """Return the jobs of this cluster, whose drivers run where this process does: with its interpreter."""
    from raymlops.cluster.dashboard import dashboard
    from raymlops.cluster.jobs import Jobs

    cluster = spec.cluster.model_copy(update={"dashboard": _dashboard(spec)})
    with dashboard(spec.model_copy(update={"cluster": cluster})) as place:
        return Jobs(place, python=sys.executable)


def _dashboard(spec: ProjectSpec) -> str:
    """Return the dashboard's address as the cluster knows it, or else as configured.

    The process that started the controller may have used another address, such as a forwarded port.
    """
    import ray
    from ray._private.services import get_webui_url_from_internal_kv  # Ray 2.60 has no public way in a worker

    found: str | None = get_webui_url_from_internal_kv() if ray.is_initialized() else None
    if not found:
        return str(spec.cluster.dashboard)
    return found if "://" in found else f"http://{found}"
