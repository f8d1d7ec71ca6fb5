"""Which byte comes next? A decoder-only transformer on the source text of Python's own standard library.

Owns corpus, network and scoring. From the default, about a minute of training, to a large model it takes nothing but
configuration: ``layers``, ``heads``, ``width``, ``block``, ``dropout`` and ``corpus_bytes``.

A row is a window of ``block`` bytes that starts without context: token 256 precedes its first byte, token 257
follows its last where it is shorter. Windows do not overlap, so every byte is predicted exactly once.
"""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from raymlops.arrays import Column, Columns
from raymlops.errors import RecipeError
from raymlops.recipe import RecipeBase, RecipeConfig, Splits
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

START, PAD = 256, 257
VOCABULARY = 258

_HELD_OUT_SHARE = 16
"""Validation and test hold at most one byte for so many of training."""
_LEFT_OUT = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"})


class ByteLM(RecipeBase):
    """Pre-norm blocks with rotary positions and tied embeddings.

    With ``configs/bytelm.yaml``: 2.53 bits a byte on held-out files after 70 s on one core, a single pass over 1.5 MB.
    Byte frequencies alone need 4.75 there, gzip, which looks back 256 times as far, 2.13.
    """

    class Config(RecipeConfig):
        """What makes a small model large."""

        layers: int = Field(2, ge=1, le=256, description="transformer blocks")
        heads: int = Field(4, ge=1, le=256, description="attention heads; they divide width into even parts")
        width: int = Field(128, ge=8, le=65536, description="numbers that stand for one position")
        block: int = Field(128, ge=2, le=1_000_000, description="bytes in a window")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of each branch's output dropped in training")
        corpus_bytes: int = Field(1_500_000, ge=10_000, description="bytes of training text at most")

        @model_validator(mode="after")
        def _heads_divide_width(self) -> ByteLM.Config:
            if self.width % (2 * self.heads):
                msg = f"width {self.width} must be a multiple of twice heads, {2 * self.heads}"
                raise ValueError(msg)
            return self

    config: Config

    def datasets(self) -> Splits:
        """Return windows of the standard library's files; every file is in one split alone, by a hash of its name."""
        train = self.config.corpus_bytes
        sizes = {"train": train, "validation": train // _HELD_OUT_SHARE, "test": train // _HELD_OUT_SHARE}
        return Splits(**{name: Windows(_corpus(name, size), self.config.block) for name, size in sizes.items()})

    def model(self) -> nn.Module:
        """Return the transformer."""
        return Transformer(self.config)

    def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed cross-entropy of the bytes in nats, and their number: windows may be padded."""
        logits, targets = _shifted(model, batch["tokens"])
        nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum")
        return nats, (targets != PAD).sum()

    def shard_layers(self, model: nn.Module) -> list[nn.Module]:
        """Return the blocks; the embedding is the output layer as well, so it stays with the whole."""
        return list(cast("Transformer", model).blocks)

    def tokens_per_row(self) -> int:
        """Return the bytes that a window predicts."""
        return self.config.block

    def flops_per_row(self) -> float:
        """Return 6 N + 12 L W T a token: PaLM's count (Chowdhery et al., 2022, appendix B), without recomputation.

        N are the weights of matrix products: 12 W^2 a block and the output layer's. Of the T by T attention
        both halves count, though the mask hides one.
        """
        layers, width, block = self.config.layers, self.config.width, self.config.block
        weights = 12 * layers * width**2 + VOCABULARY * width
        return float(block * (6 * weights + 12 * layers * width * block))

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return the summed nats and the number of bytes they are over."""
        nats, count = _nats(*_shifted(model, batch["tokens"]))
        return {"nats": nats.sum(), "bytes": count.sum(), "count": torch.tensor(float(len(count)))}

    def finalize(self, totals: Mapping[str, Any]) -> dict[str, float]:
        """Return ``loss`` in nats a byte, ``bits_per_byte`` and ``perplexity`` a byte."""
        loss = float(totals["nats"]) / max(1.0, float(totals["bytes"]))
        return {"loss": loss, "bits_per_byte": loss / math.log(2), "perplexity": math.exp(loss)}

    def signature(self) -> Signature:
        """Return text in, and how well it is predicted and how it continues."""
        return Signature(
            inputs=(Column("text", "string", description=f"the last {self.config.block} bytes of its UTF-8 are read"),),
            outputs=(
                Column(
                    "bits_per_byte", "float", nullable=True, description="of the bytes read; null for an empty text"
                ),
                Column("next", "string", description="most likely next byte, escaped where it is no ASCII"),
            ),
        )

    def example(self) -> list[dict[str, Any]]:
        """Return two beginnings of Python source."""
        return [{"text": "import numpy as n"}, {"text": "def __init__(self"}]

    def encode(self, columns: Columns) -> dict[str, torch.Tensor]:
        """Turn texts into tokens, (rows, longest + 1), padded behind their ends, which no earlier position sees."""
        texts = [text.encode("utf-8", "surrogateescape")[-self.config.block :] for text in columns["text"]]
        tokens = np.full((len(texts), 1 + max(map(len, texts))), PAD, dtype=np.int64)
        tokens[:, 0] = START
        for row, text in zip(tokens, texts, strict=True):
            row[1 : 1 + len(text)] = np.frombuffer(text, dtype=np.uint8)
        return {"tokens": torch.from_numpy(tokens)}

    def predict(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return each row's nats, its number of bytes and the most likely byte behind its last."""
        tokens = batch["tokens"]
        logits = model(tokens)
        nats, count = _nats(logits[:, :-1], tokens[:, 1:])
        last = logits[torch.arange(len(tokens), device=tokens.device), count]
        return {"nats": nats, "bytes": count, "next": last[:, :START].argmax(1)}

    def decode(self, output: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Turn nats into bits and bytes into text."""
        nats, count, following = (output[name].detach().cpu().numpy() for name in ("nats", "bytes", "next"))
        bits = np.full(len(nats), np.nan)
        np.divide(nats, count * math.log(2), out=bits, where=count > 0)
        text = [bytes([byte]).decode("ascii", "backslashreplace") for byte in following.tolist()]
        return {"bits_per_byte": bits, "next": np.array(text, dtype=object)}


class Windows(Dataset[dict[str, torch.Tensor]]):
    """A text as windows of ``{"tokens": int64 (block + 1,)}``, each beginning with START, the last one padded."""

    def __init__(self, text: npt.NDArray[np.uint8], block: int) -> None:
        count = -(-len(text) // block)
        tokens = np.full((count, block + 1), PAD, dtype=np.int16)
        tokens[:, 0] = START
        tokens[:, 1:].flat[: len(text)] = text
        self._tokens = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"tokens": self._tokens[index].long()}


class Transformer(nn.Module):
    """Map tokens (batch, length) to the logits of each next token, (batch, length, VOCABULARY)."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ByteLM.Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.first_norm, self.last_norm = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        # Rotary positions (Su et al., 2021): a pair of numbers turns by position times one of head/2 frequencies.
        frequencies = 10_000.0 ** -torch.arange(0, 1, 2 * config.heads / config.width)
        angles = torch.outer(torch.arange(config.block + 1), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        # As output layer too, so a token must not yet predict itself: the logit of that is width * std, 2.6 at 128.
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits; position i sees tokens up to i alone."""
        length = tokens.shape[1]
        hidden = self.first_norm(self.embedding(tokens))
        for block in self.blocks:
            hidden = block(hidden, self.cos[:length], self.sin[:length])
        logits: torch.Tensor = functional.linear(self.last_norm(hidden), self.embedding.weight)
        return logits


class Block(nn.Module):
    """Attention, then a feed-forward network, each normalised before and added to what came in."""

    def __init__(self, config: ByteLM.Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm, self.feed_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        # Two branches a block add up in the stream: smaller last layers keep its size independent of depth (GPT-2).
        for last in (self.out, self.down):
            nn.init.normal_(last.weight, std=(2 * config.layers * last.in_features) ** -0.5)

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return the stream after both branches, (batch, length, width)."""
        batch, length, width = hidden.shape
        qkv = self.qkv(self.attention_norm(hidden)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        fed = self.down(functional.gelu(self.up(self.feed_norm(hidden))))
        stream: torch.Tensor = hidden + self.dropout(fed)
        return stream


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _shifted(model: nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return model(tokens[:, :-1]), tokens[:, 1:]


def _nats(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's summed cross-entropy and its number of bytes, (batch,) each."""
    nats = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=PAD, reduction="none")
    return nats.sum(1), (targets != PAD).sum(1)


@lru_cache(maxsize=6)
def _corpus(split: str, size: int) -> npt.NDArray[np.uint8]:
    """Return up to ``size`` bytes of the split's files.

    The hash of a file's name both chooses its split (1 in 16 validation, 1 in 16 test) and orders the files, so that a
    small corpus is a mixture of all topics. Nothing of it depends on the machine but the Python version.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    text = bytearray()
    for digest, name in _hashed_names(root):
        if _split_of(digest) == split and len(text) < size:
            text += (root / name).read_bytes()
    if not text:
        raise RecipeError(
            f"the bytelm recipe found no Python sources for its {split} split in {root}",
            hint="Install Python with the .py files of its standard library.",
        )
    return np.frombuffer(bytes(text[:size]), dtype=np.uint8)


@lru_cache(maxsize=1)
def _hashed_names(root: Path) -> tuple[tuple[str, str], ...]:
    """Return the hash and the name of every file, by hash; ``os.walk`` does not even enter the folders left out."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    return tuple(sorted((hashlib.sha256(name.encode()).hexdigest(), name) for name in names))


def _split_of(digest: str) -> str:
    return {"0": "validation", "1": "test"}.get(digest[-1], "train")
