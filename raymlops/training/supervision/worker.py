"""What one rank does: rebuild project and splits from plain data, join its groups, train, and say how it went.

Runs on a Ray Train worker. Knows nothing of other attempts.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.training.supervision.channel import Line
from raymlops.training.supervision.heartbeat import Pulse, interval_s

if TYPE_CHECKING:
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.training.loop.context import Outcome


def config_of(
    project: Project, prepared: Prepared, *, checkpoints_uri: str, unused_parameters: bool | None
) -> dict[str, Any]:
    """Return what every attempt's workers get: plain data, from which they rebuild the rest."""
    return {
        "project": project.to_dict(),
        "state": prepared.state,
        "sources": prepared.sources(),
        "checkpoints_uri": checkpoints_uri,
        "unused_parameters": unused_parameters,
        "sys_path": [str(Path(entry).absolute()) for entry in sys.path],
        "cwd": str(Path.cwd()),
    }


def work(config: dict[str, Any]) -> tuple[Outcome, str] | None:
    """Run one rank; rank 0 returns what was reached and the URI of the best checkpoint."""
    if Path(config["cwd"]).is_dir():
        os.chdir(config["cwd"])
    sys.path += [entry for entry in config["sys_path"] if entry not in sys.path and Path(entry).exists()]

    import ray.train

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    line = Line(config["mailbox"], attempt=config["attempt"], rank=rank)
    pulse = Pulse(rank, send=line.beat, show=line.show, every_s=interval_s(world_size))
    pulse.start()
    try:
        return _train(config, line=line, pulse=pulse, rank=rank, world_size=world_size)
    except BaseException as error:
        line.failed(error)
        raise
    finally:
        pulse.end()


def _train(
    config: dict[str, Any], *, line: Line, pulse: Pulse, rank: int, world_size: int
) -> tuple[Outcome, str] | None:
    import ray.train.torch
    import torch

    from raymlops.config.changes import identity
    from raymlops.data.prepare import prepare
    from raymlops.project import Project
    from raymlops.training.checkpoints.saver import FolderSaver
    from raymlops.training.events import words
    from raymlops.training.loop.context import TrainContext
    from raymlops.training.loop.loop import default_loop
    from raymlops.training.preflight import try_on_first_rank
    from raymlops.training.runs.writer import CHECKPOINT_FAILURES
    from raymlops.training.supervision.worker_group import collective_timeout_s

    project = Project.from_dict(config["project"])
    section, mine = project.spec.train, identity(project.spec)
    torch.set_num_threads(section.threads_per_worker or max(1, int(section.cpus_per_worker)))
    prepared = prepare(project, state=config["state"], sources=config["sources"])
    pulse.alive(0)

    control = checkpoints = None
    if world_size > 1 or section.strategy == "fsdp":
        # Of their own, on gloo: agreements wait for no GPU, and the thread that writes checkpoints for no step.
        timeout = timedelta(seconds=collective_timeout_s(section))
        control = torch.distributed.new_group(backend="gloo", timeout=timeout)
        checkpoints = torch.distributed.new_group(backend="gloo", timeout=timeout)
    device = ray.train.torch.get_device() if section.gpus_per_worker else "cpu"
    unused = config["unused_parameters"]
    if unused is None:  # the driver has no such GPU
        # What goes on from a checkpoint is not refused for what only a request needs.
        warn = None if config["resume"] is None else lambda text: line.emit(words(text))
        unused = try_on_first_rank(
            project, prepared, rank=rank, world_size=world_size, group=control, device=device, warn=warn
        )
    saver = FolderSaver(
        section,
        config["checkpoints_uri"],
        token=config["token"],
        identity=mine,
        kept=config["kept"],
        rank=rank,
        world_size=world_size,
        group=checkpoints,
        on_event=lambda text: line.emit(words(text, tags={CHECKPOINT_FAILURES: str(saver.failures)})),
        alive=pulse.tick,
    )
    outcome = TrainContext(
        section,
        prepared,
        saver=saver,
        emit=line.emit,
        rank=rank,
        world_size=world_size,
        device=device,
        unused_parameters=unused,
        orders=pulse.orders,
        alive=pulse.alive,
        control=control,
        resume=config["resume"],
        identity=mine,
    ).run(default_loop)
    if rank != 0:
        return None
    line.flush()
    # An attempt that an order stopped may have reported nothing yet.
    return outcome, "" if outcome.stopped else saver.best_uri
