"""What a recipe may bring of its own: losses with weights and parts, samplers, optimizers, schedules, averages."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import own_ways
import pytest
import torch
from attempts import Attempt
from local_training import run_local
from loop_jobs import messages, resumed, trained
from ranks import ranks
from saved_weights import load_weights
from spread import places
from tiny import Tiny

from raymlops.data.prepare import prepare
from raymlops.errors import ConfigError, NonFiniteError, RecipeError, UsageError
from raymlops.loss_value import loss_value
from raymlops.recipe import RecipeBase
from raymlops.training.loop.early_stopping import Best
from raymlops.training.loop.optimizer import Schedule, build_optimizer

if TYPE_CHECKING:
    from pathlib import Path

SGD = {"optimizer": "sgd", "lr": 0.1, "schedule": "constant"}


@pytest.mark.parametrize("form", ["pair", "parts"])
def test_a_loss_with_weights_is_the_same_in_any_number_of_pieces(tiny_project: Any, form: str) -> None:
    """Class weights of 1 and 10: one batch of 64, its four pieces, and the sums over two ranks give one model."""
    project = tiny_project(recipe="own_ways:Weighted", config={"form": form}, **SGD)
    whole = run_local(project)
    pieces = run_local(tiny_project(recipe="own_ways:Weighted", config={"form": form}, accumulate=4, **SGD))
    (_, of_ranks), _ = ranks().run(2, trained, project.to_dict())
    for name, tensor in whole.model_state.items():
        torch.testing.assert_close(pieces.model_state[name], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.tensor(of_ranks[name]), tensor, rtol=1e-5, atol=1e-6)
    assert pieces.history[-1]["train/loss"] == pytest.approx(whole.history[-1]["train/loss"], rel=1e-5)


def test_a_weighted_sum_is_the_mean_that_torch_gives(tiny_project: Any) -> None:
    """In one piece, sum over weight is torch's weighted mean; parts add up to it."""
    found = {
        form: run_local(tiny_project(recipe="own_ways:Weighted", config={"form": form}, batch_size=300, **SGD))
        for form in ("mean", "pair", "parts")
    }
    for name, tensor in found["mean"].model_state.items():
        torch.testing.assert_close(found["pair"].model_state[name], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["parts"].model_state[name], tensor, rtol=1e-5, atol=1e-6)
    last = found["parts"].history[-1]
    assert last["train/positives"] + last["train/negatives"] == pytest.approx(last["train/loss"], rel=1e-6)


def test_parts_are_reported_and_know_the_step(tiny_project: Any) -> None:
    """The penalty's weight is step / steps: 0 in the first of ten steps, growing."""
    history = run_local(tiny_project(recipe="own_ways:Annealed", epochs=2)).history
    for epoch in history:
        assert epoch["train/loss"] == pytest.approx(epoch["train/cross_entropy"] + epoch["train/penalty"], rel=1e-5)
    first = run_local(tiny_project(recipe="own_ways:Annealed", max_steps=1)).history[0]
    assert first["train/penalty"] == 0 < history[-1]["train/penalty"]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (torch.ones(1), 1.0),
        ((torch.tensor(6.0), 3), 2.0),
        ((torch.tensor(0.0), torch.tensor(0.0)), 0.0),
        ({"a": torch.tensor(1.0), "b": torch.ones(1, 1)}, 2.0),
        (({"a": torch.tensor(1.0), "b": torch.tensor(3.0)}, torch.tensor(2)), 2.0),
    ],
)
def test_what_a_loss_may_be(returned: Any, expected: float) -> None:
    """A mean, a sum with its weight, or parts of either; a batch whose weights are all zero costs nothing."""
    assert loss_value(returned, where="loss()").mean().item() == expected


def test_a_loss_of_one_element_trains_as_a_scalar(tiny_project: Any) -> None:
    """Whatever its shape."""
    recipe = type("Tiny", (Tiny,), {"loss": lambda *given: Tiny.loss(*given)[None]})
    project = tiny_project(accumulate=2)
    assert run_local(dataclasses.replace(project, recipe_class=recipe)).history == run_local(project).history


