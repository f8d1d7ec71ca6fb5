"""A small GPT on definitions of Python's standard library, in plain PyTorch: python script.py, 30 s."""

import math
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

BLOCK, WIDTH, HEADS, LAYERS = 64, 64, 4, 2
START, PAD = 256, 257
MAX_STEPS, WARMUP, LR, FLOOR = 200, 20, 3e-3, 0.1


def tokens(text):
    return torch.tensor([START, *text.encode()[:BLOCK]])


def splits():
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [(folder / name).read_text() for name in ("argparse.py", "ast.py", "inspect.py", "tarfile.py", "typing.py")]
    rows = [tokens(part) for text in texts for part in text.split("\n\n") if part.strip()]
    return [[row for number, row in enumerate(rows) if number % 10 in kept] for kept in (range(8), (8,), (9,))]


def collate(rows):
    return pad_sequence(rows, batch_first=True, padding_value=PAD)


class Block(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream):
        heads = self.qkv(self.first(stream)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        stream = stream + self.dropout(self.out(mixed))
        return stream + self.dropout(self.feed(self.second(stream)))


class Gpt(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.token, self.position = nn.Embedding(258, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.Sequential(*(Block(dropout) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, read):
        stream = self.token(read) + self.position.weight[: read.shape[1]]
        return self.head(self.norm(self.blocks(stream)))


def loss_of(model, rows):
    read, wanted = rows[:, :-1], rows[:, 1:]
    return functional.cross_entropy(model(read).transpose(1, 2), wanted, ignore_index=PAD)


def rate(step, max_steps):
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    progress = (step - WARMUP) / (max_steps - WARMUP)
    return LR * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)


def main(*, seed=0, max_steps=MAX_STEPS, order=None, dropout=0.1):
    torch.manual_seed(seed)
    train, validation, _ = splits()
    how = {"batch_sampler": order} if order else {"batch_size": 32, "shuffle": True}
    loader = DataLoader(train, collate_fn=collate, **how)
    model = Gpt(dropout)
    decayed = [value for value in model.parameters() if value.ndim >= 2]
    others = [value for value in model.parameters() if value.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    losses, metrics, step = [], {}, 0
    while step < max_steps:
        for rows in loader:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, max_steps)
            loss = loss_of(model, rows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            step += 1
            if step % 50 == 0 or step == max_steps:
                model.eval()
                with torch.no_grad():
                    metrics = {"loss": float(loss_of(model, collate(validation)))}
                model.train()
                print(f"step {step}: loss {loss.item():.3f}, validation {metrics['loss']:.3f}")
            if step == max_steps:
                break
    return losses, metrics


if __name__ == "__main__":
    main()
