"""A small GPT on definitions of Python's standard library: script.py as a recipe. How it is trained: config.yaml."""

import sysconfig
from pathlib import Path

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from raymlops import Column, RecipeBase, RecipeConfig, Signature, Splits

BLOCK, WIDTH, HEADS, LAYERS = 64, 64, 4, 2
START, PAD = 256, 257


def tokens(text):
    return torch.tensor([START, *text.encode()[:BLOCK]])


def splits():
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [(folder / name).read_text() for name in ("argparse.py", "ast.py", "inspect.py", "tarfile.py", "typing.py")]
    rows = [tokens(part) for text in texts for part in text.split("\n\n") if part.strip()]
    return [[row for number, row in enumerate(rows) if number % 10 in kept] for kept in (range(8), (8,), (9,))]


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


class Definitions(RecipeBase):
    class Config(RecipeConfig):
        dropout: float = Field(0.1, ge=0, lt=1, description="share of each branch dropped in training")

    def datasets(self):
        return Splits(*splits())

    def collate(self, rows):
        return pad_sequence(rows, batch_first=True, padding_value=PAD)

    def model(self):
        return Gpt(self.config.dropout)

    def loss(self, model, rows):  # a sum and the tokens it is over: the mean is the same in any number of pieces
        read, wanted = rows[:, :-1], rows[:, 1:]
        total = functional.cross_entropy(model(read).transpose(1, 2), wanted, ignore_index=PAD, reduction="sum")
        return total, (wanted != PAD).sum()

    def signature(self):
        return Signature((Column("text", "string"),), (Column("nats_per_byte", "float", nullable=True),))

    def example(self):
        return [{"text": "def main():"}, {"text": "import os"}]

    def encode(self, columns):
        return self.collate([tokens(text) for text in columns["text"]])

    def predict(self, model, rows):
        read, wanted = rows[:, :-1], rows[:, 1:]
        nats = functional.cross_entropy(model(read).transpose(1, 2), wanted, ignore_index=PAD, reduction="none")
        return nats.sum(1) / (wanted != PAD).sum(1)