def test_a_weight_is_where_the_sum_is() -> None:
    """A number of rows is one of the CPU; sums over steps and ranks are made on the training's device."""
    for total in (torch.ones((), device="meta"), {"a": torch.ones((), device="meta")}):
        found = loss_value((total, 3), where="loss()").weight
        assert found is not None
        assert found.device.type == "meta"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.ones(3), r"returned a tensor of shape \(3,\)"),
        (1.5, "returned a float"),
        ((torch.ones(()),), "returned a tuple of 1"),
        ({}, "an empty dict"),
        ({"kl": torch.ones(2)}, r"\['kl'\] returned a tensor of shape \(2,\)"),
        ({"loss": torch.ones(()), "kl": torch.ones(())}, "a part named 'loss', which is the name of their sum"),
        ({"lr": torch.ones(())}, "a part named 'lr', which is the name of the learning rate"),
        ((torch.ones(()), torch.ones(2)), r"the weight returned a tensor of shape \(2,\)"),
    ],
)
def test_what_a_loss_may_not_be(returned: Any, message: str) -> None:
    """The error says what was returned and what may be."""
    with pytest.raises(RecipeError, match=message):
        loss_value(returned, where="R.loss()")


def test_micro_batches_have_the_same_parts(tiny_project: Any) -> None:
    """As steps do: a part that is there now and then is not zero elsewhere."""

    def loss(self: Any, model: Any, batch: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        fit = Tiny.loss(self, model, batch)
        return {"fit": fit} if self.calls % 2 else {"fit": fit, "more": fit}

    recipe = type("Tiny", (Tiny,), {"loss": loss})
    with pytest.raises(RecipeError, match=r"the parts \['fit', 'more'\], and \['fit'\] in the micro-batch before"):
        run_local(dataclasses.replace(tiny_project(accumulate=2), recipe_class=recipe))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_is_of_one_form(tiny_project: Any, accumulate: int) -> None:
    """A mean and a sum with its weight cannot be added up."""
    recipe = type("Tiny", (own_ways.Weighted,), {"loss": _now_this_now_that})
    project = dataclasses.replace(tiny_project(recipe="own_ways:Weighted", accumulate=accumulate), recipe_class=recipe)
    with pytest.raises(
        RecipeError, match=r"returned a mean for one (step|micro-batch) and \(sum, weight\) for another"
    ):
        run_local(project)


def _now_this_now_that(self: Any, model: Any, batch: Any) -> Any:
    found = own_ways.Weighted.loss(self, model, batch)
    self.calls = getattr(self, "calls", 0) + 1
    return found if self.calls % 2 else found[0] / found[1]


class Boxes(own_ways.Ragged):
    """Items whose label is a list of one to three boxes, of which the batch is a list."""

    def collate(self, items: list[Any]) -> Any:
        boxes = [{"boxes": torch.zeros(len(item["x"]), 4)} for item in items]
        return {**super().collate(items), "target": torch.tensor([item["label"] for item in items]), "label": boxes}

    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, {**batch, "label": batch["target"]})


def test_default_metrics_count_items_whatever_the_label_is(tiny_project: Any) -> None:
    """The mean over six items in batches of four and two, by hand."""
    config = {"train_rows": 20, "validation_rows": 6}
    project = tiny_project(recipe="own_ways:Ragged", config=config, eval_batch_size=4, lr=1e-9)
    found = run_local(dataclasses.replace(project, recipe_class=Boxes)).history[-1]["validation/loss"]
    assert found == pytest.approx(run_local(project).history[-1]["validation/loss"], rel=1e-6)
    whole = tiny_project(recipe="own_ways:Ragged", config=config, eval_batch_size=6, lr=1e-9)
    assert found == pytest.approx(run_local(whole).history[-1]["validation/loss"], rel=1e-5)


def test_the_part_that_is_not_finite_is_named(tiny_project: Any) -> None:
    """Not the sum, which is not finite because of it."""
    nan = torch.tensor(float("nan"))

    def loss(self: Any, model: Any, batch: Any) -> Any:
        fit = Tiny.loss(self, model, batch)
        return {"fit": fit, "aux": fit * nan if self.progress.step > 2 else fit}

    recipe = type("Tiny", (Tiny,), {"loss": loss})
    with pytest.raises(NonFiniteError, match="the part aux of the training loss is nan at epoch 1, step 4"):
        run_local(dataclasses.replace(tiny_project(), recipe_class=recipe))


