"""Prometheus metrics of one replica, exported by Ray's metrics agent of each node.

Owns the counting. Every label has few values: none comes from a client. Names and buckets are in ``metric_families``.
Knows nothing of the replica; a function returns the figures that no request carries, about once a second.
"""

from __future__ import annotations

import functools
import math
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from raymlops.serving.telemetry.metric_families import FAMILIES, REFUSALS, ROWS, SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.predictions.served import RequestRecord, Route
    from raymlops.serving.refusal import Refusal
    from raymlops.serving.telemetry.metric_families import Family

PUBLISH_S = 1.0
"""Ray collects every 10 s; publishing more often would only cost more."""
SAME = 1e-6
"""Differences of a shadow's answer up to this are rounding."""


class Instrument(Protocol):
    """The part of ``ray.util.metrics`` that is used."""

    def inc(self, value: float, tags: dict[str, str]) -> None:
        """Add to a counter."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Set a gauge."""


@dataclass(frozen=True, slots=True)
class Readings:
    """Figures of a replica that no request carries. Counters start with the replica."""

    queue_rows: int = 0
    batches: Sequence[tuple[int, int]] = ()
    """Rows and requests of each batch since the last reading."""
    shares: Mapping[tuple[int, Route], float] = field(default_factory=dict)
    """The share of each version, the champion's too; empty in a replica that splits no traffic."""
    shadow_dropped: Mapping[int, int] = field(default_factory=dict)
    log_pending_rows: int = 0
    log_dropped_rows: int = 0
    recorder_dropped: int = 0
    recorder_errors: int = 0


class Metrics:
    """Count requests and publish the counts to Ray about once a second.

    ``make`` creates the instrument of a family, by default Ray's. ``read`` is called in the recorder's thread.
    """

    def __init__(
        self,
        *,
        name: str,
        version: int,
        read: Callable[[], Readings] = Readings,
        make: Callable[[Family], Instrument] | None = None,
        clock: Callable[[], float] = time.monotonic,
        publish_s: float = PUBLISH_S,
    ) -> None:
        make = make or ray_instrument
        self._instruments = {family.name: make(family) for family in FAMILIES.values()}
        self._name = name
        self._version = str(version)
        self._read = read
        self._clock = clock
        self._publish_s = publish_s
        self._published = clock()
        self._counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._latencies: dict[tuple[int, str], tuple[_Distribution, _Distribution]] = {}
        self._batches = _Distribution(ROWS)
        self._seen: dict[str, int] = {}
        self._shares: dict[tuple[str, ...], float] = {}

    def take(self, batch: Sequence[RequestRecord]) -> None:
        """Count some requests, and publish when due."""
        for served in batch:
            self._count(served)
        now = self._clock()
        if now - self._published >= self._publish_s:
            self._published = now
            self._publish()

    def close(self) -> None:
        """Publish the remaining counts."""
        self._publish()

    def _count(self, served: RequestRecord) -> None:
        version, route = served.version, served.route
        who = (self._name, str(version), route)
        self._counts["raymlops_requests", (*who, served.protocol, str(served.status), served.code)] += 1
        reached = served.model_seconds > 0
        if reached or served.status == 504:  # the latency of a refusal is meaningless, that of a timeout is not
            pair = self._latencies.get((version, route))
            if pair is None:
                pair = self._latencies[version, route] = (_Distribution(SECONDS), _Distribution(SECONDS))
            pair[0].observe(served.seconds)
            if reached:
                pair[1].observe(served.model_seconds)
        if served.status < 400 and reached:
            self._counts["raymlops_rows", who] += served.rows
        if served.fallback_from is not None:
            self._counts["raymlops_fallbacks", (self._name, str(served.fallback_from))] += 1
        if served.difference is not None and not served.difference <= SAME:  # a NaN differs too
            self._counts["raymlops_shadow_mismatches", (self._name, str(version))] += 1

    def _publish(self) -> None:
        me = (self._name, self._version)
        readings = self._read()
        self._gauge("raymlops_queue_rows", readings.queue_rows, me)
        self._gauge("raymlops_log_pending_rows", readings.log_pending_rows, me)
        self._since("raymlops_log_dropped_rows", readings.log_dropped_rows, me)
        self._since("raymlops_recorder_dropped", readings.recorder_dropped, me)
        self._since("raymlops_recorder_errors", readings.recorder_errors, me)
        for version, dropped in readings.shadow_dropped.items():
            self._since("raymlops_shadow_dropped", dropped, (self._name, str(version)))
        self._publish_shares(readings.shares)
        for rows, requests in readings.batches:
            self._batches.observe(rows)
            self._counts["raymlops_batch_requests", me] += requests
        self._publish_distribution("raymlops_batch_rows", self._batches, me)
        for (version, route), (whole, model) in self._latencies.items():
            who = (self._name, str(version), route)
            self._publish_distribution("raymlops_request_seconds", whole, who)
            self._publish_distribution("raymlops_model_seconds", model, who)
        for (name, labels), count in self._counts.items():
            self._add(name, count, labels)
        self._counts.clear()

    def _publish_shares(self, shares: Mapping[tuple[int, Route], float]) -> None:
        new: dict[tuple[str, ...], float] = {
            (self._name, str(version), route): share for (version, route), share in shares.items()
        }
        gone = {labels: 0.0 for labels in self._shares if labels not in new}  # a gauge keeps its last value
        for labels, share in (new | gone).items():
            self._gauge("raymlops_traffic_share", share, labels)
        self._shares = new

    def _publish_distribution(self, name: str, distribution: _Distribution, labels: tuple[str, ...]) -> None:
        for le, count in distribution.cumulative():
            self._add(f"{name}_bucket", count, (*labels, le))
        self._add(f"{name}_sum", distribution.total, labels)
        distribution.clear()

    def _since(self, name: str, total: int, labels: tuple[str, ...]) -> None:
        key = "/".join((name, *labels))
        self._add(name, total - self._seen.get(key, 0), labels)
        self._seen[key] = total

    def _add(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        if value > 0:  # Ray refuses 0
            self._instruments[name].inc(value, dict(zip(FAMILIES[name].labels, labels, strict=True)))

    def _gauge(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        self._instruments[name].set(value, dict(zip(FAMILIES[name].labels, labels, strict=True)))


def ray_instrument(family: Family) -> Instrument:
    """Return the Ray metric of a family. Without a running Ray nothing is exported."""
    from ray.util.metrics import Counter, Gauge

    kind = Counter if family.kind == "counter" else Gauge
    instrument: Instrument = kind(family.name, family.help, family.labels)
    return instrument


@functools.cache
def _refusals() -> Instrument:
    return ray_instrument(REFUSALS)


def count_refusal(refusal: Refusal, *, protocol: str = "http") -> None:
    """Count a request that the guard of this process refuses."""
    _refusals().inc(1, {"protocol": protocol, "status": str(refusal.status), "code": refusal.code})


class _Distribution:
    """Counts of values in buckets, and their sum, since the last publication."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Return each bucket's upper bound as Prometheus writes it, and its cumulative count."""
        below, found = 0, []
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            below += count
            found.append(("+Inf" if bound == math.inf else f"{bound:g}", below))
        return found

    def clear(self) -> None:
        self._counts = [0] * len(self._counts)
        self.total = 0.0
