"""What a message about an incident says, and what no column can make of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from raymlops.lifecycle.watch.messaging.messages import MAX_BODY, message_about, shown
from raymlops.state.watch.incidents import Incident
from raymlops.state.watch.windows import JudgedWindow

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
COLUMN = {
    "column": "dep_delay",
    "moved": "location",
    "distance": 6.14,
    "flagged": True,
    "nulls": [0.012, 0.04],
    "quantiles": [[0, 1, 3, 4, 5], [0, 1, 41, 50, 60]],
    "new": [],
    "vanished": [],
    "influence": 0.62,
}


def incident(**fields):
    found = Incident("a1b2c3", "flights", "inputs", "drift", 0, FIRST, FIRST + DAY, 2, ("dep_delay",))
    return replace(found, **fields)


def window(*columns, **fields):
    details = {"columns": list(columns)}
    made = JudgedWindow(
        *("flights", "inputs", "drift", 0, FIRST + DAY, FIRST + 2 * DAY, 7, "alarm", "why", 12_034, FIRST + 3 * DAY),
        against="training",
        p_one=0.036,
        p_two=0.0043,
        details=details,
    )
    return replace(made, **fields)


def test_a_message_says_what_moved_since_when_how_much_it_matters_and_what_to_do():
    """All of it at once, as it is read on a telephone."""
    message = message_about(incident(), window(COLUMN), "opened")
    assert (message.id, message.incident, message.what) == ("a1b2c3-2-opened", "a1b2c3", "opened")
    assert message.created_at == FIRST + 3 * DAY
    assert message.title == "flights: drift of inputs (incident a1b2c3)"
    head, *rest = message.body.splitlines()
    assert head.startswith(
        "Alarm since 2026-01-01 00:00 UTC: two windows of 24 h running are unlike training (p 0.0043), "
    )
    assert head.endswith("the last of 12,034 rows until 2026-01-03 00:00 UTC.")
    assert rest == [
        "- dep_delay: location +6.1 sd, median 3 to 41, missing 1.2% to 4.0%, the output depends on it by 0.62 of 1",
        "Next:",
        "raymlops drift flights --since 2026-01-01T00:00Z",
        "if it is normal from now on: raymlops drift flights --acknowledge a1b2c3 --why TEXT",
        "else mend what sends it, or train on newer data",
    ]


def test_one_window_that_is_far_off_is_told_as_such():
    """A unit that slipped is no two windows running; without a reference's name it is what is normal."""
    found = window(COLUMN, p_two=0.3, against=None)
    body = message_about(incident(windows=1), found, "opened").body
    assert ": a window of 24 h is far from what is normal (p 0.036), the last of 12,034 rows" in body
    worse = message_about(incident(windows=3), found, "escalated").body
    assert worse.startswith("Worse: further columns moved; 3 windows of 24 h are an alarm since 2026-01-01 00:00 UTC, ")


def test_an_alarm_on_one_window_names_the_p_that_made_it_one():
    """Its rank among 50 own windows cannot be below .02; what made it an alarm is its distance, after Holm."""
    found = window({**COLUMN, "p": 3e-9}, {**COLUMN, "flagged": False, "p": 1e-12}, p_one=0.02, p_two=0.02)
    body = message_about(incident(windows=1), found, "opened").body
    assert ": a window of 24 h is far from training (p 3e-09), " in body


def test_a_median_that_no_bin_holds_is_told_by_its_side():
    """A unit that slipped leaves all values below the reference's lowest, and nothing says how far."""
    low = {"quantiles": [[0, 1, 91.37, 4, 5], [None] * 5], "span": [57.0, 131.5], "outside": [[0, 0], [1.0, 0]]}
    assert ", median 91.37 to below 57, " in message_about(incident(), window({**COLUMN, **low}), "opened").body
    high = {**low, "outside": [[0, 0], [0, 0.9]]}
    assert ", median 91.37 to above 131.5, " in message_about(incident(), window({**COLUMN, **high}), "opened").body


def test_what_is_new_is_named_first():
    """A message has room for four, and those before it are known."""
    beyond = [{"bound": "max_nulls", "column": name, "text": "missing: 20.0%, more than 10.0%"} for name in "abcdz"]
    beyond = [*beyond, {"bound": "min_rows", "column": None, "text": "9 rows, fewer than 100"}]
    found = window(kind="quality", details={"beyond": beyond})
    columns = (*(f"{name} (max_nulls)" for name in "abcdz"), "min_rows")
    body = message_about(
        incident(kind="quality", columns=columns), found, "escalated", new=("z (max_nulls)", "min_rows")
    ).body
    assert [line.split()[1] for line in body.splitlines()[1:6]] == ["z:", "9", "a:", "b:", "2"]
    moved = window(*({**COLUMN, "column": name} for name in "abcdz"))
    body = message_about(incident(columns=tuple("abcdz")), moved, "escalated", new=("z",)).body
    assert [line.split()[1] for line in body.splitlines()[1:3]] == ["z:", "a:"]


