"""The first weights of a run: the same for any strategy and number of ranks, and whole on no rank but the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_jobs import spec_of
from ranks import ranks
from starting import copied, started
from torch import nn

from raymlops.errors import UsageError
from raymlops.training.model.build import check_room

FSDP = {"strategy": "fsdp", "num_workers": 2, "shard_min_params": 20}


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("recipe", ["StackedTiny", "Pretrained"])
def test_a_sharded_model_starts_as_a_whole_one(tiny_project: Any, recipe: str) -> None:
    """Parameters, tied ones, buffers that no checkpoint holds: bit by bit those of ddp, on one, two and three ranks."""
    options = {"recipe": f"starting:{recipe}", "drop_last": True}
    (expected,) = ranks().run(1, started, tiny_project(**options).to_dict())
    for world in (1, 2, 3):
        found = ranks().run(world, started, tiny_project(**options, **FSDP).to_dict())
        for rank, each in enumerate(found):
            equal(each["first"], expected["first"])
            assert each["tied"]
            assert each["said"] == []
            assert each["devices"] == (["meta", "cpu"] if rank == 0 else ["meta"])
            assert each["drew"] == found[0]["drew"]
        assert sum(each["part"] for each in found) == pytest.approx(1)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "item",
            "RecipeError: NeedsNumbers.model() raised RuntimeError: Tensor.item() cannot be called on meta tensors",
        ),
        ("attribute", "mask holds a tensor that is neither parameter nor buffer"),
        ("structure", "its tensors have other names, shapes or types there"),
    ],
)
def test_a_model_that_needs_numbers_is_built_whole(tiny_project: Any, how: str, reason: str) -> None:
    """It says why, and the weights are the same."""
    options = {"recipe": "starting:NeedsNumbers", "config": {"how": how}}
    (expected,) = ranks().run(1, started, tiny_project(**options).to_dict())
    found = ranks().run(2, started, tiny_project(**options, **FSDP).to_dict())
    for each in found:
        equal(each["first"], expected["first"])
        close(each["after"], expected["after"])
    (said,) = found[0]["said"]
    assert said.startswith("every worker builds the whole model before it is sharded: model() on torch's meta device: ")
    assert reason in said


@pytest.mark.parametrize(
    ("options", "nodes", "part"),
    [
        ({"shard_over": "node"}, [0, 0, 1, 1], 1 / 2),
        ({"shard_over": "node"}, [0, 0, 0, 1], 1 / 4),
        ({"shard_over": "node"}, [0, 1, 0, 1], 1 / 4),
        ({"cpu_offload": True}, None, 1 / 4),
        ({"activation_checkpointing": True}, None, 1 / 4),
        ({"activation_checkpointing": True, "shard_over": "node", "cpu_offload": True}, [0, 0, 1, 1], 1 / 2),
    ],
)
def test_ways_of_sharding_train_alike(tiny_project: Any, options: Any, nodes: Any, part: float) -> None:
    """Over the ranks of each node or over all, in host memory or not: three steps lead to the weights of one rank."""
    (expected,) = ranks().run(1, started, tiny_project().to_dict())
    found = ranks().run(4, started, tiny_project(**options, **FSDP).to_dict(), nodes)
    uneven = nodes in ([0, 0, 0, 1], [0, 1, 0, 1])
    for each in found:
        close(each["after"], expected["after"])
    assert sum(each["part"] for each in found) == pytest.approx(4 * part)
    assert [text.startswith("train.shard_over is node, but") for text in found[0]["said"]] == [True] * uneven


@pytest.mark.parametrize(
    ("options", "free_mib", "expected"),
    [
        # 3 layers of 4 MiB: 12 of weights, 12 of gradients, 24 of moments: 48, of which a quarter is 12; all 3 at once.
        ({}, 24, None),
        ({}, 23, "5 of them would have room for it"),  # 48 / (23 - 12) = 4.4
        ({"optimizer": "sgd"}, 21, None),  # 36 / 4 + 12
        ({"optimizer": "sgd"}, 20, "5 of them would have room for it"),
        ({"precision": "bf16"}, 18, None),  # 12 + 6
        ({"cpu_offload": True}, 12, None),
        ({"cpu_offload": True}, 11, "name smaller parts"),
    ],
)
def test_a_device_with_too_little_memory(options: dict[str, Any], free_mib: int, expected: str | None) -> None:
    """It is refused before anything is allocated there, and it says how many would do."""
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False, device="meta") for _ in range(3)))
    spec = spec_of(strategy="fsdp", **options)
    if expected is None:
        check_room(model, spec, ranks=4, free_bytes=free_mib << 20)
        return
    with pytest.raises(UsageError, match=r"does not fit 4 such devices") as raised:
        check_room(model, spec, ranks=4, free_bytes=free_mib << 20)
    assert expected in str(raised.value.hint)


def test_tensors_of_any_layout_are_copied() -> None:
    """An expanded one has one number in memory: what lies behind it is another tensor's."""
    turned = [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    for rank, found in enumerate(ranks().run(2, copied)):
        assert found == [[0.0] * 4, turned, 0.0, [float(rank)] * 7]
