"""Which messages about incidents are due, and what they say: what moved, by how much, since when, what to run. Pure.

Owns which incidents are told together, a message's length, and that names of columns and categories, which are
anybody's text, cannot be read as anything else by whatever shows it. Messengers show text as text, HTML or Markdown,
link addresses and ping who is named with an ``@``. Knows nothing of who gets it (see ``outbox``).
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from raymlops.display import some_of
from raymlops.monitor import contrasts
from raymlops.monitor.effects import in_words
from raymlops.state.watch.messages import Message
from raymlops.state.watch.windows import BOUNDED

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
    from datetime import datetime

    from raymlops.state.watch.incidents import Incident
    from raymlops.state.watch.messages import Told
    from raymlops.state.watch.windows import JudgedWindow

MAX_BODY = 880
"""With the title less than PagerDuty's 1,024 characters; others take more."""
MINOR = 0.01
"""Influence below which an input hardly matters to the output."""
_COLUMNS, _NAMES = 4, 3
_MAX_NAME, _MAX_TITLE, _MAX_WHY = 40, 24, 300
_QUARTILES_SD = 1.349
"""How far apart the quartiles of a normal distribution are, in its standard deviations."""
_PLAIN = frozenset(" _-.:,;%+='?!")
"""Beside letters, marks and digits of any alphabet: no messenger reads these as anything."""


def due_messages(
    incidents: Sequence[Incident],
    last_window: Callable[[Incident], JudgedWindow | None],
    *,
    notify_of: Callable[[str], Hashable],
    now: datetime,
) -> Iterator[tuple[Message | None, Sequence[Incident]]]:
    """Yield the messages that are due, each with the incidents that it tells of as they are from now on.

    Columns that began to move at one time are one message, for all models of which the same ones did that notify the
    same messengers. It is told to be over, or acknowledged, once that is so of all of its incidents. What a person
    acknowledged before it was told is told no more.

    Args:
        incidents: All that were not told to be closed.
        last_window: Returns the last window of an incident that was an alarm.
        notify_of: Returns what a model notifies.
        now: When they are written.
    """
    threads: dict[str, list[Incident]] = {}
    found: dict[Hashable, dict[str, list[Incident]]] = {}
    for one in incidents:
        if one.thread is not None:
            threads.setdefault(one.thread, []).append(one)
        elif one.acknowledged_at is None:
            cause = (one.side, one.kind, one.opened_at, one.closed_at is None)
            found.setdefault((notify_of(one.name), *cause), {}).setdefault(one.name, []).append(one)
        elif one.closed_at is not None:
            yield None, [replace(one, told="closed")]
    for by_model in found.values():
        alike: dict[frozenset[str], list[Incident]] = {}
        for ours in by_model.values():
            alike.setdefault(frozenset(one.column for one in ours), []).extend(ours)
        threads |= {ours[0].id: ours for ours in alike.values()}
    for thread, ours in threads.items():
        states = {_state(one) for one in ours}
        state = next(each for each in ("opened", "acknowledged", "closed") if each in states)
        if (state == "opened" and any(one.told == "" for one in ours)) or state not in {"opened", ours[0].told}:
            windows = {one.id: last_window(one) for one in ours}
            told = [replace(one, thread=thread, told=state) for one in ours]
            yield message_about(told, windows, now=now), told


def _state(incident: Incident) -> Literal["opened", "acknowledged", "closed"]:
    if incident.closed_at is not None:
        return "closed"
    return "opened" if incident.acknowledged_at is None else "acknowledged"


