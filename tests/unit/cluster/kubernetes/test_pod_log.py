from itertools import pairwise

import pytest

from raymlops.cluster.kubernetes.api_server import lines_of
from raymlops.cluster.kubernetes.pod_log import PodLog

TEXT = "one\r\n\n\r 10%\r 20%\n\rend"
TIME = "2026-11-28T10:00:0{}.000000000Z "


class Streams:
    """A server whose streams are these, one after another."""

    namespace = "models"

    def __init__(self, *streams):
        self.streams = iter(streams)

    def lines(self, *_, **__):
        return lines_of([next(self.streams)])


@pytest.mark.parametrize("length", range(1, len(TEXT)))
def test_lines_are_the_same_however_their_text_is_divided(length):
    """A carriage return and its line feed may come apart."""
    chunks = [TEXT[at : at + length] for at in range(0, len(TEXT), length)]
    assert list(lines_of(chunks)) == ["one\r\n", "\n", "\r", " 10%\r", " 20%\n", "\r", "end"]


def test_a_line_is_given_as_soon_as_it_ends():
    """A bar that is drawn for hours is read once, and each step of it is seen when the next one comes."""
    chunks = iter([TIME.format(1), "\r 10%", "\r 20%", "\r 30%", "\n"])
    lines = lines_of(chunks)
    assert [next(lines), next(lines), next(chunks)] == [TIME.format(1) + "\r", " 10%\r", "\r 30%"]


def test_a_progress_bar_that_is_cut_anywhere_has_each_step_once():
    """Whichever two bytes of a log a stream ends behind, before the whole of it comes."""
    log = f"{TIME.format(1)}one\r\n{TIME.format(2)}\r 10%\r 20%\r 30%\n{TIME.format(2)}two\n{TIME.format(3)}\n"
    for first, second in [*pairwise(range(len(log))), (0, len(log)), (35, 80), (72, 73), (60, 110)]:
        follows = PodLog(Streams(log[:first], log[:second], log))
        found = [line for _ in range(3) for line in follows.lines("p")]
        assert (found, follows.rest) == (["one", " 10%", " 20%", " 30%", "two", ""], None), (first, second)


def test_a_line_that_a_clock_stamped_before_the_last_one_is_new():
    """A machine's clock may be set back while its log is cut."""
    first, back = f"{TIME.format(5)}one\n", f"{TIME.format(3)}two\n{TIME.format(6)}three\n"
    follows = PodLog(Streams(first, first + back))
    assert [[*follows.lines("p")], [*follows.lines("p")]] == [["one"], ["two", "three"]]
