"""Replay: the last hours of logged requests through a challenger, on workers of the cluster, before it gets any.

Owns which hours, and what cannot be replayed. What is summed of a piece is ``replay_piece``'s; whether the challenger
passes, ``monitor.replayed``'s.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError
from raymlops.lifecycle.batch.pool import over
from raymlops.lifecycle.batch.replay_piece import Piece, ReplayJob, ReplayWorker
from raymlops.lifecycle.registration.compatibility import signature_of
from raymlops.monitor.replayed import Replayed, judge
from raymlops.records import GateCheck, GateDecision
from raymlops.serving.control.render import settings_of
from raymlops.storage.filesystem import root_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from raymlops.config.schema import ProjectSpec
    from raymlops.monitor.replayed import Bounds
    from raymlops.records import BundleRef
    from raymlops.state.store import Deployment

    Answer = Callable[[list[Piece], ReplayJob], Iterable[Replayed]]
    """Returns what a challenger makes of each piece."""

_WAY_ON = "retrain.replay_h: 0 leaves the replay out"


def replay(
    champion: Deployment,
    challenger: BundleRef,
    *,
    since: datetime,
    until: datetime,
    answer: Answer,
    bounds: Bounds | None = None,
) -> GateDecision:
    """Return whether a challenger passes the requests that the champion answered since then, with all numbers.

    Raises:
        BundleError, RecipeError, RecipeImportError: a bundle does not load.
        StorageError: the log cannot be read.
        ClusterError: workers were lost.
    """
    if (why := unreplayable(champion, challenger)) is not None:
        detail = f"{why}; {_WAY_ON}"
        check = GateCheck(
            "answers logged requests", passed=False, got=None, allowed="all inputs in the log", detail=detail
        )
        return GateDecision(passed=False, checks=(check,), champion_version=champion.version)
    job = _job(champion, challenger, since=since)
    pieces = pieces_of(job, since=since, until=until)
    return judge(sum(answer(pieces, job), Replayed()), champion=champion.version, bounds=bounds)


def labelled_beside(
    champion: Deployment, other: BundleRef, spans: Sequence[tuple[datetime, datetime]], *, answer: Answer
) -> Replayed:
    """Return what another version makes of the champion's labelled requests in spans of time, losses alone.

    Raises: as ``replay``.
    """
    if (why := unreplayable(champion, other)) is not None:
        return Replayed(notes=(why,))
    since = min(start for start, _ in spans)
    job = replace(_job(champion, other, since=since), labelled_only=True)
    pieces = [piece for start, stop in spans for piece in pieces_of(job, since=start, until=stop)]
    return sum(answer(pieces, job), Replayed())


def on_workers(spec: ProjectSpec) -> Answer:
    """Return what answers pieces on workers of the cluster that this process is connected to."""

    def answer(pieces: list[Piece], job: ReplayJob) -> Iterable[Replayed]:
        if not pieces:
            return
        for result in over(pieces, ReplayWorker, job, spec=spec, purpose="a replay"):
            yield pickle.loads(result["replayed"])  # noqa: S301 - a worker of ours wrote it

    return answer


def here(pieces: list[Piece], job: ReplayJob) -> Iterable[Replayed]:
    """Answer pieces in this process."""
    worker = ReplayWorker(job)
    return map(worker.replay, pieces)


def pieces_of(job: ReplayJob, *, since: datetime, until: datetime) -> list[Piece]:
    """Return the hours in which the champion answered, cut at both ends."""
    from raymlops.predictions.paths import prediction_hours
    from raymlops.storage.store import Store

    try:
        hours = prediction_hours(Store(job.uri), job.name, since=since, until=until, version=job.version)
    except NotFoundError:
        return []
    spans = ((max(hour.start, since), min(hour.start + timedelta(hours=1), until)) for hour in hours)
    return [Piece(start.timestamp(), stop.timestamp()) for start, stop in spans if start < stop]


def _job(champion: Deployment, challenger: BundleRef, *, since: datetime) -> ReplayJob:
    uri = root_of(champion.bundle.uri)
    return ReplayJob(uri, champion.name, champion.version, champion.bundle, challenger, since=since.timestamp())


def unreplayable(champion: Deployment, challenger: BundleRef) -> str | None:
    """Return why logged requests cannot be answered again; None if they can.

    Raises:
        BundleError: the challenger's bundle does not match its digest.
        StorageError: the storage cannot be read.
    """
    log = settings_of(champion).log
    inputs = signature_of(challenger).inputs
    if hidden := sorted({column.name for column in inputs}.intersection(log.redact)):
        return f"serve.log.redact leaves {', '.join(hidden)} out of the log, which the version needs"
    if raw := sorted(column.name for column in inputs if column.info.raw is not None):
        return f"the log keeps a digest of {', '.join(raw)} alone"
    return None
