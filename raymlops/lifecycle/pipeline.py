"""From a configuration to a live endpoint: sweep, train, register, gate, promote, deploy.

Owns the order; each step is a verb of its own and can be run alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.display import OnEvent, Sink, Steps
from raymlops.lifecycle.deploy import deploy
from raymlops.lifecycle.live.rollouts import refuse_running
from raymlops.lifecycle.registration.gate import gate
from raymlops.lifecycle.registration.register import register
from raymlops.lifecycle.sources import Source, project_of, state_of
from raymlops.lifecycle.sweeps.run import run_sweep, sweep_request
from raymlops.lifecycle.train import train
from raymlops.records import DeploymentRecord, GateDecision, ModelVersionRef, Record, RunRecord, SweepRecord

if TYPE_CHECKING:
    from collections.abc import Sequence


STEPS = 5


@dataclass(frozen=True)
class PipelineRecord(Record):
    """The result of each step. ``sweep`` is None where the configuration has no search space."""

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
    """Sweep, train the winner, register it, run the gate and make it live.

    Without ``sweep.space`` the configuration is trained as it is. Finished steps are kept: a pipeline that stopped
    leaves its run, its version or its challenger, and the next step can be run by hand.

    Raises:
        ClusterError: no running cluster to deploy to; nothing was started.
        RefusedError: a rollout of the model is running; nothing was started.
        StorageError, UnreachableError: the state database cannot be used; nothing was started.
        GateRefusedError: the version stays candidate, and what is live stays live.
        RaymlopsError: a step failed.
    """
    from raymlops.cluster.dashboard import dashboard

    project = project_of(source, overrides=overrides, env=env, recipe=recipe)
    # What the deploy would reject after minutes of training is rejected here.
    with dashboard(project.spec), state_of(project.spec) as state:
        refuse_running(state.model(project.spec.project.name))
    return run_steps(project, steps=Steps(STEPS, sink=on_step or (lambda _line: None)), on_event=on_event)


def run_steps(project: Any, *, steps: Steps, on_event: OnEvent | None = None) -> PipelineRecord:
    """Run the five steps of the pipeline inside a longer list of steps."""
    from raymlops.tuning.results import difference

    spec = project.spec
    searched: SweepRecord | None = None
    chosen: Any = project
    title = f"sweep {spec.sweep.num_trials} trials" if spec.sweep.space else "sweep: no search space"
    with steps.step(title) as outcome:
        if spec.sweep.space:
            searched = run_sweep(sweep_request(project), on_event=on_event)
            chosen = project.with_params(searched.best.settings)
            outcome.append(f"best trial {searched.best.number} with {searched.metric} {searched.best.value:.4f}")
    tags = {"raymlops.sweep_id": searched.sweep_id, "raymlops.trial": str(searched.best.number)} if searched else {}
    with steps.step(f"train the winner on {_workers(spec.train.workers)}") as outcome:
        run = train(chosen, on_event=on_event, tags=tags)
        outcome.append(f"{spec.train.metric} {run.metrics[spec.train.metric]:.4f}, run {run.run_id}")
        if searched is not None:
            metric = searched.metric
            outcome.extend(filter(None, [difference(metric, trial=searched.best.value, run=run.metrics.get(metric))]))
    with steps.step("evaluate on the test split, bundle, register") as outcome:
        version = register(project, run.run_id)
        outcome.append(f"{version.name} version {version.version}, digest {version.bundle.digest[:12]}")
    with steps.step("ask the gate") as outcome:
        version, decision = gate(project, str(version.version))
        outcome.append(decision.reason)
    with steps.step("deploy as champion") as outcome:
        deployment = deploy(project, str(version.version))
        outcome.append(str(deployment.url))
    return PipelineRecord(searched, run, version, decision, deployment)


def _workers(workers: tuple[int, int]) -> str:
    fewest, most = workers
    if most == 0:
        return "this process"
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{count} worker{'s' if most > 1 else ''}"
