"""Compact the prediction log of a model, remove what is too old, erase one person's rows, and parse times.

Owns where a model's rows are and how long they are kept, also of a model that is not live any more: the audit record
still has the settings it was deployed with last. Knows that one process at a time changes the files of a log.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from raymlops.config.durations import parse_duration, read_moment
from raymlops.errors import BundleError, LeaseLostError, NotFoundError, StorageError, UsageError
from raymlops.lifecycle.live.lineup import BESIDE, ROUTE_ACTIONS, champion_of
from raymlops.lifecycle.sources import state_of
from raymlops.records import Record
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.predictions.compact import CompactRecord
    from raymlops.predictions.erase import EraseRecord
    from raymlops.predictions.hourly import CountedOn
    from raymlops.predictions.where import Where
    from raymlops.state.store import Deployment, State
    from raymlops.storage.store import Store

_log = logging.getLogger(__name__)

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
"""Before every row: who keeps them for longer keeps them forever."""
WRITE_S = 2.0
"""Beyond the log's own ``flush_s``: how long a row may take from its answer to the storage."""

ERASE, ERASED = "predictions.erase", "predictions.erased"
"""Actions of the events of an erasure: when it began, and when it was done."""


@dataclass(frozen=True)
class StoredLog:
    """A model's predictions and labels."""

    name: str
    uris: tuple[str, ...]
    """The storages in which this state's were ever written, the newest first."""
    retention_days: float | None
    """By the settings that the model was deployed with last; None keeps them all."""
    unreachable: tuple[tuple[str, str], ...] = ()
    """Storages of which it is not known whether its log is this state's, and why."""
    again: tuple[str, ...] = ()
    """Of ``uris`` those that another one names too: whoever reads them reads rows twice."""
    roots: tuple[str, ...] = ()
    """The storages that the bundles of its versions are in, the newest first."""

    @property
    def distinct(self) -> tuple[str, ...]:
        """Return the storages, each by one of its names."""
        return tuple(uri for uri in self.uris if uri not in self.again)

    def check(self, roots: Sequence[str] | None = None) -> None:
        """Raise what keeps some storages, by default any, from being asked whose log they have.

        Raises:
            StorageError: naming one.
        """
        for root, why in self.unreachable:
            if roots is None or root in roots:
                raise StorageError(why)

    def kept_since(self, now: datetime) -> datetime | None:
        """Return the time before which rows and labels are removed; None where all are kept."""
        if self.retention_days is None or self.retention_days > (now - _FIRST).days:
            return None
        return now - timedelta(days=self.retention_days)


@dataclass(frozen=True)
class RetainRecord(Record):
    """Which hours of predictions and days of labels were removed."""

    name: str
    before: str
    removed: tuple[str, ...]


def subjects(state: State) -> list[str]:
    """Return the names of all models that are or were deployed by this state, or are on their way."""
    from raymlops.state.audit import subjects_of

    # The event of a deploy follows once the version is up.
    return sorted({*subjects_of(state, (*ROUTE_ACTIONS, BESIDE)), *(item.name for item in state.deployments())})


def stored_log(state: State, name: str) -> StoredLog | None:
    """Return the log of a model; None for one that this state never deployed. What another state logged is not in it.

    Raises:
        StorageError, UnreachableError: the state cannot be queried.
    """
    from raymlops.lifecycle.live.log_owner import own_storages
    from raymlops.serving.control.render import settings_of
    from raymlops.state.versions import bundle_uris_of
    from raymlops.storage.filesystem import root_of

    items = last_deployed(state, name)
    if not items:
        return None
    newest = champion_of(items) or items[-1]
    bundles = [newest.bundle.uri, *reversed([uri for _, uri in bundle_uris_of(state, name)])]
    roots = tuple(dict.fromkeys(root_of(uri) for uri in bundles))
    found: dict[str, str] = {}
    unreachable = []
    for root in roots:
        try:
            found |= own_storages(state, name, root)
        except StorageError as error:
            unreachable.append((root, error.message))
    shown = list(found.values())
    again = tuple(uri for at, (uri, storage) in enumerate(found.items()) if storage in shown[:at])
    days = settings_of(newest).log.retention_days
    return StoredLog(name, tuple(found), days, tuple(unreachable), again, roots)


def _never_deployed(state: State, name: str, spec: ProjectSpec) -> StoredLog:
    """Return the log of a model that another state deployed, or none did: what nobody marked as his."""
    from raymlops.lifecycle.live.log_owner import own_storages
    from raymlops.storage.filesystem import absolute

    root = absolute(spec.storage.path)
    uris = tuple(uri for uri, _ in own_storages(state, name, root))
    return StoredLog(name, uris, spec.serve.log.retention_days, roots=(root,))


def last_deployed(state: State, name: str) -> Sequence[Deployment]:
    """Return what is deployed of a model, or was last; nothing of one that never was."""
    from raymlops.state.audit import changes_of
    from raymlops.state.store import Deployment

    if items := state.deployments(name):
        return items
    lists = (event.after or event.before for event in changes_of(state, name))
    return [Deployment.from_dict(data) for data in next((items for items in lists if items), ())]


