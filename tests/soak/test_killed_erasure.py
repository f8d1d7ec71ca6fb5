"""Erasures and compactions that are killed at any moment, of a log in two storages that is written in between."""

import multiprocessing
import os
import random
import signal
from collections import Counter
from datetime import timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from served_requests import HOUR, SIGNATURE, at, served

from raymlops.predictions.compact import compact
from raymlops.predictions.erase import Erasure
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.paths import versions_of
from raymlops.predictions.read import Reading
from raymlops.predictions.settings import LogSettings
from raymlops.predictions.where import Where
from raymlops.storage.store import Store

pytestmark = pytest.mark.soak

ROUNDS = 100
ANNA = Where.parse(["features.carrier=anna"])
LATER = HOUR + timedelta(days=3)


def work(kind, uris, started):
    """Erase or compact, in a process of its own."""
    started.set()
    if kind == "erase":
        Erasure(uris, "flights", ANNA).run(now=LATER)
    else:
        for uri in uris:
            compact(uri, "flights", now=LATER)


def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path):
    """Rows of others count once after every kill, with their labels; hers are in no file after an erasure that ends.

    Nor are labels of hers, each of which is in the other storage.
    """
    context, chance = multiprocessing.get_context("forkserver"), random.Random(0)
    uris = [str(tmp_path / name) for name in ("new", "old")]
    context.set_forkserver_preload([__name__, "served_requests"])
    others, hers, labelled, ended = set(), set(), set(), Counter()

    def write(number):
        uri, other = chance.sample(uris, 2)
        log = PredictionLog(LogSettings(enabled=True, uri=uri), name="flights", signature=SIGNATURE, writer="w")
        for place in range(30):
            request_id, person = f"{number}-{place}", ("anna", "bob", "eve")[place % 3]
            (hers if person == "anna" else others).add(request_id)
            columns = {"distance": np.ones(1), "carrier": np.array([person], dtype=object)}
            ts = at(hour=chance.choice([12, 13]))
            log.take([served(request_id, ts=ts, version=chance.choice([3, 4]), columns=columns)])
        log.close()
        labelled.update(f"{number}-{place}" for place in range(6))
        for place in range(6):
            labels = LabelLog(other if place % 3 == 0 else uri, name="flights", writer="w", now=HOUR.timestamp)
            labels.add([Label(f"{number}-{place}", 0, "1")]).result(timeout=30)
            labels.close()

    def check():
        readings = [Reading(uri, "flights") for uri in uris if versions_of(Store(uri), "flights")]
        found = [row for reading in readings for batch in reading for row in batch.to_pylist()]
        rows = {row["request_id"]: row for row in found}
        assert len(found) == len(rows)
        assert not [path for reading in readings for path in reading.damaged]
        assert others <= rows.keys() <= others | hers
        assert all(rows[request_id]["label"] is not None for request_id in others & labelled)
        return readings

    for number in range(ROUNDS):
        if number % 2 == 0:
            write(number)
        kind, started = chance.choice(["erase", "erase", "compact"]), context.Event()
        process = context.Process(target=work, args=(kind, uris, started))
        process.start()
        assert started.wait(60)
        process.join(0.3 * chance.random() ** 2)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        ended[kind, process.exitcode] += 1
        check()
    Erasure(uris, "flights", ANNA).run(now=LATER)
    hers.clear()
    assert [reading.unknown_labels().num_rows for reading in check()] == [0, 0]
    files = [path for path in tmp_path.rglob("predictions/**/*") if path.is_file()]
    left = {
        text for path in files for text in pq.read_table(path)["features"].combine_chunks().field("carrier").to_pylist()
    }
    assert left == {"bob", "eve"}
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    print(f"{dict(ended)}, {len(others):,} rows left")