def test_weights_that_are_zero_everywhere_are_told_of(tiny_project: Any) -> None:
    """Not as a division that the recipe did not write."""
    zero = {"loss": lambda _self, model, batch: (model(batch).sum() * 0, 0.0), "metrics": RecipeBase.metrics}
    recipe = type("Tiny", (Tiny,), {**zero, "finalize": RecipeBase.finalize})
    with pytest.raises(RecipeError, match=r"metrics\(\) counts nothing in the whole split: every weight of loss"):
        run_local(dataclasses.replace(tiny_project(), recipe_class=recipe))


def test_a_sampler_chooses_the_rows(tiny_project: Any) -> None:
    """Positives are drawn as often as negatives, the same rows each time; an epoch of another length is refused."""
    first, again = (run_local(tiny_project(recipe="own_ways:Sampled", epochs=3)).history for _ in range(2))
    assert first == again
    assert first != run_local(tiny_project(epochs=3)).history
    drawn: list[int] = []

    def sampler(self: Any, train: Any, epoch: int) -> Any:
        drawn.append(epoch)
        return own_ways.Sampled.sampler(self, train, epoch)

    counted = type("Sampled", (own_ways.Sampled,), {"sampler": sampler})
    run_local(dataclasses.replace(tiny_project(recipe="own_ways:Sampled", epochs=3), recipe_class=counted))
    assert drawn == [1, 2, 3]
    with pytest.raises(RecipeError, match=r"Sampled\.sampler\(\) yielded 200 rows for epoch 2, and 300 for epoch 1"):
        run_local(tiny_project(recipe="own_ways:Sampled", config={"rows": [300, 200, 300]}))


def test_the_last_batch_may_be_dropped(tiny_project: Any) -> None:
    """300 rows in batches of 64 are four full ones an epoch; in batches of 301 there is none."""
    assert run_local(tiny_project(drop_last=True)).steps == 8
    with pytest.raises(UsageError, match=r"train\.drop_last leaves no batch: the training split has 300 rows"):
        run_local(tiny_project(drop_last=True, batch_size=301))


def test_items_are_seeded_by_epoch_and_row_and_collated(tiny_project: Any) -> None:
    """Each epoch draws other crops, one number of ranks as another, the same in a second run."""
    own_ways.Ragged.seen.clear()
    options: dict[str, Any] = {"recipe": "own_ways:Ragged", "config": {"validation_rows": 6, "train_rows": 20}}
    run_local(tiny_project(**options, batch_size=20))
    one, two = own_ways.Ragged.seen
    assert [int(value) for value in one] == [int(value) for value in two] == list(range(20))
    assert one != two
    own_ways.Ragged.seen.clear()
    run_local(tiny_project(**options, batch_size=20, accumulate=4))
    assert sorted(value for piece in own_ways.Ragged.seen[:4] for value in piece) == one


