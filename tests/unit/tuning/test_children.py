"""What MLflow is sent for the trials of a sweep, also when it does not answer for a while."""

from __future__ import annotations

import pytest

from raymlops.errors import TrackingError
from raymlops.tuning.children import Children


class Store:
    """Records every call; refuses while ``down``."""

    def __init__(self) -> None:
        self.calls = []
        self.down = False

    def _note(self, *call):
        if self.down:
            raise TrackingError("MLflow is down")
        self.calls.append(call)

    def start_run(self, experiment, *, name, tags, parent_run_id=None):
        self._note("start", experiment, name, parent_run_id, tags)
        return f"id-{name}"

    def log_params(self, run_id, params):
        self._note("params", run_id, params)

    def log_metrics(self, run_id, points):
        self._note("metrics", run_id, [point[:3] for point in points])

    def set_tags(self, run_id, tags):
        self._note("tags", run_id, tags)

    def end_run(self, run_id, status):
        self._note("end", run_id, status)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def children(store):
    return Children(store, experiment="e", parent_run_id="parent", tags={"team": "a"}, name="trial")


def run(children, number, status="complete", *, reason=""):
    children.start(number, {"train.lr": 0.1, "train.optimizer": "sgd"})
    children.log(number, epoch=1, metrics={"validation/loss": 0.5})
    children.log(number, epoch=2, metrics={"validation/loss": 0.4})
    children.end(number, status, reason=reason)


def test_a_trial_is_one_child_run_with_its_metrics_in_one_request(store, children):
    run(children, 3)
    children.close()
    tags = {"team": "a", "raymlops.kind": "trial", "raymlops.trial": "3"}
    assert store.calls == [
        ("start", "e", "trial-3", "parent", tags),
        ("params", "id-trial-3", {"train.lr": "0.1", "train.optimizer": "sgd"}),
        ("metrics", "id-trial-3", [("validation/loss", 0.5, 1), ("validation/loss", 0.4, 2)]),
        ("tags", "id-trial-3", {"raymlops.trial_status": "complete"}),
        ("end", "id-trial-3", "FINISHED"),
    ]


@pytest.mark.parametrize(("status", "mlflow"), [("complete", "FINISHED"), ("pruned", "KILLED"), ("failed", "FAILED")])
def test_a_run_ends_as_its_trial_did(store, children, status, mlflow):
    run(children, 0, status, reason="why")
    children.close()
    assert store.calls[-2:] == [
        ("tags", "id-trial-0", {"raymlops.trial_status": status, "raymlops.reason": "why"}),
        ("end", "id-trial-0", mlflow),
    ]


def test_the_id_of_a_run_is_known_once_it_is_open(children):
    children.start(0, {})
    assert children.run_id(0) == "id-trial-0"
    children.close()


def test_an_outage_in_between_loses_and_repeats_nothing(store, children):
    store.down = True
    run(children, 0)
    assert children.run_id(0, wait_s=0) is None
    store.down = False
    run(children, 1)
    children.close()
    assert [call[0] for call in store.calls] == ["start", "params", "metrics", "tags", "end"] * 2


def test_an_outage_to_the_end_is_an_error_at_the_end_and_not_before(store, children):
    run(children, 0)
    store.down = True
    run(children, 1)
    with pytest.raises(TrackingError, match="MLflow is down"):
        children.close()
