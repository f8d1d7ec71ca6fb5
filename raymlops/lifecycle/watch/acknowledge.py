"""A person says that what is served is normal: what an incident is about, or all of the newest windows.

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
from raymlops.lifecycle.watch.traffic import last_ended
from raymlops.monitor.baseline import wanted_windows
from raymlops.records import Record
from raymlops.state.audit import require_why
from raymlops.state.engine import this_user
from raymlops.state.watch.incidents import Baseline, Incident, add_baselines, change_incident
from raymlops.state.watch.windows import about

if TYPE_CHECKING:
    from raymlops.lifecycle.sources import Source


@dataclass(frozen=True)
class NormalRecord(Record):
    """What is normal from now on."""

    name: str
    incidents: tuple[Incident, ...]
    """The incidents that are over by that, or acknowledged: those of a bound stay open."""
    windows: dict[str, int]
    """Of each side, the windows that count as normal so far."""
    wanted: int = 0
    """How many it takes to judge by them."""

    def text(self) -> str:
        """Return a line for each incident and each side."""
        lines = [
            f"closed {one.text()}" if one.closed_at else f"{one.text()}; over once its bounds hold again"
            for one in self.incidents
        ]
        for side, number in self.windows.items():
            few = "" if number >= self.wanted else f"; nothing is judged by them until there are {self.wanted}"
            lines.append(f"{side}: {number} windows are normal from now on{few}")
        for one in self.incidents:
            if not self.windows and one.kind == "drift":
                since = f"{self.wanted} windows since {one.opened_at:%Y-%m-%d %H:%M} UTC"
                lines.append(f"{one.side}: {', '.join(one.columns)}: not judged until there are {since}")
        return "\n".join(lines)


def acknowledge(name: str, incident: str, *, why: str, config: Source | None = None) -> NormalRecord:
    """Say that what an incident is about is normal, from its first window on, and close it.

    Its columns are not judged until enough windows since then, 26 of a day, show how much is normal now; the others are
    judged as before. Skew is only closed. What is beyond a bound of ``monitor.quality`` stays open until it is within
    it, and is told no more meanwhile, unless it gets worse.

    Args:
        name: A model.
        incident: An id, as ``drift`` and messages name it.
        why: For the audit record.
        config: Its configuration, for the state; else it is as the environment says.

    Raises:
        NotFoundError: the model has no such incident.
        RefusedError: it is closed, or was acknowledged.
        UsageError: ``why`` is empty.
        StorageError, UnreachableError: the state cannot be used; nothing was changed.
    """
    require_why(why, "something is normal")
    with chosen_state(name, config) as state:
        change = partial(incidents.acknowledge, now=state.now(), actor=this_user(), why=why)
        changed = change_incident(state, incident, change, name=name)
        champion = champion_of(state.deployments(name))
        monitor = MonitorSection() if champion is None else monitored(champion)
        return NormalRecord(name, (changed,), {}, wanted_windows(monitor.window_h * 3600))


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
        model, now, actor = live_model(state, name), state.now(), this_user()
        last = last_ended(now, model.window_s)
        baselines, windows = [], dict[str, int]()
        for side in model.sides:
            if (first := side.newest_first(last)) is None:
                raise UsageError(f"version {model.version} of {name} has not answered anybody yet")
            start = datetime.fromtimestamp(first * model.window_s, UTC)
            version = about(side.side, model.version)
            baselines.append(Baseline(name, side.side, version, start, None, why, actor, now))
            windows[side.side] = side.usable(first, last)
        wanted = wanted_windows(model.window_s)
        if (most := max(windows.values(), default=0)) < wanted:
            raise RefusedError(
                f"{most} windows of {model.window_s / 3600:g} h can be normal so far, and {wanted} are needed: "
                "until then nothing would be judged",
                hint="Wait for them, or take shorter ones: raymlops deploy with monitor.window_h.",
            )
        close = partial(incidents.rebaselined, now=now, actor=actor, why=why)
        return NormalRecord(name, add_baselines(state, baselines, close), windows, wanted)