def test_the_commands_that_it_names_are_there():
    """The options are those of the verb, and the time is one that it takes."""
    from raymlops.lifecycle.prediction_log import parse_moment

    line = message_about(incident(), window(COLUMN), "opened").body.splitlines()[3]
    assert parse_moment(line.split()[-1], now=FIRST + 9 * DAY) == FIRST


def test_messages_of_one_incident_have_one_title():
    """Mail programs and PagerDuty join them by it."""
    found = [message_about(incident(), window(COLUMN), what) for what in ("opened", "escalated", "closed")]
    assert len({one.title for one in found}) == 1
    assert len({one.id for one in found}) == 3
    assert [one.body.split()[0] for one in found] == ["Alarm", "Worse:", "Over:"]
    assert "acknowledge" not in found[2].body


def test_who_acknowledged_it_and_why_is_said():
    """To all who got the alarm, bounded as well."""
    by = {"acknowledged_by": "ann@here", "acknowledged_why": "a new\nairport " + "x" * 999}
    body = message_about(incident(closed_at=FIRST, **by), window(COLUMN), "closed").body
    assert body.startswith("Acknowledged by ann\\u0040here: a new\\u000aairport xxx")
    assert len(body.splitlines()) == 3
    assert len(body) <= MAX_BODY


def test_outputs_name_their_version_and_the_way_back():
    """They are a version's, so that another version may be better."""
    message = message_about(incident(side="outputs", version=7), window(COLUMN), "opened")
    assert message.title.startswith("flights: drift of outputs of version 7 ")
    assert "raymlops rollback flights" in message.body
    skew = message_about(incident(kind="skew", version=7), window(COLUMN), "opened")
    assert skew.title.startswith("flights: inputs of version 7 differ from its training ")


def test_2000_columns_of_long_names_fit():
    """The body stays below what PagerDuty and Teams take, with how many there are, and with the commands."""
    long = {**COLUMN, "column": "c" * 500, "new": ["@" * 300] * 50, "moved": f"share of {'*' * 99}"}
    message = message_about(incident(columns=("c",) * 2000), window(*[long] * 20), "opened")
    assert len(message.body) <= MAX_BODY
    lines = sum(line.startswith("- ccc") for line in message.body.splitlines())
    assert lines
    assert f"- {2000 - lines} more columns" in message.body
    assert message.body.endswith("train on newer data")
    assert len(message.title) + 2 + MAX_BODY <= 1024


def test_a_column_of_which_nothing_is_left_is_told():
    """Null from one window to the next: there is no median, and what is not finite is kept as nothing."""
    gone = {**COLUMN, "moved": "nulls", "distance": None, "nulls": [0, 1], "quantiles": [[1, 2, 3, 4, 5], [None] * 5]}
    body = message_about(incident(), window(gone), "opened").body
    assert "- dep_delay: nulls far off, missing 0.0% to 100.0%, the output" in body


def test_an_unknown_influence_is_said_once():
    """A bundle of an earlier release has none."""
    column = {**COLUMN, "influence": None}
    message = message_about(incident(), window(column, column), "opened")
    assert message.body.count("not known") == 1
    assert "depends on it by" not in message.body


def test_columns_that_did_not_lead_to_it_are_left_out():
    """Those that moved, and not the rest of the table."""
    message = message_about(incident(), window(COLUMN, {**COLUMN, "column": "calm", "flagged": False}), "opened")
    assert "calm" not in message.body


@pytest.mark.parametrize(
    "text",
    [
        "a\nNext:\nrm -rf /",
        "a\r\nSubject: x",
        "<img src=x onerror=alert(1)>",
        "<!channel>",
        "@everyone",
        "[click](https://example.com)",
        "**bold** `code` ~strike~ __under__",
        "https://example.com/x",
        "\u202egnp.exe",
        "a\x1b[31m",
        "&amp;",
        "{{ template }}",
        "a|b",
    ],
)
def test_names_are_names_and_nothing_else(text):
    """Neither a line, nor markup, an address, a mention, a colour or the other direction."""
    column = {**COLUMN, "column": text, "moved": f"share of {text}", "new": [text], "vanished": [text]}
    body = message_about(incident(), window(column), "opened").body
    assert len(body.splitlines()) == 6
    line = next(line for line in body.splitlines() if line.startswith("- "))
    assert not set("<>@[]()*`~|{}&/\x1b\u202e") & set(line)
    assert line.isprintable()