def test_groups_keep_their_shares_of_the_rate(tiny_project: Any) -> None:
    """The embedding learns at a tenth of the rate, at each step of the schedule."""
    spec = tiny_project(lr=0.5).spec.train
    recipe = own_ways.Grouped()
    recipe.state = {"colours": ["red"]}
    optimizer = build_optimizer(recipe, recipe.model(), spec)
    schedule = Schedule(recipe, optimizer, spec, steps=4)
    schedule.before_step(2)  # half of a cosine: half of the peak
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.25, 0.25])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.1, 0.0]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "RMSprop", "optimizer_args": {"alpha": 0.9}},
        {"schedule": "OneCycleLR", "schedule_args": {"pct_start": 0.4}},
        {"schedule": "ReduceLROnPlateau", "schedule_args": {"patience": 0, "threshold": 10.0}, "eval_every_steps": 1},
        {"recipe": "own_ways:Stepped"},
        {"recipe": "own_ways:Weighted", "config": {"form": "parts"}, "accumulate": 2},
        {"recipe": "own_ways:Sampled", "epochs": 3},
        {"recipe": "own_ways:TwoNetworks"},
        {"recipe": "own_ways:OwnLoop", "epochs": 3},
        {"recipe": "own_ways:OwnLoop", "config": {"batches": 4}, "epochs": 3},
        {"ema": 0.9},
        {"eval_every_steps": 3, "eval_max_rows": 20, "patience": 2, "min_delta": 0.5},
    ],
    ids=lambda options: next(iter(options)) + "=" + str(next(iter(options.values()))),
)
def test_a_resumed_run_is_bit_equal(tiny_project: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    """Interrupted after the fourth and the eighth step: weights, metrics and state are those of a run in one go."""
    project = tiny_project(checkpoint_every_minutes=None, **options)
    whole = Attempt(project, tmp_path / "whole", token="w")
    for number, after in enumerate((3, 4, 2)):
        cut = Attempt(project, tmp_path / "cut", token=f"c{number}", after=after)
        assert cut.outcome.stopped
    resumed = Attempt(project, tmp_path / "cut", token="r")
    assert resumed.outcome.history == whole.outcome.history
    assert resumed.outcome.steps == whole.outcome.steps
    expected, _ = load_weights(whole.saver.best_uri)
    found, _ = load_weights(resumed.saver.best_uri)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_an_average_that_is_kept_is_not_what_is_trained_after_a_resume(tiny_project: Any, tmp_path: Path) -> None:
    """Interrupted in the second epoch, when a report has named the average, whose weights the checkpoint holds too."""
    project = tiny_project(recipe="own_ways:KeepsAverage", checkpoint_every_minutes=None, epochs=3)
    whole = Attempt(project, tmp_path / "whole", token="w")
    cut = Attempt(project, tmp_path / "cut", token="c", after=10)
    assert cut.outcome.stopped
    assert len(cut.outcome.history) == 1
    resumed = Attempt(project, tmp_path / "cut", token="r")
    assert resumed.outcome.history == whole.outcome.history
    expected, found = (load_weights(run.saver.best_uri)[0] for run in (whole, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("schedule", "arguments"), places([("OneCycleLR", {}), ("StepLR", {"step_size": 3, "gamma": 0.5})], 1)
)
def test_a_sharded_run_resumes_with_its_averages(
    tiny_project: Any, tmp_path: Path, schedule: str, arguments: dict[str, Any]
) -> None:
    """On two ranks under FSDP, interrupted: averages, weighted losses, a scheduler's rate and momentum are the same."""
    project = tiny_project(
        recipe="own_ways:Weighted",
        config={"form": "parts"},
        strategy="fsdp",
        num_workers=2,
        shard_min_params=1,
        ema=0.9,
        schedule=schedule,
        schedule_args=arguments,
        accumulate=2,
    ).to_dict()
    (whole, weights), _ = ranks().run(2, resumed, project, str(tmp_path / "whole"), None)
    ranks().run(2, resumed, project, str(tmp_path / "cut"), 3)
    (history, found), _ = ranks().run(2, resumed, project, str(tmp_path / "cut"), None)
    assert history == whole
    assert found == weights


def test_a_validation_between_sharded_steps_leaves_the_weights(tiny_project: Any, tmp_path: Path) -> None:
    """The root stays gathered after a validation, with averages: the next step must not train on those."""
    found = []
    for every in (1, 5):
        options = {"strategy": "fsdp", "num_workers": 2, "ema": 0.9, "lr": 0.05, "eval_every_steps": every}
        # Of a loss that is to rise the first report is the best: no checkpoint, which shards again, hides the rest.
        project = tiny_project(**options, mode="max", checkpoint_every_minutes=None).to_dict()
        (history, _), _ = ranks().run(2, resumed, project, str(tmp_path / str(every)), None)
        found.append({name: value for name, value in history[-1].items() if name.startswith("validation/")})
    assert found[0] == found[1]


def test_an_average_is_what_is_evaluated_and_kept(tiny_project: Any) -> None:
    """With a decay of n updates min(d, (1 + n) / (10 + n)): by hand, over the weights after each of the steps."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            seen.append({str(i): p.detach().clone() for i, p in enumerate(self.param_groups[0]["params"])})

    recipe = type("Tiny", (Tiny,), {"optimizer": lambda _self, model, train: Watched(model.parameters(), lr=train.lr)})
    project = dataclasses.replace(tiny_project(ema=0.5, epochs=1), recipe_class=recipe)
    result = run_local(project)
    first = project.recipe(state=prepare(project).state)
    torch.manual_seed(0)
    average = {str(i): p.detach().clone() for i, p in enumerate(first.model().parameters())}
    for number, weights in enumerate(seen, 1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = {key: decay * value + (1 - decay) * weights[key] for key, value in average.items()}
    assert len(seen) == 5
    for found, expected in zip(result.model_state.values(), average.values(), strict=True):
        torch.testing.assert_close(found, expected)


def test_first_weights_are_loaded_once(tiny_project: Any, tmp_path: Path) -> None:
    """In a new run, before its first step; what resumes, evaluates or serves has weights already."""
    own_ways.Pretrained.loads = 0
    project = tiny_project(recipe="own_ways:Pretrained", checkpoint_every_minutes=None, lr=1e-9)
    cut = Attempt(project, tmp_path, token="a", after=2)
    assert cut.outcome.stopped
    assert own_ways.Pretrained.loads == 1
    resumed_run = Attempt(project, tmp_path, token="b")
    weights, _ = load_weights(resumed_run.saver.best_uri)
    assert own_ways.Pretrained.loads == 1
    assert all(torch.allclose(value, torch.tensor(0.05), atol=1e-5) for value in weights.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.embedding.requires_grad_(False), "changed embedding.weight"),
        (lambda model: model.add_module("more", torch.nn.Linear(1, 1)), "changed more.bias, more.weight"),
    ],
)
def test_first_weights_are_values_alone(tiny_project: Any, change: Any, message: str) -> None:
    """What a resume and another rank would not have is refused: a frozen layer, a new one."""
    recipe = type("Tiny", (Tiny,), {"initialize": lambda _self, model: change(model)})
    with pytest.raises(RecipeError, match=rf"Tiny\.initialize\(\) {message}"):
        run_local(dataclasses.replace(tiny_project(), recipe_class=recipe))


@pytest.mark.parametrize(
    ("values", "min_delta", "best", "exhausted"),
    [
        ([1.0, 0.9, 0.8], 0.0, 3, False),
        ([1.0, 0.9, 0.8], 0.5, 3, True),  # each is the best so far, none by enough
        ([1.0, 0.7, 0.4], 0.5, 3, False),  # small steps add up: 1.0 to 0.4
        ([1.0, float("nan"), 1.0], 0.0, 1, True),
    ],
)
def test_patience_counts_improvements_of_min_delta(
    values: list[float], min_delta: float, best: int, exhausted: bool
) -> None:
    """The best report is the best by any margin; what patience waits for is a margin over where it last was."""
    found = Best("loss", "min", patience=2, min_delta=min_delta)
    for number, value in enumerate(values, 1):
        found.update(number, value)
    assert (found.epoch, found.exhausted) == (best, exhausted)


def test_validation_by_steps(tiny_project: Any) -> None:
    """Of ten steps, after each third one and the last: one epoch has as many reports as it needs."""
    told: list[int] = []
    result = run_local(
        tiny_project(eval_every_steps=3, eval_max_rows=20), on_epoch=lambda number, _: told.append(number) or False
    )
    assert told == [1, 2, 3, 4]
    assert (result.steps, result.epochs) == (10, 2)
    assert {report["validation/rows"] for report in result.history} == {20.0}
    assert run_local(tiny_project(eval_every_steps=5)).history == run_local(tiny_project()).history


def test_an_epoch_without_a_validation_ends_with_its_checkpoint(tiny_project: Any, tmp_path: Path) -> None:
    """Of four epochs of five steps each second one; a run that has that one alone ends as the whole one."""
    project = tiny_project(
        epochs=4,
        eval_every_steps=13,
        checkpoint_every_epochs=2,
        checkpoint_every_minutes=None,
        keep_checkpoints=9,
    )
    whole = Attempt(project, tmp_path / "whole", token="w")
    entries = whole.saver.kept.entries
    assert [entry.step for entry in entries] == [10, 13, 20]
    shutil.copytree(tmp_path / "whole" / entries[0].name, tmp_path / "cut" / entries[0].name)
    assert Attempt(project, tmp_path / "cut", token="r").outcome.history == whole.outcome.history


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"schedule": "OneCycleLR", "warmup_fraction": 0.1}, "belong to constant, linear, cosine"),
        ({"schedule": "OneCycleLR", "warmup_steps": 10}, "belong to constant, linear, cosine"),
        ({"schedule": "OneCylceLR", "warmup_fraction": 0.1}, "schedule is 'OneCylceLR'; did you mean OneCycleLR"),
        ({"schedule": "Cosine", "lr_floor": 0.1}, "schedule is 'Cosine'; did you mean cosine"),
        ({"warmup_steps": 10, "warmup_fraction": 0.1}, "leave one of them out"),
        ({"schedule_args": {"gamma": 1}}, "schedule_args are for a torch.optim.lr_scheduler class"),
        ({"sync_batch_norm": True, "num_workers": 2}, "sync_batch_norm needs GPUs"),
        ({"optimizer": "adamm"}, "did you mean adam"),
        ({"gpus_per_worker": 1.5}, "a share of one GPU or whole GPUs"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_project: Any, train: dict[str, Any], message: str) -> None:
    """Before torch is imported."""
    with pytest.raises(ConfigError, match=message):
        tiny_project(**train)


def test_a_scheduler_of_a_fixed_length_cannot_be_extended(tiny_project: Any, tmp_path: Path) -> None:
    """What was built for ten steps would end where they end; what has a length of its own goes on."""
    ways: list[tuple[dict[str, Any], str]] = [
        ({"schedule": "OneCycleLR"}, "OneCycleLR"),
        ({"schedule": "PolynomialLR"}, "PolynomialLR"),
        ({"recipe": "own_ways:Stepped"}, "MultiStepLR"),
        ({"schedule": "StepLR", "schedule_args": {"step_size": 4}}, ""),
        ({"schedule": "CosineAnnealingLR", "schedule_args": {"T_max": 4}}, ""),
    ]
    for number, (way, refused) in enumerate(ways):
        options, folder = {**way, "checkpoint_every_minutes": None}, tmp_path / str(number)
        Attempt(tiny_project(**options), folder, token="a")
        longer = tiny_project(**options, epochs=3)
        if refused:
            with pytest.raises(UsageError, match=f"{refused} was built for 10 steps and cannot be changed to 15"):
                Attempt(longer, folder, token="b")
        else:
            assert Attempt(longer, folder, token="b").outcome.steps == 15


def test_the_state_of_another_optimizer_is_refused(tiny_project: Any, tmp_path: Path) -> None:
    """A recipe's code may name another class at a resume; torch would load what it finds, or fail in a step."""

    def using(kind: Any) -> Any:
        own = {"optimizer": lambda _self, model, train: kind(model.parameters(), lr=train.lr)}
        return dataclasses.replace(tiny_project(epochs=3), recipe_class=type("Tiny", (Tiny,), own))

    Attempt(using(torch.optim.AdamW), tmp_path, token="a", after=3)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        with pytest.raises(RecipeError, match=f"holds the state of optimizer AdamW, this run has {kind.__name__}"):
            Attempt(using(kind), tmp_path, token="b")


def test_the_mode_of_a_cycle_is_not_that_of_the_metric(tiny_project: Any) -> None:
    """A plateau has the mode of train.metric; CyclicLR has another argument of that name."""
    result = run_local(tiny_project(schedule="CyclicLR", schedule_args={"base_lr": 1e-4, "cycle_momentum": False}))
    assert result.steps == 10


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda ctx: ctx.log({"a": "x"}), r"ctx\.log\(\): a is 'x'; a metric is a number"),
        (lambda ctx: [ctx.log({}, step=step) for step in (3, 1)], r"ctx\.log\(\) got step 1 after step 3"),
        (
            lambda ctx: ctx.report({"validation/loss": torch.ones(2)}),
            r"validation/loss is tensor\(\[1., 1.\]\); a metric is a number",
        ),
    ],
)
def test_what_a_loop_may_not_report(tiny_project: Any, act: Any, message: str) -> None:
    """Nothing is dropped without a word."""
    recipe = type("Tiny", (Tiny,), {"train_loop": lambda _self, ctx: act(ctx)})
    with pytest.raises(RecipeError, match=message):
        run_local(dataclasses.replace(tiny_project(), recipe_class=recipe))


