"""When a model or a version was away, by the audit record. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from raymlops.lifecycle.live.outage import absences
from raymlops.state.audit import AuditEvent

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def changes(*sides):
    """Return the events of a model whose versions are these after each day, newest first; a share makes a canary."""
    found = []
    for day, (before, after) in enumerate(pairwise(sides)):
        lists = [
            [{"version": one, "role": "champion" if share == 1 else "warm", "weight": share % 1} for one, share in side]
            for side in (before, after)
        ]
        found.append(AuditEvent(day, at(day), "me", "deploy", "m", *lists, ""))
    return found[::-1]


def at(day):
    return FIRST + timedelta(days=day)


def test_a_model_is_away_from_when_it_is_taken_down_until_a_version_is_champion_again():
    """What was before the first deployment is none; nor is that one version replaces another."""
    found = changes([], [(3, 1)], [], [(3, 0)], [(3, 1)], [(3, 0), (4, 1)], [], [(5, 1)])
    assert absences(found) == [(at(5), at(6)), (at(1), at(3))]
    assert absences(changes([], [(3, 1)])) == absences([]) == absences(changes([(3, 1)], [])) == []


def test_a_version_is_away_while_it_gets_no_requests():
    """A canary gets some; what is warm gets none."""
    found = changes([(3, 1)], [(3, 0), (4, 1)], [(4, 1)], [(3, 0.5), (4, 1)], [(3, 1)])
    assert absences(found, 3) == [(at(0), at(2))]
    assert absences(found, 4) == []
    assert absences(found) == []


def test_what_came_back_without_a_record_of_it_is_no_absence():
    """Of another action, such as a canary that was rolled out."""
    assert absences([*changes([(3, 0)], [(3, 1)]), *changes([(3, 1)], [(3, 0.5)])], 3) == []
