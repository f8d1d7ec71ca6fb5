"""Whether a run may go on, and what is written down when it does so with something changed.

The questions are pure: what the run recorded and what is here now in, a refusal or what changed out. Writing is apart.
Knows nothing of checkpoints; that nobody else trains the run is its lease's affair.
"""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.config.changes import Change, differences, refuse_forbidden
from raymlops.config.load import dump
from raymlops.data.prepare import FIT, SEED_IT, SOURCES
from raymlops.data.split import DatasetSplit, TableSplit
from raymlops.errors import NotFoundError, UsageError
from raymlops.tracking.provenance import git_record
from raymlops.tracking.tag_entries import appended
from raymlops.training.checkpoints.latest import recorded_fit
from raymlops.training.runs.lookup import EVALUATION, Recorded
from raymlops.training.runs.mlflow_run import CODE_FILES, CODE_SHA, CONFIG, FINGERPRINT, ROWS, code_of

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
"""Tag: the newest resumes with another configuration or other code. MLflow's parameters stay those of the start."""
_MAX_CHANGES = 20


def check_resumable(recorded: Recorded, spec: ProjectSpec) -> list[Change]:
    """Return what differs from the configuration that the run was started with, or last gone on with.

    Raises:
        UsageError: it is no run of ``raymlops train``, a field differs that decides its result, or it has trained for
            longer already than it is to.
    """
    check_kind(recorded)
    assert recorded.spec is not None
    changes = differences(recorded.spec, spec)
    refuse_forbidden(changes, run_id=recorded.run_id)
    done = int(recorded.metrics.get("epoch", 0))
    if spec.train.epochs < min(done, recorded.spec.train.epochs):
        raise UsageError(
            f"run {recorded.run_id} has trained {done} epochs already, and train.epochs is {spec.train.epochs} "
            f"(it was {recorded.spec.train.epochs})",
            hint="Give the value again that the run was started with, or leave --config out: the run has its own.",
        )
    return changes


def check_kind(recorded: Recorded) -> None:
    """Refuse what is no training of its own.

    Raises:
        UsageError: a sweep, a trial, a run that raymlops did not make, or one that was never written down whole.
    """
    name = f"{recorded.run_id} ({recorded.name})"
    if recorded.kind == "sweep":
        raise UsageError(
            f"{name} is a sweep, not a run", hint=f"raymlops sweep --resume {recorded.run_id} goes on with it."
        )
    if recorded.kind == "trial":
        parent = recorded.tags.get("mlflow.parentRunId", "SWEEP_ID")
        raise UsageError(
            f"{name} is a trial of a sweep, not a run of its own",
            hint=f"raymlops sweep --resume {parent} goes on with its sweep.",
        )
    if recorded.kind != "run":
        raise UsageError(f"{name} is no run of raymlops: it has no tag raymlops.kind")
    if recorded.spec is None:
        raise UsageError(
            f"run {name} has no configuration {CONFIG} that can be read: it ended while it was being made",
            hint="Start a new run: raymlops train --config FILE.",
        )


def check_files(recorded: Recorded, *, there: bool, host: str) -> None:
    """Refuse a run whose files are not here: it would begin again, where it may even be running.

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
        hint="Resume it where its storage.path can be reached, or bring the folder back.",
    )


def data_of(recorded: Recorded, prepared: Prepared) -> DataRecord:
    """Return rows and fingerprint of the data that is here, made as those of the run were."""
    return prepared.data_as(recorded.tags.get(FINGERPRINT, ""), rows=_recorded_rows(recorded))


def check_data(recorded: Recorded, data: DataRecord) -> None:
    """Refuse other data than the run, or the trials of the sweep, were trained on so far.

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
        hint=f"Restore the data, or start a new {what} on what is there now. {SEED_IT}",
    )


def check_unfinished(recorded: Recorded, spec: ProjectSpec, *, finished: bool, evaluated: bool) -> None:
    """Refuse a run that has nothing left to do.

    ``finished`` is what its newest checkpoint says (true where there is none). A run whose driver died between its last
    checkpoint and its end is not FINISHED in MLflow yet: it is ended by resuming it. ``evaluated`` says whether its
    test metrics are on record, which are those of the version that was registered from it.

    Raises:
        UsageError: it is FINISHED, and neither ``train.epochs`` nor another limit was raised, or it was registered.
    """
    if recorded.status != "FINISHED":
        return
    if evaluated:
        raise UsageError(
            f"run {recorded.run_id} is finished and was registered: what its version says would no longer be true",
            hint="Start a new run: raymlops train --config FILE.",
        )
    assert recorded.spec is not None
    before, now = recorded.spec.train, spec.train
    if finished and not _raised(before, now):
        did = f"{recorded.tags.get('raymlops.epochs', '?')} epochs, {recorded.tags.get('raymlops.steps', '?')} steps"
        raise UsageError(
            f"run {recorded.run_id} is finished ({did}); nothing is left to train",
            hint=f"To train it for longer, raise train.epochs above {before.epochs}: train.epochs={before.epochs * 2}.",
        )


