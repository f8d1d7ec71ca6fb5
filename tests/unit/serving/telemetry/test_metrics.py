from __future__ import annotations

import subprocess
import sys

import pytest

from raymlops.predictions.served import RequestRecord
from raymlops.serving.telemetry.metric_families import FAMILIES, ROWS, SECONDS
from raymlops.serving.telemetry.metrics import Metrics, Readings


class Fake:
    """Counters and gauges in a dict, as strict about values and labels as Ray's."""

    def __init__(self) -> None:
        self.values: dict[tuple, float] = {}
        self.calls = 0

    def __call__(self, family):
        return FakeInstrument(self, family)

    def of(self, name, **labels):
        """Return the value of the one series with these labels, 0 where there is none."""
        found = [
            value
            for (other, tags), value in self.values.items()
            if other == name and labels.items() <= dict(tags).items()
        ]
        assert len(found) <= 1, (name, labels)
        return found[0] if found else 0


class FakeInstrument:
    def __init__(self, fake, family) -> None:
        self.fake, self.family = fake, family

    def _key(self, tags):
        assert tuple(tags) == self.family.labels
        assert all(isinstance(value, str) for value in tags.values())
        self.fake.calls += 1
        return self.family.name, tuple(tags.items())

    def inc(self, value, tags):
        assert self.family.kind == "counter"
        assert value > 0
        key = self._key(tags)
        self.fake.values[key] = self.fake.values.get(key, 0) + value

    def set(self, value, tags):
        assert self.family.kind == "gauge"
        self.fake.values[self._key(tags)] = value


def served(**more) -> RequestRecord:
    facts = {
        "request_id": "r",
        "ts": 1_700_000_000.0,
        "version": 7,
        "route": "champion",
        "protocol": "native",
        "status": 200,
        "code": "",
        "rows": 2,
        "body_bytes": 20,
        "seconds": 0.004,
        "model_seconds": 0.002,
    }
    return RequestRecord(**(facts | more))


def counted(*batch, read=Readings, **more):
    fake = Fake()
    metrics = Metrics(name="flights", version=7, read=read, make=fake, **more)
    metrics.take(batch)
    metrics.close()
    return fake


def test_requests_are_counted_by_version_route_protocol_status_and_code():
    """Two answered and one refused are two series, and refused rows are no rows answered."""
    fake = counted(served(), served(), served(status=422, code="invalid_rows", model_seconds=0.0))
    assert fake.of("raymlops_requests", status="200", code="", route="champion", protocol="native") == 2
    assert fake.of("raymlops_requests", status="422", code="invalid_rows") == 1
    assert fake.of("raymlops_rows", model="flights", model_version="7") == 4


def test_latency_falls_into_cumulative_buckets_with_an_exact_sum():
    """4 ms, 5 ms (its own bound) and 40 s: two at most 5 ms, three at most +Inf, 40.009 s in all."""
    fake = counted(*[served(seconds=seconds) for seconds in (0.004, 0.005, 40.0)])
    buckets = [fake.of("raymlops_request_seconds_bucket", le=f"{bound:g}") for bound in SECONDS]
    assert buckets == [0, 0, *[2] * 12]
    assert fake.of("raymlops_request_seconds_bucket", le="+Inf") == 3
    assert fake.of("raymlops_request_seconds_sum") == pytest.approx(40.009)
    assert fake.of("raymlops_model_seconds_bucket", le="0.0025") == 3


def test_refusals_do_not_make_the_endpoint_look_fast_but_late_ones_count():
    """Of a refused, a late and an answered request, latency has the last two and the model only the last."""
    refused = served(status=401, code="unauthenticated", model_seconds=0.0)
    late = served(status=504, code="timeout", model_seconds=0.0, seconds=30.0)
    fake = counted(refused, late, served())
    assert fake.of("raymlops_request_seconds_bucket", le="+Inf") == 2
    assert fake.of("raymlops_model_seconds_bucket", le="+Inf") == 1


def test_a_canary_replaced_by_the_champion_is_counted_for_the_canary():
    """The request is the champion's, the fallback the canary's."""
    fake = counted(served(fallback_from=8))
    assert fake.of("raymlops_fallbacks", model_version="8") == 1
    assert fake.of("raymlops_requests", model_version="7") == 1