def message_about(
    incidents: Sequence[Incident], windows: Mapping[str, JudgedWindow | None], *, now: datetime
) -> Message:
    """Return the message that incidents of one thread opened, are all acknowledged, or are all over.

    All messages of a thread have one title, by which mail programs and PagerDuty (``?action=map``) join them.
    """
    first = incidents[0]
    window, thread = windows[first.id], str(first.thread)
    what: Told = first.told or "opened"
    by_column = {one["column"]: one for one in (window.details.get("columns", ()) if window else ())}
    by_column |= {_bound(one): one for one in (window.details.get("beyond", ()) if window else ())}
    ours = [one for one in incidents if one.name == first.name]
    ours.sort(key=lambda one: -(by_column.get(one.column, {}).get("influence") or 0.0))
    moved = [] if what != "opened" else [(one, by_column.get(one.column)) for one in ours]
    head = _head(next((one for one in ours if _state(one) == what), ours[0]), window, what)
    if len(names := list(dict.fromkeys(one.name for one in incidents))) > 1:
        head += f"\nSo it is of {len(names)} models: {some_of(names, _NAMES)}."
    todo = ["Next:", *_commands(ours, what)]
    bodies = ("\n".join([head, *_columns(moved, count), *todo]) for count in range(_COLUMNS, -1, -1))
    body = next(text for text in bodies if len(text) <= MAX_BODY)
    title = f"{_subject(first, names, [one.column for one in ours])} (incident {thread})"
    influences = [column.get("influence") for _, column in moved if column is not None]
    minor = first.side == "inputs" and len(influences) == len(moved) > 0
    if minor and all(each is not None and each < MINOR for each in influences):
        what = "minor"
    return Message(f"{thread}-{what}-{now.timestamp():.6f}", first.id, what, title, body, now)


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


def _subject(incident: Incident, names: Sequence[str], columns: Sequence[str]) -> str:
    model = names[0] if len(names) == 1 else f"{len(names)} models"
    if incident.kind == "silence":
        return f"{model}: no {incident.side}"
    if incident.kind == "skill":
        return f"{model}: answers of version {incident.version} are worse by their labels"
    more = f" and {len(columns) - 1} more" if len(columns) > 1 else ""
    if incident.kind == "quality":
        column, _, bound = columns[0].removesuffix(")").rpartition(" (")
        return f"{model}: {shown(column, _MAX_TITLE) or 'window'} beyond {bound}{more}"
    name = _name(columns[0], _MAX_TITLE)
    return f"{model}: {name}{more} unlike training" if incident.kind == "skew" else f"{model}: drift of {name}{more}"


def _bound(beyond: Mapping[str, Any]) -> str:
    """Return what an incident has for its column where it is of a bound."""
    bound, column = str(beyond["bound"]), beyond.get("column")
    return bound if column is None else f"{column} ({bound})"


def _head(incident: Incident, window: JudgedWindow | None, what: str) -> str:
    since = f"since {_time(incident.opened_at)}"
    if what == "acknowledged" or incident.is_normal:
        who, said = incident.acknowledged_by, incident.acknowledged_why
        is_so = "It is normal from now on" if incident.is_normal else "It is muted"
        return f"Acknowledged by {shown(who)}: {shown(said, _MAX_WHY)}. {is_so}; it was an alarm {since}."
    if what == "closed":
        over = f"Over: {shown(incident.closed_why, _MAX_WHY)}; "
        if incident.kind == "silence":
            return f"{over}there was no row {since}."
        return f"{over}{since} it was an alarm, last in the window of {_time(incident.last_at)}."
    if window is None or incident.kind == "silence":
        return f"Alarm: no row {since}." if incident.kind == "silence" else f"Alarm {since}."
    hours = f"{(window.stop - window.start).total_seconds() / 3600:g} h"
    rows = "labelled rows" if incident.kind == "skill" else "rows"
    last = f"the last of {window.rows:,} {rows} until {_time(window.stop)}."
    if incident.kind == "skill":
        return f"Alarm {since}: answers lose more than their labels explain by chance, by windows of {hours}, {last}"
    if incident.kind == "quality":
        return f"Alarm {since}: a window of {hours} is beyond its bounds, {last}"
    two = incident.opened_at < incident.last_at
    how = f"windows of {hours} are unlike" if two else f"a window of {hours} is far from"
    return f"Alarm {since}: {how} {window.against or 'what is normal'}, {last}"


def _columns(moved: Sequence[tuple[Incident, Mapping[str, Any] | None]], count: int) -> list[str]:
    """Return a line for each of the first columns, and one for the others."""
    several = len(moved) > 1
    lines = []
    for incident, found in moved[:count]:
        line = _beyond(found) if found and "bound" in found else _column(incident.column, found or {})
        lines.append(f"{line} (incident {incident.id})" if several else line)
    if left := len(moved) - len(lines):
        lines.append(f"- {left} {'more ' if lines else ''}column{'s' if left > 1 else ''}")
    return lines


