"""Logs that were written, in a folder or an object store."""

import pytest
from served_requests import SIGNATURE

from raymlops.predictions.log import PredictionLog
from raymlops.predictions.settings import LogSettings
from raymlops.storage.store import Store


@pytest.fixture
def write(tmp_path):
    """Return a function that writes each batch as a file of its own."""

    def write_files(*batches, uri=str(tmp_path), name="flights", signature=SIGNATURE, **settings):
        logs = [
            PredictionLog(
                LogSettings(enabled=True, uri=uri, **settings), name=name, signature=signature, writer=f"w{index}"
            )
            for index, _ in enumerate(batches)
        ]
        for log, batch in zip(logs, batches, strict=True):
            log.take(batch)
            log.close()
        return sum(log.spool.written for log in logs)

    return write_files


@pytest.fixture
def store(tmp_path):
    """Return the storage of this test."""
    return Store(str(tmp_path))
