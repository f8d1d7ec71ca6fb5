"""Decide whether a run may resume, and record what has changed since it was started.

The checks are pure: they compare what the run recorded with the present and raise, or return the changes. Knows nothing
of checkpoints, nor of the lease that keeps other drivers away.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.config.changes import Change, differences, refuse_forbidden
from raymlops.config.load import dump
from raymlops.data.dataset_split import DatasetSplit
from raymlops.data.prepare import FIT, SEED_IT, SOURCES
from raymlops.data.split import TableSplit
from raymlops.errors import UsageError
from raymlops.storage.delta.names import parse
from raymlops.tracking.tag_entries import appended
from raymlops.training.checkpoints.latest import recorded_fit
from raymlops.training.runs.lookup import EVALUATION, Recorded, check_kind, read_json
from raymlops.training.runs.mlflow_run import (
    CODE_FILES,
    CODE_SHA,
    CONFIG,
    FINGERPRINT,
    ROWS,
    TABLES,
    code_of,
    code_record,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.records import DataRecord
    from raymlops.tracking.client import Tracker

IN_MEMORY = {TableSplit.kind, DatasetSplit.kind}
RESUMED_WITH_CHANGES = "raymlops.resumed_with_changes"
"""Tag: the newest resumes with a changed configuration or code. MLflow's parameters stay those of the start."""
_MAX_CHANGES = 20


def check_resumable(recorded: Recorded, spec: ProjectSpec) -> list[Change]:
    """Return what differs from the configuration that the run was started or last resumed with.

    Raises:
        UsageError: it is not a run of ``raymlops train``, a field differs that determines its result, or it has trained
            for more epochs already than requested.
    """
    check_kind(recorded, "run")
    assert recorded.spec is not None
    changes = differences(recorded.spec, spec)
    refuse_forbidden(changes, run_id=recorded.run_id)
    done = int(recorded.metrics.get("epoch", 0))
    if spec.train.last_epoch < min(done, recorded.spec.train.last_epoch):
        raise UsageError(
            f"run {recorded.run_id} has trained {done} epochs already, and train.epochs is {spec.train.epochs} "
            f"(it was {recorded.spec.train.epochs or 'not set'})",
            hint="Repeat the value that the run was started with, or omit --config: the run has its own.",
        )
    return changes


def check_files(recorded: Recorded, *, there: bool, host: str) -> None:
    """Refuse a run whose files are missing: it would restart from scratch, and may be running where they are.

    ``there`` says whether its folder exists, ``host`` is this machine.

    Raises:
        UsageError: there is no folder, although the run has made steps or was started on another machine.
    """
    started_on = recorded.tags.get("raymlops.host", "")
    elsewhere = started_on not in {"", host}
    if there or not (elsewhere or recorded.metrics):
        return
    where = f", and it was started on {started_on}, which is not this machine" if elsewhere else ""
    raise UsageError(
        f"the files of run {recorded.run_id} are not at {recorded.files_uri}{where}",
        hint="Resume it where its storage.path can be reached, or restore the folder.",
    )


def data_of(recorded: Recorded, prepared: Prepared) -> DataRecord:
    """Return rows and fingerprint of the present data, computed like those of the run."""
    return prepared.data_as(recorded.tags.get(FINGERPRINT, ""), rows=_recorded_rows(recorded))


def check_data(recorded: Recorded, data: DataRecord) -> None:
    """Refuse data that differs from what the run, or the trials of the sweep, were trained on.

    Raises:
        UsageError: with the rows of each split, then and now.
    """
    then = recorded.tags.get(FINGERPRINT, "")
    if then == data.fingerprint:
        return
    rows = _recorded_rows(recorded)
    what = "sweep" if recorded.kind == "sweep" else "run"
    raise UsageError(
        f"the data is no longer what {what} {recorded.run_id} was trained on: it had {_rows(rows)} "
        f"(fingerprint {then[:12] or 'none'}), now there are {_rows(data.rows)} ({data.fingerprint[:12]})",
        hint=f"Restore the data, or start a new {what} on the present data. {SEED_IT}",
    )


def check_unfinished(recorded: Recorded, spec: ProjectSpec, *, finished: bool, evaluated: bool) -> None:
    """Refuse a run that has nothing left to train.

    ``finished`` comes from its newest checkpoint (True without one). A run whose driver died between its last
    checkpoint and its end is not FINISHED in MLflow yet: resuming ends it. ``evaluated`` says whether its test metrics
    are recorded, which describe the version that was registered from it.

    Raises:
        UsageError: it is FINISHED, and none of its limits was raised, or it was registered.
    """
    if recorded.status != "FINISHED":
        return
    if evaluated:
        raise UsageError(
            f"run {recorded.run_id} is finished and was registered: its version would no longer describe it",
            hint="Start a new run: raymlops train --config FILE.",
        )
    assert recorded.spec is not None
    before, now = recorded.spec.train, spec.train
    if finished and not _raised(before, now):
        did = f"{recorded.tags.get('raymlops.epochs', '?')} epochs, {recorded.tags.get('raymlops.steps', '?')} steps"
        raise UsageError(
            f"run {recorded.run_id} is finished ({did}); nothing is left to train",
            hint=f"To train it for longer, raise what ends it: {twice_as_long(before)}.",
        )


