"""How a sweep is closed, however it ended."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.errors import LeaseLostError
from raymlops.records import SpentRecord
from raymlops.tuning.execution import search
from raymlops.tuning.mlflow.sweep_run import sweep_of
from raymlops.tuning.study import reruns
from raymlops.tuning.study.trials import Trials
from raymlops.tuning.sweep_stores import SweepStores

if TYPE_CHECKING:
    from pathlib import Path


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
    stores.parent = SimpleNamespace(resume="resume")
    stores.trial_runs = runs
    assert search._close(stores, controller) is None  # type: ignore[arg-type]
    assert (runs.called, stores.called) == (["abandon"], [])
    with pytest.raises(LeaseLostError) as caught:
        search._raise_error(stores, controller, lost=None)  # type: ignore[arg-type]
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("at", ["start", "twice", "between", "repeats", "end"])
def test_an_interrupt_at_any_moment_names_the_command_that_resumes_the_sweep(
    storage_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Also one that comes while nothing runs, or quickly after the first; the repeats do not start, or end."""
    monkeypatch.setattr(search, "autoscaler_config", lambda: None)
    ran: list[str] = []

    def interrupt(*moments: str) -> None:
        if at in moments:
            signal.raise_signal(signal.SIGINT)

    def run(_stores: Any, controller: Any, **_: Any) -> None:
        interrupt("start", "twice")
        ran.append("search")

    def tune(_stores: Any, controller: Any, **_: Any) -> None:
        interrupt("repeats")
        ran.append("repeats")
        assert controller.halting == (at == "repeats")

    def add_repeats(study: Any, *, spec: Any) -> int:
        interrupt("between")
        return reruns.add_repeats(study, spec=spec)

    class Runs(Recorder):
        def close(self, **_: Any) -> None:
            interrupt("twice")

        def news(self) -> list[str]:
            return []

    for name, replacement in {"_run": run, "_tune": tune, "add_repeats": add_repeats}.items():
        monkeypatch.setattr(search, name, replacement)
    project = project_in(storage_path, num_trials=1, target=1.0, repeats={"top": 1, "seeds": 2})
    with recorded_sweep(project) as sweep:
        sweep.run(0.5)
        trials = Trials(sweep.study, section=project.spec.sweep, objectives=project.spec.objectives)
        stores = SweepStores(project, sweep.study, trials, Runs(), sweep.parent)  # type: ignore[arg-type]
        data = SimpleNamespace(share=dict)

        def drive() -> None:
            search.search(stores, data=data, before=SpentRecord(), renew=lambda: None, on_event=None)  # type: ignore[arg-type]
            interrupt("end")

        with pytest.raises(KeyboardInterrupt) as caught, sweep.parent.closing_on_error():
            drive()
        (note,) = caught.value.__notes__
        assert note.startswith(f"Resume it with: raymlops sweep --resume {sweep.sweep_id}")
        assert ran == (["search", "repeats"] if at in {"repeats", "end"} else ["search"])
        assert sweep_of(sweep.tracker, sweep.sweep_id).status == "KILLED"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
