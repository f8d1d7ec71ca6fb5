"""What a message about an incident says, and what no column can make of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from raymlops.lifecycle.watch.messaging.messages import MAX_BODY, due_messages, shown
from raymlops.state.watch.incidents import Incident
from raymlops.state.watch.windows import JudgedWindow

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NOW = FIRST + 3 * DAY
COLUMN: dict[str, Any] = {
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
    found = Incident("a1b2c3", "flights", "inputs", "drift", 0, FIRST, FIRST + DAY, 2, "dep_delay")
    return replace(found, **fields)


def window(*columns, **fields):
    made = JudgedWindow(
        *("flights", "inputs", "drift", 0, FIRST + DAY, FIRST + 2 * DAY, 7, "alarm", "why", 12_034, NOW),
        against="training",
        details={"columns": list(columns)},
    )
    return replace(made, **fields)


def due(incidents, window=None, notify_of=lambda _name: None):
    """Return the messages that are due, each with the incidents as they are from then on."""
    return list(due_messages(incidents, lambda _incident: window, notify_of=notify_of, now=NOW))


def told(*args, **kwargs):
    """Return the one message about an incident and its last window."""
    ((message, _),) = due([args[0]], *args[1:], **kwargs)
    return message


def later(found, **fields):
    """Return an incident that was told, and what became of it since."""
    return replace(found, thread=found.id, told="opened", **fields)


def test_a_message_says_what_moved_since_when_how_much_it_matters_and_what_to_do():
    """In the units of the column: half of its values lay between 1 and 4, so that 38 are 38 * 1.349 / 3 of its sd."""
    message = told(incident(), window(COLUMN))
    assert (message.incident, message.what, message.created_at) == ("a1b2c3", "opened", NOW)
    assert message.title == "flights: drift of dep_delay (incident a1b2c3)"
    head, line, *rest = message.body.splitlines()
    for part in ("since 2026-01-01 00:00 UTC", "windows of 24 h", "training", "12,034 rows until 2026-01-03 00:00 UTC"):
        assert part in head
    for part in ("dep_delay: ", "up", "median 3 to 41", "+17 standard", "missing 1.2% to 4.0%", "0.62 of 1"):
        assert part in line
    assert rest == [
        "Next:",
        "raymlops drift flights --since 2026-01-01T00:00Z --report drift.html",
        "if somebody mends it: raymlops drift flights --known a1b2c3 --why TEXT",
        "if it is normal from now on: raymlops drift flights --acknowledge a1b2c3 --why TEXT",
        "else train on newer data",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distance": -6.0, "quantiles": [[0, 1, 3, 4, 5], [0, 1, 2, 4, 5]]}, "down, median 3 to 2"),
        ({"moved": "scale"}, "spread more, half of them in 1 to 4, now in 1 to 50"),
        ({"moved": "nulls", "nulls": [0, 0.5], "quantiles": []}, "missing 0.0% to 50.0%"),
        (
            {
                "moved": "share of AA",
                "quantiles": [],
                "histogram": {"edges": [], "labels": ["UA", "AA"], "before": [0.7, 0.3], "after": [0.9, 0.1]},
            },
            "share of AA 30.0% to 10.0%",
        ),
        (
            {"moved": "share of rare", "quantiles": [], "vanished": ["pro"]},
            "share of rare, missing 1.2% to 4.0%, vanished",
        ),
        ({"quantiles": [[0, 1, 3, 4, 5], [None] * 5], "span": [0, 9], "outside": [[0, 0], [0, 1.0]]}, "3 to above 9"),
        ({"quantiles": [[0, 1, 3, 4, 5], [None] * 5], "span": [0, 9], "outside": [[0, 0], [1.0, 0]]}, "3 to below 0"),
        (
            {"moved": "nulls", "distance": None, "nulls": [0, 1], "quantiles": [[1, 2, 3, 4, 5], [None] * 5]},
            "missing 0.0% to 100.0%",
        ),
    ],
)
def test_what_moved_is_told_in_units_of_its_values(changes, said):
    """Medians, quartiles, shares: no distance in deviations of windows."""
    line = told(incident(), window({**COLUMN, **changes})).body.splitlines()[1]
    assert said in line
    assert " sd" not in line


def test_columns_that_began_at_one_time_are_one_message_what_matters_most_first():
    """With the id of each; one that began a day later is another message."""
    ours = [incident(id=name, column=name) for name in "ab"]
    late = incident(id="c", column="c", opened_at=FIRST + DAY)
    columns = [{**COLUMN, "column": name, "influence": influence} for name, influence in (("a", 0.1), ("b", 0.6))]
    (message, after), (other, _) = due([*ours, late], window(*columns))
    lines = [line for line in message.body.splitlines() if line.startswith("- ")]
    assert [(line[2], line[-12:]) for line in lines] == [("b", "(incident b)"), ("a", "(incident a)")]
    assert [(one.thread, one.told) for one in after] == [("a", "opened")] * 2
    assert "drift flights --acknowledge ID" in message.body
    assert other.title == "flights: drift of c (incident c)"


def test_models_in_which_the_same_began_at_one_time_share_a_message():
    """If they notify the same: of four models two do, one notifies others, and in one another column moved."""
    models = [incident(id=name, name=name) for name in ("a", "b", "c")]
    other = incident(id="d", name="d", column="hour")
    found = due([*models, other], window(COLUMN), notify_of={"a": 1, "b": 1, "c": 2, "d": 1}.get)
    assert [[one.name for one in about] for _, about in found] == [["a", "b"], ["d"], ["c"]]
    (shared, _), *_ = found
    assert shared.title == "2 models: drift of dep_delay (incident a)"
    assert "2 models: a, b" in shared.body
    assert (shared.incident, {one.thread for one in found[0][1]}) == ("a", {"a"})


def test_a_thread_is_told_to_be_over_once_all_of_it_is():
    """One title for all of its messages, by which mail programs and PagerDuty join them."""
    ours = [replace(incident(id=name, column=name), thread="a", told="opened") for name in "ab"]
    assert due(ours) == []
    ours[0] = replace(ours[0], closed_at=NOW, closed_why="as usual for 48 h")
    assert due(ours) == []
    known = replace(ours[1], acknowledged_at=NOW, acknowledged_by="ann", acknowledged_why="a feed")
    ((message, after),) = due([ours[0], known])
    assert (message.what, message.title) == ("acknowledged", "flights: drift of a and 1 more (incident a)")
    assert message.body.startswith("Acknowledged by ann: a feed")
    assert due(after) == []
    ((over, after),) = due([after[0], replace(after[1], closed_at=NOW + DAY, closed_why="as usual")])
    assert (over.what, over.title) == ("closed", message.title)
    assert [one.told for one in after] == ["closed", "closed"]


def test_what_nobody_was_told_of_is_told_unless_a_person_knows_of_it():
    """An incident that opened and closed while the controller was away, and not one that was acknowledged before."""
    over = incident(closed_at=NOW, closed_why="as usual for 48 h")
    assert told(over).what == "closed"
    said = {"acknowledged_at": NOW, "acknowledged_by": "ann"}
    assert due([incident(**said)]) == []
    ((message, after),) = due([incident(closed_at=NOW, **said)])
    assert (message, [one.told for one in after]) == (None, ["closed"])


@pytest.mark.parametrize(("influence", "what"), [(0.0, "minor"), (0.3, "opened"), (None, "opened")])
def test_columns_that_hardly_matter_are_told_as_such(influence, what):
    """What nobody knows may matter; nor is a message minor that has one column that matters."""
    small = {**COLUMN, "influence": influence}
    assert told(incident(), window(small)).what == what
    both = [incident(), incident(id="x", column="x")]
    ((message, _),) = due(both, window(small, {**COLUMN, "column": "x", "influence": 0.5}))
    assert message.what == "opened"


def test_the_commands_that_it_names_are_there():
    """The options are those of the verb, and the time is one that it takes."""
    from raymlops.lifecycle.prediction_log import parse_moment

    line = told(incident(), window(COLUMN)).body.splitlines()[3]
    assert parse_moment(line.split()[4], now=FIRST + 9 * DAY) == FIRST


def test_who_acknowledged_it_and_why_is_said():
    """To all who got the alarm."""
    by = {"acknowledged_at": NOW, "acknowledged_by": "ann@here", "acknowledged_why": "a new\nairport " + "x" * 999}
    body = told(later(incident(), closed_at=NOW, **by), window(COLUMN)).body
    assert body.startswith("Acknowledged by ann\\u0040here: a new\\u000aairport xxx")
    assert "--acknowledge" not in body
    assert len(body) <= MAX_BODY


def test_outputs_name_the_way_back():
    """They are a version's, so that another version may be better."""
    message = told(incident(side="outputs", version=7), window(COLUMN))
    assert "raymlops rollback flights" in message.body
    skew = told(incident(kind="skew", version=7), window(COLUMN))
    assert skew.title == "flights: dep_delay unlike training (incident a1b2c3)"


