"""Erasures beside writers, compactions and readers: rows of others count once at any time, hers are gone in the end."""

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from served_requests import SIGNATURE, served

from raymlops.predictions.compact import compact
from raymlops.predictions.erase import Erasure
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.read import Reading
from raymlops.predictions.settings import LogSettings
from raymlops.predictions.where import Where

pytestmark = pytest.mark.soak

SECONDS = 45.0
SETTLED_S = 10.0
"""After which a row must be read, whatever happened to its file."""
ANNA = Where.parse(["features.carrier=anna"])


def test_erasures_beside_writers_compactions_and_readers(tmp_path):
    """Two replicas answer and label into this hour and the last day; one process at a time rewrites their files."""
    uri, over = str(tmp_path), threading.Event()
    written: list[tuple[str, str, float]] = []

    def replica(writer):
        log = PredictionLog(
            LogSettings(enabled=True, uri=uri, flush_s=0.1), name="flights", signature=SIGNATURE, writer=writer
        )
        labels = LabelLog(uri, name="flights", writer=writer)
        for number in itertools.count():
            if over.is_set():
                break
            person = ("anna", "bob", "eve")[number % 3]
            request_id, ts = f"{writer}-{number}", time.time() - 86_400 * (number % 2)
            columns = {"distance": np.ones(1), "carrier": np.array([person], dtype=object)}
            if number % 7 == 0:
                labels.add([Label(request_id, 0, "1")]).result(timeout=30)
            log.take([served(request_id, ts=ts, columns=columns)])
            written.append((request_id, person, time.monotonic()))
            time.sleep(0.002)
        log.close()
        labels.close()

    def rewrite():
        for number in itertools.count():
            Erasure([uri], "flights", ANNA).run(now=datetime.now(UTC))
            if number % 5 == 0:  # it also removes what writers have begun, which then try again after a second
                compact(uri, "flights", now=datetime.now(UTC) + timedelta(hours=2))
            if over.wait(0.5):
                return

    def read():
        while not over.is_set():
            until = time.monotonic() - SETTLED_S
            before = [request_id for request_id, person, at in list(written) if person != "anna" and at < until]
            reading = Reading(uri, "flights")
            seen = Counter(value for batch in reading for value in batch["request_id"].to_pylist())
            assert reading.damaged == ()
            assert set(seen.values()) <= {1}
            assert not set(before) - seen.keys()

    (tmp_path / "predictions/flights/version=3").mkdir(parents=True)
    with ThreadPoolExecutor(5) as pool:
        jobs = [*(pool.submit(replica, writer) for writer in ("one", "two")), pool.submit(rewrite)]
        jobs += [pool.submit(read) for _ in range(2)]
        wait(jobs, timeout=SECONDS, return_when=FIRST_EXCEPTION)
        over.set()
    for job in jobs:
        job.result()
    last = Erasure([uri], "flights", ANNA).run(now=datetime.now(UTC) + timedelta(minutes=1))
    assert last.open_labels == 0
    reading = Reading(uri, "flights")
    rows = [row for batch in reading for row in batch.to_pylist()]
    assert Counter(row["request_id"] for row in rows) == {name: 1 for name, person, _ in written if person != "anna"}
    assert sum(row["label"] is not None for row in rows) == sum(
        person != "anna" and int(name.partition("-")[2]) % 7 == 0 for name, person, _ in written
    )
    assert reading.unknown_labels().num_rows == 0
    print(f"{len(written):,} requests, {len(rows):,} rows left")
