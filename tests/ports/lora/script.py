"""Is a line of source a comment? A transformer of Hugging Face with LoRA, in plain PyTorch."""

import sysconfig
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, BertConfig

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


def collate(items):
    read = pad_sequence([row for row, _ in items], batch_first=True, padding_value=PAD)
    return {
        "input_ids": read,
        "attention_mask": (read != PAD).long(),
        "labels": torch.tensor([label for _, label in items]),
    }


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


def main(*, seed=0, epochs=4, order=None, dropout=0.1):
    torch.manual_seed(seed)
    train, validation, _ = splits()
    how = {"batch_sampler": order} if order else {"batch_size": 16, "shuffle": True}
    loader = DataLoader(train, collate_fn=collate, **how)
    model = network(dropout)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    losses, metrics = [], {}
    for epoch in range(epochs):
        model.train()
        for batch in loader:
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            held = collate(validation)
            metrics = {"accuracy": float((model(**held).logits.argmax(1) == held["labels"]).float().mean())}
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {metrics['accuracy']:.3f}")
    return losses, metrics


if __name__ == "__main__":
    main()
