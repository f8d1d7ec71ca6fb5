"""Is a line of source a comment? A transformer of Hugging Face with LoRA: script.py as a recipe."""

import sysconfig
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, BertConfig

from raymlops import Column, RecipeBase, RecipeConfig, Signature, Splits

LONGEST, PAD = 32, 256


def tokens(text):
    return torch.tensor([*text.encode()[:LONGEST]] or [PAD])


def splits():
    folder = Path(sysconfig.get_paths()["stdlib"])
    lines = [
        line.strip() for name in ("argparse.py", "tarfile.py") for line in (folder / name).read_text().splitlines()
    ]
    comments = [line.lstrip("# ") for line in lines if line.startswith("# ")]
    code = [line for line in lines if line and not line.startswith("#")]
    rows = [pair for one, other in zip(comments, code, strict=False) for pair in ((one, 1), (other, 0))]
    items = [(tokens(text), label) for text, label in rows if text]
    return items[:-200], items[-200:-100], items[-100:]


def network(dropout):
    config = BertConfig(
        vocab_size=257,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    base = AutoModelForSequenceClassification.from_config(config)
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))


class Comments(RecipeBase):
    class Config(RecipeConfig):
        dropout: float = Field(0.1, ge=0, lt=1, description="share of units and attention dropped in training")

    def datasets(self):
        return Splits(*splits())

    def collate(self, items):
        read = pad_sequence([row for row, _ in items], batch_first=True, padding_value=PAD)
        return {
            "input_ids": read,
            "attention_mask": (read != PAD).long(),
            "labels": torch.tensor([label for _, label in items]),
        }

    def model(self):
        return network(self.config.dropout)

    def loss(self, model, batch):
        return model(**batch).loss

    def metrics(self, model, batch):
        right = model(**batch).logits.argmax(1) == batch["labels"]
        return {"accuracy": right.sum(), "count": torch.tensor(float(len(right)))}

    def signature(self):
        return Signature((Column("text", "string"),), (Column("probability", "float"),))

    def example(self):
        return [{"text": "return None"}, {"text": "the name of a file"}]

    def encode(self, columns):
        batch = self.collate([(tokens(text), 0) for text in columns["text"]])
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def predict(self, model, batch):
        return model(**batch).logits.softmax(1)[:, 1]
