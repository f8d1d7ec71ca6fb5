"""Train in this process: a trial of a sweep, or a run without workers."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from raymlops.errors import UsageError
from raymlops.training.loop.context import TrainContext
from raymlops.training.loop.loop import default_loop
from raymlops.training.model.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.training.checkpoints.saver import Saver
    from raymlops.training.loop.outcome import Hooks, Outcome


def run_in_process(
    project: Project,
    prepared: Prepared,
    *,
    saver: Saver,
    hooks: Hooks,
    resume: str | None = None,
    identity: Mapping[str, str] | None = None,
) -> Outcome:
    """Run the loop on the first GPU where the configuration asks for one, else on the CPU.

    Raises:
        UsageError: as ``check_gpu``.
    """
    section = project.spec.train
    check_gpu(section)
    device = local_device(section)
    ranks = Ranks(device=torch.device(device))
    context = TrainContext(section, prepared, saver=saver, hooks=hooks, ranks=ranks, resume=resume, identity=identity)
    with _own_torch_state(section.threads_per_worker, device=device):
        return context.run(default_loop)


def check_gpu(section: TrainSection) -> None:
    """Check that this process sees a GPU where the configuration asks for one: a CPU would take days, unasked.

    Raises:
        UsageError: it sees none.
    """
    if section.gpus_per_worker and local_device(section) == "cpu":
        raise UsageError(
            f"train.gpus_per_worker is {section.gpus_per_worker:g}, but torch {torch.__version__} sees no GPU in this "
            "process",
            hint="Set train.gpus_per_worker=0 to train on the CPU. Otherwise compare `nvidia-smi`, "
            "CUDA_VISIBLE_DEVICES and the build of torch, or set train.num_workers to train on the cluster's GPUs.",
        )


def local_device(section: TrainSection, *, has_gpu: bool | None = None) -> Literal["cpu", "cuda"]:
    """Return the device of this process for a configuration: a GPU if it asks for one and there is one."""
    found = torch.cuda.is_available() if has_gpu is None else has_gpu
    return "cuda" if section.gpus_per_worker and found else "cpu"


@contextmanager
def on_device(model: nn.Module, device: str) -> Iterator[None]:
    """Move a model to a device, and back to the CPU at the end."""
    try:
        model.to(device)
        yield
    finally:
        model.to("cpu")


@contextmanager
def _own_torch_state(threads: int | None, *, device: str) -> Iterator[None]:
    """Restore the caller's random states and thread count at the end."""
    before = torch.get_num_threads()
    drawn, numpy_drawn = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is what is seeded
    try:
        # Without a list it would make a context on every GPU of the machine.
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
            if threads is not None:
                torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(before)
        random.setstate(drawn)
        np.random.set_state(numpy_drawn)  # noqa: NPY002
