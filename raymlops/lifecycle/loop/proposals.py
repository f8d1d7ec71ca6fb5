"""Proposals: retrainings that wait for a person, with all that is known of them.

Owns accepting and rejecting one, each a transaction with its audit event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.display import utc_time
from raymlops.errors import RefusedError
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.live.withdrawals import in_question
from raymlops.lifecycle.loop.messages import message_about
from raymlops.lifecycle.named_model import chosen_state
from raymlops.records import Record, aligned
from raymlops.state.audit import require_why
from raymlops.state.engine import this_user
from raymlops.state.freezes import freeze_of
from raymlops.state.loop import advance, retraining_of, retrainings_of
from raymlops.state.store import model_in

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from raymlops.lifecycle.sources import Source
    from raymlops.state.database import Given
    from raymlops.state.loop import Retraining, Stage


@dataclass(frozen=True)
class ProposalsRecord(Record):
    """The retrainings that wait for a person, newest first."""

    proposals: tuple[Retraining, ...]

    def text(self) -> str:
        """Return each with its evidence."""
        return "\n\n".join(map(proposal_text, self.proposals)) or "no proposal waits for a person"


def proposal_text(one: Retraining) -> str:
    """Return a retraining with its reason, its numbers, what it trains on and what comes after it."""
    section, window = one.settings, one.settings.get("window", {})
    since = f"from {window['since'][:10]} on" if window.get("since") else "all there is"
    rows = f"the last {window.get('days'):g} days" if window.get("kind") == "trailing" else since
    source = "the prediction log" if section.get("data") == "log" else "the recipe's datasets(window)"
    numbers = {key: value for key, value in one.reasons.items() if value is not None}
    head = f"{one.id} of {one.name}: {one.stage}"
    return "\n  ".join(
        [
            head,
            *aligned(
                {
                    "for": f"version {one.champion} (run {one.champion_run_id})",
                    "trigger": f"{one.trigger}, {one.evidence}",
                    "why": one.why,
                    "numbers": ", ".join(f"{key} {_number(value)}" for key, value in numbers.items()),
                    "trains on": f"{rows} of {source}, from {section.get('start', 'scratch')}"
                    + (", with a sweep" if section.get("sweep") else ""),
                    "proposed": f"{utc_time(one.made_at.isoformat())} by {one.actor}",
                    "next": f"raymlops proposals accept {one.id} --why TEXT, or reject",
                },
                width=10,
            ).splitlines(),
        ]
    )


def proposals(name: str | None = None, *, config: Source | None = None) -> ProposalsRecord:
    """Return the proposals of a model, or of all, newest first.

    Raises:
        StorageError, UnreachableError: the state cannot be read.
    """
    with chosen_state(name, config) as state:
        found = retrainings_of(state, name, open_only=True)
    return ProposalsRecord(tuple(one for one in found if one.stage == "proposed"))


def accept(proposal_id: str, *, why: str, config: Source | None = None) -> Retraining:
    """Accept a proposal: the controller retrains the model, and promotes the new version if it passes.

    Raises:
        NotFoundError: there is none with this id.
        RefusedError: it is no proposal any more, or the model is frozen.
        UsageError: ``why`` is empty.
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    return _answered(proposal_id, "checking", why=why, config=config)


def reject(proposal_id: str, *, why: str, config: Source | None = None) -> Retraining:
    """Reject a proposal, or end a retraining before its version comes up; its evidence triggers no other.

    A job of it that runs ends by itself, and is not followed by another one.

    Raises: as ``accept``, but a freeze does not keep anybody from it.
    """
    return _answered(proposal_id, "rejected", why=why, config=config)


def _answered(proposal_id: str, stage: Stage, *, why: str, config: Source | None) -> Retraining:
    require_why(why, "a proposal was accepted or rejected")
    with chosen_state(None, config) as state:
        before, now = retraining_of(state, proposal_id), state.now()
        if not before.is_open or (stage != "rejected" and before.stage != "proposed"):
            raise RefusedError(f"it is no proposal: {before.text()}", hint="raymlops proposals list shows those.")
        frozen = freeze_of(state, before.name, now=now)
        if stage != "rejected" and frozen is not None:
            raise RefusedError(frozen.text(), hint=f"To end that: raymlops freeze {before.name} --thaw --why TEXT.")
        after, who = before.at(stage, now=now, note=why), this_user()
        message = message_about(after, now=now)
        done = advance(state, before, after, why=why, message=message, actor=who, given=_without_traffic(before))
        if done is None:
            raise RefusedError(f"somebody answered {proposal_id} just now", hint="raymlops proposals list shows it.")
    return done


def _without_traffic(one: Retraining) -> Given:
    """Return what raises RefusedError where its version has traffic, or is on its way to it: a rollback is what helps.

    Of a version that is merely up beside what is live, a rollback would take back what is live.
    """

    def check(connection: Connection) -> None:
        model = model_in(connection, one.name)
        champion = champion_of(model.deployments)
        live = [] if champion is None else [champion.version]
        if one.version in {*live, *in_question(model)}:
            raise RefusedError(
                f"version {one.version} of {one.name} has traffic, or is on its way to it",
                hint=f"raymlops rollback {one.name} takes it back.",
            )

    return check


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
