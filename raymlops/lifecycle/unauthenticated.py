"""Models that answer others than this machine without an API key, as the running Serve has them.

Owns the request to Serve, which starts nothing and does not wait. ``status`` and ``doctor`` report the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.errors import RaymlopsError
from raymlops.lifecycle.sources import Source, place_of

if TYPE_CHECKING:
    from raymlops.cluster.doctor import Finding

ANSWER_S = 5.0


@dataclass(frozen=True)
class Exposure:
    """Who reaches a running Serve."""

    reach: str
    """The host that decides whether keys are required by default."""
    warning: str | None
    """About models that answer other machines without a key; None without such models."""


def exposure(source: Source | None = None, *, root: str | None = None, env: str | None = None) -> Exposure | None:
    """Return who reaches Serve, with a warning about models that answer others without a key.

    Serve is the one of the dashboard that ``source`` or the environment names, or that ``up`` started under ``root``.
    None if it does not run, or its dashboard does not answer.
    """
    from raymlops.cluster import upfile
    from raymlops.cluster.dashboard import VARIABLES, dashboard
    from raymlops.serving.control.address import is_local, keyless, listening, open_to_others
    from raymlops.serving.control.rest_api import ServeApi

    try:
        if root is not None:
            record = upfile.read(Path(root).expanduser().absolute())
            if record is None:
                return None
            url, token = record.dashboard_url, Path(record.token_path).read_text(encoding="utf-8").strip()
        else:
            spec = place_of(source, env=env)
            named = spec.cluster.dashboard or any(os.environ.get(name) for name in VARIABLES)
            if not named and upfile.read() is None:
                return None  # it could only be found by joining the cluster
            with dashboard(spec) as found:
                url, token = found.url, found.token() or ""
        details = ServeApi(url, token or None, timeout_s=ANSWER_S).get()
    except (RaymlopsError, OSError):
        return None
    listens = listening(details, local=is_local(url))
    return None if listens is None else Exposure(listens.reach, open_to_others(keyless(details), listens))


def finding(*, root: str | None = None) -> Finding | None:
    """Return the same as a finding of ``doctor``; None without a warning."""
    from raymlops.cluster.doctor import Finding

    found = exposure(root=root)
    if found is None or found.warning is None:
        return None
    message, _, fix = found.warning.partition(". ")
    return Finding("open models", ok=False, message=message, fix=fix)
