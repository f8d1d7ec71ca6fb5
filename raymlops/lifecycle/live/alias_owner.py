"""Whose the aliases of a model in MLflow are, as the state knows it: told once, and shown until it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.state.audit import newest_of

if TYPE_CHECKING:
    from raymlops.state.store import State

LEFT, OWNED = "alias.left", "alias.own"


def left_to(state: State, name: str) -> str | None:
    """Return the other state that owned a model's aliases when MLflow was asked last; None where this one does."""
    newest = newest_of(state, name, (LEFT, OWNED))
    return newest.after if newest is not None and newest.action == LEFT else None


def note_owner(state: State, name: str, other: str | None, *, actor: str) -> None:
    """Record that another state owns a model's aliases, or with None that this one does, if that is news."""
    before = left_to(state, name)
    if other != before:
        action = OWNED if other is None else LEFT
        state.record(action=action, subject=name, before=before, after=other, why=words(name, other), actor=actor)


def words(name: str, other: str | None) -> str:
    """Return whose aliases they are, and what hands them over."""
    if other is None:
        return "MLflow named no other state any more"
    return f"champion and challenger in MLflow are of {other}, and left alone; raymlops models own {name} takes them"
