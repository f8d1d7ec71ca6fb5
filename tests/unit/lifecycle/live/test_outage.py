"""When a model or a version was away, by the audit record. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from raymlops.lifecycle.live.outage import absences, few, shares
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


def test_a_version_gets_the_share_that_its_canaries_leave():
    """A canary of half, none, half again, then the route: half is what the champion has beside it."""
    found = changes([(3, 1)], [(3, 0), (4, 1)], [(4, 1)], [(3, 0.5), (4, 1)], [(3, 1)])
    end = datetime.max.replace(tzinfo=UTC)
    assert shares(found, 3) == [(at(3), end, 1.0), (at(2), at(3), 0.5), (at(1), at(2), 0.0), (at(0), at(1), 0.0)]
    assert shares(found, 4) == [(at(3), end, 0.0), (at(2), at(3), 0.5), (at(1), at(2), 1.0), (at(0), at(1), 1.0)]
    assert shares(found) == absences(found) == []
    assert shares(changes([], [(3, 1)], [], [(3, 1)])) == [(at(1), at(2), 0.0)]


def test_a_share_that_changed_without_a_record_of_it_is_not_known():
    """Of a day before which another share was left than it begins with nothing is said."""
    found = [*changes([(3, 1)], [(3, 0.5)])]
    later = [replace(event, ts=at(4)) for event in changes([(3, 1)], [(3, 0.25)])]
    assert shares([*later, *found], 3) == [(at(4), datetime.max.replace(tzinfo=UTC), 0.25)]


def test_the_shares_are_told_of_what_is_kept_of_a_change():
    """Its settings are not: a list of whole changes of a long history fills a gigabyte."""
    item = {"version": 3, "role": "champion", "serve": {"log": {}}, "weight": 0.0, "shadow": 0.0}
    whole = AuditEvent(0, at(0), "me", "deploy", "m", [], [item, {**item, "version": 4, "role": "warm"}], "")
    kept = few(whole)
    assert all("serve" not in one for one in kept.after)
    for version in (3, 4, None):
        assert shares([kept], version, shadows=True) == shares([whole], version, shadows=True)


def test_what_a_shadow_is_sent_is_a_share_of_answers_alone():
    """Its answers are counted as those of any request, and no caller asks for them."""
    shadow = [{"version": 3, "role": "warm", "shadow": 0.2}]
    event = AuditEvent(0, at(0), "me", "deploy", "m", [], shadow, "")
    assert [share for *_, share in shares([event], 3)] == [0.0]
    assert [share for *_, share in shares([event], 3, shadows=True)] == [0.2]
