"""Where a cluster is and its token, by an Airflow connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops_airflow.ray_jobs import RayJobs

if TYPE_CHECKING:
    from airflow.sdk import Connection


def ray_jobs(connection: Connection, *, patience_s: float) -> RayJobs:
    """Return the jobs of a cluster: host and port are its dashboard's, the password is the token.

    ``AIRFLOW_CONN_RAY=http://:TOKEN@ray.example:8265`` is one; ``https``, or a host that begins with it, means TLS.
    """
    host = connection.host or ""
    if "://" not in host:
        host = f"{'https' if 'https' in (connection.conn_type, connection.schema) else 'http'}://{host}"
    url = f"{host}:{connection.port}" if connection.port else host
    return RayJobs(url, connection.password or "", patience_s=patience_s)
