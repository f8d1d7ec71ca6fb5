"""What is compared with what."""

from raymlops.monitor.baseline import Window, baseline_days, running, served_pairs, serving_baseline, wanted_windows
from raymlops.monitor.own_windows import DAY_S


def days(number, *, start=0, rows=500):
    return tuple(Window(at * DAY_S, (at + 1) * DAY_S, rows) for at in range(start, start + number))


def test_skew_compares_two_windows_running_with_enough_rows():
    """The first of these, or where they cannot be judged the next."""
    windows = (*days(1, rows=3), *days(1, start=1), *days(3, start=3))
    assert served_pairs(windows) == [windows[1:3], windows[2:4], windows[3:5]]
    assert served_pairs(windows[:2]) == []


def test_what_is_judged_is_no_part_of_the_baseline():
    """22 windows: the last two are judged by the 20 before them."""
    windows = days(22)
    assert running(windows) == windows[20:]
    assert serving_baseline(windows) == windows[:20]
    assert serving_baseline(windows[:1]) == ()


def test_a_baseline_stays_with_the_first_windows():
    """Of 100 days the first 28, of weeks the first 28, whatever comes later; days of few rows are no part."""
    windows = days(100)
    assert serving_baseline(windows) == windows[:28]
    assert serving_baseline((*days(5, rows=9), *days(95, start=5))) == windows[5:33]
    weeks = tuple(Window(at * 7 * DAY_S, (at + 1) * 7 * DAY_S, 500) for at in range(40))
    assert serving_baseline(weeks) == weeks[:28]


def test_shorter_windows_take_more_of_them():
    """A week's 20, one more for each further day of it, and of hours as many as three weeks have."""
    assert [wanted_windows(days * DAY_S) for days in (14, 7, 1, 0.5, 0.25, 1 / 24)] == [20, 20, 26, 42, 84, 504]


def test_hours_are_kept_long_enough_for_a_baseline_and_what_is_judged_by_it():
    """20 weeks and two are 154 days, 26 days and two 28, 84 times six hours and five 22.25; and a day more each."""
    assert [baseline_days(days * DAY_S) for days in (7, 1, 0.25)] == [155, 29, 24]


def test_the_window_before_is_the_newest_one_with_rows():
    """A day without traffic, or with too little, is passed over; of six hours it begins whole days before."""
    last = days(1, start=23)
    assert running((*days(22), *last)) == (*days(1, start=21), *last)
    assert running((*days(22), *days(1, start=22, rows=9), *last)) == (*days(1, start=21), *last)
    assert running(last) == last
    parts = [Window(at * DAY_S / 4, (at + 1) * DAY_S / 4, 500) for at in (0, 1, 2, 3, 5, 10)]
    assert running(parts) == (parts[2], parts[-1])


def test_the_one_before_six_hours_are_those_of_the_day_before():
    """Four windows back; what lies between is not part of the baseline, which is of four weeks at most."""
    windows = tuple(Window(at * DAY_S / 4, (at + 1) * DAY_S / 4, 500) for at in range(150))
    assert running(windows) == (windows[145], windows[149])
    assert serving_baseline(windows) == windows[: 28 * 4]
    assert serving_baseline(windows[:30]) == windows[:25]
    assert served_pairs(windows)[0] == (windows[0], windows[4])
