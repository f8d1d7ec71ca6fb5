"""The report of drift as a strict parser sees it."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from html_page import Page

from raymlops.lifecycle.watch.hours import HourlyColumn
from raymlops.lifecycle.watch.reporting.page import MOST_WINDOWS, Shown, fragment, page
from raymlops.lifecycle.watch.window_drift import WindowDrift
from raymlops.monitor.drift import ColumnDrift, DriftVerdict
from raymlops.monitor.effects import Histogram
from raymlops.state.watch.incidents import Incident

EVIL = "</style></svg><script>alert('&amp;')</script><!-- <img src=http://evil.example/x onerror=alert(1)>"
START = datetime(2026, 1, 5, tzinfo=UTC)
WEEK = timedelta(days=7)
BARS = Histogram(tuple(float(edge) for edge in range(25)), (), (1 / 24,) * 24, (0.0,) * 12 + (1 / 12,) * 12)


def column(name, *, distance=0.5, flagged=False, moved="location", **more):
    told = {
        "distance_running": distance,
        "p": 0.01,
        "unjudged": (),
        "jensen_shannon": 0.1,
        "nulls": (0.0, 0.02),
        "quantiles": ((1.0, 2.0, 3.0, 4.0, 5.0),) * 2,
        "new": (),
        "vanished": (),
        "influence": 0.25,
        "histogram": BARS if flagged else None,
    }
    return ColumnDrift(column=name, moved=moved, distance=distance, flagged=flagged, **{**told, **more})


def window(at, *columns, outcome="ok", side="inputs", reason="like the 30 own windows", **more):
    verdict = DriftVerdict(outcome, reason, 1000, 30, 30.0, 0.4, 0.4, columns, 3.5, 2.5)
    start = START + at * WEEK
    told = {"kind": "drift", "against": "training", "rows": 1000, "verdict": verdict, **more}
    return WindowDrift(side=side, start=start, stop=start + WEEK, **told)


def shown(*windows, **more):
    return Shown("flights", 3, 168.0, windows, **more)


def page_of(*windows, **more):
    return page(shown(*windows, **more), made_at=START)


@pytest.fixture(scope="module")
def text():
    names = ("carrier", "", EVIL)
    categories = Histogram((), ("AA", EVIL), (0.9, 0.1), (0.5, 0.5))
    bad = [
        column(f"{EVIL} {name}", distance=9.0, flagged=True, moved=f"share of {EVIL}", new=(EVIL,), **more)
        for name, more in zip(names, ({"histogram": categories, "quantiles": ()}, {}, {"histogram": None}), strict=True)
    ]
    windows = [window(at, column("distance"), *bad, outcome="warn") for at in range(3)]
    windows.append(
        window(3, *bad, column("distance"), outcome="alarm", reason=EVIL, refused={EVIL: EVIL}, acknowledged=True)
    )
    skew = window(0, *bad, outcome="alarm", kind="skew")
    waiting = window(4, side="outputs", verdict=None, waiting=f"2 of its hours are not counted {EVIL}")
    hours = tuple(START + 3 * WEEK + timedelta(hours=at) for at in (0, 1, 5))
    by_hour = HourlyColumn("inputs", bad[0].column, f"share of {EVIL}", hours, (30, 40, 50), ((0.1,), (0.2,), (0.9,)))
    opened = Incident(
        "i1", "flights", "inputs", "drift", 0, START, START + WEEK, 2, EVIL, 0.0, None, "", START, EVIL, EVIL
    )
    return page_of(
        skew, *windows, waiting, hours=(by_hour,), incidents=(opened,), quality=(f"data, {EVIL}",), notes=(EVIL,)
    )


@pytest.fixture(scope="module")
def parsed(text):
    return Page(text)


def test_every_section_is_there_and_in_the_table_of_contents(parsed):
    expected = ["reading", "incidents", "inputs-drift", "outputs-drift", "inputs-skew", "quality", "left-out"]
    assert parsed.sections == expected
    assert parsed.loads == [f"#{section}" for section in expected]
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.open == []


def test_it_says_how_to_read_it_in_three_sentences(text):
    (lines,) = re.findall(r'<section id="reading".*?<p>(.*?)</p>', text, re.DOTALL)
    assert lines.count(". ") == 2


def test_quantiles_outside_of_the_bins_are_told_by_their_side():
    """In both tables; a figure has nowhere else to draw them, and says so."""
    nan = (float("nan"),) * 5
    told = {"quantiles": ((60.0, 80.0, 91.37, 100.0, 110.0), nan), "span": (57.0, 131.0)}
    slipped = column("glucose", flagged=True, distance=-9.0, outside=((0.0, 0.0), (1.0, 0.0)), **told)
    words = Page(page_of(window(0, slipped, outcome="alarm"))).words
    assert "91.37 → below 57" in words
    assert "Figures show what is below 57 or above 131 at these edges" in words
    few = column("glucose", flagged=True, span=(57.0, 131.0), outside=((0.01, 0.0), (0.01, 0.0)))
    assert "at these edges" not in page_of(window(0, few, outcome="alarm"))


def test_nothing_is_loaded_and_nothing_runs(parsed):
    assert parsed.scripts == []
    assert not re.search(r"@import|url\(", "".join(parsed.styles))
    assert "default-src 'none'" in parsed.policy
    assert "script-src" not in parsed.policy


def test_text_of_others_makes_no_tag(parsed, text):
    """Names of columns and categories, reasons, who acknowledged an incident."""
    assert not {"script", "img"} & set(parsed.tags)
    assert "<script" not in text
    assert parsed.words.count("</style></svg><script>") > 10


def test_it_shows_outcomes_bands_and_what_moved_in_which_hours(text, parsed):
    assert "Inputs: alarm. 2026-01-26 00:00 to 2026-02-02 00:00 UTC, 1,000 rows, against training, acknowledged" in (
        parsed.words
    )
    assert text.count('<svg class="strip"') == 1  # one window of outputs has no history
    assert text.count('<svg class="distances"') == 4
    assert text.count('class="band"') == 4
    assert text.count('<svg class="hours"') == 1
    assert text.count('<svg class="bars"') == 2  # of the drift and of the skew
    assert "Outputs: 1 window: 2 of its hours are not counted" in parsed.words
    assert "The output's dependence on it is 0.25 of at most 1" in parsed.words


def test_a_notebook_shows_a_part_whose_styles_stay_inside():
    windows = [window(0, column("distance")), window(1, column("distance", flagged=True), outcome="alarm")]
    found = Page(fragment(shown(*windows)))
    assert found.open == []
    assert found.scripts == []
    rules = [line for line in "".join(found.styles).splitlines() if line]
    assert all(line.startswith(".drift ") for line in rules)
    assert "Inputs: alarm." in found.words


def test_nothing_served_yet_is_a_report_too():
    none = WindowDrift("inputs", "drift", None, None, None, 0, None, "no window of traffic has ended yet")
    found = Page(page_of(none))
    assert "Inputs: waiting. no window of traffic has ended yet" in found.words
    assert Page(page_of(notes=("no table is its data",))).sections == ["reading", "left-out"]


def test_incidents_of_bounds_are_listed_too():
    """By their kind; no window of theirs is drawn."""
    by = ("flights", "inputs")
    beyond = Incident("q", *by, "quality", 0, START, START, 1, "x (max_nulls)", 0.0, None, "", START, "ada", "mended")
    silent = Incident("s", *by, "silence", 0, START, START, 1, "max_silence_h")
    found = Page(page_of(window(0, column("distance")), incidents=(beyond, silent)))
    assert "Inputs, beyond a bound" in found.words
    assert "open, known 2026-01-05 00:00 by ada: mended" in found.words
    assert "Inputs, silence" in found.words


def weeks(columns, windows):
    flagged = [column(f"a column with a name {at}", distance=5.0, flagged=at < 50) for at in range(columns)]
    refused = {f"another {at}": "redacted for a while" for at in range(columns)}
    for side in ("inputs", "outputs"):
        yield from (window(at, *flagged, side=side, outcome="alarm", refused=refused) for at in range(windows))


def test_a_year_of_200_columns_is_far_below_a_megabyte_and_2000_are_bounded():
    """All columns and all windows, each flagged in every one."""
    hours = tuple(START + timedelta(hours=at) for at in range(168))
    told = (hours, (100,) * 168, ((0.12345, 0.23456, 0.34567),) * 168)
    by_hour = [HourlyColumn("inputs", f"a column with a name {at}", "quartiles", *told) for at in range(8)]
    year = page_of(*weeks(200, 52), hours=by_hour)
    most = page_of(*weeks(2_000, 2 * MOST_WINDOWS), hours=by_hour)
    assert len(year.encode()) < 400_000
    assert len(most.encode()) < 600_000
    assert "1,900 more are in the answer to --json" in most
    assert "2,000 more" not in year
