"""The peer of train_overhead: plain DDP under torchrun, as PyTorch's documentation has it, on the same model and rows.

    torchrun --nproc-per-node 2 train_overhead_peer.py STEPS LOG_EVERY CHECKPOINT_EVERY FOLDER

Rank 0 prints ``step N SECONDS`` at each log and every rank its process id. A checkpoint is written synchronously and
read again at start.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from wide import network, table

BATCH = 512


def main(steps, log_every, checkpoint_every, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    say(f"pid {rank} {os.getpid()}")
    rows = table(BATCH * steps, seed=0)
    torch.manual_seed(0)
    model = DistributedDataParallel(network(512))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    start = 0
    file = Path(folder) / "checkpoint.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        start = saved["step"]
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    total = torch.zeros(())
    for step in range(start + 1, steps + 1):
        features, target = rows[order[(step - 1) * BATCH : step * BATCH][rank::world]]
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(features).squeeze(1), target)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
        if step % log_every == 0:
            dist.all_reduce(total)
            if rank == 0:
                say(f"step {step} {time.time()} {total.item() / world / log_every:.4f}")
            total = torch.zeros(())
        if checkpoint_every and step % checkpoint_every == 0:
            if rank == 0:
                state = {
                    "step": step,
                    "model": model.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
                torch.save(state, f"{file}.new")
                Path(f"{file}.new").replace(file)
            dist.barrier()
    dist.destroy_process_group()


def say(line):
    """Write a line whole: two ranks share the output."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:4]), sys.argv[4])
