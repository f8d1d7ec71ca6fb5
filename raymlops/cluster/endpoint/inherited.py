"""Which variables of a shell the services of ``raymlops up`` get: all but those of Ray, MLflow and raymlops itself."""

from __future__ import annotations

import os

OWN = frozenset(
    f"RAYMLOPS_{name}"
    for name in (
        "API_KEY",
        "CA_FILE",
        "CLUSTER_ID",
        "CONFIG_DIGEST",
        "DEBUG",
        "GCS_STORAGE",
        "HAPROXY_BINARY",
        "HAPROXY_PYTHON",
        "HOME",
        "KUBERNETES",
        "MAX_HEADER_BYTES",
        "NAMESPACE",
        "RAYSERVICE",
        "REPLAY_CLOCK",
        "STATE_FILE",
        "STATE_URL",
        "SUBMISSION_ID",
        "TLS_CERT",
        "TLS_KEY",
        "URL",
    )
)
"""Settings of a command or a job, which must not leak into a cluster. What a cluster needs of them it is given."""


def inherited() -> dict[str, str]:
    """Return this process's variables without those: what a configuration names by ``{env: NAME}`` is among them."""
    return {key: value for key, value in os.environ.items() if not (key.startswith(("RAY_", "MLFLOW_")) or key in OWN)}
