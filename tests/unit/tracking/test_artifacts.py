"""What callbacks log reaches MLflow once, whatever is repeated."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raymlops.callback import CallbackContext
from raymlops.errors import TrackingError
from raymlops.records import Artifact
from raymlops.tracking import artifacts
from raymlops.tracking.artifacts import ArtifactLog, PendingArtifacts
from raymlops.tracking.pending import PendingRun
from raymlops.tracking.sender import Sender

if TYPE_CHECKING:
    from raymlops.tracking.client import Tracker


@pytest.fixture
def run_id(mlflow: Tracker) -> str:
    return mlflow.start_run("tiny", name="x", tags={})


def logged(step: int, *, value: int = 0) -> list[Artifact]:
    """Return an image, rows and a figure's file of a step."""
    sent: list[Artifact] = []
    ctx = CallbackContext(step=step, epoch=1, metrics={}, model=None, log=sent.append, send=sent.append, logged=set())
    ctx.log_image(np.full((4, 6), value, dtype=np.uint8), "weights/first")
    ctx.log_table({"row": [value, value + 1], "text": ["2026-01-01", "007"]}, "tables/a.json")
    return [*sent, Artifact("figure", "plots/a.png", step, bytes([value]), 1)]


def paths(mlflow: Tracker, run_id: str, folder: str | None = None) -> list[str]:
    return sorted(item.path for item in mlflow.client.list_artifacts(run_id, folder))


def test_each_kind_is_as_mlflow_has_it(mlflow: Tracker, run_id: str, tmp_path: Path) -> None:
    """An image with its key and step, a table that loads with its text unchanged, a file."""
    log = ArtifactLog(mlflow, run_id)
    for step in (5, 10):
        for artifact in logged(step, value=step):
            log.write(artifact)
    images = [path for path in paths(mlflow, run_id, "images") if path.endswith(".png")]
    assert [path.partition("+timestamp")[0] for path in images] == [
        "images/weights~first+step+10",
        "images/weights~first+step+5",
    ]
    with Image.open(mlflow.client.download_artifacts(run_id, images[1], str(tmp_path))) as first:
        assert np.asarray(first).tolist() == np.full((4, 6), 5).tolist()
    table = json.loads(mlflow.read_text(run_id, "tables/a.json"))
    assert table == {
        "columns": ["row", "text", "step"],
        "data": [[5, "2026-01-01", 5], [6, "007", 5], [10, "2026-01-01", 10], [11, "007", 10]],
    }
    tags = mlflow.run(run_id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "tables/a.json", "type": "table"}]
    assert tags["mlflow.loggedImages"] == "True"
    plot = mlflow.client.download_artifacts(run_id, "plots/a.png", str(tmp_path))
    assert Path(plot).read_bytes() == bytes([10])


def test_a_repeated_step_is_not_there_twice(mlflow: Tracker, run_id: str) -> None:
    """By the same process, and by another one that resumes the run and has to ask MLflow."""
    for log in (ArtifactLog(mlflow, run_id), ArtifactLog(mlflow, run_id)):
        for step in (5, 10):
            for _ in range(2):
                for artifact in logged(step):
                    log.write(artifact)
    for artifact in logged(15):
        log.write(artifact)
    assert len([path for path in paths(mlflow, run_id, "images") if path.endswith(".png")]) == 3
    assert len(json.loads(mlflow.read_text(run_id, "tables/a.json"))["data"]) == 6


def test_a_parquet_table_grows_too(mlflow: Tracker, run_id: str, tmp_path: Path) -> None:
    """Rows of two steps, the second of which is repeated by another process."""
    for step in (1, 2, 2):
        table = pd.DataFrame({"row": [step], "step": [step]}).to_json(orient="split", index=False)
        ArtifactLog(mlflow, run_id).write(Artifact("table", "a.parquet", step, table.encode(), 1))
    found = pd.read_parquet(mlflow.client.download_artifacts(run_id, "a.parquet", str(tmp_path)))
    assert found["row"].tolist() == [1, 2]


def test_one_that_is_refused_holds_nothing_up(mlflow: Tracker, run_id: str) -> None:
    """A broken image is given up and told of; metrics and the next artifact arrive, and the run is closed."""
    sent = Sender(mlflow, max_retry_s=0.01)
    run = PendingRun("x", run_id)
    sent.attach(run, Artifact("image", "broken", 1, b"no image", 1))
    for artifact in logged(1):
        sent.attach(run, artifact)
    sent.put(run, [("loss", 0.5, 1, 1)])
    sent.end(run, "FINISHED")
    sent.finish(wait_s=30.0)
    assert paths(mlflow, run_id) == ["images", "plots", "tables"]
    found = mlflow.run(run_id)
    assert (found.data.metrics["loss"], found.info.status) == (0.5, "FINISHED")
    assert "image 'broken' of step 1 is not logged: MLflow at" in " ".join(sent.notices())


def test_what_waits_is_bounded(mlflow: Tracker, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While MLflow does not answer, so many bytes are kept; what is lost is told once a name."""
    monkeypatch.setattr(artifacts, "MAX_BYTES", 3)

    def down(*_: Any) -> None:
        msg = "down"
        raise TrackingError(msg)

    monkeypatch.setattr(ArtifactLog, "write", down)
    sent = Sender(mlflow)
    run = PendingRun("x", run_id)
    for step in range(4):
        sent.attach(run, Artifact("figure", "a.png", step, b"22", 1))
    assert [text for text in sent.notices() if "'a.png'" in text] == [
        "figure 'a.png' of step 1 is not logged: 0 MiB are waiting for MLflow"
    ]
    assert run.artifacts


def test_what_is_added_during_a_write_is_counted(mlflow: Tracker, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender writes without its lock: the size of what waits is that of what is left."""
    monkeypatch.setattr(artifacts, "MAX_BYTES", 5)
    pending = PendingArtifacts()
    pending.add(Artifact("figure", "a.png", 1, b"22", 1))
    monkeypatch.setattr(ArtifactLog, "write", lambda *_: pending.add(Artifact("figure", "b.png", 1, b"333", 1)))
    assert pending.write_first(mlflow, run_id) == ""
    assert pending.add(Artifact("figure", "c.png", 1, b"4", 1)) != []  # the first one still waits
    assert pending.remove_first("") == []
    assert pending.add(Artifact("figure", "d.png", 1, b"55", 1)) == []


def test_a_png_is_small() -> None:
    """An image of one colour travels as less than a hundred bytes."""
    image = logged(1)[0]
    assert len(image.data) < 100
    assert Image.open(io.BytesIO(image.data)).format == "PNG"