def recorded_sources(tracker: Tracker, recorded: Recorded) -> dict[str, Any] | None:
    """Return the data sources of the run, for ``prepare``; None if its driver died before it recorded them.

    In-memory data of ``datasets()`` is left out: ``check_data`` reports its changes better.
    """
    found: dict[str, Any] | None = read_json(tracker, recorded.run_id, SOURCES)
    return found and {part: known for part, known in found.items() if known["kind"] not in IN_MEMORY}


def recorded_versions(recorded: Recorded) -> dict[str, int]:
    """Return the versions of Delta tables that a run or a sweep was started on, by their URIs, for ``prepare``."""
    names = [parse(name) for name in json.loads(recorded.tags.get(TABLES, "{}")).values()]
    return {name.uri: name.version for name in names if name.version is not None}


def recorded_state(tracker: Tracker, recorded: Recorded, *, checkpoints_uri: str) -> dict[str, Any] | None:
    """Return the state that ``fit`` returned for the run's weights: from its newest checkpoint, else from its start.

    None if neither has it: the driver died before it recorded it, or belonged to release 0.1 and died before its first
    checkpoint.
    """
    found = recorded_fit(checkpoints_uri)
    return read_json(tracker, recorded.run_id, FIT) if found is None else found


def code_differs(recorded: Recorded, project: Project) -> bool:
    """Return whether the recipe's code differs from what the run was started or last resumed with."""
    code = code_of(project)
    return recorded.tags.get(CODE_SHA, "") != (code.sha() if code else "")


def fit_notices(prepared: Prepared, *, known: Mapping[str, Any] | None) -> list[str]:
    """Return notices about the state that a run resumes with; none if it is the ``known`` one and fits the code."""
    name = type(prepared.recipe).__name__
    if known is None:
        return [f"no state of {name}.fit() was recorded before the first checkpoint: it was called again"]
    now = prepared.refitted
    if now is None or now == known:
        return []
    keys = ", ".join(changed_keys(known, now))
    text = f"the changed code's {name}.fit() returns another state ({keys}): the run keeps the state that its weights "
    return [text + "were trained with; start a new run to train with the other one"]


def is_evaluated(tracker: Tracker, run_id: str) -> bool:
    """Return whether a run's test metrics are recorded, as they are once it is registered."""
    return read_json(tracker, run_id, EVALUATION) is not None


def changed_keys(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose value was changed, added or removed."""
    return sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))


def write_changes(
    tracker: Tracker, recorded: Recorded, *, project: Project, changes: Sequence[Change]
) -> tuple[str, ...]:
    """Record on the run what has changed since it was started or last resumed; return the changes in words.

    Registering compares the code with what is recorded here.

    Raises:
        TrackingError: MLflow does not accept it.
    """
    tags: dict[str, str] = {}
    files: list[str] = []
    if code_differs(recorded, project):
        tags, artifacts = code_record(project)
        artifacts[CODE_FILES] = artifacts[CODE_FILES] or "{}"
        then = read_json(tracker, recorded.run_id, CODE_FILES) or {}
        files = changed_keys(then, json.loads(artifacts[CODE_FILES])) or ["the recipe's code"]
        for path, text in artifacts.items():
            if text:
                tracker.log_text(recorded.run_id, text, path)
    if changes:
        # The file first: a tag of a configuration that is not there would be worse than the previous tag.
        tracker.log_text(recorded.run_id, dump(project.spec), CONFIG)
        tags["raymlops.config_sha"] = project.spec.sha()
    texts = [f"{change} ({change.effect})" if change.effect else str(change) for change in changes]
    texts += [f"code changed: {name}" for name in files]
    if texts:
        more = [f"and {len(texts) - _MAX_CHANGES} more"] if len(texts) > _MAX_CHANGES else []
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "changes": [text[:200] for text in [*texts[:_MAX_CHANGES], *more]],
        }
        tags[RESUMED_WITH_CHANGES] = appended(recorded.tags, RESUMED_WITH_CHANGES, entry)
        tracker.log_batch(recorded.run_id, tags=tags)
    return tuple(texts)


def _raised(before: TrainSection, now: TrainSection) -> bool:
    def more(old: int | None, new: int | None) -> bool:
        return old is not None and (new is None or new > old)

    longer = now.last_epoch > before.last_epoch
    return longer or more(before.max_steps, now.max_steps) or more(before.patience, now.patience)


def twice_as_long(section: TrainSection) -> str:
    """Return the overrides that double the length of a run."""
    limits = {"train.epochs": section.epochs, "train.max_steps": section.max_steps}
    return " ".join(f"{name}={2 * limit}" for name, limit in limits.items() if limit is not None)


def _recorded_rows(recorded: Recorded) -> dict[str, int]:
    rows: dict[str, int] = json.loads(recorded.tags.get(ROWS, "{}"))
    return rows


def _rows(rows: Mapping[str, int]) -> str:
    known = (f"{count} {name}" if count >= 0 else f"uncounted {name}" for name, count in rows.items())
    return f"{', '.join(known)} rows" if rows else "an unknown number of rows"
