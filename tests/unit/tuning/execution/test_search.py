"""How a sweep is closed, however it ended."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.errors import LeaseLostError
from raymlops.records import SpentRecord
from raymlops.tuning.execution import search
from raymlops.tuning.mlflow.sweep_run import sweep_of
from raymlops.tuning.mlflow.trial_runs import INTERRUPTED_WAIT_S
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


BEFORE = ["start", "encoding"]
INTERRUPTS = {
    "start": [],
    "encoding": ["start"],
    "trials": [*BEFORE, "interrupted"],
    "twice": [*BEFORE, "interrupted"],
    "between": [*BEFORE, "good enough"],
    "repeats": [*BEFORE, "good enough", "between", "interrupted"],
    "end": [*BEFORE, "good enough", "between", None],
}
"""What is done by then; of each run of Tune, why it halts."""


@pytest.mark.parametrize(
    ("at", "number"),
    [*((at, signal.SIGINT) for at in INTERRUPTS), ("encoding", signal.SIGTERM), ("trials", signal.SIGTERM)],
)
def test_an_interrupt_at_any_moment_names_the_command_that_resumes_the_sweep(
    storage_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, number: signal.Signals
) -> None:
    """It is raised at once where no trial can run, and stops those that run; what follows does not start."""
    done: list[str | None] = []
    waits: list[dict[str, Any]] = []

    def interrupt(*moments: str) -> None:
        if at in moments:
            signal.raise_signal(number)

    def run_tune(controller: Any, **_: Any) -> None:
        if "between" in done:
            interrupt("repeats")
        else:
            controller.halt = "good enough"  # trials still run, and the repeats would follow
            interrupt("trials", "twice")
        done.append(controller.halt)

    def before(moment: str, action: Any) -> Any:
        def act(*given: Any, **named: Any) -> Any:
            interrupt(moment)
            done.append(moment)
            return action(*given, **named)

        return act

    class Runs(Recorder):
        def close(self, **how: Any) -> None:
            waits.append(how)
            interrupt("twice")

        def news(self) -> list[str]:
            return []

    def unexpected(*_: Any) -> None:
        raise AssertionError("the handler of before was called")

    replaced = {
        "_Capacity": lambda *_, **_options: lambda: 2,
        "autoscaler_config": lambda: None,
        "scheduler_of": before("start", search.scheduler_of),
        "trainable": nullcontext,
        "run_tune": run_tune,
        "add_repeats": before("between", search.add_repeats),
    }
    for name, replacement in replaced.items():
        monkeypatch.setattr(search, name, replacement)
    handler = signal.signal(signal.SIGTERM, unexpected)
    project = project_in(storage_path, num_trials=2, repeats={"top": 1, "seeds": 2})
    try:
        with recorded_sweep(project) as sweep:
            sweep.run(0.5)
            trials = Trials(sweep.study, section=project.spec.sweep, objectives=project.spec.objectives)
            stores = SweepStores(project, sweep.study, trials, Runs(), sweep.parent)  # type: ignore[arg-type]
            data = SimpleNamespace(share=dict, shared_data=before("encoding", lambda: None))

            def drive() -> None:
                search.search(stores, data=data, before=SpentRecord(), renew=lambda: None, on_event=None)  # type: ignore[arg-type]
                interrupt("end")

            with pytest.raises(KeyboardInterrupt) as caught, sweep.parent.closing_on_error():
                drive()
            (note,) = caught.value.__notes__
            assert note.startswith(f"Resume it with: raymlops sweep --resume {sweep.sweep_id}")
            assert sweep_of(sweep.tracker, sweep.sweep_id).status == "KILLED"
        handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
        assert handlers == [signal.default_int_handler, unexpected]
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert done == INTERRUPTS[at]
    assert waits == [{} if at == "end" else {"wait_s": INTERRUPTED_WAIT_S, "patient": False}]


@pytest.mark.parametrize("spent", [False, True])
def test_tune_does_not_start_where_nothing_is_left_once_the_data_are_prepared(
    monkeypatch: pytest.MonkeyPatch, *, spent: bool
) -> None:
    """The preparation takes time, of which the sweep may have a limited amount."""
    controller = SimpleNamespace(done=False)
    ran: list[str] = []

    def shared_data() -> None:
        controller.done = spent

    monkeypatch.setattr(search, "trainable", nullcontext)
    monkeypatch.setattr(search, "run_tune", lambda *_, **_options: ran.append("tune"))
    spec = SimpleNamespace(sweep=SimpleNamespace(workers_per_trial=1))
    nothing = SimpleNamespace(replay=lambda *_, **_options: [])
    monkeypatch.setattr(search, "scheduler_of", lambda _spec: nothing)
    monkeypatch.setattr(search, "judged", lambda *_: [])
    stores = SimpleNamespace(
        project=SimpleNamespace(spec=spec),
        study=SimpleNamespace(get_trials=lambda **_: []),
        trials=SimpleNamespace(reopen=list),
        parent=SimpleNamespace(resume="resume", sweep_id="s"),
    )
    search._run(stores, controller, data=SimpleNamespace(shared_data=shared_data))  # type: ignore[arg-type]
    assert ran == ([] if spent else ["tune"])


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
