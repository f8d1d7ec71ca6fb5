"""Restart MLflow alone, while Ray and Serve keep running, so that its end takes no endpoint down.

Owns when that is enough, and that nothing else of the cluster is touched. What a service is belongs to ``services``.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.cluster import services, upfile
from raymlops.cluster.ports import check_free, listeners
from raymlops.cluster.processes import ProcessRecord, belonging, end
from raymlops.signals import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.cluster.upfile import UpRecord

_MLFLOW = "mlflow"
_TRIES = 3
"""A busy machine answers late: each question waits seconds, and a no costs the endpoints their cluster."""


def only_mlflow_ended(record: UpRecord) -> bool:
    """Return whether Ray and Serve of a cluster answer, and of what was started only MLflow has ended."""
    gone = {process.name for process in record.processes if process.find() is None}
    if record.state != "up" or gone != {_MLFLOW}:
        return False
    token = Path(record.token_path)
    return any(
        services.ray_ready(record.dashboard_url, token=token)
        and services.serve_ready(record.dashboard_url, token=token, serve_url=record.serve_url)
        for _ in range(_TRIES)
    )


def restart_mlflow(record: UpRecord, *, timeout_s: float, say: Callable[[str], None]) -> UpRecord:
    """Restart MLflow on its port and database, and return the record once it has answered.

    Raises:
        PortTakenError: a process that is not the cluster's holds the port; nothing was started.
        ClusterError: it did not come up; what had been started of it was ended. Ray and Serve keep running in any case.
    """
    root, port = Path(record.root), record.ports["MLflow"]
    say("MLflow has ended; restarting it alone, on its port and database: Ray and Serve keep running")
    ours = {process.pid for process in belonging(record.cluster_id, record.processes)}
    left = [ProcessRecord.of(_MLFLOW, item.pid) for item in listeners(ours) if item.port == port and item.pid]
    _end_only(left)
    check_free({"MLflow": port})
    log = root / "logs" / "mlflow.log"
    process = services.start_mlflow(root=root, port=port, variables=record.inherited, log=log)
    started = ProcessRecord.of(_MLFLOW, process.pid)
    others = tuple(item for item in record.processes if item.name != _MLFLOW)
    record = replace(record, processes=(*others, started))
    try:
        upfile.write(record)
        services.wait_ready(
            "MLflow", lambda: services.mlflow_ready(record.mlflow_url), process=process, log=log, timeout_s=timeout_s
        )
    except BaseException:
        with undisturbed():
            say("ending what was started")
            _end_only([started])
        raise
    say(f"MLflow answers at {record.mlflow_url}")
    return record


def _end_only(processes: list[ProcessRecord]) -> None:
    """End these with their children, and nothing that only shares the cluster's mark."""
    if processes:
        end(f"nobody-{uuid.uuid4().hex}", processes, grace_s=5)