def _column(name: str, column: Mapping[str, Any]) -> str:
    """Return what moved of a column, in the units of its values."""
    parts = [text for text in (_size(column), _missing(column)) if text] or ["far off"]
    changed = [(word, [*map(shown, column.get(word) or ())]) for word in ("new", "vanished")]
    parts += [f"{word} {some_of(names, _NAMES)}" for word, names in changed if names]
    if column.get("influence") is not None:
        parts.append(f"the output depends on it by {column['influence']:.2f} of 1")
    elif column:
        parts.append("how much the output depends on it is not known")
    if column.get("onset") is not None:
        parts.append(f"first seen in the hour of {column['onset']} UTC")
    return f"- {_name(name)}: {', '.join(parts)}"


def _size(column: Mapping[str, Any]) -> str:
    moved, up = str(column.get("moved", "")), (column.get("distance") or 0.0) > 0
    before, after = [*(column.get("quantiles") or ()), (), ()][:2]
    outside, span = column.get("outside") or ((), ()), column.get("span") or ()
    words = [in_words(side, span, beyond) for side, beyond in zip((before, after), outside, strict=False) if side]
    if len(words) == 2 and words[1][2] != "none":
        if moved == "scale":
            spread = "values spread more" if up else "values spread less"
            return f"{spread}, half of them in {words[0][1]} to {words[0][3]}, now in {words[1][1]} to {words[1][3]}"
        medians = f"median {words[0][2]} to {words[1][2]}"
        if moved != contrasts.LOCATION:
            return "" if moved == contrasts.NULLS else f"{shown(contrasts.in_words(moved))}, {medians}"
        known = None not in (*before[1:4], after[2]) and before[3] > before[1]
        by = _QUARTILES_SD * (after[2] - before[2]) / (before[3] - before[1]) if known else None
        by = "" if by is None else f" ({by:+.2g} standard deviations of its values)"
        return f"values went {'up' if up else 'down'}, {medians}{by}"
    labels, sides = (column.get("histogram") or {}).get("labels") or (), column.get("histogram") or {}
    label = moved.removeprefix("share of ")
    if label in labels:
        shares = [sides[side][list(labels).index(label)] for side in ("before", "after")]
        return f"share of {shown(label)} {shares[0]:.1%} to {shares[1]:.1%}"
    return "" if moved in {contrasts.NULLS, ""} else shown(contrasts.in_words(moved))


def _missing(column: Mapping[str, Any]) -> str:
    before, after = column.get("nulls") or (0, 0)
    return f"missing {before:.1%} to {after:.1%}" if f"{before:.1%}" != f"{after:.1%}" else ""


def _name(name: str, most: int = _MAX_NAME) -> str:
    """Return the name of a column, or of one in a slice, ``COLUMN[SLICE]``: brackets behind a name are no link."""
    column, _, of = name.removesuffix("]").partition("[")
    sliced = column and "=" in of and name.endswith("]")
    return f"{shown(column, most)}[{shown(of, most)}]" if sliced else shown(name, most)


def _beyond(found: Mapping[str, Any]) -> str:
    """Return the line of a bound, whose text is ours, and of a column, whose name is anybody's."""
    column = f"{shown(found['column'])}: " if found.get("column") else ""
    return f"- {column}{found['text']}"


def _commands(incidents: Sequence[Incident], what: str) -> list[str]:
    first = incidents[0]
    one_id = first.id if len(incidents) == 1 else "ID"
    verb = "quality" if first.kind == "skill" else "drift"
    look = f"raymlops {verb} {first.name} --since {first.opened_at:%Y-%m-%dT%H:%MZ} --report {verb}.html"
    if what in {"acknowledged", "closed"}:
        return [look]
    known = f"if somebody mends it: raymlops drift {first.name} --known {one_id} --why TEXT"
    back = f"if the version before was better: raymlops rollback {first.name}"
    if first.kind == "skill":
        return [look, back, known, "else train on newer data"]
    if first.kind in BOUNDED:
        return [look, known, "raymlops deploy changes monitor.quality"]
    normal = f"if it is normal from now on: raymlops drift {first.name} --acknowledge {one_id} --why TEXT"
    return [look, known, normal, "else train on newer data" if first.side == "inputs" else back]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
