"""What is compared with what."""

from raymlops.monitor.baseline import (
    Acknowledgement,
    DriftComparison,
    Waiting,
    Window,
    drift_comparison,
    first_served,
    of_inputs,
    of_outputs,
    untold,
)
from raymlops.monitor.own_windows import DAY_S


def window(at, version=1, rows=500):
    return Window(at * DAY_S, (at + 1) * DAY_S, version, rows)


def days(number, *, start=0, rows=500):
    return tuple(Window(at * DAY_S, (at + 1) * DAY_S, None, rows) for at in range(start, start + number))


def test_inputs_run_over_versions():
    """Two versions answered on the same day: one window of both's rows."""
    assert of_inputs([window(1, 2, rows=30), window(0, 1), window(1, 1, rows=70)]) == (
        Window(0, DAY_S, None, 500),
        Window(DAY_S, 2 * DAY_S, None, 100),
    )


def test_outputs_are_of_a_version():
    """Those of another one say nothing of it."""
    windows = [window(2, 2), window(1, 1), window(0, 2)]
    assert of_outputs(windows, version=2) == (window(0, 2), window(2, 2))


def test_skew_compares_the_first_two_windows_of_a_version():
    """With enough rows, and one after the other; the version before has its own."""
    windows = [window(at) for at in range(5)] + [
        window(5, 2, rows=3),
        window(6, 2),
        window(8, 2),
        window(9, 2),
        window(10, 2),
    ]
    assert first_served(windows, version=2, told=()) == (window(8, 2), window(9, 2))
    assert first_served(windows, version=1, told=()) == (window(0), window(1))
    assert first_served(windows[:7], version=2, told=()) is None


def test_skew_is_told_once():
    """What differs from training differs for good."""
    assert first_served([window(0), window(1)], version=1, told={1}) is None


def test_training_stands_in_for_a_baseline():
    """Until 20 windows were served before the two that are judged."""
    windows = days(21)
    assert drift_comparison(windows, since_s=0, skewed=False) == DriftComparison(windows[20], windows[19], ())


def test_a_skewed_training_does_not():
    """It would be told as drift in each window."""
    found = drift_comparison(days(21), since_s=0, skewed=True)
    assert isinstance(found, Waiting)
    assert (found.windows, found.needed) == (19, 20)
    assert "19 of 20" in found.reason


def test_what_is_judged_is_no_part_of_the_baseline():
    """22 windows: the last two are judged by the 20 before them."""
    windows = days(22)
    assert drift_comparison(windows, since_s=0, skewed=True) == DriftComparison(windows[21], windows[20], windows[:20])


def test_a_baseline_stays_with_the_first_windows():
    """Of 100 the first 60: a slow drift moves away from it."""
    windows = days(100)
    assert drift_comparison(windows, since_s=0, skewed=False).baseline == windows[:60]


def test_a_renewed_baseline_begins_where_it_is_told():
    """30 days from the 50th on; before it are enough again, it waits or training stands in."""
    windows = days(80)
    assert drift_comparison(windows, since_s=50 * DAY_S, skewed=True).baseline == windows[50:78]
    assert isinstance(drift_comparison(windows[:60], since_s=50 * DAY_S, skewed=True), Waiting)
    assert drift_comparison(windows[:50], since_s=50 * DAY_S, skewed=False).windows == 0


def test_a_missing_window_is_not_the_one_before():
    """A day without traffic: there are no two running."""
    windows = (*days(22), *days(1, start=23))
    assert drift_comparison(windows, since_s=0, skewed=False).before is None


def test_the_one_before_six_hours_are_those_of_the_day_before():
    """Four windows back; what lies between is not part of the baseline, which is of four weeks at most."""
    windows = tuple(Window(at * DAY_S / 4, (at + 1) * DAY_S / 4, 1, 500) for at in range(150))
    found = drift_comparison(windows, since_s=0, skewed=False)
    assert found.before == windows[145]
    assert found.baseline == windows[: 28 * 4]
    assert drift_comparison(windows[:30], since_s=0, skewed=False).baseline == windows[:25]
    assert first_served(windows, version=1, told=()) == (windows[0], windows[4])


def test_a_window_of_few_rows_waits():
    """It is no reason to look at an older one."""
    found = drift_comparison((*days(30), *days(1, start=30, rows=99)), since_s=0, skewed=False)
    assert isinstance(found, Waiting)


def test_what_was_acknowledged_is_not_told_again():
    """Until the baseline is renewed, and other columns are."""
    known = [Acknowledgement(frozenset({"dest"}), 100.0)]
    assert untold(["dest", "carrier"], known, since_s=50.0) == ("carrier",)
    assert untold(["dest", "carrier"], known, since_s=200.0) == ("dest", "carrier")
