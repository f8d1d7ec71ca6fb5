"""Three displays of the same events."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace

import pytest

from raymlops.display import Throttle, kind_for
from raymlops.training.events import Event, LogDisplay, TerminalDisplay, display, logfmt, notebook_html

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


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("isatty", "in_notebook", "expected"),
    [(True, False, "terminal"), (False, False, "log"), (False, True, "notebook"), (True, True, "notebook")],
)
def test_the_choice_of_a_display(isatty: bool, in_notebook: bool, expected: str) -> None:
    """A notebook first, then a terminal, else a log."""
    assert kind_for(isatty=isatty, in_notebook=in_notebook) == expected


def test_a_stream_that_is_no_terminal_gets_log_lines() -> None:
    """Job logs and pipes are no terminals."""
    assert isinstance(display(io.StringIO()), LogDisplay)


def test_the_time_to_go() -> None:
    """50 of 200 steps in 30 s: 150 steps at 0.6 s each are 90 s."""
    assert STEP.eta_s == 90.0
    assert replace(STEP, step=0).eta_s is None


def test_a_log_line_is_logfmt() -> None:
    """Values with spaces are quoted; numbers are short."""
    assert logfmt(STEP) == (
        "event=step epoch=2/5 step=50/200 train/loss=0.47312 rows_per_s=12346 elapsed_s=30.0 eta_s=90"
    )
    assert logfmt(Event("end", message='it said "no" twice')) == r'event=end msg="it said \"no\" twice"'


def test_what_a_step_costs_is_for_charts() -> None:
    """Shares of time, rates and the machine's load are a dozen numbers: neither a line nor a bar has them."""
    costs = {"time/data": 0.1, "throughput/rows_per_s": 9.0, "system/process_memory_gb": 1.0}
    with_costs = replace(STEP, metrics={**costs, **STEP.metrics})
    assert logfmt(with_costs) == logfmt(STEP)
    assert notebook_html(with_costs, with_costs.metrics) == notebook_html(STEP, STEP.metrics)


def test_a_log_has_one_line_in_ten_seconds() -> None:
    """An event each second for 25 s gives lines at 0, 10 and 20 s, and the end in any case."""
    stream, clock = io.StringIO(), Clock()
    with LogDisplay(stream, clock=clock) as show:
        for second in range(26):
            clock.now_s = float(second)
            show(replace(STEP, step=second))
        show(replace(STEP, kind="end"))
    lines = stream.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["step=0/200", "step=10/200", "step=20/200", "step=50/200"]


def test_words_are_in_the_log_whenever_they_come() -> None:
    """A restart one second after a line is not held back, and holds back no line."""
    stream, clock = io.StringIO(), Clock()
    show = LogDisplay(stream, clock=clock)
    show(Event("message", message="starting 2 workers"))
    show(STEP)
    clock.now_s = 1.0
    show(replace(STEP, kind="restart", metrics={}, message="a worker died", workers=1))
    clock.now_s = 10.0
    show(STEP)
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == [
        "event=message",
        "event=step",
        "event=restart",
        "event=step",
    ]
    assert 'workers=1 elapsed_s=30.0 msg="a worker died"' in stream.getvalue()


def test_a_log_line_knows_metrics_that_fell_between() -> None:
    """An epoch's validation that came two seconds after a line is in the next one."""
    stream, clock = io.StringIO(), Clock()
    show = LogDisplay(stream, clock=clock)
    show(STEP)
    clock.now_s = 2.0
    show(replace(STEP, kind="epoch", metrics={"validation/auc": 0.71}))
    clock.now_s = 10.0
    show(STEP)
    assert "validation/auc" not in stream.getvalue().splitlines()[0]
    assert "validation/auc=0.71" in stream.getvalue().splitlines()[1]


def test_a_throttle_starts_open() -> None:
    """The first call passes, then one in every two seconds."""
    clock = Clock()
    throttle = Throttle(2.0, clock=clock)
    passed = []
    for now_s in (0.0, 1.9, 2.0, 3.0, 4.1):
        clock.now_s = now_s
        passed.append(throttle.due())
    assert passed == [True, False, True, False, True]


def test_a_terminal_shows_epoch_metrics_and_rate() -> None:
    """The bar's last state is readable."""
    stream = io.StringIO()
    with TerminalDisplay(stream) as show:
        show(STEP)
    text = stream.getvalue()
    for piece in ("epoch 2/5", "50/200", "train/loss 0.4731", "12,346 rows/s", "1:30 left"):
        assert piece in text


def test_a_terminal_keeps_its_bar_under_a_message() -> None:
    """What is told in mid-run stands above the bar, as it was written, and moves it nowhere."""
    stream = io.StringIO()
    with TerminalDisplay(stream) as show:
        show(Event("message", message="starting 2 workers"))
        show(STEP)
        show(Event("restart", message="worker [1] died"))
    told, bar = stream.getvalue().splitlines()[:1], stream.getvalue().splitlines()[-1]
    assert told == ["worker [1] died"]
    assert "epoch 2/5" in bar
    assert "50/200" in bar


def test_a_notebook_keeps_its_bar_over_a_message() -> None:
    """What was told last stays below the bar."""
    html = notebook_html(STEP, {}, told="<worker> died")
    assert 'value="50" max="200"' in html
    assert "&lt;worker&gt; died" in html


def test_a_notebook_shows_escaped_html() -> None:
    """A message cannot bring markup."""
    html = notebook_html(replace(STEP, message="<b>x</b>"), {"validation/auc": 0.7})
    assert "&lt;b&gt;x" in html
    assert 'value="50" max="200"' in html
    assert "auc 0.7" in html


def test_an_event_travels_by_pickle() -> None:
    """Workers send events to the driver."""
    assert pickle.loads(pickle.dumps(STEP)) == STEP