def test_a_shadow_differs_by_more_than_rounding():
    """Of differences 0, 1e-7, 0.5, infinite and NaN, three are mismatches."""
    differences = (0.0, 1e-7, 0.5, float("inf"), float("nan"))
    fake = counted(*[served(route="shadow", version=9, difference=value) for value in differences])
    assert fake.of("raymlops_shadow_mismatches", model_version="9") == 3


def test_readings_become_gauges_and_what_they_counted_only_grows():
    """Totals since the start are added by their differences; a share that is gone is 0."""
    shown = [
        Readings(
            queue_rows=5, log_pending_rows=9, log_dropped_rows=2, shares={(7, "champion"): 0.9, (8, "canary"): 0.1}
        ),
        Readings(log_dropped_rows=6, recorder_dropped=1, recorder_errors=4, shadow_dropped={9: 3}, shares={}),
    ]
    now, fake = [0.0], Fake()
    metrics = Metrics(name="flights", version=7, read=lambda: shown.pop(0), make=fake, clock=lambda: now[0])
    now[0] = 1.0
    metrics.take(())
    assert fake.of("raymlops_queue_rows", model_version="7") == 5
    assert fake.of("raymlops_traffic_share", model_version="8", route="canary") == 0.1
    assert fake.of("raymlops_log_dropped_rows") == 2
    now[0] = 2.0
    metrics.take(())
    assert fake.of("raymlops_queue_rows") == fake.of("raymlops_log_pending_rows") == 0
    assert (
        fake.of("raymlops_traffic_share", model_version="7")
        == fake.of("raymlops_traffic_share", model_version="8")
        == 0
    )
    assert fake.of("raymlops_log_dropped_rows") == 6
    assert fake.of("raymlops_recorder_dropped") == 1
    assert fake.of("raymlops_recorder_errors") == 4
    assert fake.of("raymlops_shadow_dropped", model_version="9") == 3


def test_batches_are_counted_by_rows_and_requests():
    """Batches of 1 and 3 rows for 1 and 2 requests."""
    fake = Fake()
    metrics = Metrics(name="flights", version=7, read=lambda: Readings(batches=[(1, 1), (3, 2)]), make=fake)
    metrics.close()
    assert [fake.of("raymlops_batch_rows_bucket", le=f"{bound:g}") for bound in ROWS[:3]] == [1, 1, 2]
    assert fake.of("raymlops_batch_rows_sum") == 4
    assert fake.of("raymlops_batch_requests") == 3


def test_no_label_comes_from_a_client():
    """Neither a key nor the id of a request."""
    fake = counted(served(key_id="secret-key", request_id="secret-id"))
    assert "secret" not in str(fake.values)


def test_a_publication_costs_calls_by_series_not_by_request():
    """10,000 requests in one second are as many calls of Ray's metrics as one, buckets aside."""
    calls = [counted(*[served()] * count).calls for count in (1, 10_000)]
    assert calls[0] == calls[1]


def test_nothing_is_published_twice_within_a_second():
    """The period of the recorder is shorter than that of publishing."""
    now, fake = [0.0], Fake()
    metrics = Metrics(name="flights", version=7, make=fake, clock=lambda: now[0])
    now[0] = 0.9
    metrics.take([served()])
    assert fake.calls == 0
    now[0] = 1.0
    metrics.take([])
    assert fake.of("raymlops_requests") == 1


def test_ray_takes_every_family_and_needs_no_cluster():
    """Ray's own metrics accept the names, labels and values, in a process without a cluster."""
    program = (
        "from raymlops.predictions.served import RequestRecord\n"
        "from raymlops.serving.telemetry.metrics import Metrics\n"
        "metrics = Metrics(name='flights', version=7)\n"
        "metrics.take([RequestRecord('r', 0.0, 7, 'champion', 'native', 200, '', 1, 1, 0.1, 0.1, fallback_from=8)])\n"
        "metrics.close()\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_metric_is_named_by_what_it_counts():
    """Names start with ours, say their unit, and no label is one of Ray's own."""
    for family in FAMILIES.values():
        assert family.name.startswith("raymlops_")
        assert not {"Version", "version", "WorkerId"} & set(family.labels)
