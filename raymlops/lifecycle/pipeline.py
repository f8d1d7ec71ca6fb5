"""From a configuration to a live endpoint: sweep, train, register, gate, promote, deploy.

Owns the order; each step is a verb of its own and can be run alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.display import OnEvent, Sink, Steps
from raymlops.lifecycle.deploy import deploy
from raymlops.lifecycle.registration.gate import gate
from raymlops.lifecycle.registration.register import register
from raymlops.lifecycle.sources import Source, project_of
from raymlops.lifecycle.sweeps.run import run_sweep
from raymlops.lifecycle.train import train
from raymlops.records import DeploymentRecord, GateDecision, ModelVersionRef, Record, RunRecord, SweepRecord

if TYPE_CHECKING:
    from collections.abc import Sequence


STEPS = 5


@dataclass(frozen=True)
class PipelineRecord(Record):
    """What came of each step. ``sweep`` is None where the configuration has no search space."""

    sweep: SweepRecord | None
    run: RunRecord
    version: ModelVersionRef
    decision: GateDecision
    deployment: DeploymentRecord


def pipeline(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    env: str | None = None,
    recipe: type | str | None = None,
    on_event: OnEvent | None = None,
    on_step: Sink | None = None,
) -> PipelineRecord:
    """Sweep, train the winner, register it, ask the gate and make it live.

    Without ``sweep.space`` the configuration is trained as it stands. Each step that finished stays: a pipeline
    that stopped leaves its run, its version or its challenger behind, to go on from by hand.

    Raises:
        ClusterError: there is no running cluster to deploy to; nothing was started.
        GateRefusedError: the version stays candidate, and what is live stays live.
        RaymlopsError: of the step that failed.
    """
    from raymlops.cluster.dashboard import dashboard

    project = project_of(source, overrides=overrides, env=env, recipe=recipe)
    with dashboard(project.spec):
        pass  # there is somewhere to deploy to; without it minutes of training would end in an error
    steps = Steps(STEPS, sink=on_step or _silent)
    return run_steps(project, steps=steps, on_event=on_event)


def run_steps(project: Any, *, steps: Steps, on_event: OnEvent | None = None) -> PipelineRecord:
    """Run the five steps of the pipeline inside a longer list of steps."""
    spec = project.spec
    searched: SweepRecord | None = None
    chosen: Any = project
    with steps.step(f"sweep {spec.sweep.num_trials} trials" if spec.sweep.space else "sweep: no search space") as said:
        if spec.sweep.space:
            searched = run_sweep(project, on_event=on_event)
            chosen = project.with_params(searched.best.params)
            said.append(f"best trial {searched.best.number} with {searched.metric} {searched.best.value:.4f}")
    tags = {"raymlops.sweep_id": searched.sweep_id, "raymlops.trial": str(searched.best.number)} if searched else {}
    with steps.step(f"train the winner on {_workers(spec.train.workers)}") as said:
        run = train(chosen, on_event=on_event, tags=tags)
        said.append(f"{spec.train.metric} {run.metrics[spec.train.metric]:.4f}, run {run.run_id}")
    with steps.step("evaluate on the test split, bundle, register") as said:
        version = register(project, run.run_id)
        said.append(f"{version.name} version {version.version}, digest {version.bundle.digest[:12]}")
    with steps.step("ask the gate") as said:
        version, decision = gate(project, str(version.version))
        said.append(decision.reason)
    with steps.step("deploy as champion") as said:
        deployment = deploy(project, str(version.version))
        said.append(str(deployment.url))
    return PipelineRecord(searched, run, version, decision, deployment)


def _workers(workers: tuple[int, int]) -> str:
    fewest, most = workers
    if most == 0:
        return "this process"
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{count} worker{'s' if most > 1 else ''}"


def _silent(_line: str) -> None:
    return
