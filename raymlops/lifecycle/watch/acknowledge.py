"""A person says that what is served is normal: the column of an incident, or all of the newest windows; or known.

Owns from when on that holds. Each is one transaction with its audit event; verdicts that were stored stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from raymlops.config.schema import MonitorSection
from raymlops.errors import RefusedError, UsageError
from raymlops.lifecycle.live.lineup import champion_of, monitored
from raymlops.lifecycle.named_model import chosen_state
from raymlops.lifecycle.watch import incidents
from raymlops.lifecycle.watch.live_model import live_model
from raymlops.lifecycle.watch.messaging.tell import tell_incidents
from raymlops.lifecycle.watch.traffic import last_ended
from raymlops.monitor.baseline import wanted_windows
from raymlops.records import Record
from raymlops.state.audit import require_why
from raymlops.state.engine import this_user
from raymlops.state.watch.incidents import Baseline, Filed, Incident, add_baselines, change_incident
from raymlops.state.watch.windows import about
from raymlops.storage.clock import now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.lifecycle.sources import Source


@dataclass(frozen=True)
class NormalRecord(Record):
    """What is normal or known from now on."""

    name: str
    incidents: tuple[Incident, ...]
    """As they are from now on."""
    windows: dict[str, int]
    """Of each side, the windows that count as normal so far."""
    wanted: int = 0
    """How many it takes to judge by them."""

    def text(self) -> str:
        """Return a line for each incident and each side."""
        lines = []
        for one in self.incidents:
            closed = one.closed_at is not None
            muted = "" if closed or one.acknowledged_at is None else "; muted until it is over"
            lines.append(f"{'closed ' if closed else ''}{one.text()}{muted}")
        for side, number in self.windows.items():
            few = "" if number >= self.wanted else f"; nothing is judged by them until there are {self.wanted}"
            lines.append(f"{side}: {number} windows are normal from now on{few}")
        for one in self.incidents:
            if not self.windows and one.kind == "drift" and one.is_normal:
                since = f"{self.wanted} windows since {one.opened_at:%Y-%m-%d %H:%M} UTC"
                lines.append(f"{one.side}: {one.column}: not judged until there are {since}")
        return "\n".join(lines)


def acknowledge(name: str, *ids: str, why: str, config: Source | None = None) -> NormalRecord:
    """Say that the columns of incidents are normal, from their first windows on, and close these.

    A column is not judged until enough windows since then, 26 of a day, show how much is normal now; all others are
    judged as before, and their incidents stay open. Skew is only closed. What is beyond a bound cannot be normal.

    Args:
        name: A model.
        *ids: Of incidents, as ``drift`` and messages name them.
        why: For the audit record.
        config: Its configuration, for the state; else it is as the environment says.

    Raises:
        NotFoundError: the model has no such incident.
        RefusedError: one is closed, or of a bound; those before it are acknowledged.
        UsageError: ``why`` is empty.
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    say = partial(incidents.acknowledge, now=now(), actor=this_user(), why=why)
    return _changed(name, ids, say, why=why, config=config)


def mute(name: str, *ids: str, why: str, config: Source | None = None) -> NormalRecord:
    """Say that incidents are known: they stay open until they are over, and are neither told nor counted.

    Nothing is normal by that. Args and Raises: as of ``acknowledge``.
    """
    say = partial(incidents.known, now=now(), actor=this_user(), why=why)
    return _changed(name, ids, say, why=why, config=config)


def revoke(name: str, *ids: str, why: str, config: Source | None = None) -> NormalRecord:
    """Take back that incidents are normal, or known: they are open, told and counted again.

    A column is judged again by what was normal before. Args: as of ``acknowledge``.

    Raises:
        NotFoundError, UsageError, StorageError, UnreachableError: as ``acknowledge``.
        RefusedError: nobody said so of one, it is over, or its column drifted again; those before it are taken back.
    """
    return _changed(name, ids, partial(incidents.revoke, why=why), why=why, config=config)


def _changed(
    name: str, ids: Sequence[str], change: Callable[[Incident], Filed], *, why: str, config: Source | None
) -> NormalRecord:
    require_why(why, "an incident is acknowledged, known or open again")
    with chosen_state(name, config) as state:
        changed = tuple(change_incident(state, one, change, name=name) for one in ids)
        tell_incidents(state, now=state.now())
        champion = champion_of(state.deployments(name))
        monitor = MonitorSection() if champion is None else monitored(champion)
        return NormalRecord(name, changed, {}, wanted_windows(monitor.window_h * 3600))


def rebaseline(name: str, *, why: str, config: Source | None = None) -> NormalRecord:
    """Say that the newest windows are normal, four weeks or 28 of them at most, and close the incidents of drift.

    Args: as of ``acknowledge``.

    Raises:
        NotFoundError: no such model is live, or its bundle has no profiles.
        RefusedError: there are too few windows to judge by.
        UsageError: ``why`` is empty, or the champion has not answered yet.
        StorageError, UnreachableError: the state or a storage cannot be used; nothing was changed.
    """
    require_why(why, "something is normal")
    with chosen_state(name, config) as state:
        model, made_at, actor = live_model(state, name), state.now(), this_user()
        last = last_ended(made_at, model.window_s)
        baselines, windows = [], dict[str, int]()
        for side in model.sides:
            if (first := side.newest_first(last)) is None:
                raise UsageError(f"version {model.version} of {name} has not answered anybody yet")
            start = datetime.fromtimestamp(first * model.window_s, UTC)
            version = about(side.side, model.version)
            baselines.append(Baseline(name, side.side, version, start, None, why, actor, made_at))
            windows[side.side] = side.usable(first, last)
        wanted = wanted_windows(model.window_s)
        if (most := max(windows.values(), default=0)) < wanted:
            raise RefusedError(
                f"{most} windows of {model.window_s / 3600:g} h can be normal so far, and {wanted} are needed: "
                "until then nothing would be judged",
                hint="Wait for them, or take shorter ones: raymlops deploy with monitor.window_h.",
            )
        close = partial(incidents.rebaselined, now=made_at, actor=actor, why=why)
        closed = add_baselines(state, baselines, close)
        tell_incidents(state, now=made_at)
        return NormalRecord(name, closed, windows, wanted)
