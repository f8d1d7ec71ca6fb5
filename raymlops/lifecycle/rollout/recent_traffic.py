"""The traffic of a model in the last hour, as its prediction log has it, before a rollout begins.

Owns what is read for the forecast, and how long that may take. What follows from it is in ``power``.
"""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.bundle.loss import OwnLosses
from raymlops.errors import NotFoundError, RaymlopsError
from raymlops.lifecycle.live.lineup import monitored
from raymlops.lifecycle.live.log_owner import log_of
from raymlops.lifecycle.quality.answers import rule_of
from raymlops.lifecycle.rollout.label_lag import late_labels
from raymlops.lifecycle.rollout.label_losses import EXPECTED_FOR, MAX_LABEL_BYTES
from raymlops.lifecycle.rollout.loss_rule import Counted, unasked
from raymlops.lifecycle.rollout.power import RecentTraffic, in_words
from raymlops.predictions.counts import Losses
from raymlops.predictions.labelled_rows import COLUMNS
from raymlops.serving.control.render import settings_of, slow_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import numpy.typing as npt

    from raymlops.config.serve import RolloutSection
    from raymlops.lifecycle.rollout.label_lag import LateLabels
    from raymlops.predictions.labelled import Labels
    from raymlops.state.store import Deployment
    from raymlops.storage.store import Store

SPAN = timedelta(hours=1)
READ_S = 10.0
"""Of reading the log; what was read by then is extrapolated."""
ENOUGH = 2000
"""Labelled answers by which those of a rollout are forecast."""
_COLUMNS = ("row", "ts", "route", "model_seconds", "weight")


def outlook(champion: Deployment, settings: RolloutSection, *, now: datetime, state_id: str = "") -> tuple[str, ...]:
    """Return what a rollout beside a champion of this state can show with the last hour's traffic, in sentences."""
    if not settings_of(champion).log.enabled:
        return ("what the rollout can show is not known: the prediction log is off; set serve.log.enabled",)
    try:
        found = recent_traffic(champion, settings, now=now, state_id=state_id)
    except RaymlopsError as error:
        return (f"what the rollout can show is not known: {error.message}",)
    return in_words(found, settings)


def recent_traffic(
    champion: Deployment,
    settings: RolloutSection,
    *,
    now: datetime,
    state_id: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> RecentTraffic:
    """Return the requests of the last hour that chance would have given to a version.

    Where the log is a sample, each counts for those that it stands for, and of labels those that the log will have a
    request for. Failed requests are not in the log, so that they are missing.

    Raises:
        StorageError: the log cannot be read.
    """
    from raymlops.predictions.read import Reading
    from raymlops.storage.store import Store

    root, since = log_of(champion, state_id), now - SPAN
    began, span_s = clock(), SPAN.total_seconds()
    slow_s = slow_from(settings_of(champion), settings.slow_s)
    requests = slow = 0.0
    try:
        for batch in Reading(root, champion.name, since=since, columns=_COLUMNS, labels=False):
            shared = pc.is_in(batch["route"], value_set=pa.array(["champion", "canary"]))
            first = batch.filter(pc.and_(shared, pc.equal(batch["row"], 0)))
            weights = _weights(first)
            requests += float(weights.sum())
            slow += float(weights[np.asarray(first["model_seconds"]) >= slow_s].sum())
            if clock() - began > READ_S:
                newest = pc.max(batch["ts"]).as_py()
                span_s = max(1.0, (newest - since).total_seconds())
                break
    except NotFoundError:  # nothing was logged yet
        return RecentTraffic(0.0)
    labelled, late, answers = None, None, Losses()
    if settings.quality_margin is not None and unasked(champion) is None:
        labelled, late, answers = _labelled(
            Store(root), champion, since=since, now=now, salt=state_id, is_over=lambda: clock() - began > READ_S
        )
    return RecentTraffic(requests * SPAN.total_seconds() / span_s, slow / max(1.0, requests), labelled, answers, late)


def _weights(batch: pa.RecordBatch) -> npt.NDArray[np.float64]:
    """Return for how many requests each one stands; one each in files of earlier releases."""
    known = "weight" in batch.schema.names
    return np.asarray(batch["weight"]) if known else np.ones(batch.num_rows)


def _labelled(
    store: Store, champion: Deployment, *, since: datetime, now: datetime, salt: str, is_over: Callable[[], bool]
) -> tuple[float | None, LateLabels | None, Losses]:
    """Return of how many logged requests the first label arrived since then, whether half came too late, and losses.

    The first two are None where labels do not arrive.
    """
    from raymlops.predictions.labelled import load_labels
    from raymlops.predictions.partition import Faults
    from raymlops.predictions.paths import label_days
    from raymlops.predictions.settings import in_sample

    name, log = champion.name, settings_of(champion).log
    if not label_days(store, name, since=since - EXPECTED_FOR):
        return None, None, Losses()
    labels: Labels = load_labels(store, name, Faults(), since=since, max_bytes=MAX_LABEL_BYTES)
    if not len(labels.hashes):
        return 0.0, None, Losses()
    fresh = labels.first_within(since, None)
    ids = labels.table["request_id"].filter(pa.array(fresh)).to_pylist()
    kept = [in_sample(request_id, log.sample, salt=salt) for request_id in ids]
    fresh[fresh] = kept
    logged = len(set(compress(ids, kept)))
    late = None
    if log.retention_days is not None and logged:
        days = log.retention_days
        late = late_labels(store, name, labels, fresh=fresh, retention_days=days, now=now, is_over=is_over)
    return float(logged * labels.every), late, _newest(store, champion, labels, is_over=is_over)


def _newest(store: Store, champion: Deployment, labels: Labels, *, is_over: Callable[[], bool]) -> Losses:
    """Return the losses of the newest labelled answers, as they are judged; none by a recipe's own loss."""
    from raymlops.predictions.paths import prediction_hours
    from raymlops.predictions.read import Reading

    rule = rule_of(champion)
    if rule.kind == "recipe":
        return Losses(note="what the loss_of of the recipe says is asked in the rollout alone")
    share = monitored(champion).skill.max_caller_share
    counted = Counted(rule, lambda _pairs: OwnLosses([]), labels, max_caller_share=share)
    for hour in reversed(prediction_hours(store, champion.name, version=champion.version)):
        if is_over():
            break
        reading = Reading(
            store.uri,
            champion.name,
            since=hour.start,
            until=hour.end,
            version=champion.version,
            columns=(*COLUMNS, "output"),
            labels=False,
        )
        for batch in reading:
            counted.add(batch)
        if counted.requests >= ENOUGH:
            break
    return sum(counted.losses().values(), Losses())
