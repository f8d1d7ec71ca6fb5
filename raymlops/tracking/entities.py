"""Points, parameters and tags as MLflow accepts them: valid names, values no longer than its limits."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Any

from raymlops.tracking.params import MAX_VALUE_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from raymlops.records import MetricPoint

MAX_TAG_CHARS = 5000


def metrics_of(points: Iterable[MetricPoint]) -> list[Any]:
    """Return points as MLflow's ``Metric``."""
    from mlflow.entities import Metric

    return [Metric(metric_key(name), value, ms, step) for name, value, step, ms in points]


def params_of(params: Mapping[str, str]) -> list[Any]:
    """Return parameters as MLflow's ``Param``."""
    from mlflow.entities import Param

    return [Param(metric_key(name), value[:MAX_VALUE_CHARS]) for name, value in params.items()]


def tags_of(tags: Mapping[str, str]) -> list[Any]:
    """Return tags as MLflow's ``RunTag``."""
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in shortened(tags).items()]


def shortened(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with values that MLflow accepts everywhere."""
    return {
        key: value if len(value) <= MAX_TAG_CHARS else value[: MAX_TAG_CHARS - 3] + "..." for key, value in tags.items()
    }


def metric_key(name: str) -> str:
    """Return a valid MLflow name: letters, digits, ``_ - . / :`` and spaces, as a normalized path."""
    name = re.sub(r"[^\w\-./: ]", "_", name)[:250]
    return posixpath.normpath("/" + name).lstrip("/") or "_"
