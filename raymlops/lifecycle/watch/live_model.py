"""A live model as it is watched: its champion, the references of its bundle, and its traffic.

Owns where these come from, and which of what people said to be normal holds for this champion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from raymlops.bundle.profiles import references_of
from raymlops.errors import NotFoundError
from raymlops.lifecycle.live.lineup import champion_of, monitored
from raymlops.lifecycle.live.outage import few, shares
from raymlops.lifecycle.prediction_log import stored_log
from raymlops.lifecycle.watch.monitor_text import too_short_log
from raymlops.lifecycle.watch.normal import Normal
from raymlops.lifecycle.watch.traffic import Traffic
from raymlops.lifecycle.watch.window_drift import SIDES
from raymlops.lifecycle.watch.windows import Windows, place_of
from raymlops.monitor.outcome import FEWEST_ROWS
from raymlops.serving.control.render import settings_of
from raymlops.state.audit import changes_of
from raymlops.state.watch.incidents import baselines_of
from raymlops.state.watch.windows import about, first_start
from raymlops.storage.filesystem import root_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.config.data import QualitySection
    from raymlops.config.schema import MonitorSection
    from raymlops.config.serve import LogSection
    from raymlops.state.store import State
    from raymlops.state.watch.incidents import Baseline
    from raymlops.state.watch.windows import Side

_BEFORE = timedelta(days=2)
"""How long before a version's first answer a window can have begun that was judged by it."""


@dataclass(frozen=True, eq=False)
class LiveModel:
    """What is judged of a model, side by side."""

    name: str
    version: int
    """The champion."""
    deployed_at: datetime
    window_s: float
    traffic: Traffic
    sides: tuple[Normal, ...]
    baselines: tuple[Baseline, ...]
    """All that people said to be normal, newest first."""
    bounds: QualitySection
    """Beyond which what is told beside drift is an alarm."""
    as_deployed: bool
    """Whether the controller judges the same of it."""
    log: LogSection
    """Whether and for how long the champion's rows are kept."""
    short: str | None = None
    """Why nothing is ever compared with windows that were served, where its log is not kept long enough."""

    @property
    def inputs(self) -> Normal | None:
        """Return the side of inputs; None where the bundle has no profile of them."""
        return next((each for each in self.sides if each.side == "inputs"), None)


def live_model(state: State, name: str, *, monitor: MonitorSection | None = None) -> LiveModel:
    """Return a live model, to be watched as ``monitor`` says, by default as it was deployed.

    Raises:
        NotFoundError: no such model is live, or its bundle has no profiles.
        BundleError: the bundle is not what its digest vouches for.
        StorageError, UnreachableError: the state or a storage cannot be used.
    """
    champion = champion_of(state.deployments(name))
    if champion is None:
        raise NotFoundError(f"{name} has no live version", hint="raymlops status lists what is live.")
    references = references_of(champion.bundle.uri, champion.bundle.digest)
    deployed = monitored(champion)
    settings = deployed if monitor is None else monitor
    length = timedelta(hours=settings.window_h)
    window_s, version, log = length.total_seconds(), champion.version, stored_log(state, name)
    changes = [few(event) for event in changes_of(state, name)]
    sides = [key for key in SIDES.values() if key in references]
    served, windows = (
        {
            key: Windows(
                side=key,
                layout=references[key].layout,
                window_s=window_s,
                version=of,
                shares=shares(changes, of, shadows=key == SIDES["outputs"]),
                slices=references[key].slices,
            )
            for key in sides
        }
        for of in (version, None)
    )
    windows |= {key: served[key] for key in served if key == SIDES["outputs"]}
    into = {id(each): each for each in (*served.values(), *windows.values())}
    if log is not None:
        log.check([root_of(champion.bundle.uri)])
    uris = () if log is None else log.distinct
    layouts = {key: references[key].layout for key in sides}
    layouts |= {each.qualify(key): references[key].layout for key in sides for each in references[key].slices}
    traffic = Traffic(name, uris, layouts, window_s=window_s, into=into.values())
    said = baselines_of(state, name)
    judged_since = {
        side: first_start(state, name, side=side, version=about(side, version), judged_by=version, rows=FEWEST_ROWS)
        for side in SIDES
    }
    # The log's first hours are removed at some time, and what was judged by them stays.
    known = [*judged_since.values(), traffic.first_hour(version)] if said else []
    first = min((moment for moment in known if moment is not None), default=None)
    if first is not None and not any(judged_since.values()):
        first = min(first, champion.created_at)
    judged = tuple(
        Normal(
            side,
            references[key],
            version,
            window_s,
            traffic,
            windows[key],
            served[key],
            tuple(_of(said, side, version, first=first, window_s=window_s)),
            judged_since[side],
            settings.between_columns and side == "inputs",
        )
        for side, key in SIDES.items()
        if key in references
    )
    as_deployed = settings.between_columns == deployed.between_columns
    kept = settings_of(champion).log
    short = too_short_log(settings, kept)
    return LiveModel(
        *(name, version, champion.created_at, window_s, traffic, judged, tuple(said)),
        *(settings.quality, as_deployed, kept, short),
    )


def _of(
    said: Sequence[Baseline], side: Side, version: int, *, first: datetime | None, window_s: float
) -> Iterator[Baseline]:
    """Yield what was said of a side and holds for a version that answers since its ``first`` hour.

    What was said before that is left out: what was normal for an earlier version this one was trained on. What is said
    since then of a drift that began before holds from the first window that this version answered: no other is counted
    on its bins. All of the newest windows were its own: where their hours were removed, nothing else becomes normal.
    """
    for one in said:
        if (one.side, one.version) != (side, about(side, version)):
            continue
        if first is None or one.start >= first - max(_BEFORE, 2 * timedelta(seconds=window_s)):
            yield one
        elif one.made_at >= first:
            moved = replace(one, start=datetime.fromtimestamp(place_of(first, window_s) * window_s, UTC))
            yield one if one.columns is None else moved
