"""The log of a run, in a folder and on a filesystem that cannot append."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fake_s3 import FakeS3, fake_s3

from raymlops.errors import NotFoundError
from raymlops.training.runs.logfile import RunLog, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def texts(lines: list[str]) -> list[str]:
    return [line.partition(" ")[2] for line in lines]


def test_lines_have_their_time_and_stay_over_restarts(tmp_path: Path) -> None:
    """A second driver of the same run goes on in the same file."""
    uri = f"file://{tmp_path}/runs/r1/log.txt"
    for text in ("event=start", "event=step"):
        log = RunLog(uri)
        log.append(text)
        log.close()
    lines = list(read(uri))
    assert texts(lines) == ["event=start", "event=step"]
    assert lines[0][:2] == "20"
    assert lines[0].split(" ")[0].endswith("Z")


def test_no_log_is_not_found(tmp_path: Path) -> None:
    """Whether it is followed or not."""
    for follow in (False, True):
        with pytest.raises(NotFoundError, match="no log"):
            list(read(f"{tmp_path}/log.txt", follow=follow))


def test_following_sees_what_comes_and_ends_with_the_run(tmp_path: Path) -> None:
    """Each line as it is read makes the next one; after the run's end there is nothing to wait for."""
    log = RunLog(f"{tmp_path}/log.txt")
    log.append("event=start")
    rest = iter(["event=step", "event=epoch", "event=closed status=FINISHED"])
    seen = []
    for line in read(f"{tmp_path}/log.txt", follow=True, poll_s=0.0):
        seen.append(line)
        if (text := next(rest, None)) is not None:
            log.append(text)
    assert texts(seen) == ["event=start", "event=step", "event=epoch", "event=closed status=FINISHED"]


def test_following_goes_on_with_a_run_that_does(tmp_path: Path) -> None:
    """A run that was closed and resumed is followed into its next attempt."""
    log = RunLog(f"{tmp_path}/log.txt")
    for text in ("event=closed status=FAILED", "event=start"):
        log.append(text)
    asked = []

    def ended() -> bool:
        asked.append(True)
        if len(asked) == 2:
            log.append("event=step")
        return len(asked) == 3

    lines = list(read(f"{tmp_path}/log.txt", follow=True, ended=ended, poll_s=0.0))
    assert texts(lines) == ["event=closed status=FAILED", "event=start", "event=step"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with fake_s3() as store:
        yield store


def test_an_object_store_gets_the_log_now_and_then(bucket: FakeS3) -> None:
    """At once, then after 30 s, and when it is closed; a second driver's lines come behind the first one's."""
    uri, now = bucket.uri("b/runs/r1/log.txt"), [0.0]
    for attempt in (1, 2):
        log = RunLog(uri, clock=lambda: now[0])
        for seconds in (0.0, 1.0, 29.0, 31.0, 40.0):
            now[0] = attempt * 1000 + seconds
            log.append(f"event=step attempt={attempt} at={seconds:g}")
            if log._thread is not None:
                log._thread.join()
        assert texts(list(read(uri)))[-1] == f"event=step attempt={attempt} at=31"
        log.close()
        assert log.notices() == []
    expected = [f"event=step attempt={attempt} at={at}" for attempt in (1, 2) for at in (0, 1, 29, 31, 40)]
    assert texts(list(read(uri))) == expected
    assert texts(bucket.objects["b/runs/r1/log.txt"].decode().splitlines()) == expected


def test_an_object_that_grows_is_followed(bucket: FakeS3) -> None:
    """It is read whole each time; lines that were seen are not repeated, also where old ones were dropped since."""
    path, uri = "b/log.txt", bucket.uri("b/log.txt")
    bucket.objects[path] = b"1 event=a\n2 event=b\n"
    followed = read(uri, follow=True, poll_s=0.0)
    assert [next(followed), next(followed)] == ["1 event=a", "2 event=b"]
    bucket.objects[path] = b"2 event=b\n3 event=closed status=FINISHED\n"
    assert list(followed) == ["3 event=closed status=FINISHED"]


def test_a_bucket_that_refuses_costs_a_message(bucket: FakeS3) -> None:
    """And no training."""
    bucket.refuse = lambda method, _path: method in {"PUT", "POST"}
    log = RunLog(bucket.uri("b/log.txt"))
    log.append("event=start")
    log.close()
    assert "cannot write the run's log" in log.notices()[0]


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    """A reader may come between two writes."""
    path = tmp_path / "log.txt"
    path.write_bytes(b"2025 event=start\n2025 event=st")
    followed = read(str(path), follow=True, poll_s=0.0)
    assert next(followed) == "2025 event=start"
    with path.open("ab") as file:
        file.write(b"ep\n")
    assert next(followed) == "2025 event=step"


def test_what_no_encoding_can_hold_is_written_all_the_same(tmp_path: Path) -> None:
    """Such as a file name whose bytes are not UTF-8: a notice of it must not end a training."""
    log = RunLog(str(tmp_path / "log.txt"))
    log.append("cannot read '\udcff.parquet'")
    assert log.notices() == []
    assert [line.split(" ", 1)[1] for line in read(str(tmp_path / "log.txt"))] == ["cannot read '\\udcff.parquet'"]
