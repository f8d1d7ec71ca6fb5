from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from raymlops.lifecycle.losses import LabelLosses, loss_of
from raymlops.lifecycle.lossreader import Window
from raymlops.predictions.counts import Losses
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.served import Served
from raymlops.predictions.settings import LogSettings
from raymlops.records import BundleRef
from raymlops.signature import Column, Signature
from raymlops.state.store import Deployment, State

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
SIGNATURE = Signature((Column("x", "float"),), (Column("p", "float"),))


@pytest.mark.parametrize(
    ("output", "label", "loss"),
    [
        ({"p": 0.8}, True, 0.04),  # 0.2 squared
        ({"p": 0.8}, 0, 0.64),
        ({"kind": "a"}, "a", 0.0),
        ({"kind": "a"}, "b", 1.0),
        ({"a": 0.7, "b": 0.2, "c": 0.1}, "a", 0.07),  # (0.09 + 0.04 + 0.01) / 2
        ({"a": 0.7, "b": 0.2, "c": 0.1}, 2, 0.67),  # (0.49 + 0.04 + 0.81) / 2
        ({"minutes": 12.25}, 12, 0.25),
        ({"minutes": 3.0}, 40, 1.0),
    ],
)
def test_an_answer_is_compared_with_its_label(output, label, loss):
    """As the module's table says; never above 1."""
    assert loss_of(output, label) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ({"kind": "a"}, 1),
        ({"a": 0.5, "b": 0.5}, "c"),
        ({"a": 0.5, "b": 0.5}, 2),
        ({"a": 0.5, "b": 0.5}, True),
        ({"p": None}, 1),
        ({"p": [0.1, 0.2]}, 1),
        ({"p": 0.1}, {"late": True}),
        ({}, 1),
    ],
)
def test_what_cannot_be_compared_says_nothing(output, label):
    """A label of another kind, a tensor, an answer that was redacted."""
    assert loss_of(output, label) is None


@pytest.fixture
def losses(tmp_path):
    """Return what reads the losses of a model whose champion's bundle is under the folder that the log is in."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        bundles = [BundleRef(f"{tmp_path}{place}/bundles/{'d' * 64}", "d" * 64) for place in ("", "/elsewhere")]
        items = [Deployment("m", 1, bundles[0], "a", "champion"), Deployment("m", 2, bundles[1], "b", "warm")]
        state.put_deployments({"m": items}, action="deploy", why="")
        yield LabelLosses(state)


def answer(request_id, p, *, version=1, route="champion", minute=0, **fields):
    arrived = (NOW + timedelta(minutes=minute)).timestamp()
    served = Served(request_id, arrived, version, route, "native", 200, "", 1, 9, 0.1, 0.1, **fields)
    return served._replace(columns={"x": np.ones(1)}, outputs={"p": np.full(1, p)})


def log(tmp_path, *answers):
    """Write what was answered as one file, and return the files of the log."""
    written = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="m", signature=SIGNATURE, writer="a")
    written.take(answers)
    written.close()
    return list((tmp_path / "predictions").rglob("*.parquet"))


def label(tmp_path, *labels):
    kept = LabelLog(str(tmp_path), name="m", writer="a", now=NOW.timestamp)
    kept.add(labels).result(timeout=30)
    kept.close()


def test_losses_are_read_of_shared_out_answers_with_a_label(losses, tmp_path):
    """Of both versions, in each window: neither those that were pinned, nor of copies, nor where one stood in."""
    log(
        tmp_path,
        answer("a", 0.8, minute=-20),
        answer("b", 0.5),
        answer("c", 0.9, version=2, route="canary"),
        answer("d", 0.1, route="pinned"),
        answer("e", 0.2, version=2, route="pinned"),
        answer("f", 0.3, version=2, route="shadow"),
        answer("g", 0.4, fallback_from=2),
        answer("h", 0.6),
    )
    label(tmp_path, *(Label(request_id, 0, "true") for request_id in "abcdefg"))
    seen = []
    before, during = Window(NOW - timedelta(hours=1), NOW), Window(NOW, None)
    found = losses("m", [before, during], labelled=lambda: seen.append(True))
    assert (seen, found.left_out) == ([True], "")
    assert found.losses == {
        before: {1: Losses.of([0.04])},
        during: {1: Losses.of([0.25]), 2: Losses.of([0.01])},
    }


def test_without_a_label_no_answer_is_read(losses, tmp_path):
    """A look at the labels' folder is enough: a damaged file of the log is not even opened, as no warning tells."""
    window = Window(NOW - timedelta(hours=1), None)
    assert losses("m", [window], labelled=pytest.fail).losses == {window: {}}
    (file,) = log(tmp_path, answer("a", 0.8))
    file.write_bytes(b"no Parquet")
    assert losses("m", [window], labelled=pytest.fail).losses == {window: {}}


def test_a_step_that_took_no_time_has_no_losses(losses, tmp_path):
    """It began and ended at once."""
    log(tmp_path, answer("a", 0.8))
    label(tmp_path, Label("a", 0, "true"))
    window = Window(NOW, NOW)
    assert losses("m", [window], labelled=lambda: None).losses == {window: {}}


def test_what_is_left_out_of_too_many_labels_is_said(losses, tmp_path):
    """400 labels of at least 36 bytes take the room of 4 KiB twice, so that at most one in eight rows is read."""
    numbers = range(400)
    log(tmp_path, *(answer(f"{number:036}", 0.5) for number in numbers))
    label(tmp_path, *(Label(f"{number:036}", 0, "true") for number in numbers))
    losses.max_label_bytes = 4096
    window = Window(NOW - timedelta(hours=1), None)
    found = losses("m", [window], labelled=lambda: None)
    assert found.left_out.startswith("labels take more than 4 KiB, so that those of one in ")
    assert 0 < found.losses[window][1].count < 100
