"""Data-parallel and sharded training against training alone, in real process groups."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import rank_jobs as jobs
import torch
from ranks import ranks
from spread import places
from starting import frozen_since, taught
from torch import nn

from raymlops.errors import RecipeError, UsageError
from raymlops.training.model.parallel import check, check_compile, layers_to_shard, parallelize

DDP, FSDP = {"strategy": "ddp"}, {"strategy": "fsdp"}


@pytest.fixture(scope="module")
def alone() -> Any:
    """What one process reaches, for each kind of model."""
    return {
        kind: ranks().run(1, partial(jobs.train, steps=4, spec=DDP, config=config, language=kind == "language"))[0]
        for kind, config in MODELS.items()
    }


MODELS = {"blocks": {}, "language": jobs.LANGUAGE, "tied": {"tied": True}, "frozen": {"frozen": True}}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("strategy", "world"), places([("ddp", 2), ("fsdp", 1), ("fsdp", 2), ("fsdp", 3)], 2))
def test_ranks_train_as_one(alone: Any, kind: str, strategy: str, world: int) -> None:
    """Seven rows a step in two uneven pieces on each of 1 to 3 ranks give the losses and weights of one process."""
    spec = {"strategy": strategy, "accumulate": 2}
    job = partial(jobs.train, steps=4, spec=spec, config=MODELS[kind], language=kind == "language")
    found, want = ranks().run(world, job), alone[kind]
    for result in found:
        assert result["losses"] == pytest.approx(want["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(want["norms"], rel=1e-4)
        assert result["state"].keys() == want["state"].keys()
        for name, tensor in want["state"].items():
            torch.testing.assert_close(result["state"][name], tensor, rtol=1e-4, atol=1e-5)


def test_each_rank_holds_a_part() -> None:
    """Under fsdp the ranks' shards add up to the model, and none holds all of it."""
    found = ranks().run(2, partial(jobs.held, spec=FSDP))
    assert sum(held for held, _ in found) == found[0][1]
    assert all(held < 0.7 * total for held, total in found)


@pytest.mark.parametrize("spec", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_gradients_travel_with_the_last_micro_batch(spec: dict[str, Any]) -> None:
    """Before the last micro-batch a rank has its own gradient, or no shard of one; afterwards all have the same."""
    (before, after), (other_before, other_after) = ranks().run(2, partial(jobs.exchanges, spec=spec))
    assert before is None if spec is FSDP else before != other_before
    assert after == pytest.approx(other_after)


def test_evaluation_between_steps_changes_nothing() -> None:
    """A pass without gradient leaves gathered weights behind; the next step must not use stale ones."""
    for plain, evaluated in ranks().run(2, partial(jobs.evaluate_between, spec=FSDP)):
        assert evaluated == plain


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_recomputed_activations_change_nothing(strategy: str, precision: str) -> None:
    """Losses and weights stay the same to the last bit, dropout included."""
    spec = {"strategy": strategy, "precision": precision}
    plain, again = (
        ranks().run(
            2,
            partial(jobs.train, steps=3, config={"dropout": 0.5}, spec=spec | {"activation_checkpointing": recomputed}),
        )[0]
        for recomputed in (False, True)
    )
    assert again["losses"] == plain["losses"]
    for name, tensor in plain["state"].items():
        torch.testing.assert_close(again["state"][name], tensor, rtol=0, atol=0)


def test_recomputed_layers_keep_no_activations() -> None:
    """What a block's inside needs for its gradient is not kept between forward and backward pass."""
    kept = []
    for recomputed in (False, True):
        recipe = jobs.Blocks()
        model = recipe.model()
        loss_of = parallelize(
            recipe, model, jobs.spec_of(activation_checkpointing=recomputed), world_size=1, device="cpu"
        )
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tensor) or tensor, lambda tensor: tensor
        ):
            loss_of(recipe.batch(1))
        kept.append(sum(tensor.shape == (jobs.ROWS, 11) for tensor in saved))
    assert kept[0] > 0 == kept[1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_names_stay(strategy: str) -> None:
    """Whatever is wrapped around a model, its state dict has the recipe's own keys."""
    spec = {"strategy": strategy, "compile": True, "activation_checkpointing": True}
    found = ranks().run(1, partial(jobs.train, steps=0, spec=spec))[0]
    assert list(found["state"]) == list(jobs.Blocks().model().state_dict())


def test_fsdp_says_that_the_model_must_be_called() -> None:
    """A loss that calls a method of the model meets shards; the error says so instead of torch's words."""
    for message in ranks().run(2, partial(jobs.by_hand, spec=FSDP)):
        assert message.startswith("RecipeError: a parameter was used while only its shard was there")
        assert "must call the model itself" in message


class Unsharded(jobs.Blocks):
    """A recipe with a model of its own."""

    given: Any = None

    def __init__(self, model: nn.Module, given: Any = None) -> None:
        super().__init__()
        self._model, self.given = model, given

    def shard_layers(self, model: nn.Module) -> Any:
        return self.given


def test_a_model_without_parameters_cannot_be_sharded() -> None:
    """fsdp on nothing is an error that says what to use instead."""
    with pytest.raises(UsageError, match=r"nothing to shard: Flatten has no parameters(.|\n)*ddp"):
        check(Unsharded(nn.Flatten()), nn.Flatten(), spec=jobs.spec_of(**FSDP))


def test_scalar_parameters_cannot_be_sharded() -> None:
    """fsdp shards the first dimension; a parameter without one is named."""
    model = nn.Linear(2, 2)
    model.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UsageError, match="without a dimension: temperature"):
        check(Unsharded(model), model, spec=jobs.spec_of(**FSDP))


