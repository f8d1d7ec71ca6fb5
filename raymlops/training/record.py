"""The MLflow run of a training: opened with all that is known before, fed from events, closed with how it ended.

The one place that writes it, in the driver's process. Knows nothing of workers: events are events.
"""

from __future__ import annotations

import inspect
import json
import platform
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from raymlops.bundle.code import collect
from raymlops.config.load import dump
from raymlops.errors import RecipeError, TrackingError
from raymlops.signals import undisturbed
from raymlops.tracking.params import flatten
from raymlops.tracking.provenance import git_record, hardware, packages
from raymlops.training.progress import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.bundle.code import Code
    from raymlops.project import Project
    from raymlops.records import DataRecord
    from raymlops.tracking.client import MetricPoint, Tracker
    from raymlops.training.progress import Event

FLUSH_EVERY_S = 2.0
RETRY_AFTER_S = 60.0
MAX_REASON_CHARS = 1000
CONFIG = "config/resolved.yaml"
CODE_FILES = "code/files.json"
"""Artifacts: the whole configuration, and a digest of each file of the recipe's code."""
CODE_SHA = "raymlops.code_sha"
REASON = "raymlops.reason"
"""Tags: the digest of the recipe's code, and why a run ended."""


class RunWriter:
    """Writes one run. ``on_event`` gets every event too; it is the display's door.

    An MLflow that stops answering in the middle costs no training: what could not be written is kept and tried again,
    at the latest when the run ends.
    """

    def __init__(
        self,
        tracker: Tracker,
        run_id: str,
        *,
        on_event: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_id = run_id
        self._tracker = tracker
        self._on_event = on_event
        self._clock = clock
        self._throttle = Throttle(FLUSH_EVERY_S, clock=clock)
        self._retry_at_s = 0.0
        self._pending: list[MetricPoint] = []
        self._written: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take in an event: note its metrics, show it, and write what is noted every few seconds."""
        # Noted first: a display that fails costs no metrics.
        self._note(event)
        if self._on_event is not None:
            self._on_event(event)
        if event.kind != "end" and self._throttle.due() and self._clock() >= self._retry_at_s:
            try:
                self.flush()
            except TrackingError:
                # Each try costs seconds of training, so there are few of them.
                self._retry_at_s = self._clock() + RETRY_AFTER_S

    def flush(self) -> None:
        """Write what is pending.

        Raises:
            TrackingError: MLflow does not take it; it stays pending.
        """
        with self._lock:
            if self._pending:
                self._tracker.log_metrics(self.run_id, self._pending)
                self._pending = []

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], *, tags: Mapping[str, str]) -> None:
        """Write the rest and how the run ended.

        Raises:
            TrackingError: MLflow does not take it.
        """
        self.flush()
        self._tracker.set_tags(self.run_id, tags)
        self._tracker.end_run(self.run_id, status)

    def close_failed(self, error: BaseException) -> None:
        """Write the rest and why the run ended; an MLflow that is gone too becomes a note on the error."""
        try:
            self.close(status_of(error), tags={REASON: reason(error)})
        except TrackingError as lost:
            error.add_note(f"Its MLflow run {self.run_id} is still marked RUNNING: {lost.message}")

    def _note(self, event: Event) -> None:
        if event.kind == "end":
            return  # it repeats the best epoch's metrics
        metrics = {**event.metrics, **({"epoch": float(event.epoch)} if event.kind == "epoch" else {})}
        with self._lock:
            for name, value in metrics.items():
                # The epoch's mean of train/loss would overwrite that of its last steps at the same step.
                if self._written.get(name) != event.step:
                    self._pending.append((name, value, event.step, event.timestamp_ms))
                    self._written[name] = event.step


def open_run(
    tracker: Tracker,
    project: Project,
    data: DataRecord,
    *,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    kind: Literal["run", "sweep"] = "run",
) -> str:
    """Create the run with everything known before training: configuration, data, code, packages, hardware.

    One that cannot be filled, or whose filling is interrupted, is closed before the error goes on.

    Raises:
        TrackingError: MLflow does not take it.
    """
    spec = project.spec
    code = _code(project)
    git = git_record(inspect.getfile(project.recipe_class))
    machine, installed = hardware(), packages()
    all_tags = {
        **spec.project.tags,
        **(tags or {}),
        "raymlops.kind": kind,
        "raymlops.project": spec.project.name,
        "raymlops.recipe": project.reference,
        "raymlops.config_sha": spec.sha(),
        "raymlops.data_fingerprint": data.fingerprint,
        "raymlops.data_rows": json.dumps(data.rows),
        CODE_SHA: code.sha() if code else "",
        "raymlops.git_commit": git.commit,
        "raymlops.git_branch": git.branch,
        "raymlops.git_dirty": str(git.dirty).lower(),
        "raymlops.num_workers": str(spec.train.num_workers),
        "raymlops.version": installed.get("raymlops", ""),
        "raymlops.torch": installed.get("torch", ""),
        "raymlops.python": platform.python_version(),
        "raymlops.host": machine["host"],
        "mlflow.source.name": project.reference,
    }
    if git.commit:
        all_tags["mlflow.source.git.commit"] = git.commit
    artifacts = {
        CONFIG: dump(spec),
        CODE_FILES: _json(code.digests()) if code else "",
        "environment/packages.txt": "".join(f"{name}=={version}\n" for name, version in installed.items()),
        "environment/hardware.json": _json(machine),
        "data/fingerprint.json": _json(data.to_dict()),
        "code/uncommitted.diff": git.diff and git.diff + "\n",
    }
    run_id = ""
    try:
        # Between the server's making the run and our knowing its id an interrupt would leave it open for ever.
        with undisturbed():
            run_id = tracker.start_run(
                spec.experiment,
                name=f"{spec.project.name}-{'' if kind == 'run' else kind + '-'}{time.strftime('%Y%m%d-%H%M%S')}",
                tags={key: value for key, value in all_tags.items() if value},
                parent_run_id=parent_run_id,
            )
        tracker.log_params(run_id, flatten(spec.to_dict()))
        for path, text in artifacts.items():
            if text:
                tracker.log_text(run_id, text, path)
    except BaseException as error:
        if run_id:
            RunWriter(tracker, run_id).close_failed(error)
        raise
    return run_id


def status_of(error: BaseException) -> Literal["FAILED", "KILLED"]:
    """Return MLflow's word for a run that ended with an error."""
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def reason(error: BaseException) -> str:
    """Return why a run ended, as a tag holds it."""
    return f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]


def _code(project: Project) -> Code | None:
    """Return the code that would travel in a bundle now; None for code that cannot, which registering refuses."""
    try:
        return collect(project.recipe_class)
    except RecipeError:
        return None


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True)
