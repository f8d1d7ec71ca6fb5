"""Replay: the last hours of logged requests through a challenger, on workers of the cluster, before it gets any.

Owns which hours, and what cannot be replayed. What is summed of a piece is ``replay_piece``'s; whether the challenger
passes, ``monitor.replayed``'s.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError
from raymlops.lifecycle.batch.pool import over
from raymlops.lifecycle.batch.replay_piece import Piece, ReplayJob, ReplayWorker, counted, labels_of
from raymlops.lifecycle.registration.compatibility import signature_of
from raymlops.monitor.replayed import Replayed, judge
from raymlops.records import GateCheck, GateDecision
from raymlops.serving.control.render import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.batch.replay_piece import TrainedUntil
    from raymlops.monitor.replayed import Bounds
    from raymlops.records import BundleRef
    from raymlops.state.store import Deployment

    Answer = Callable[[list[Piece], ReplayJob], Iterable[Replayed]]
    """Returns what a challenger makes of each piece."""

MOST_LABELLED = 20_000
"""Labelled rows after which none further back are looked for."""
MOST_SOUGHT = 20_000_000
"""Rows whose keys are read for it: about a minute."""
_WAY_ON = "retrain.replay_h: 0 leaves the replay out"


def replay(
    champion: Deployment,
    challenger: BundleRef,
    *,
    log: str,
    since: datetime,
    until: datetime,
    answer: Answer,
    trained_until: TrainedUntil | None = None,
    bounds: Bounds | None = None,
) -> GateDecision:
    """Return whether a challenger passes the requests that the champion answered since then, with all numbers.

    ``log`` is the storage that has them, which is not always that of the champion's bundle.

    With ``trained_until`` no labelled row counts that the challenger may have been trained on; and labelled ones from
    before ``since`` are answered too, the newest first, since labels may take longer than that to come.

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
    job, further = _job(champion, challenger, log, since=since), list[Piece]()
    if trained_until is not None:
        job = replace(job, since=min(job.since, trained_until.labels), trained_until=trained_until)
        further = _further_back(job, since=since, until=until)
    pieces = [*further, *pieces_of(job, since=since, until=until)]
    notes = (_noted(further),) if further else ()
    return judge(sum(answer(pieces, job), Replayed(notes=notes)), champion=champion.version, bounds=bounds)


def labelled_beside(
    champion: Deployment, other: BundleRef, spans: Sequence[tuple[datetime, datetime]], *, log: str, answer: Answer
) -> Replayed:
    """Return what another version makes of the champion's labelled requests in spans of time, losses alone.

    Raises: as ``replay``.
    """
    if (why := unreplayable(champion, other)) is not None:
        return Replayed(notes=(why,))
    since = min(start for start, _ in spans)
    job = replace(_job(champion, other, log, since=since), labelled_only=True)
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


def _further_back(job: ReplayJob, *, since: datetime, until: datetime) -> list[Piece]:
    """Return hours from before ``since`` with labelled rows that count, as far back as are needed for a comparison.

    Keys alone are read for it, the newest first, of at most ``MOST_SOUGHT`` rows.
    """
    from raymlops.predictions.labelled_rows import COLUMNS
    from raymlops.predictions.partition import Faults, read_folder
    from raymlops.predictions.paths import prediction_hours
    from raymlops.storage.store import Store

    labels, trained_until = labels_of(job), job.trained_until
    assert trained_until is not None
    found, left, sought, faults = list[Piece](), MOST_LABELLED, MOST_SOUGHT, Faults()
    if not len(labels.hashes):
        return found
    store, earliest = Store(job.uri), datetime.fromtimestamp(trained_until.rows, UTC)
    for hour in reversed(prediction_hours(store, job.name, since=earliest, until=until, version=job.version)):
        rows = 0
        for batch in read_folder(store, hour.path, faults, columns=COLUMNS):
            rows += len(counted(batch, labels, trained_until)[0])
            sought -= batch.num_rows
        start, stop = max(hour.start, earliest), min(hour.end, since)
        if rows and start < stop:
            found.append(Piece(start.timestamp(), stop.timestamp(), labelled=float(min(rows, left))))
        left -= rows
        if left <= 0 or sought <= 0:
            break
    return found


def _noted(further: Sequence[Piece]) -> str:
    rows, oldest = sum(piece.labelled for piece in further), min(piece.since for piece in further)
    when = f"{datetime.fromtimestamp(oldest, UTC):%Y-%m-%d %H:%M} UTC"
    return f"{rows:,.0f} labelled rows since {when} were replayed besides: labels come later than the other rows."


def _job(champion: Deployment, challenger: BundleRef, log: str, *, since: datetime) -> ReplayJob:
    return ReplayJob(log, champion.name, champion.version, champion.bundle, challenger, since=since.timestamp())


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