def other_storages(name: str, spec: ProjectSpec) -> list[str]:
    """Return the storages beside the configured one in which a model has or may have rows or labels, in sentences.

    Raises:
        StorageError, UnreachableError: the state cannot be used.
    """
    from raymlops.predictions.paths import names_in
    from raymlops.storage.filesystem import absolute
    from raymlops.storage.store import Store

    with state_of(spec) as state:
        log = stored_log(state, name)
    found = [
        f"{name} may have rows in another storage too: {why}" for _, why in (() if log is None else log.unreachable)
    ]
    for uri in () if log is None else log.uris:
        try:
            if uri != absolute(spec.storage.path) and name in names_in(Store(uri)):
                found.append(f"{name} also has rows in {uri}: read them with storage.path={uri}")
        except StorageError as error:
            found.append(f"{name} may have rows in another storage too: {error.message}")
    return found


def compact_predictions(name: str, spec: ProjectSpec) -> CompactRecord:
    """Merge the small files of past hours of a model.

    Raises:
        NotFoundError: no such model has predictions.
        RefusedError: another process changes the files of this log.
        StorageError: the storage cannot be used.
    """
    from raymlops.lifecycle.live.log_owner import own_storages
    from raymlops.predictions.compact import compact
    from raymlops.predictions.paths import check_known
    from raymlops.storage.filesystem import absolute
    from raymlops.storage.store import Store

    with state_of(spec) as state:
        own = next(uri for uri, _ in own_storages(state, name, absolute(spec.storage.path)))
    check_known(Store(own), name)
    with state_of(spec) as state, changing(state.url, name, purpose="compaction") as open_store:
        now, layouts = clock.now(), counted_on(state, name)
        return compact(own, name, now=now, open_store=open_store, counted_on=layouts)


def retain_predictions(name: str, spec: ProjectSpec, *, now: datetime) -> RetainRecord:
    """Remove the predictions and labels of a model that are older than its ``retention_days``, with an audit event.

    A model that is or was deployed keeps the setting it was deployed with last; for others that of ``spec`` counts.

    Raises:
        NotFoundError: no such model has predictions or labels.
        UsageError: the model's are kept forever.
        RefusedError: another process changes the files of this log.
        StorageError: the storage cannot be used; some hours may have been removed.
    """
    from raymlops.predictions.paths import names_in
    from raymlops.storage.store import Store

    with state_of(spec) as state:
        log = stored_log(state, name) or _never_deployed(state, name, spec)
        log.check()
        if not any(name in names_in(Store(uri)) for uri in log.uris):
            raise NotFoundError(f"there are no predictions or labels of {name!r} in {', '.join(log.uris)}")
        if (before := log.kept_since(now)) is None:
            days = "null" if log.retention_days is None else f"{log.retention_days:g}"
            raise UsageError(
                f"the predictions of {name} are kept forever: serve.log.retention_days is {days}",
                hint="Deploy the model with another value; for one that was never deployed, set it in --config.",
            )
        with changing(state.url, name, purpose="retention"):
            return remove_old(state, log, before=before)


def remove_old(state: State, log: StoredLog, *, before: datetime) -> RetainRecord:
    """Remove the hours of predictions and days of labels that ended by then, with an audit event if there were any.

    Raises:
        StorageError: a storage cannot be used; some hours may have been removed.
    """
    from raymlops.predictions.compact import retain

    removed: list[str] = []
    try:
        for uri in log.uris:
            retain(uri, log.name, before=before, removed=removed.append)
    finally:
        if removed:
            why = f"{len(removed)} hours and days before {before:%Y-%m-%d %H:%M} UTC"
            state.record(action="predictions.retain", subject=log.name, why=why)
    return RetainRecord(log.name, before.astimezone(UTC).isoformat(), tuple(removed))


