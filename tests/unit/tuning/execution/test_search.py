"""How a sweep is closed, however it ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raymlops.errors import LeaseLostError
from raymlops.tuning.execution import search


class Recorder:
    """Remembers which of its methods were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: self.called.append(name)


class Lost:
    """The controller of a driver whose sweep another one has taken over."""

    halt = "broken"
    error: BaseException | None = None

    def close(self) -> None:
        raise LeaseLostError("another driver has taken over")

    def fail(self, error: BaseException) -> None:
        self.error = error


def test_a_driver_that_lost_its_sweep_writes_no_run_and_says_why() -> None:
    """The other driver writes the same runs and the parent's end."""
    runs, stores, controller = Recorder(), Recorder(), Lost()
    stores.trial_runs = runs
    assert search._close(stores, controller) is None  # type: ignore[arg-type]
    assert (runs.called, stores.called) == (["abandon"], [])
    with pytest.raises(LeaseLostError) as caught:
        search._raise_error(stores, controller, lost=None, command="resume")  # type: ignore[arg-type]
    assert not getattr(caught.value, "__notes__", [])


def test_what_could_be_added_counts_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoscaler's configuration comes from a task on the head, which the first count does not wait for."""
    usage = SimpleNamespace(nodes={"a": {"CPU": 1.0}}, free={"a": {"CPU": 1.0}}, contenders=[])
    monkeypatch.setattr(search.resource_usage, "usable", lambda: usage)
    monkeypatch.setattr(search, "growth_by", lambda config, _request: config["nodes"])
    train = SimpleNamespace(cpus_per_worker=1.0, gpus_per_worker=0.0)
    spec = SimpleNamespace(train=train, sweep=SimpleNamespace(workers_per_trial=1, max_concurrent=None))
    known: dict[str, Any] | None = None
    asked = SimpleNamespace(done=lambda: known is not None, result=lambda: known)
    count = search._Capacity(spec, autoscaler=asked)  # type: ignore[arg-type]
    assert count() == 1
    known = {"nodes": [{"CPU": 4.0}]}
    assert count() == 5
    known = {}
    assert count() == 1
