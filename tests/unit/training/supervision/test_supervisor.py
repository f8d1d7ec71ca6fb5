"""What the supervisor does with a decision; attempts themselves are in the integration tests."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import supervised
from supervised import Recorder

from raymlops.data.prepare import prepare
from raymlops.errors import InsufficientResourcesError, TrainingError
from raymlops.training.supervision.channel import DriverChannel
from raymlops.training.supervision.failure_policy import Failure
from raymlops.training.supervision.request import RunRequest
from raymlops.training.supervision.supervisor import _Supervisor

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


class Nodes:
    """Room for so many workers on each node."""

    def __init__(self, **each: int) -> None:
        self._each = each

    def count(self, *, without: Collection[str] = ()) -> float:
        return sum(count for node_id, count in self._each.items() if node_id not in without)

    def may_grow(self, workers: int) -> bool:
        return False

    def error(self, workers: int, *, waited_s: float) -> InsufficientResourcesError:
        return InsufficientResourcesError("no room")


def supervisor(folder: Path, *, room: Nodes) -> tuple[_Supervisor, Recorder]:
    """Return one that a signal has already asked to stop, so that it does not wait."""
    project, recorder = supervised.project(folder, max_restarts=2), Recorder()
    request = RunRequest(project, prepare(project), str(folder), recorder, room=room, stop=lambda: "interrupted")
    return _Supervisor(request, folder=str(folder), channel=DriverChannel()), recorder


def failed(kind: Any, **fields: Any) -> Failure:
    return Failure(kind, "AcceleratorError", "CUDA error: uncorrectable ECC error", rank=1, node_id="n1", **fields)


def test_a_wait_is_announced_and_ends_with_a_signal(tmp_path: Path) -> None:
    """5 s would be waited, which the message says before; a reason to stop ends it at once."""
    one, recorder = supervisor(tmp_path, room=Nodes(n1=2))
    began_s = time.monotonic()
    one._handle(failed("environment"))
    assert time.monotonic() - began_s < 2
    (said,) = recorder.messages
    assert said.endswith("the environment failed, not the recipe; retrying in 5 s, restart 1 of 2 in a row")


@pytest.mark.parametrize(
    ("room", "excluded", "said"),
    [
        (Nodes(n1=2, n2=2), {"n1"}, "node n1 is excluded"),
        (Nodes(n1=2, n2=1), set(), "node n1 is not excluded: the others have no room for 2 workers"),
    ],
    ids=["room", "no room"],
)
def test_a_node_is_excluded_where_the_others_have_room(
    tmp_path: Path, room: Nodes, excluded: set[str], said: str
) -> None:
    """When its hardware fails for the second time; a run on a single node would end by it."""
    one, recorder = supervisor(tmp_path, room=room)
    one._handle(failed("hardware"))
    assert one._excluded == set()
    one._handle(failed("hardware"))
    assert one._excluded == excluded
    assert recorder.messages[-1] == said


def test_memory_ends_the_run_and_says_what_to_lower(tmp_path: Path) -> None:
    """At once."""
    one, _ = supervisor(tmp_path, room=Nodes(n1=2))
    with pytest.raises(TrainingError, match=r"CUDA out of memory\n.*lower train\.batch_size"):
        one._handle(Failure("memory", "OutOfMemoryError", "CUDA out of memory"))


def test_places_that_others_took_are_no_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings begin at once where there is room for one: the other one waits, for up to ``cluster.wait_s``."""
    project, recorder = supervised.project(tmp_path, max_restarts=0, wait_s=10.0), Recorder()
    request = RunRequest(project, prepare(project), str(tmp_path), recorder, room=Nodes(n1=2))
    one = _Supervisor(request, folder=str(tmp_path), channel=DriverChannel())
    lost = Failure("places_lost", "PlacesLostError", "the places of its workers were lost before they started")
    ends: list[Any] = [lost, lost, (SimpleNamespace(stopped=""), "uri")]
    monkeypatch.setattr(one, "_attempt", lambda _newest: ends.pop(0))
    assert one.run()[1] == "uri"
    said = "the places of its workers were lost before they started; waiting for room again"
    assert recorder.messages == [said, said]
    one._placeless_s = time.monotonic() - 11.0
    with pytest.raises(InsufficientResourcesError):
        one._wait_again(lost)