def test_recomputing_nothing_is_an_error() -> None:
    """Activation checkpointing that finds no layer would silently save nothing."""
    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"no submodule of at least train\.shard_min_params = 50"):
        check(Unsharded(model), model, spec=jobs.spec_of(activation_checkpointing=True))


def test_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing on PATH compiles C++, the error names what is missing."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"train\.compile needs a C\+\+ compiler"):
        check_compile()


class Encoder(nn.Module):
    """Blocks in a list inside a submodule, with attention that reaches for a submodule's weight by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 8)
        self.stage = nn.Module()
        self.stage.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3))
        self.small = nn.Linear(2, 2)
        self.head = nn.Linear(8, 50)


def test_layers_by_size() -> None:
    """Repeated blocks as wholes, then large other modules; neither small ones nor the embedding nor what is inside."""
    model = Encoder()
    assert layers_to_shard(Unsharded(model), model, min_params=100) == [*model.stage.layers, model.head]
    assert layers_to_shard(Unsharded(model), model, min_params=10**6) == []


def test_tied_modules_stay_with_the_whole() -> None:
    """A module that shares its weight with another is not sharded by itself: that would untie them."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    assert layers_to_shard(Unsharded(model), model, min_params=10) == [model[1]]


def test_layers_of_the_recipe() -> None:
    """What shard_layers names is taken as it is."""
    model = Encoder()
    assert layers_to_shard(Unsharded(model, [model.small]), model, min_params=10**6) == [model.small]


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda model: model.small, "must return a list of submodules"),
        (lambda model: [nn.Linear(1, 1)], "must return a list of submodules"),
        (lambda model: [model], "must return a list of submodules"),
        (lambda model: [model.stage.layers], "stage.layers is a ModuleList, which is never run"),
        (lambda model: [model.stage.layers[0], model.stage.layers[0].linear1], r"linear1 lies inside stage\.layers\.0"),
    ],
)
def test_wrong_layers_of_the_recipe(choose: Any, message: str) -> None:
    """shard_layers returns separate submodules of the model that it gets."""
    model = Encoder()
    with pytest.raises(RecipeError, match=message):
        layers_to_shard(Unsharded(model, choose(model)), model, min_params=1)


def test_tied_layers_of_the_recipe() -> None:
    """Naming one of two modules with a shared weight is refused."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    with pytest.raises(RecipeError, match="0 shares a parameter with a module outside it"):
        layers_to_shard(Unsharded(model, [model[0]]), model, min_params=1)


def test_a_parameter_without_a_gradient_names_the_setting(tiny_project: Any) -> None:
    """DDP waits for the gradient of a layer that was skipped; the error says which and what to set, and it helps."""
    project = tiny_project(recipe="starting:SkippingTogether").to_dict()
    found = ranks().run(2, taught, project, False)
    assert any(
        "UsageError: often.weight, often.bias had no part in the loss of the last step" in text for text in found
    )
    assert ranks().run(2, taught, project, True) == ["trained", "trained"]


def test_a_parameter_without_a_gradient_is_named_where_others_were_frozen_since() -> None:
    """Torch counts those that it reduces, and waits for the frozen ones too."""
    for text in ranks().run(2, frozen_since):
        assert text.startswith("UsageError: frozen.weight, frozen.bias, skipped.weight, skipped.bias had no part in")
