"""What an event of a run shows in a log line and in a bar."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace

from rich.console import Console

from raymlops.display import logfmt
from raymlops.training.events import Event

STEP = Event(
    "step",
    epoch=2,
    epochs=5,
    step=50,
    steps=200,
    metrics={"train/loss": 0.4731234},
    elapsed_s=30.0,
    rows_per_s=12_345.6,
)


def bar(event: Event) -> str:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(event.renderable())
    return console.export_text()


def test_the_time_left() -> None:
    """50 of 200 steps in 30 s: 150 steps at 0.6 s each are 90 s."""
    assert STEP.eta_s == 90.0
    assert replace(STEP, step=0).eta_s is None


def test_an_epoch_of_unknown_many_is_shown_alone() -> None:
    """A run by steps alone has no number of epochs."""
    event = replace(STEP, epochs=0)
    assert event.pairs()["epoch"] == 2
    assert bar(event).startswith("epoch 2 ")


def test_a_log_line_is_logfmt() -> None:
    """Values with spaces are quoted; numbers are short."""
    assert logfmt(STEP) == (
        "event=step epoch=2/5 step=50/200 train/loss=0.47312 rows_per_s=12346 elapsed_s=30.0 eta_s=90"
    )
    assert logfmt(Event("end", message='it said "no" twice')) == r'event=end msg="it said \"no\" twice"'


def test_costs_are_for_charts() -> None:
    """Shares of time, rates and the machine's load are a dozen numbers: neither a line nor a bar has them."""
    costs = {"time/data": 0.1, "throughput/rows_per_s": 9.0, "system/process_memory_gb": 1.0}
    with_costs = replace(STEP, metrics={**costs, **STEP.metrics})
    assert logfmt(with_costs) == logfmt(STEP)
    assert bar(with_costs) == bar(STEP)


def test_a_bar_shows_epoch_metrics_and_rate() -> None:
    """And the time left; a message is printed as it was written."""
    for piece in ("epoch 2/5", "50/200", "train/loss 0.4731", "12,346 rows/s", "1:30 left"):
        assert piece in bar(STEP)
    assert "version [1], 3 rows" in bar(Event("start", steps=3, message="version [1], 3 rows"))


def test_an_event_travels_by_pickle() -> None:
    """Workers send events to the driver."""
    assert pickle.loads(pickle.dumps(STEP)) == STEP
