"""The demo: real flights from a configuration to answers over HTTP, on its own cluster.

Owns the demo's folder, its own cluster and what is printed. The model's way is ``pipeline``'s. Whatever
happens, Ctrl-C included, what it started is ended, unless it was asked to keep it.
"""

from __future__ import annotations

import json
import shlex
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.display import Sink, Steps
from raymlops.errors import UsageError
from raymlops.lifecycle.pipeline import STEPS, PipelineRecord, run_steps
from raymlops.lifecycle.predict_file import curl_line
from raymlops.lifecycle.sources import project_of
from raymlops.monitor.quality import auc, auc_error
from raymlops.records import Record
from raymlops.storage.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymlops.cluster.upfile import UpRecord
    from raymlops.project import Project
    from raymlops.signature import Signature

ROWS = 300
ROWS_PER_REQUEST = 10
WORKERS = 2
CPUS_PER_WORKER = 0.9  # two workers, or two trials, beside a replica on two CPUs


@dataclass(frozen=True)
class DemoRecord(Record):
    """What the demo measured. ``answers`` is the file of inputs, outputs and labels."""

    auc: float
    auc_error: float
    rows: int
    test_metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    answers: str
    seconds: dict[str, float]
    urls: dict[str, str]
    curl: str
    kept: bool
    root: str
    config: str
    env: dict[str, str]
    """What the CLI reaches the demo's cluster by; addresses and paths, no credential."""

    def text(self) -> str:
        """Return the last screen."""
        total = sum(self.seconds.values())
        lines = [
            f"{self.rows} held-out flights answered over HTTP: AUC {self.auc:.3f}, standard error {self.auc_error:.3f}",
            "",
            "on all held-out months            AUC   log loss",
            _row("this model", {key.removeprefix("test/"): value for key, value in self.test_metrics.items()}),
            *(_row(name, values) for name, values in self.baselines.items()),
            "",
            f"answers    {_short(Path(self.answers))}",
            f"total      {total:.0f} s",
        ]
        if self.kept:
            lines += [
                *(f"{name:<10} {url}" for name, url in self.urls.items()),
                f"ask it     {self.curl}",
                f"end it     raymlops down --root {shlex.quote(self.root)}",
                "to use any other raymlops command with this cluster, first run:",
                *(f"export {name}={shlex.quote(value)}" for name, value in self.env.items()),
            ]
        else:
            lines.append(
                "endpoint   ended with the demo; raymlops demo --keep leaves it, MLflow and Ray's dashboard up"
            )
        lines.append(f"edit next  {self.config}, or start your own: raymlops init my-model")
        return "\n".join(lines)


def demo(
    *,
    root: str | Path = "raymlops-demo",
    keep: bool = False,
    trials: int | None = None,
    on_step: Sink,
) -> DemoRecord:
    """Sweep, train on two workers, register, gate and deploy on real flights, then ask 300 held-out ones over HTTP.

    The folder ``root`` keeps ``answers.json`` (inputs, outputs and labels) and ``report.json``; with ``keep``
    also the cluster, which keeps serving.

    Raises:
        UsageError: the folder holds something else, or a demo that is still up.
        RaymlopsError: of the step that failed; everything the demo started is ended.
    """
    folder = Path(root).absolute()
    config = shipped("configs") / "flights.yaml"
    clear(folder)
    overrides = [
        f"storage.path={folder / 'state'}",
        f"train.num_workers={WORKERS}",
        f"train.cpus_per_worker={CPUS_PER_WORKER}",
    ]
    overrides += [f"sweep.num_trials={trials}"] if trials else []
    project_of(config, overrides=overrides)
    steps = Steps(STEPS + 3, sink=on_step)
    with own_cluster(folder / "state", keep=keep, steps=steps) as up:
        project = project_of(config, overrides=[*overrides, *addresses(up)])
        record = run_steps(project, steps=steps)
        with steps.step(f"ask {ROWS} held-out flights over HTTP") as said:
            answers, curl = _ask(project, up.serve_url)
            area = auc(answers["scores"], answers["labels"])
            said.append(f"AUC {area:.3f}")
        with steps.step("baselines on the same rows") as said:
            baselines = project.recipe().baselines()
            said.append(", ".join(baselines))
        result = DemoRecord(
            auc=area,
            auc_error=auc_error(answers["scores"], answers["labels"]),
            rows=len(answers["labels"]),
            test_metrics=_test_metrics(record),
            baselines=baselines,
            answers=str(folder / "answers.json"),
            seconds=steps.seconds,
            urls={"endpoint": str(record.deployment.url), "mlflow": up.mlflow_url, "ray": up.dashboard_url},
            curl=curl,
            kept=keep,
            root=str(folder / "state"),
            config=_short(config),
            env=up.env,
        )
        _write(folder / "answers.json", answers)
        _write(folder / "report.json", result.to_dict())
    return result


