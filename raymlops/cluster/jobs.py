"""Jobs that ``ray job submit`` runs: how one says what came of it.

Owns the result line, the last one of a job's log. Submitting itself is Ray's.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from raymlops.records import SCHEMA_VERSION, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULT = "RAYMLOPS_RESULT"


def print_result(record: Record | Mapping[str, Any]) -> None:
    """Print the result line to stdout, after everything that was written before it.

    Ray puts stdout and stderr of a job into one log in the order in which they arrive.
    """
    data = record.to_dict() if isinstance(record, Record) else dict(record)
    sys.stderr.flush()
    line = json.dumps({"schema_version": SCHEMA_VERSION, **data}, default=str, allow_nan=False)
    sys.stdout.write(f"{RESULT} {line}\n")
    sys.stdout.flush()


def parse_result(logs: str) -> dict[str, Any] | None:
    """Return what the last result line of a job's log says, or None when the job printed none."""
    for line in reversed(logs.splitlines()):
        head, _, body = line.strip().partition(" ")
        if head == RESULT:
            try:
                data = json.loads(body)
            except ValueError:
                return None  # the log was cut in the middle of the line
            return data if isinstance(data, dict) else None
    return None


def in_job() -> bool:
    """Return whether this process is the driver of a submitted job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def submission_id() -> str | None:
    """Return the id under which this job was submitted, or None outside a job."""
    try:
        config = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        return str(config["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return None