def test_an_epoch_may_be_broken_off(tiny_project: Any, tmp_path: Path) -> None:
    """The step that a loop leaves an epoch in counts, and is logged under its number."""
    run = Attempt(tiny_project(recipe="own_ways:OwnLoop", config={"batches": 3}), tmp_path, token="a")
    assert run.outcome.steps == 6
    assert [event.step for event in run.events if "train/loss" in event.metrics] == [1, 2, 3, 4, 5, 6]


def test_a_loop_that_goes_on_after_the_end_trains_no_more(tiny_project: Any, tmp_path: Path) -> None:
    """A run that was interrupted in its second epoch counts its epochs from the start again."""
    project = tiny_project(recipe="own_ways:OwnLoop", epochs=3, checkpoint_every_minutes=None)
    assert Attempt(project, tmp_path, token="a", after=15).outcome.stopped
    resumed_run = Attempt(project, tmp_path, token="b")
    assert (resumed_run.outcome.steps, len(resumed_run.outcome.history)) == (15, 3)
    assert [event.message for event in resumed_run.events if "finished" in event.message] == [
        "the training is finished: what train_loop reports from here on does not count"
    ]


def test_a_loop_names_its_model_first(tiny_project: Any) -> None:
    """A checkpoint may be due at any step, and a resumed run starts from one."""
    with pytest.raises(RecipeError, match=r"ctx\.batches\(\) knows no model that checkpoints could hold"):
        run_local(tiny_project(recipe="own_ways:OwnLoop", config={"restores": False}))


