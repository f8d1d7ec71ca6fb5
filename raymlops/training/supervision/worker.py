"""One rank: rebuild project and splits from plain data, join the process groups, train, and report the outcome.

Runs on a Ray Train worker. Knows nothing of other attempts.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from raymlops.cluster.import_paths import own_paths, take_over
from raymlops.training.supervision.channel import RankChannel
from raymlops.training.supervision.heartbeat import HeartbeatThread, interval_s

if TYPE_CHECKING:
    from raymlops.config.train import TrainSection
    from raymlops.training.loop.outcome import Outcome
    from raymlops.training.supervision.request import RunRequest


def payload_of(request: RunRequest) -> dict[str, Any]:
    """Return the payload of every attempt's workers: plain data, from which they rebuild the rest."""
    return {
        "project": request.project.to_dict(),
        "state": request.prepared.state,
        "sources": request.prepared.sources(),
        "checkpoints_uri": request.checkpoints_uri,
        "unused_parameters": request.unused_parameters,
        "trial": request.trial,
        **own_paths(),
    }


def collective_timeout_s(section: TrainSection) -> int:
    """Return the timeout of collectives: longer than it takes to detect a hang, which explains more."""
    return int(max(1800.0, 2 * section.hang_timeout_s))


def work(config: dict[str, Any]) -> tuple[Outcome, str] | None:
    """Run one rank; rank 0 returns the outcome and the URI of the best checkpoint."""
    take_over(config)

    import ray.train

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    channel = RankChannel(config["mailbox"], attempt=config["attempt"], rank=rank)
    heartbeat = HeartbeatThread(rank, channel, every_s=interval_s(world_size))
    heartbeat.start()
    try:
        return _train(config, channel, heartbeat, rank=rank, world_size=world_size)
    except BaseException as error:
        channel.failed(error)
        raise
    finally:
        heartbeat.end()


def _train(
    config: dict[str, Any], channel: RankChannel, heartbeat: HeartbeatThread, *, rank: int, world_size: int
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
    from raymlops.training.loop.outcome import Hooks
    from raymlops.training.model.ranks import Ranks
    from raymlops.training.preflight import try_on_first_rank
    from raymlops.training.priority import lower_priority
    from raymlops.training.runs.writer import CHECKPOINT_FAILURES

    project = Project.from_dict(config["project"])
    section, mine = project.spec.train, identity(project.spec)
    torch.set_num_threads(section.threads_per_worker or max(1, int(section.cpus_per_worker)))
    lower_priority()
    prepared = prepare(project, state=config["state"], sources=config["sources"])
    heartbeat.alive(0)

    control = checkpoints = None
    if world_size > 1 or section.strategy == "fsdp":
        # On gloo, beside the gradients' group: agreements wait for no GPU, the checkpoint thread for no step.
        timeout = timedelta(seconds=collective_timeout_s(section))
        control = torch.distributed.new_group(backend="gloo", timeout=timeout)
        checkpoints = torch.distributed.new_group(backend="gloo", timeout=timeout)
    device = ray.train.torch.get_device() if section.gpus_per_worker else "cpu"
    unused = config["unused_parameters"]
    if unused is None:  # the driver has no such GPU
        # A resumed run is not refused for what only serving needs.
        def notice(text: str) -> None:
            channel.emit(words(text))

        unused = try_on_first_rank(
            project,
            prepared,
            rank=rank,
            world_size=world_size,
            group=control,
            device=device,
            warn=None if config["resume"] is None else notice,
            notice=notice,
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
        on_event=lambda text: channel.emit(words(text, tags={CHECKPOINT_FAILURES: str(saver.failures)})),
        alive=heartbeat.tick,
    )
    outcome = TrainContext(
        section,
        prepared,
        saver=saver,
        hooks=Hooks(emit=channel.emit, orders=heartbeat.orders, heartbeat=heartbeat.alive, trial=config["trial"]),
        ranks=Ranks(rank, world_size, torch.device(device), control, ray.train.get_context().get_node_rank()),
        unused_parameters=unused,
        resume=config["resume"],
        identity=mine,
    ).run(default_loop)
    if rank != 0:
        return None
    channel.flush()
    # An attempt that was ordered to stop may have reported nothing yet.
    return outcome, "" if outcome.stopped else saver.best_uri
