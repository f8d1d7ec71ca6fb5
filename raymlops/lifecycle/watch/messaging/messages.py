"""What a message about an incident says: what moved, by how much, since when, and which commands to run next. Pure.

Owns its length and that names of columns and categories, which are anybody's text, cannot be read as anything else by
whatever shows it. Messengers show text as text, HTML or Markdown, link addresses and ping who is named with an ``@``.
Knows nothing of who gets it (see ``outbox``).
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from raymlops.display import some_of
from raymlops.monitor import contrasts
from raymlops.monitor.effects import in_words
from raymlops.monitor.outcome import ALARM_LEVEL
from raymlops.state.watch.messages import Message
from raymlops.state.watch.windows import BOUNDED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from raymlops.state.watch.incidents import Incident
    from raymlops.state.watch.messages import Told
    from raymlops.state.watch.windows import JudgedWindow

MAX_BODY = 900
"""With the title less than PagerDuty's 1,024 characters, and Teams' 1,000; others take more."""
_COLUMNS, _NAMES = 4, 3
_MAX_NAME, _MAX_WHY = 40, 300
_PLAIN = frozenset(" _-.:,;%+='?!")
"""Beside letters, marks and digits of any alphabet: no messenger reads these as anything."""


def message_about(
    incident: Incident, window: JudgedWindow, what: Told, *, new: Collection[str] = (), why: str = ""
) -> Message:
    """Return the message that an incident opened, got worse, was acknowledged or closed with this window.

    It lists what is ``new`` first, and says ``why`` it is over where that is not that windows are as usual.

    All messages about one incident have one title, by which mail programs and PagerDuty (``?action=map``) join them.
    """
    moved = [one for one in window.details.get("columns", ()) if one.get("flagged")]
    moved = window.details.get("beyond", []) if incident.kind in BOUNDED else moved
    moved = sorted(moved, key=lambda one: _told_as(one) not in new)
    head, todo = _head(incident, window, what, moved, why), ["Next:", *_commands(incident, what)]
    number = max(len(incident.columns), len(moved))  # a window keeps the first ones alone
    if what in {"acknowledged", "closed"}:
        moved, number = [], 0
    lines = _bounds if incident.kind in BOUNDED else _columns
    bodies = ("\n".join([head, *lines(moved[:count], number), *todo]) for count in range(_COLUMNS, -1, -1))
    body = next(text for text in bodies if len(text) <= MAX_BODY)
    title = f"{incident.name}: {_subject(incident)} (incident {incident.id})"
    # It gets worse, and is acknowledged, once with each number of windows at most.
    return Message(f"{incident.id}-{incident.windows}-{what}", incident.id, what, title, body, window.judged_at)


def by_two(window: JudgedWindow) -> bool:
    """Return whether a window that is an alarm is one by the one before it as well: both moved, and the same way."""
    return window.kind not in BOUNDED and window.p_two is not None and window.p_two <= ALARM_LEVEL


def shown(text: Any, limit: int = _MAX_NAME) -> str:
    r"""Return anybody's text on one line of at most ``limit`` characters.

    Whatever may be markup is shown as ``\u0040``, so that another text cannot look the same.
    """
    found = "".join(map(_plain, str(text)[: limit + 1]))
    return found if len(found) <= limit else f"{found[: limit - 3]}..."


def _plain(character: str) -> str:
    if character in _PLAIN or unicodedata.category(character)[0] in "LMN":
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _subject(incident: Incident) -> str:
    if incident.kind == "skew":
        return f"{incident.side} of version {incident.version} differ from its training"
    if incident.kind == "skill":
        return f"answers of version {incident.version} are worse by their labels"
    if incident.kind in BOUNDED:
        return f"{incident.side} beyond a bound" if incident.kind == "quality" else f"no {incident.side}"
    return f"drift of {incident.side}" + (f" of version {incident.version}" if incident.version else "")


def _told_as(moved: Mapping[str, Any]) -> str:
    """Return what an incident has among its columns for it."""
    bound, column = moved.get("bound"), moved.get("column")
    return str(bound if column is None else column if bound is None else f"{column} ({bound})")


def _head(incident: Incident, window: JudgedWindow, what: Told, moved: Sequence[Mapping[str, Any]], why: str) -> str:
    since = f"since {_time(incident.opened_at)}"
    is_normal = what == "closed" and incident.kind not in BOUNDED and incident.acknowledged_by is not None
    if what == "acknowledged" or is_normal:
        who, said = incident.acknowledged_by, incident.acknowledged_why
        was = "It is" if what == "acknowledged" else "It was"
        return f"Acknowledged by {shown(who)}: {shown(said, _MAX_WHY)}. {was} an alarm {since}."
    over = f"Over: {shown(why, _MAX_WHY)}; " if why else "Over: "
    if incident.kind == "silence":
        return f"{over}there was no row {since}." if what == "closed" else f"Alarm: no row {since}."
    if what == "closed":
        return f"{over}{since} it was an alarm, last in the window of {_time(incident.last_at)}."
    hours = f"{(window.stop - window.start).total_seconds() / 3600:g} h"
    rows = "labelled rows" if incident.kind == "skill" else "rows"
    last = f"the last of {window.rows:,} {rows} until {_time(window.stop)}."
    if what == "escalated":
        worse = "beyond further bounds" if incident.kind in BOUNDED else "further columns moved"
        return f"Worse: {worse}; {incident.windows} windows of {hours} are an alarm {since}, {last}"
    if incident.kind == "skill":
        return f"Alarm {since}: answers are worse than their labels allow, by windows of {hours}, {last}"
    if incident.kind == "quality":
        return f"Alarm {since}: a window of {hours} is beyond its bounds, {last}"
    running = by_two(window)
    # One window is an alarm by Student's t of a column, not by its rank.
    p = window.p_two if running else min((one["p"] for one in moved if one.get("p") is not None), default=window.p_one)
    how = f"two windows of {hours} running are unlike" if running else f"a window of {hours} is far from"
    return f"Alarm {since}: {how} {window.against or 'what is normal'}{'' if p is None else f' (p {p:.2g})'}, {last}"


def _columns(moved: Sequence[Mapping[str, Any]], number: int) -> list[str]:
    """Return a line for each of these columns that led to the verdict, and one for the others of that number."""
    lines = [_column(one) for one in moved]
    if lines and all(one.get("influence") is None for one in moved):
        lines.append("How much the output depends on them is not known.")
    if number > len(moved):
        more, s = "more " if moved else "", "s" if number - len(moved) > 1 else ""
        lines.append(f"- {number - len(moved)} {more}column{s}")
    return lines


def _bounds(beyond: Sequence[Mapping[str, Any]], number: int) -> list[str]:
    """Return a line for each of these that are beyond a bound, and one for the others of that number."""
    lines = [_beyond(one) for one in beyond]
    return (
        lines
        if number <= len(beyond)
        else [*lines, f"- {number - len(beyond)} {'more' if beyond else 'beyond a bound'}"]
    )


def _column(column: Mapping[str, Any]) -> str:
    distance = column.get("distance")
    parts = [
        f"{shown(contrasts.in_words(column.get('moved', '')))} "
        + ("far off" if distance is None else f"{distance:+.1f} sd")
    ]
    outside = column.get("outside") or ((), ())
    sides = zip(column.get("quantiles") or (), outside, strict=False)
    medians = [in_words(side, column.get("span") or (), beyond)[2] for side, beyond in sides]
    if medians and "none" not in medians:  # nothing is left of a column that is null
        parts.append("median {} to {}".format(*medians))
    before, after = column.get("nulls") or (0, 0)
    if f"{before:.1%}" != f"{after:.1%}":
        parts.append(f"missing {before:.1%} to {after:.1%}")
    changed = [(word, [*map(shown, column.get(word) or ())]) for word in ("new", "vanished")]
    parts += [f"{word} {some_of(names, _NAMES)}" for word, names in changed if names]
    if column.get("influence") is not None:
        parts.append(f"the output depends on it by {column['influence']:.2f} of 1")
    return f"- {_name(column['column'])}: {', '.join(parts)}"


def _name(name: str) -> str:
    """Return the name of a column, or of one in a slice, ``COLUMN[SLICE]``: brackets behind a name are no link."""
    column, _, of = name.removesuffix("]").partition("[")
    return f"{shown(column)}[{shown(of)}]" if column and "=" in of and name.endswith("]") else shown(name)


def _beyond(found: Mapping[str, Any]) -> str:
    """Return the line of a bound, whose text is ours, and of a column, whose name is anybody's."""
    column = f"{shown(found['column'])}: " if found.get("column") else ""
    return f"- {column}{found['text']}"


def _commands(incident: Incident, what: Told) -> list[str]:
    name = incident.name
    look = f"raymlops {'quality' if incident.kind == 'skill' else 'drift'} {name}"
    look += f" --since {incident.opened_at:%Y-%m-%dT%H:%MZ}"
    if what in {"acknowledged", "closed"}:
        return [look]
    known = f"if it is known: raymlops drift {name} --acknowledge {incident.id} --why TEXT"
    if incident.kind == "skill":
        return [look, f"if the version before was better: raymlops rollback {name}", known, "else train on newer data"]
    if incident.kind in BOUNDED:
        return [look, known, "else mend what sends it; raymlops deploy changes monitor.quality"]
    lines = [look, f"if it is normal from now on: raymlops drift {name} --acknowledge {incident.id} --why TEXT"]
    if incident.side == "inputs":
        lines.append("else mend what sends it, or train on newer data")
    else:
        lines.append(f"if the version before was better: raymlops rollback {name}")
    return lines


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