def erase_predictions(
    name: str,
    spec: ProjectSpec,
    where: Where,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    agree: Callable[[EraseRecord], None] = lambda _found: None,
    sleep: Callable[[float], None] = time.sleep,
) -> EraseRecord:
    """Erase the rows of a model that fulfil conditions, and their labels, with audit events before and after.

    ``agree`` is called with what was found before anything is erased; it raises to keep everything. Of a live model the
    log is searched once more after a moment, since replicas still hold what they answered last. What a replica holds
    because the storage does not answer is written later: then this is to be called again. A storage that the model left
    and that is gone is named among the ``damaged``; it does not keep the others from being searched.

    Raises:
        NotFoundError: no such model has predictions.
        UsageError: no row has such a field.
        RefusedError: another process changes the files of this log.
        StorageError: no storage can be used, or one failed meanwhile; the same call completes what was begun.
    """
    from raymlops.lifecycle.live.log_owner import unclaimed
    from raymlops.predictions.erase import LABELS_OPEN, EraseRecord, Erasure
    from raymlops.predictions.paths import check_known, names_in
    from raymlops.serving.control.render import settings_of
    from raymlops.storage.store import Store

    with state_of(spec) as state, changing(state.url, name, purpose="erasure") as open_store:
        log = stored_log(state, name) or _never_deployed(state, name, spec)
        there, away = list[str](), [root for root, _ in log.unreachable]
        for uri in log.uris:
            try:
                if name in names_in(Store(uri)):
                    there.append(uri)
            except StorageError:
                away.append(uri)
        if not there:
            check_known(Store(away[0] if away else log.uris[0]), name)
        job = Erasure(there, name, where, since, until, open_store, counted_on(state, name))
        away += unclaimed(state, name, log.roots)
        lost = EraseRecord(name, tuple(where.fields), 0, 0, 0, 0, damaged=tuple(away))
        found = EraseRecord.total([job.find(), lost])
        found.check()
        agree(found)
        why = f"rows and labels where {', '.join(where.fields)} has a given value"
        state.record(action=ERASE, subject=name, before=_counts(found), why=why)
        began = clock.now()
        done = EraseRecord.total([job.run(now=began), lost])
        if waits := [settings_of(item).log.flush_s + WRITE_S for item in state.deployments(name)]:
            sleep(max(waits))
            # What replicas still held had arrived since then; what else is left may be of any hour.
            again = None if done.open_labels else began - timedelta(hours=1)
            done = done.then(job.run(now=clock.now(), again_since=again))
        if done.open_labels:
            sleep(LABELS_OPEN.total_seconds() + 1)
            done = done.then(job.run(now=clock.now()))
        state.record(action=ERASED, subject=name, after=_counts(done), why=why)
        return done


def counted_on(state: State, name: str) -> CountedOn:
    """Return a function that returns what the hours of a version are counted on, by the bundles, each read once.

    Those are the layouts and slices of its bundle, where it has profiles and can be read, and for features the layouts
    of the other versions that are live now, with their slices.
    """
    from raymlops.bundle.profiles import references_of
    from raymlops.predictions.hourly import Counted
    from raymlops.state.versions import recorded

    @cache
    def own(version: int) -> Counted:
        record = recorded(state, name, version)
        try:
            found = {} if record is None else references_of(record.bundle.uri, record.bundle.digest)
        except NotFoundError as error:
            _log.info("version %d of %s: %s", version, name, error)
            return Counted()
        except (BundleError, StorageError) as error:
            _log.warning("the predictions of version %d of %s are not counted: %s", version, name, error)
            return Counted()
        slices = dict.fromkeys(each for reference in found.values() for each in reference.slices)
        return Counted({side: (reference.layout,) for side, reference in found.items()}, tuple(slices))

    live = [item.version for item in state.deployments(name)]

    def found(version: int) -> Counted:
        versions, layouts = [own(each) for each in (version, *live)], own(version).layouts
        features = {layout.digest: layout for each in versions for layout in each.layouts.get("features", ())}
        slices = dict.fromkeys(found for each in versions for found in each.slices)
        return Counted({**layouts, "features": tuple(features.values())} if features else layouts, tuple(slices))

    return found


@contextmanager
def changing(url: str, name: str, *, purpose: str) -> Iterator[Callable[[str], Store]]:
    """Hold the lease under which one process at a time changes the files of a model's log, and yield what opens them.

    Where the lease is lost meanwhile, nothing more is changed: that raises ``LeaseLostError``.

    Raises:
        RefusedError: another process holds it.
        StorageError, UnreachableError: the state cannot be queried.
    """
    from raymlops.predictions.rewrite import FencedStore
    from raymlops.state.lease import lease

    with lease(url, f"predictions-{name}", purpose=purpose) as renew:

        def check() -> None:
            if renew():
                raise LeaseLostError(
                    f"the {purpose} of {name} was interrupted: another process may have changed the files of its log",
                    hint="Run it again, which continues where it ended.",
                )

        yield partial(FencedStore, check=check)


def parse_moment(text: str, *, now: datetime, ahead: bool = False) -> datetime:
    """Parse a time: a duration such as ``1h`` counts back from now, or ``ahead``; an ISO time without a zone is UTC.

    Raises:
        UsageError: it is neither.
    """
    try:
        return read_moment(text)
    except (ValueError, OverflowError):
        try:
            length = timedelta(seconds=parse_duration(text))
            return now + length if ahead else now - length
        except (UsageError, OverflowError) as error:
            raise UsageError(
                f"{text[:40]!r} is no time; expected a length of time or an ISO time",
                hint="For example 1h, 7d, 2026-11-25 or 2026-11-25T12:00.",
            ) from error


def _counts(record: EraseRecord) -> dict[str, Any]:
    return {
        "rows": record.rows,
        "days": dict(record.days),
        "labels": record.labels,
        "open_labels": record.open_labels,
        "unsearched_rows": record.unsearched,
        "damaged_files": len(record.damaged),
    }