def test_a_column_of_a_slice_is_named_as_everywhere():
    """Its brackets stay, and nothing else that may be markup; text that begins with a bracket is no slice."""
    for name, said in (
        ("dep_hour[carrier=AA]", "dep_hour[carrier=AA]"),
        ("x[c=a](b)]", r"x[c=a\u005d\u0028b\u0029]"),
        ("[c=a]", r"\u005bc=a\u005d"),
    ):
        body = message_about(incident(), window({**COLUMN, "column": name}), "opened").body
        assert f"- {said}: " in body


def test_plain_names_of_any_alphabet_stay_as_they_are():
    """Who writes them reads them."""
    for text in ("sched_dep_time", "ankunft in München", "数量", "हिन्दी", "5.0 - 7.5%"):
        assert shown(text) == text
    assert shown("R&B") == "R\\u0026B"
    assert shown("x" * 41) == "x" * 37 + "..."


def test_what_is_beyond_a_bound_is_told_with_what_is_allowed():
    """Names of columns are anybody's text; the sentences are ours."""
    beyond = [
        {"bound": "min_rows", "column": None, "text": "140 rows, fewer than 1,000"},
        {"bound": "max_nulls", "column": "<b>", "text": "missing: 4.3%, more than 1.0%"},
    ]
    found = window(kind="quality", rows=140, p_one=None, p_two=None, details={"beyond": beyond})
    message = message_about(
        incident(kind="quality", windows=1, columns=("min_rows", "<b> (max_nulls)")), found, "opened"
    )
    assert message.title == "flights: inputs beyond a bound (incident a1b2c3)"
    head, *rest = message.body.splitlines()
    assert head.startswith("Alarm since 2026-01-01 00:00 UTC: a window of 24 h is beyond its bounds, the last of 140 ")
    assert rest == [
        "- 140 rows, fewer than 1,000",
        "- \\u003cb\\u003e: missing: 4.3%, more than 1.0%",
        "Next:",
        "raymlops drift flights --since 2026-01-01T00:00Z",
        "if it is known: raymlops drift flights --acknowledge a1b2c3 --why TEXT",
        "else mend what sends it; raymlops deploy changes monitor.quality",
    ]
    known = incident(kind="quality", acknowledged_by="ann", acknowledged_why="a feed")
    said = message_about(known, found, "acknowledged").body
    assert said.startswith("Acknowledged by ann: a feed. It is an alarm since 2026-01-01 00:00 UTC.\n")
    assert message_about(replace(known, closed_at=FIRST), found, "closed").body.startswith("Over: since 2026-01-01")


def test_silence_is_told_by_when_the_last_row_came():
    """There is no window of it."""
    beyond = [{"bound": "max_silence_h", "column": None, "text": "no row for 7.0 h, more than 6"}]
    found = window(kind="silence", rows=0, p_one=None, p_two=None, details={"beyond": beyond})
    silent = incident(kind="silence", windows=1, columns=("max_silence_h",))
    message = message_about(silent, found, "opened")
    assert message.title == "flights: no inputs (incident a1b2c3)"
    assert message.body.startswith("Alarm: no row since 2026-01-01 00:00 UTC.\n- no row for 7.0 h, more than 6\n")
    over = message_about(replace(silent, closed_at=FIRST), found, "closed").body
    assert over.startswith("Over: there was no row since 2026-01-01 00:00 UTC.\n")


def test_answers_that_are_worse_by_their_labels_are_told_with_the_way_back():
    """The verdict in one sentence, and commands that look, go back and acknowledge."""
    worse = {"bound": "skill", "text": "0.112 of skill lost since window 3 of 5, more than 0.01"}
    of = {"kind": "skill", "side": "outputs", "version": 7, "columns": ("skill",)}
    message = message_about(incident(**of), window(kind="skill", details={"beyond": [worse]}), "opened")
    assert message.title == "flights: answers of version 7 are worse by their labels (incident a1b2c3)"
    head, *rest = message.body.splitlines()
    assert head.startswith(
        "Alarm since 2026-01-01 00:00 UTC: answers are worse than their labels allow, by windows of "
    )
    assert head.endswith("24 h, the last of 12,034 labelled rows until 2026-01-03 00:00 UTC.")
    assert rest == [
        "- 0.112 of skill lost since window 3 of 5, more than 0.01",
        "Next:",
        "raymlops quality flights --since 2026-01-01T00:00Z",
        "if the version before was better: raymlops rollback flights",
        "if it is known: raymlops drift flights --acknowledge a1b2c3 --why TEXT",
        "else train on newer data",
    ]