def test_2000_columns_of_long_names_fit():
    """Title and body stay below what PagerDuty takes, with how many there are, and with the commands."""
    names = [f"{at:04}{'c' * 500}" for at in range(2000)]
    long = {**COLUMN, "new": ["@" * 300] * 50, "moved": f"share of {'*' * 99}"}
    ours = [incident(id=name[:4], name="m" * 63, column=name) for name in names]
    ((message, after),) = due(ours, window(*({**long, "column": name} for name in names[:20])))
    assert len(message.body) <= MAX_BODY
    lines = sum("ccc" in line for line in message.body.splitlines())
    assert f"- {2000 - lines} " in message.body
    assert message.body.endswith("train on newer data")
    assert len(message.title) + 2 + MAX_BODY <= 1024
    assert len(after) == 2000


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
    body = told(incident(column=text), window(column)).body
    assert len(body.splitlines()) == 7
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
        body = told(incident(column=name), window({**COLUMN, "column": name})).body
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
    found = window(kind="quality", rows=140, details={"beyond": beyond})
    first, second = (
        incident(kind="quality", column="min_rows"),
        incident(id="b", kind="quality", column="<b> (max_nulls)"),
    )
    ((message, _),) = due([first, second], found)
    assert message.title == "flights: window beyond min_rows and 1 more (incident a1b2c3)"
    _, *rest = message.body.splitlines()
    assert rest == [
        "- 140 rows, fewer than 1,000 (incident a1b2c3)",
        "- \\u003cb\\u003e: missing: 4.3%, more than 1.0% (incident b)",
        "Next:",
        "raymlops drift flights --since 2026-01-01T00:00Z --report drift.html",
        "if somebody mends it: raymlops drift flights --known ID --why TEXT",
        "raymlops deploy changes monitor.quality",
    ]
    assert told(second, found).title == "flights: \\u003cb\\u003e beyond max_nulls (incident b)"


