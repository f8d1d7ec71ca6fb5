"""What every test may use: the importable fixture recipes, a home of its own, and an MLflow database that is ready.

``RAYMLOPS_REQUIRE=postgres,promtool`` makes a test fail that would be skipped because such a tool is missing.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from cluster_from_up import Cluster
    from fake_s3 import FakeS3
    from shell_user import User

# Test modules are imported by path and workers import by name: what a worker needs lives in tests/fixtures.
sys.path.insert(0, str(Path(__file__).parent / "fixtures"))

# Each full garbage collection walks all of torch, Ray and MLflow, and finds next to nothing.
gc.set_threshold(*gc.get_threshold()[:2], 1000)

# A job that a shell starts in the background ignores Ctrl-C, and so would what its tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRED = os.environ.get("RAYMLOPS_REQUIRE", "").lower().replace(",", " ").split()


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of all of them: a preflight and each trial's end ask for one."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose reason to be skipped names a required tool."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if any(tool in reason.lower() for tool in REQUIRED):
            report.outcome, report.longrepr = "failed", f"RAYMLOPS_REQUIRE: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count what did not run, after the reasons that ``-ra`` lists."""
    if skipped := len(terminalreporter.stats.get("skipped", [])):
        line = f"{skipped} tests did not run on this machine; RAYMLOPS_REQUIRE=TOOL,... makes them fail"
        terminalreporter.write_line(line, yellow=True, bold=True)


@pytest.fixture(scope="session", autouse=True)
def raymlops_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep whatever a test leaves to the defaults out of the user's own home."""
    home = tmp_path_factory.mktemp("raymlops-home")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAYMLOPS_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database; making one takes seconds, copying it none."""
    from raymlops.tracking.client import Tracker

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracker(f"sqlite:///{path}").check()
    return path


@pytest.fixture
def storage_path(mlflow_database: Path, tmp_path: Path) -> Path:
    """Return a ``storage.path`` whose MLflow database is ready."""
    folder = tmp_path / "storage"
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """Yield an object store on loopback, for pyarrow's own S3 client."""
    from fake_s3 import fake_s3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    with fake_s3() as server:
        yield server


@pytest.fixture
def cluster_user(cluster: Cluster, tmp_path: Path) -> User:
    """Return the user of the tier's ``cluster`` in an empty folder, in a shell that exported what ``up`` prints."""
    someone = cluster.owner.moved(tmp_path)
    someone.env |= cluster.env
    return someone
