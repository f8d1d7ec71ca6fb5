"""Erasures and compactions that are killed at any moment, of one log that is written in between: exact accounts."""

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
from raymlops.predictions.read import Reading
from raymlops.predictions.settings import LogSettings
from raymlops.predictions.where import Where

pytestmark = pytest.mark.soak

ROUNDS = 100
ANNA = Where.parse(["features.carrier=anna"])
LATER = HOUR + timedelta(days=3)


def work(kind, uri, started):
    """Erase or compact, in a process of its own."""
    started.set()
    if kind == "erase":
        Erasure(uri, "flights", ANNA).run(now=LATER)
    else:
        compact(uri, "flights", now=LATER)


def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path):
    """Rows of others count once after every kill, with their labels; hers are in no file after an erasure that ends."""
    context, chance, uri = multiprocessing.get_context("forkserver"), random.Random(0), str(tmp_path)
    context.set_forkserver_preload([__name__, "served_requests"])
    others, hers, labelled, ended = set(), set(), set(), Counter()

    def write(number):
        log = PredictionLog(LogSettings(enabled=True, uri=uri), name="flights", signature=SIGNATURE, writer="w")
        labels = LabelLog(uri, name="flights", writer="w", now=HOUR.timestamp)
        for place in range(30):
            request_id, person = f"{number}-{place}", ("anna", "bob", "eve")[place % 3]
            (hers if person == "anna" else others).add(request_id)
            columns = {"distance": np.ones(1), "carrier": np.array([person], dtype=object)}
            ts = at(hour=chance.choice([12, 13]))
            log.take([served(request_id, ts=ts, version=chance.choice([3, 4]), columns=columns)])
        labelled.update(f"{number}-{place}" for place in range(6))
        labels.add([Label(f"{number}-{place}", 0, "1") for place in range(6)]).result(timeout=30)
        log.close()
        labels.close()

    def check():
        reading = Reading(uri, "flights")
        rows = {row["request_id"]: row for batch in reading for row in batch.to_pylist()}
        assert (reading.rows, reading.damaged) == (len(rows), ())
        assert others <= rows.keys() <= others | hers
        assert all(rows[request_id]["label"] is not None for request_id in others & labelled)
        return reading

    for number in range(ROUNDS):
        if number % 2 == 0:
            write(number)
        kind, started = chance.choice(["erase", "erase", "compact"]), context.Event()
        process = context.Process(target=work, args=(kind, uri, started))
        process.start()
        assert started.wait(60)
        process.join(0.3 * chance.random() ** 2)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        ended[kind, process.exitcode] += 1
        check()
    Erasure(uri, "flights", ANNA).run(now=LATER)
    hers.clear()
    assert check().unknown_labels().num_rows == 0
    files = [path for path in tmp_path.rglob("predictions/**/*") if path.is_file()]
    left = {
        text for path in files for text in pq.read_table(path)["features"].combine_chunks().field("carrier").to_pylist()
    }
    assert left == {"bob", "eve"}
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    print(f"{dict(ended)}, {len(others):,} rows left")
