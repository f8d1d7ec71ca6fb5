import logging

import pytest
from served_requests import SIGNATURE, at, served

from raymlops.errors import StorageError
from raymlops.predictions.schema import to_tables
from raymlops.predictions.spool import Spool
from raymlops.storage.store import Namer


class Storage:
    """Keep what is written; refuse while ``away``, and lose the answer of what arrives while ``lossy``."""

    def __init__(self):
        self.files = {}
        self.tried = []
        self.away = self.lossy = False

    def write(self, path, data):
        self.tried.append(path)
        if not self.away:
            self.files[path] = data
        if self.away or self.lossy:
            raise StorageError("the storage does not answer")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, **changes):
    names = Namer("replica/1", now=at)
    return Spool("flights", names, clock=clock, **{"flush_s": 1.0, "max_pending_rows": 1000} | changes)


def rows(count, **changes):
    return to_tables([served(rows=count, **changes)], SIGNATURE, name="flights")


def test_rows_are_written_when_the_first_has_waited_long_enough(clock):
    """Nothing before, then one file for a version and hour, then nothing to wait for."""
    spool, storage = make(clock), Storage()
    assert spool.step(storage) is None
    assert spool.add(rows(2))
    assert spool.step(storage) == 1.0
    clock.now += 0.75
    assert not spool.add(rows(3))
    assert spool.step(storage) == 0.25
    clock.now += 0.25
    assert spool.step(storage) is None
    assert (len(storage.files), spool.written, spool.pending_rows) == (1, 5, 0)


def test_many_rows_are_written_at_once(clock):
    """An eighth of what may wait is a file."""
    spool, storage = make(clock, max_pending_rows=80), Storage()
    assert spool.add(rows(10))
    assert spool.step(storage) is None
    assert spool.written == 10


def test_each_file_has_a_name_of_its_own(clock):
    """Also within one millisecond; names sort in the order of time, and only harmless characters are in them."""
    spool, storage = make(clock), Storage()
    for version in (3, 4, 3):
        spool.add(rows(1, version=version))
        spool.step(storage, force=True)
    names = [path.rpartition("/")[2] for path in storage.files]
    assert names == sorted(set(names))
    assert all(name.startswith(f"{at():.0f}") and "replica_1_" in name for name in names)


def test_the_same_file_is_written_again_after_an_outage(clock):
    """It may have arrived although nobody said so; other rows get files of their own."""
    spool, storage = make(clock), Storage()
    storage.lossy = True
    spool.add(rows(2))
    assert spool.step(storage, force=True) == 1.0
    spool.add(rows(3))
    storage.lossy = False
    assert spool.step(storage) == 1.0
    clock.now += 1.0
    assert spool.step(storage) is None
    assert storage.tried[0] == storage.tried[1]
    assert (len(storage.files), spool.written, spool.dropped) == (2, 5, 0)


def test_attempts_become_rare_while_the_storage_is_away(clock):
    """1, 2, 4 and so on up to 30 seconds."""
    spool, storage = make(clock), Storage()
    storage.away = True
    spool.add(rows(1))
    waits = []
    for _ in range(7):
        clock.now += waits[-1] if waits else 1.0
        waits.append(spool.step(storage))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_oldest_rows_are_dropped_when_too_many_wait(clock, caplog):
    """Counted, said once a minute, and what stays is written when the storage is back."""
    spool, storage = make(clock, max_pending_rows=80), Storage()
    storage.away = True
    with caplog.at_level(logging.WARNING):
        for index in range(12):
            spool.add(rows(10, request_id=f"r{index}"))
            spool.step(storage, force=True)
    assert (spool.dropped, spool.pending_rows) == (40, 80)
    assert len(caplog.records) == 1
    clock.now += 60
    with caplog.at_level(logging.WARNING):
        spool.step(storage)
    assert "80 rows are pending, 40 were dropped" in caplog.text
    storage.away = False
    assert spool.step(storage, force=True) is None
    assert (spool.written, spool.dropped) == (80, 40)


def test_small_batches_of_an_outage_become_few_files(clock):
    """Only what was tried has its name already."""
    spool, storage = make(clock), Storage()
    storage.away = True
    for _ in range(100):
        spool.add(rows(1))
        spool.step(storage, force=True)
    storage.away = False
    spool.step(storage, force=True)
    assert (len(storage.files), spool.written) == (2, 100)


def test_rows_that_cannot_be_encoded_are_dropped_alone(clock):
    """Whatever is wrong, what comes after them is written."""

    class Broken(Storage):
        def write(self, path, data):
            if not self.tried:
                self.tried.append(path)
                raise RuntimeError("a defect")
            super().write(path, data)

    spool, storage = make(clock), Broken()
    spool.add(rows(2))
    spool.add(rows(3, version=4))
    assert spool.step(storage, force=True) is None
    assert (spool.written, spool.dropped) == (3, 2)