def test_ranks_that_drift_apart_are_told_of(tiny_project: Any) -> None:
    """A loop without average_gradients trains a model a rank, and the first one's would be all that is kept."""
    for averages in (True, False):
        project = tiny_project(recipe="own_ways:OwnLoop", config={"averages": averages}).to_dict()
        told, _ = ranks().run(2, messages, project)
        assert len(told) == (0 if averages else 1)
        assert all("the workers hold different weights" in text for text in told)


def test_a_report_that_names_the_model_keeps_the_rest(tiny_project: Any, tmp_path: Path) -> None:
    """The rate falls after three and six steps; a run that is interrupted after seven goes on with it."""

    def train_loop(_self: Any, ctx: Any) -> None:
        model = ctx.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        ctx.restore(model=model, optimizer=optimizer, keep={"schedule": schedule})
        while not ctx.finished:
            for _ in ctx.batches():
                optimizer.step()
                schedule.step()
            ctx.report({"validation/loss": schedule.get_last_lr()[0]}, model=model, optimizer=optimizer)

    recipe = type("Tiny", (Tiny,), {"train_loop": train_loop})
    project = dataclasses.replace(tiny_project(), recipe_class=recipe)
    assert Attempt(project, tmp_path, token="a", after=8).outcome.steps == 7
    assert Attempt(project, tmp_path, token="b").outcome.history == [
        {"validation/loss": 0.5},
        {"validation/loss": 0.125},
    ]


