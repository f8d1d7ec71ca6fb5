"""What a rank of a sharded training holds and how long it takes: at start, in a step, at a checkpoint, at a restore.

Four processes on gloo train a stack of linear layers, 500 million parameters by default. The peer is the arithmetic:
1.3 times the ranks' share of weights, gradients and AdamW's two moments, and the largest layer. A peak is the kernel's
(VmHWM, reset before each part), less what the process held before the model: its libraries and process groups.

    python tests/benchmarks/fsdp_memory.py [LAYERS [WIDTH [RANKS [RANKS_OF_THE_RESTORE]]]]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset
from wide import Wide

from raymlops.config.changes import identity
from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.project import Project, bind
from raymlops.recipe import RecipeConfig, Splits
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.saver import FolderSaver
from raymlops.training.loop.context import TrainContext
from raymlops.training.loop.optimizer import build_optimizer
from raymlops.training.model.ranks import Ranks

MIB = 1 << 20
ROWS = 8


class DeepConfig(RecipeConfig):
    """The recipe's own configuration."""

    layers: int = 30
    width: int = 4096


class Deep(Wide):
    """Many equal layers."""

    Config = DeepConfig

    def datasets(self) -> Splits:
        return Splits(train=self._rows(0), validation=self._rows(1), test=self._rows(2))

    def _rows(self, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        return TensorDataset(torch.randn(ROWS, self.config.width, generator=generator), torch.zeros(ROWS))

    def model(self) -> nn.Module:
        width = self.config.width
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(self.config.layers)))

    def loss(self, model: nn.Module, batch: object) -> torch.Tensor:
        return model(batch[0]).square().mean()


def project(layers: int, width: int, ranks: int) -> Project:
    train = {"strategy": "fsdp", "num_workers": ranks, "batch_size": ROWS, "shard_min_params": 1000}
    return bind(
        load_data(
            {
                "project": {"name": "memory"},
                "recipe": {"import": "fsdp_memory:Deep", "config": {"layers": layers, "width": width}},
                "train": train | {"lr": 1e-4},
            }
        )
    )


def held_bytes(field: str = "VmRSS") -> int:
    """Return this process's memory, or the most of it since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


class Parts:
    """Measures parts of a process's life."""

    def __init__(self) -> None:
        self.empty = held_bytes()
        self.found: dict[str, tuple[float, int]] = {}

    @contextmanager
    def part(self, name: str):
        dist.barrier()
        Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        yield
        took_s = time.perf_counter() - began
        self.found[name] = (took_s, held_bytes("VmHWM") - self.empty)


def rank_of(rank: int, world: int, config: dict, folder: str, rendezvous: str) -> None:
    """Start and take two steps with a checkpoint, or resume from it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    control, checkpoints = dist.new_group(backend="gloo"), dist.new_group(backend="gloo")
    spec = Project.from_dict(config)
    section, own = spec.spec.train, identity(spec.spec)
    prepared = prepare(spec)
    found = recall(folder, metric=section.metric, mode=section.mode, repair=rank == 0)
    saver = FolderSaver(
        section,
        folder,
        token=f"r{world}",
        identity=own,
        kept=found.kept,
        rank=rank,
        world_size=world,
        group=checkpoints,
    )
    ranks = Ranks(rank, world, control=control)
    context = TrainContext(section, prepared, saver=saver, ranks=ranks, resume=found.uri, identity=own)
    _use_what_every_training_loads()
    measured = Parts()
    with measured.part("start"):
        model = context.model()
        loss_of = context.parallel(model)
        optimizer = build_optimizer(spec.recipe(state={}), model, section)
    with measured.part("restore" if found.uri else "nothing to restore"):
        context.restore(model=model, optimizer=optimizer)
    with measured.part("step"):
        loss_of(prepared.splits["train"].batch(torch.arange(2))).backward()
        optimizer.step()
    if not found.uri:
        context.run_state.step = 1
        with measured.part("checkpoint, until the next step"):
            context.save_checkpoint(last=False)
        with measured.part("checkpoint, until it is on the disk"):
            saver.wait()
    Path(f"{rendezvous}.{rank}.json").write_text(json.dumps({"empty": measured.empty, **measured.found}))
    dist.barrier()
    dist.destroy_process_group()


def _use_what_every_training_loads() -> None:
    """Import what a start imports, so that it counts as the empty process."""
    model = nn.Linear(2, 2)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def show(results: list[dict], *, state_bytes: int, largest_bytes: int) -> None:
    bound = 1.3 * state_bytes / len(results) + largest_bytes
    empty = max(result["empty"] for result in results)
    print(f"{len(results)} ranks; an empty process {empty / MIB:.0f} MiB; above it at most {bound / MIB:.0f} MiB")
    for name in [name for name in results[0] if name != "empty"]:
        peaks = [result[name][1] for result in results]
        took_s = max(result[name][0] for result in results)
        each = " ".join(f"{peak / MIB:6.0f}" for peak in peaks)
        print(f"  {name:36} {took_s:6.1f} s   peaks {each} MiB   {max(peaks) / bound:4.2f} of the bound")


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:]]
    layers, width, ranks, others = (*numbers, *(30, 4096, 4, 4)[len(numbers) :])
    parameters = layers * width**2
    print(f"{parameters / 1e6:.0f} M parameters, {4 * parameters / MIB:.0f} MiB of weights")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for number, world in enumerate((ranks, others)):
            rendezvous = f"{folder}/rendezvous-{number}"
            given = (world, project(layers, width, world).to_dict(), f"{folder}/checkpoints", rendezvous)
            mp.spawn(rank_of, args=given, nprocs=world)
            results = [json.loads(Path(f"{rendezvous}.{rank}.json").read_text()) for rank in range(world)]
            show(results, state_bytes=16 * parameters, largest_bytes=4 * width**2)


if __name__ == "__main__":
    main()