def test_silence_is_told_by_when_the_last_row_came():
    """There is no window of it."""
    beyond = [{"bound": "max_silence_h", "column": None, "text": "no row for 7.0 h, more than 6"}]
    found = window(kind="silence", rows=0, details={"beyond": beyond})
    silent = incident(kind="silence", windows=1, column="max_silence_h")
    message = told(silent, found)
    assert message.title == "flights: no inputs (incident a1b2c3)"
    assert message.body.startswith("Alarm: no row since 2026-01-01 00:00 UTC.\n- no row for 7.0 h, more than 6\n")
    over = told(later(silent, closed_at=FIRST, closed_why="rows came"), found).body
    assert over.startswith("Over: rows came; there was no row since 2026-01-01 00:00 UTC.\n")


def test_answers_that_are_worse_by_their_labels_are_told_with_the_way_back():
    """The verdict in one sentence, and commands that look, go back and mute."""
    worse = {"bound": "skill", "text": "0.112 of skill lost since window 3 of 5, more than 0.01"}
    of = {"kind": "skill", "side": "outputs", "version": 7, "column": "skill"}
    message = told(incident(**of), window(kind="skill", details={"beyond": [worse]}))
    assert message.title == "flights: answers of version 7 are worse by their labels (incident a1b2c3)"
    head, *rest = message.body.splitlines()
    assert "12,034 labelled rows until 2026-01-03 00:00 UTC" in head
    assert rest == [
        "- 0.112 of skill lost since window 3 of 5, more than 0.01",
        "Next:",
        "raymlops quality flights --since 2026-01-01T00:00Z --report quality.html",
        "if the version before was better: raymlops rollback flights",
        "if somebody mends it: raymlops drift flights --known a1b2c3 --why TEXT",
        "else train on newer data",
    ]