@pytest.mark.parametrize("name", ["model", "scaler", "teacher"])
def test_what_a_loop_keeps_is_kept_under_any_name(tiny_project: Any, tmp_path: Path, name: str) -> None:
    """An average named as the model, with tensors of the same names, comes back from a checkpoint as it was."""

    def train_loop(_self: Any, ctx: Any) -> None:
        model, average = ctx.model(), ctx.model()
        with torch.no_grad():
            for value in average.parameters():
                value.fill_(7.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        ctx.restore(model=model, optimizer=optimizer, keep={name: average})
        while not ctx.finished:
            for _ in ctx.batches():
                with torch.no_grad():
                    for value in model.parameters():
                        value.fill_(1.0)
            held = max(value.detach().max().item() for value in average.parameters())
            ctx.report({"validation/loss": held}, model=model, optimizer=optimizer)
            with torch.no_grad():
                for value in average.parameters():
                    value.add_(1.0)

    recipe = type("Tiny", (Tiny,), {"train_loop": train_loop})
    project = dataclasses.replace(tiny_project(), recipe_class=recipe)
    assert Attempt(project, tmp_path, token="a", after=8).outcome.steps == 7
    assert Attempt(project, tmp_path, token="b").outcome.history[-1] == {"validation/loss": 8.0}


def test_a_loop_of_its_own_takes_as_many_steps_as_it_wants(tiny_project: Any) -> None:
    """Two optimizer steps a batch, counted by the loop itself: ten epochs are ten epochs."""

    def train_loop(_self: Any, ctx: Any) -> None:
        model, step = ctx.model(), 0
        for epoch in range(1, ctx.spec.epochs + 1):
            step += 10
            if ctx.report({"validation/loss": 1 / epoch}, epoch=epoch, step=step, model=model):
                return

    recipe = type("Tiny", (Tiny,), {"train_loop": train_loop})
    result = run_local(dataclasses.replace(tiny_project(epochs=10), recipe_class=recipe))
    assert (result.epochs, result.steps) == (10, 100)