def recorded_sources(tracker: Tracker, recorded: Recorded) -> dict[str, Any] | None:
    """Return where the run's rows were drawn from, for ``prepare``; None where its driver died before it said so.

    What ``datasets()`` makes in memory is not among them: ``check_data`` says more of what became of it.
    """
    try:
        found: dict[str, Any] = json.loads(tracker.read_text(recorded.run_id, SOURCES))
    except NotFoundError:
        return None
    return {part: known for part, known in found.items() if known["kind"] not in IN_MEMORY}


def recorded_state(tracker: Tracker, recorded: Recorded, *, checkpoints_uri: str) -> dict[str, Any] | None:
    """Return what ``fit`` learnt for the run, which its weights belong to: of its newest checkpoint, else of its start.

    None where neither says: the driver died before it wrote it down, or is of the first release and died before its
    first checkpoint.
    """
    found = recorded_fit(checkpoints_uri)
    if found is not None:
        return found
    try:
        written: dict[str, Any] = json.loads(tracker.read_text(recorded.run_id, FIT))
    except NotFoundError:
        return None
    return written


def code_differs(recorded: Recorded, project: Project) -> bool:
    """Return whether the recipe's code is no longer what the run was started with, or last gone on with."""
    code = code_of(project)
    return recorded.tags.get(CODE_SHA, "") != (code.sha() if code else "")


def fit_in_words(prepared: Prepared, *, known: Mapping[str, Any] | None) -> str:
    """Return what is to be said of the state that a run goes on with; empty where it is its own and fits the code.

    ``known`` is what was recorded of it. Pure.
    """
    name = type(prepared.recipe).__name__
    if known is None:
        return f"nothing is recorded of what {name}.fit() learnt before the first checkpoint: it was called again"
    now = prepared.refitted
    if now is None or now == known:
        return ""
    keys = sorted(key for key in known.keys() | now.keys() if known.get(key) != now.get(key))
    return (
        f"the changed code's {name}.fit() returns another state ({', '.join(keys)}): the run keeps the state that its "
        "weights were trained with; start a new run to train with the other one"
    )


def is_evaluated(tracker: Tracker, run_id: str) -> bool:
    """Return whether a run's test metrics are on record, which registering it does."""
    try:
        tracker.read_text(run_id, EVALUATION)
    except NotFoundError:
        return False
    return True


def changed_files(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of files whose digests differ, or that one of the two lacks."""
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def write_changes(
    tracker: Tracker, recorded: Recorded, *, project: Project, changes: Sequence[Change]
) -> tuple[str, ...]:
    """Write down what a run goes on with that differs from before; return it in words, nothing where all is equal.

    Registering compares the code of then with that of now: from here on that of now counts.

    Raises:
        TrackingError: MLflow does not take it.
    """
    tags: dict[str, str] = {}
    files: list[str] = []
    code = code_of(project)
    sha, digests = (code.sha(), code.digests()) if code else ("", {})
    if recorded.tags.get(CODE_SHA, "") != sha:
        files = changed_files(_recorded_files(tracker, recorded.run_id), digests) or ["the recipe's code"]
        tracker.log_text(recorded.run_id, json.dumps(digests, indent=2, sort_keys=True), CODE_FILES)
        git = git_record(inspect.getfile(project.recipe_class))
        if git.diff:
            tracker.log_text(recorded.run_id, git.diff + "\n", "code/uncommitted.diff")
        tags |= {
            CODE_SHA: sha,
            "raymlops.git_commit": git.commit,
            "raymlops.git_branch": git.branch,
            "raymlops.git_dirty": str(git.dirty).lower(),
        }
    if changes:
        # First the file: a tag that speaks of a configuration which nobody can read would be worse than an old tag.
        tracker.log_text(recorded.run_id, dump(project.spec), CONFIG)
        tags["raymlops.config_sha"] = project.spec.sha()
    said = [*(_said(change) for change in changes), *(f"code changed: {name}" for name in files)]
    if said:
        shown = said if len(said) <= _MAX_CHANGES else [*said[:_MAX_CHANGES], f"and {len(said) - _MAX_CHANGES} more"]
        entry = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "changes": [text[:200] for text in shown]}
        tags[RESUMED_WITH_CHANGES] = appended(recorded.tags, RESUMED_WITH_CHANGES, entry)
        tracker.log_batch(recorded.run_id, tags=tags)
    return tuple(said)


def _said(change: Change) -> str:
    return f"{change} ({change.effect})" if change.effect else str(change)


def _raised(before: TrainSection, now: TrainSection) -> bool:
    def more(old: int | None, new: int | None) -> bool:
        return old is not None and (new is None or new > old)

    return now.epochs > before.epochs or more(before.max_steps, now.max_steps) or more(before.patience, now.patience)


def _recorded_files(tracker: Tracker, run_id: str) -> dict[str, str]:
    try:
        files: dict[str, str] = json.loads(tracker.read_text(run_id, CODE_FILES))
    except NotFoundError:
        return {}
    return files


def _recorded_rows(recorded: Recorded) -> dict[str, int]:
    rows: dict[str, int] = json.loads(recorded.tags.get(ROWS, "{}"))
    return rows


def _rows(rows: Mapping[str, int]) -> str:
    known = (f"{count} {name}" if count >= 0 else f"uncounted {name}" for name, count in rows.items())
    return f"{', '.join(known)} rows" if rows else "an unknown number of rows"
