"""How long a job may take to end: the seconds that Ray leaves between asking it to stop and killing it.

Owns the variable that decides it. Ray's job supervisor reads it, a worker process on the node where the job's driver
runs, so that it has to be in the environment in which that node was started, or in the job's own runtime_env. The
driver inherits it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_S = 30
"""What our clusters are started with: ``train.stop_grace_s`` by default, and time to write to MLflow and to leave."""
CLOSING_S = 5.0
"""What a training needs behind its last checkpoint."""
_RAYS_OWN_S = 3
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the entry point of a submitted job."""


def stop_wait_s(environment: Mapping[str, str]) -> int | None:
    """Return the seconds between SIGTERM and SIGKILL when this job is stopped; None in a process that is no Ray job."""
    if JOB not in environment:
        return None
    try:
        return int(environment[VARIABLE])
    except (KeyError, ValueError):
        return _RAYS_OWN_S


def shortage(environment: Mapping[str, str], *, grace_s: float) -> str | None:
    """Return what to say where a stopped job is killed before its last checkpoint may be there; None where it fits."""
    wait_s = stop_wait_s(environment)
    if wait_s is None or wait_s >= grace_s + CLOSING_S:
        return None
    needed_s = max(STOP_WAIT_S, round(grace_s + CLOSING_S))
    return (
        f"this cluster kills a stopped job after {wait_s} s, while train.stop_grace_s is {grace_s:g}: a training that "
        "is stopped may not get its last checkpoint written, and resumes from the previous one. Start the nodes with "
        f"{VARIABLE}={needed_s}, or give that to the job in --runtime-env-json"
    )
