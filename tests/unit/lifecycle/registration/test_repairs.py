"""A finished run whose code is repaired is registered with the same weights, and the record says so."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from raymlops.bundle.load import load
from raymlops.cli.main import main
from raymlops.config.load import load_data
from raymlops.errors import GateRefusedError, RefusedError
from raymlops.lifecycle.registration.gate import gate
from raymlops.lifecycle.registration.register import register
from raymlops.project import bind
from raymlops.registry.versions import Registry
from raymlops.state.database import state_url
from raymlops.state.store import State
from raymlops.tracking.client import tracker
from raymlops.training.run import train

BROKEN = """
from tiny import Tiny, TinyConfig

class Config(TinyConfig):
    pass

class Shop(Tiny):
    Config = Config

    def decode(self, output):
        return {"probability": super().decode(output)["probability"] * float("inf")}
"""
FIXED = BROKEN.replace("pass", "scale: float = 1.0").partition("    def decode")[0]
OTHER = (
    FIXED + "    def encode(self, columns):\n        return super().encode({**columns, 'width': columns['length']})\n"
)


class Shop:
    """A project whose recipe is a file that is edited."""

    def __init__(self, folder: Path, storage_path: Path, forget) -> None:
        self._file = folder / "repaired_shop.py"
        self._forget = forget
        self.data = {
            "project": {"name": "shop"},
            "recipe": {
                "import": "repaired_shop:Shop",
                "config": {"train_rows": 300, "validation_rows": 100, "test_rows": 50},
            },
            "train": {"epochs": 1, "threads_per_worker": 1},
            "storage": {"path": str(storage_path)},
        }

    def edit(self, text: str) -> None:
        """Write the file, as if before this process started, which imports it anew."""
        self._file.write_text(text)
        os.utime(self._file, (0, 0))
        self._forget()

    def tags(self, version: int) -> dict[str, str]:
        return Registry(tracker(load_data(self.data).spec)).tags("shop", version)

    def reasons(self) -> list[str]:
        with State.open(state_url(load_data(self.data).spec)) as state:
            return [event.why for event in reversed(state.events("shop")) if event.action == "register"]


@pytest.fixture
def shop(tmp_path, storage_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Shop(tmp_path, storage_path, lambda: sys.modules.pop("repaired_shop", None))
    made.edit(BROKEN)
    yield made
    sys.modules.pop("repaired_shop", None)


def test_a_decode_that_the_gate_refused_costs_no_training(shop, tmp_path, capsys):
    """Another version of the same weights, beside the first one; the code of the training is on record."""
    run_id = train(bind(load_data(shop.data))).run_id
    first = register(shop.data, run_id)
    with pytest.raises(GateRefusedError, match="answers requests") as refused:
        gate(shop.data, str(first.version))
    assert f"raymlops models register {run_id} --repaired" in str(refused.value.hint)

    shop.edit(FIXED)
    assert register(shop.data, run_id) == first
    second = register(shop.data, run_id, repaired=True)
    assert (second.version, second.run_id, first.code_sha) == (2, run_id, "")
    assert second.aliases == ("candidate",)
    assert gate(shop.data, "2")[1].passed
    tags = shop.tags(2)
    assert tags["raymlops.code_sha"] == second.code_sha != tags["raymlops.trained_code_sha"]
    assert tags["raymlops.code_change"] == "changed: repaired_shop.py"
    loaded = load(second.bundle.uri, second.bundle.digest)
    assert loaded.lineage["raymlops.code_sha"] == second.code_sha
    assert loaded.recipe.config.scale == 1.0  # a field that the run's configuration does not know has its default
    assert Path(first.bundle.uri, "weights.safetensors").read_bytes() == (
        Path(second.bundle.uri, "weights.safetensors").read_bytes()
    )
    assert shop.reasons() == [
        f"run {run_id} requested",
        f"run {run_id} requested; its code changed since its training (changed: repaired_shop.py)",
    ]
    (tmp_path / "config.yaml").write_text(json.dumps(shop.data))
    assert main(["models", "list", "--config", str(tmp_path / "config.yaml")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [f"changed since its training: {second.code_sha[:12]}" in row for row in rows] == [False, False, True]

    assert register(shop.data, run_id, repaired=True).version == 2
    shop.edit(BROKEN)
    assert register(shop.data, run_id, repaired=True).version == 1
    shop.edit(OTHER)
    with pytest.raises(RefusedError, match="does not evaluate as it did: validation/"):
        register(shop.data, run_id, repaired=True)
    assert register(shop.data, run_id).version == 2


def test_a_registration_that_was_killed_before_its_record_is_completed(shop):
    """The code as it is now gives the same version; other code is told how to become another one."""
    run_id = train(bind(load_data(shop.data))).run_id
    shop.edit(FIXED)
    first = register(shop.data, run_id)
    Path(shop.data["storage"]["path"], "state.db").unlink()
    again = register(shop.data, run_id)
    assert (again.version, again.bundle) == (first.version, first.bundle)
    assert first.code_sha


def test_what_the_package_gathers_after_the_training_makes_no_other_bundle(shop, tmp_path):
    """Outputs beside the code, and versions that are installed later."""
    package = tmp_path / "gathering_shop"
    package.mkdir()
    (package / "__init__.py").write_text("from tiny import Tiny\n\n\nclass Shop(Tiny):\n    pass\n")
    (package / "spm.model").write_text("m")
    os.utime(package / "__init__.py", (0, 0))
    shop.data["recipe"]["import"] = "gathering_shop:Shop"
    run_id = train(bind(load_data(shop.data))).run_id
    first = register(shop.data, run_id)
    recipe = json.loads(Path(first.bundle.uri, "recipe.json").read_text())
    assert recipe["left_out"] == ["gathering_shop/spm.model"]
    assert "torch" in recipe["requirements"]

    (package / "output.bin").write_text("o")
    Path(shop.data["storage"]["path"], "state.db").unlink()
    assert register(shop.data, run_id).bundle == first.bundle
    sys.modules.pop("gathering_shop")