@contextmanager
def own_cluster(folder: Path, *, keep: bool, steps: Steps) -> Iterator[UpRecord]:
    """Start a cluster below a folder, and end it with all that it left there unless it is to be kept."""
    from raymlops.cluster.auth import variables_set
    from raymlops.cluster.local import down, up
    from raymlops.cluster.ports import free_port

    kept = False
    try:
        with steps.step("start Ray, MLflow and Serve on this machine") as said:
            record = up(
                root=folder,
                http_port=free_port(),
                dashboard_port=free_port(),
                mlflow_port=free_port(),
                ray_port=free_port(),
            )
            said.append(f"dashboard {record.dashboard_url}")
        with variables_set(record.env):
            yield record
            kept = keep
    finally:
        if not kept:
            try:
                down(root=folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # it holds the answers, unless the demo did not come so far
                    folder.parent.rmdir()


def addresses(up: UpRecord) -> list[str]:
    """Return the overrides by which a configuration finds its cluster."""
    return [f"tracking.uri={up.mlflow_url}", f"serve.port={up.serve_url.rsplit(':', 1)[1]}"]


def _ask(project: Project, base_url: str) -> tuple[dict[str, Any], str]:
    """Ask a seeded sample of the test split; return what was sent, what came back and what really happened."""
    from raymlops.data.prepare import table_columns
    from raymlops.serving.client.client import Client

    recipe = project.recipe()
    signature: Signature = recipe.signature()
    table = table_columns(recipe.datasets().test)
    labels = np.asarray(table[str(recipe.label)], dtype=np.int64)
    chosen = np.sort(np.random.default_rng(project.spec.train.seed).choice(len(labels), ROWS, replace=False))
    rows = signature.rows({column.name: table[column.name][chosen] for column in signature.inputs})
    name = project.spec.project.name
    parts = [rows[start : start + ROWS_PER_REQUEST] for start in range(0, ROWS, ROWS_PER_REQUEST)]
    with Client(base_url, api_key="") as client:  # ours is open; another endpoint's key would be refused
        answers = [client.predict(name, part) for part in parts]
        url, curl = client.predict_url(name), curl_line(client, name, rows[:1])
    outputs = [output for answer in answers for output in answer.outputs]
    first = signature.outputs[0].name
    return {
        "url": url,
        "model_version": answers[-1].model_version,
        "request_ids": [answer.request_id for answer in answers],
        "rows": rows,
        "outputs": outputs,
        "scores": [output[first] for output in outputs],
        "labels": labels[chosen].tolist(),
    }, curl


def _test_metrics(record: PipelineRecord) -> dict[str, float]:
    from raymlops.bundle.load import load

    metrics: dict[str, float] = load(record.version.bundle.uri, record.version.bundle.digest).evaluation["metrics"]
    return metrics


def clear(folder: Path) -> None:
    """Make room for a new demo, but only where an old one was."""
    from raymlops.cluster.local import down, status

    if (folder / "state").exists():
        if status(root=folder / "state").state == "up":
            raise UsageError(
                f"a demo is still up in {folder}", hint=f"raymlops down --root {shlex.quote(str(folder / 'state'))}"
            )
        down(root=folder / "state")  # what a killed demo may have left
        shutil.rmtree(folder / "state")
    if folder.exists() and {path.name for path in folder.iterdir()} - {"answers.json", "report.json"}:
        raise UsageError(f"{folder} holds other files than a demo's", hint="Choose another --root.")
    folder.mkdir(parents=True, exist_ok=True)


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, default=str), encoding="utf-8")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _row(name: str, values: dict[str, float]) -> str:
    return f"  {name:<28} {values.get('auc', float('nan')):7.4f} {values.get('loss', float('nan')):9.4f}"
