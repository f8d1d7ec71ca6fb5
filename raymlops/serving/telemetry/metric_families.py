"""The Prometheus metrics of an endpoint and of what is watched: names, labels, buckets.

Owns those lists, which ``metrics`` and ``lifecycle.watch.gauges`` publish, and with which dashboard and alert rules are
compared. Pure.

Ray exports these as ``ray_`` + name, counters with suffix ``_total``. A distribution is a counter ``NAME_bucket`` by
``le`` and a counter ``NAME_sum``, which ``histogram_quantile`` accepts: Ray 2.60 repeats each observation of its own
histograms in the node's agent (4.9 us each, against 0.6 us for a counter's gain in ten seconds), and estimates their
sums from the middles of the buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 5000)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, as defined in Ray."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str


_WHO = ("model", "model_version", "route")
_VERSION = ("model", "model_version")


def _distribution(name: str, labels: tuple[str, ...], text: str) -> tuple[Family, Family]:
    return (
        Family(f"{name}_bucket", "counter", (*labels, "le"), f"{text}, at most le; +Inf counts them all"),
        Family(f"{name}_sum", "counter", labels, f"{text}, added up"),
    )


FAMILIES = {
    family.name: family
    for family in (
        Family("raymlops_requests", "counter", (*_WHO, "protocol", "status", "code"), "requests, answered or refused"),
        Family("raymlops_rows", "counter", _WHO, "rows answered"),
        *_distribution("raymlops_request_seconds", _WHO, "seconds from arrival to answer of requests to the model"),
        *_distribution("raymlops_model_seconds", _WHO, "seconds in the model, waiting for it included"),
        *_distribution("raymlops_batch_rows", _VERSION, "rows of batches run through the model"),
        Family("raymlops_batch_requests", "counter", _VERSION, "requests of batches run through the model"),
        Family("raymlops_queue_rows", "gauge", _VERSION, "rows that wait for the model"),
        Family("raymlops_traffic_share", "gauge", _WHO, "share of the requests that a version gets, 0 to 1"),
        Family("raymlops_fallbacks", "counter", _VERSION, "requests whose canary erred or was late: the champion's"),
        Family("raymlops_shadow_mismatches", "counter", _VERSION, "answers of a shadow that differ from the caller's"),
        Family("raymlops_shadow_dropped", "counter", _VERSION, "copies that a shadow did not get: too many in flight"),
        Family("raymlops_log_pending_rows", "gauge", _VERSION, "rows that wait for the prediction log"),
        Family("raymlops_log_dropped_rows", "counter", _VERSION, "rows that the prediction log lost"),
        Family("raymlops_recorder_dropped", "counter", _VERSION, "requests not recorded: too many waited"),
        Family("raymlops_recorder_errors", "counter", _VERSION, "failures of metrics, logs or traces"),
    )
}
"""Every metric of a replica, by name. ``model_version``: Ray's own label ``Version`` is Ray's."""

REFUSALS = Family("raymlops_guard_refusals", "counter", ("protocol", "status", "code"), "refused before any model")
"""Of each process that accepts requests. What a model's front refuses, as by 401 over HTTP, is in its requests."""

_WINDOW = ("model", "side")
WATCH_FAMILIES = {
    family.name: family
    for family in (
        Family("raymlops_drift_outcome", "gauge", _WINDOW, "newest window: 0 ok, 1 warn, 2 alarm, -1 not judged"),
        Family("raymlops_drift_p", "gauge", (*_WINDOW, "windows"), "p-value of the newest window, and of two running"),
        Family("raymlops_drift_distance", "gauge", _WINDOW, "largest distance of a column in sd of own windows"),
        Family("raymlops_drift_rows", "gauge", _WINDOW, "rows of the newest window"),
        Family("raymlops_drift_window_seconds", "gauge", _WINDOW, "length of the newest window"),
        Family("raymlops_drift_judged_until", "gauge", _WINDOW, "end of the newest window, in seconds since 1970"),
        Family("raymlops_quality_outcome", "gauge", ("model",), "by labels: 0 as before, 2 worse, -1 no verdict"),
        Family("raymlops_quality_skill", "gauge", ("model", "of"), "of the newest window, and had it stayed as it was"),
        Family("raymlops_quality_lost", "gauge", ("model", "bound"), "skill lost since the promotion: mean, low, high"),
        Family("raymlops_quality_labelled", "gauge", ("model",), "share of the newest window's rows with a label"),
        Family("raymlops_quality_label_lag_seconds", "gauge", ("model",), "by which half of the labels have come"),
        Family("raymlops_quality_judged_until", "gauge", ("model",), "end of the newest window, seconds since 1970"),
        Family("raymlops_incidents_open", "gauge", ("model",), "open incidents that nobody acknowledged"),
        Family("raymlops_messages_waiting", "gauge", ("model",), "messages about incidents that a messenger lacks"),
    )
}
"""What the controller exports of the models that it watches."""
