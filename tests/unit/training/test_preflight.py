"""What is refused on a handful of rows before anything starts."""

from __future__ import annotations

import dataclasses
import json
import re
from base64 import b64encode
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import numpy as np
import own_ways
import pytest
import torch
from broken import Items, NeedsManyRows, Seen
from pictures import Pictures, table
from preflight_jobs import tried
from ranks import ranks
from tiny import Tiny
from torch import nn

from raymlops.arrays import Column
from raymlops.config.schema import ProjectSpec
from raymlops.data.prepare import prepare
from raymlops.data.random_streams import drawn_state
from raymlops.errors import RecipeError, UsageError
from raymlops.project import bind
from raymlops.recipe import RecipeBase, Splits
from raymlops.signature import Signature
from raymlops.training.example import _typical, example_rows
from raymlops.training.preflight import has_unused_parameters, preflight, preflight_sweep


def check(project: Any) -> None:
    preflight(project, prepare(project))


@pytest.mark.parametrize("recipe", ["tiny:Tiny", "broken:Items", "broken:OwnLoop", "own_ways:LoopAlone"])
def test_a_recipe_that_keeps_its_contract_passes(tiny_project: Any, recipe: str) -> None:
    """Tables, datasets, batch normalisation, a loop of its own, which needs no loss: all fine."""
    check(tiny_project(recipe=recipe))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("broken:RaisesInModel", r"RaisesInModel\.model\(\) raised ValueError: no layers at .*broken\.py:\d+"),
        ("broken:NanLoss", r"NanLoss\.loss\(\) is nan on the first rows of train"),
        ("broken:Detached", r"Detached\.loss\(\) has no gradient"),
        ("broken:Means", r"Means\.metrics\(\)\['loss'\] does not add up"),
        ("broken:JudgedMeans", r"JudgedMeans\.metrics\(\)\['loss'\] does not add up"),
    ],
)
def test_a_broken_recipe_is_refused(tiny_project: Any, recipe: str, message: str) -> None:
    """The error names the method and what is wrong with it."""
    with pytest.raises(RecipeError, match=message):
        check(tiny_project(recipe=recipe))


@pytest.mark.parametrize(
    ("train", "more", "message"),
    [
        ({"metric": "validation/acc"}, {}, "train.metric is 'validation/acc', which is never reported"),
        ({}, {"sweep": {"metric": "validation/acc"}}, "sweep.metric is 'validation/acc'"),
        (
            {},
            {"sweep": {"constraints": {"validation/acc": {"min": 0.5}}}},
            "sweep.constraints names 'validation/acc', which is never reported",
        ),
        (
            {},
            {"sweep": {"objectives": {"validation/acc": "max", "validation/loss": "min"}}},
            "sweep.objectives names 'validation/acc', which is never reported",
        ),
        ({}, {"gate": {"metric": "test/acc"}}, "gate names the metric 'test/acc'"),
        ({}, {"gate": {"thresholds": {"acc": {"min": 0.5}}}}, "gate names the metric 'acc'"),
    ],
)
def test_a_metric_that_is_never_reported_is_refused(
    tiny_project: Any, train: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    """The error says which ones are reported."""
    with pytest.raises(RecipeError, match=message) as raised:
        check(tiny_project(more=more, **train))
    assert "accuracy" in str(raised.value.hint)


def test_a_slice_of_what_is_no_input_is_refused(tiny_project: Any) -> None:
    """Before the training that could not be registered."""
    with pytest.raises(UsageError, match=r"monitor\.slices names 'cityy'"):
        check(tiny_project(more={"monitor": {"slices": {"cityy": ["Ghent"]}}}))


def test_parameters_that_the_loss_does_not_use_are_found(tiny_project: Any) -> None:
    """DDP must be told of them, or the second step of two workers fails."""
    for recipe, expected in (("tiny:Tiny", False), ("broken:Items", True)):
        project = tiny_project(recipe=recipe)
        assert has_unused_parameters(project, prepare(project)) is expected


def test_parameters_that_are_skipped_at_random_are_found(tiny_project: Any) -> None:
    """A layer that takes no part in three of ten passes is found whatever the first pass draws."""
    for seed in range(20):
        project = tiny_project(recipe="starting:Skipping", seed=seed)
        assert has_unused_parameters(project, prepare(project)) is True


def test_what_it_draws_does_not_reach_the_caller(tiny_project: Any) -> None:
    """From ``random`` and numpy as well as from torch, however many forward passes it has time for."""
    project = tiny_project(recipe="starting:DrawsByPython", num_workers=2)
    prepared = prepare(project)
    before = drawn_state()
    assert preflight(project, prepared, has_gpu=False) is True
    assert drawn_state() == before


@pytest.mark.parametrize("said", [True, False])
def test_whether_parameters_are_unused_can_be_said(tiny_project: Any, said: bool) -> None:
    """Then nothing is tried."""
    project = tiny_project(recipe="broken:Items", find_unused_parameters=said, num_workers=2)
    assert has_unused_parameters(project, prepare(project), has_gpu=False) is said
    assert preflight(project, prepare(project)) is said


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("signature", None, r"Tiny\.signature\(\) returned None; return a raymlops\.Signature"),
        ("signature", {}, r"Tiny\.signature\(\) returned a dict; return a raymlops\.Signature"),
        ("datasets", None, r"Tiny\.datasets\(\) returned no train split, but NoneType"),
        ("datasets", (), r"Tiny\.datasets\(\) returned no train split, but tuple"),
        ("model", None, r"Tiny\.model\(\) returned None; return a torch\.nn\.Module"),
        ("model", torch.nn.Linear, r"Tiny\.model\(\) returned the class Linear; return a torch\.nn\.Module"),
        ("encode", None, r"Tiny\.encode\(\) returned None, which has no rows"),
        ("encode", {}, r"Tiny\.encode\(\) returned a dict, which has no rows"),
        ("loss", None, r"Tiny\.loss\(\) returned None; return the mean over the batch"),
    ],
)
def test_a_method_that_returns_something_else_is_refused(
    tiny_project: Any, method: str, value: Any, message: str
) -> None:
    """A forgotten return is said as such, and not as what fails on None later."""
    forgetful = type("Tiny", (Tiny,), {method: lambda *_: value})
    with pytest.raises(RecipeError, match=message):
        check(dataclasses.replace(tiny_project(), recipe_class=forgetful))


def test_a_recipe_on_datasets_needs_a_signature_too(tiny_project: Any) -> None:
    """Its training never asks for one."""
    forgetful = type("Items", (Items,), {"signature": lambda _: None})
    with pytest.raises(RecipeError, match=r"Items\.signature\(\) returned None"):
        prepare(dataclasses.replace(tiny_project(), recipe_class=forgetful))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """What the recipe ``Seen`` writes down: method, rows, whether autocast was on."""
    monkeypatch.setattr(Seen, "calls", [])
    return Seen.calls


@pytest.mark.parametrize(
    ("train", "rows"),
    [
        ({"batch_size": 8}, {"loss": 8, "metrics": 8, "predict": 1}),
        ({"batch_size": 64, "eval_batch_size": 5}, {"loss": 16, "metrics": 5, "predict": 1}),
        # 64 rows over 2 workers in 16 micro-batches: 2 a micro-batch; the parts of a sum take 3.
        ({"batch_size": 64, "num_workers": 2, "accumulate": 16}, {"loss": 2, "metrics": 3, "predict": 1}),
        ({}, {"loss": 16, "metrics": 16, "predict": 1}),
    ],
)
def test_no_batch_is_larger_than_those_of_the_run(
    tiny_project: Any, seen: list[tuple[str, int, bool]], train: dict[str, Any], rows: dict[str, int]
) -> None:
    """What the run has memory for, the checks have; they take sixteen rows at most."""
    check(tiny_project(recipe="broken:Seen", **train))
    assert {method: max(got for name, got, _ in seen if name == method) for method in rows} == rows


def test_the_model_is_built_once(tiny_project: Any, seen: list[tuple[str, int, bool]]) -> None:
    """Whether parameters are unused is found with the model that was tried."""
    project = tiny_project(recipe="broken:Seen", num_workers=2)
    assert preflight(project, prepare(project)) is True
    assert [method for method, *_ in seen].count("model") == 1


def test_loss_and_metrics_are_tried_in_the_precision_of_the_run(
    tiny_project: Any, seen: list[tuple[str, int, bool]]
) -> None:
    """An answer is not: a replica has no autocast. The default metrics are sums, if the loss is a mean over rows."""
    check(tiny_project(recipe="broken:Seen", precision="bf16"))
    low = [method for method, _, autocast in seen if autocast]
    assert low == ["loss", *["metrics"] * 5]
    assert [method for method, _, autocast in seen if not autocast] == ["model", "predict"]


def test_a_loss_that_is_no_mean_over_rows_is_told_of(tiny_project: Any) -> None:
    """A weighted mean depends on the pieces of a batch; as a sum with its weight it does not."""
    told: list[str] = []
    for form in ("mean", "pair"):
        project = tiny_project(recipe="own_ways:Weighted", config={"form": form}, accumulate=2)
        preflight(project, prepare(project), notice=told.append)
    (text,) = told
    assert re.match(r"Weighted\.loss\(\) is no mean over the rows of a batch: [\d.]+ over 16 rows, [\d.]+ as the", text)


def test_a_weighted_loss_that_is_no_sum_is_told_of(tiny_project: Any) -> None:
    """Who returns the mean and the number of rows divides by them twice."""
    told: list[str] = []
    project = tiny_project(recipe="own_ways:Weighted", config={"form": "mean and rows"})
    preflight(project, prepare(project), notice=told.append)
    (text,) = told
    assert re.match(r"Weighted\.loss\(\) returns \(sum, weight\), but its sum does not add up: .* over 16 rows", text)


def test_a_metric_that_is_annealed_is_told_of(tiny_project: Any) -> None:
    """The default metrics are the loss, here with a weight that grows with the step."""
    told: list[str] = []
    project = tiny_project(recipe="own_ways:AnnealedMetric")
    preflight(project, prepare(project), notice=told.append)
    (text,) = [text for text in told if "self.progress" in text]
    assert re.match(
        r"AnnealedMetric\.loss\(\) depends on self\.progress in evaluations too: [\d.]+ at the first step", text
    )


def test_a_length_that_is_not_reached_is_told_of(tiny_project: Any) -> None:
    """2 epochs of 5 steps are fewer than 11 steps; a warm-up of them all ends at the peak."""
    told: list[str] = []
    for train in ({"max_steps": 10}, {"max_steps": 11}, {"max_steps": 11, "epochs": None}, {"warmup_steps": 10}):
        project = tiny_project(**train)
        preflight(project, prepare(project), notice=told.append)
    assert told == [
        "train.epochs 2 ends the run after 10 steps, before train.max_steps 11: raise train.epochs, or leave it out",
        "train.warmup_steps 10 are all of the run's 10 steps: lr only rises",
    ]


def test_metrics_may_draw_at_random(tiny_project: Any) -> None:
    """Negatives that are drawn differ for the same rows: whether they add up cannot be seen."""
    drawn = type("Tiny", (Tiny,), {"metrics": lambda *args: Tiny.metrics(*args) | {"drawn": torch.rand(3).sum()}})
    check(dataclasses.replace(tiny_project(), recipe_class=drawn))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "Foo"}, r"train\.optimizer is Foo, which torch\.optim does not have"),
        ({"optimizer": "AdamX"}, r"did you mean Adam"),
        ({"optimizer": "Optimizer"}, r"train\.optimizer is Optimizer, which"),
        ({"optimizer": "LBFGS"}, r"LBFGS evaluates the loss several times a step, through a closure"),
        ({"optimizer_args": {"nu": 1}}, r"train\.optimizer_args do not fit AdamW: .*'nu'"),
        (
            {"schedule": "OneCycleLR", "schedule_args": {"pct": 1}},
            r"schedule_args do not fit OneCycleLR: .*'pct'",
        ),
        ({"schedule": "StepLR"}, r"train\.schedule_args do not fit StepLR: .*step_size"),
        ({"recipe": "own_ways:Stranger"}, r"Stranger\.optimizer\(\) holds 2 parameters that are not the model's"),
        ({"drop_last": True, "batch_size": 301}, r"train\.drop_last leaves no batch"),
    ],
)
def test_what_trains_the_model_is_tried(tiny_project: Any, options: dict[str, Any], message: str) -> None:
    """An optimizer or a schedule that torch does not have, or with arguments that it does not take."""
    with pytest.raises((UsageError, RecipeError), match=message):
        check(tiny_project(**options))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"yielded no row for epoch 1"),
        ([0, 300], r"yielded row 300; the split has rows 0 to 299"),
        ([0.5], r"yielded a tensor of shape \(1,\) and torch\.float32"),
        ([[0, 1], [2, 3]], r"yielded a tensor of shape \(2, 2\)"),
        ([[0, 1], [2]], r"yielded a list first"),
        (["a"], r"yielded a str first"),
        (3, r"raised TypeError: 'int' object is not iterable"),
        (repeat(0), r"yields more than 1,000,000 rows of a split of 300"),
    ],
)
def test_a_sampler_yields_row_numbers(tiny_project: Any, rows: Any, message: str) -> None:
    """Each of another kind, or outside the split, is named."""
    sampling = type("Tiny", (Tiny,), {"sampler": lambda *_: rows})
    with pytest.raises(RecipeError, match=rf"Tiny\.sampler\(\) {message}"):
        check(dataclasses.replace(tiny_project(), recipe_class=sampling))


def test_a_metric_that_needs_many_rows_gets_them(tiny_project: Any) -> None:
    """In batches: 16 rows are no measure of two classes."""
    check(tiny_project(recipe="broken:NeedsManyRows"))
    with pytest.raises(RecipeError, match=r"finalize\(\) raised ValueError: rows of one class only"):
        check(tiny_project(recipe="broken:NeedsManyRows", config={"validation_rows": 59}))


def test_the_default_finalize_needs_a_count(tiny_project: Any) -> None:
    """It divides sums by the number of rows, which metrics of one's own may have left out."""
    uncounted = type(
        "Tiny", (Tiny,), {"finalize": RecipeBase.finalize, "metrics": lambda *_: {"hits": torch.zeros(())}}
    )
    with pytest.raises(RecipeError, match=r"Tiny\.metrics\(\) returned hits, and no count to divide them by"):
        check(dataclasses.replace(tiny_project(), recipe_class=uncounted))


def test_a_metric_gets_no_more_rows_than_it_needs(tiny_project: Any) -> None:
    """Three batches for the sums, then one after the other until there is a value; a batch may cost seconds."""
    rows: list[int] = []

    def metrics(recipe: Any, model: torch.nn.Module, batch: Any) -> Any:
        rows.append(len(batch["label"]))
        return Tiny.metrics(recipe, model, batch)

    counted = type("NeedsManyRows", (NeedsManyRows,), {"metrics": metrics})
    check(dataclasses.replace(tiny_project(), recipe_class=counted))
    assert rows == [16, 5, 11, 16, 16, 16, 16]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("broken:NoExample", r"NoExample\.example\(\) is needed"),
        (
            "broken:OtherExample",
            r"OtherExample\.example\(\) returned rows that OtherExample\.signature\(\) rejects: row 0, field 'x'",
        ),
        ("broken:RaisesInEncode", r"RaisesInEncode\.encode\(\) raised KeyError: 'X'"),
        ("broken:RaisesInPredict", r"RaisesInPredict\.predict\(\) raised ValueError"),
        ("broken:OtherOutput", r"OtherOutput\.decode\(\) returned z; the signature's outputs are y"),
        ("broken:OneAnswer", r"OneAnswer\.decode\(\): output 'probability': 1 values for 2 rows"),
    ],
)
def test_a_recipe_that_could_not_be_served_is_refused(tiny_project: Any, recipe: str, message: str) -> None:
    """A request is answered before the training, the way a replica answers it."""
    with pytest.raises(RecipeError, match=message):
        check(tiny_project(recipe=recipe))


def test_the_example_is_made_of_rows_that_fit(tiny_project: Any) -> None:
    """A table's rows may hold what no request may, such as infinity; one that has no other is refused."""
    prepared = prepare(tiny_project(recipe="broken:InfiniteRows"))
    want = prepared.splits["validation"].take(torch.tensor([4]))
    assert [row["length"] for row in example_rows(prepared)] == want["length"].tolist() * 2  # the only one's quantiles
    check(tiny_project(recipe="broken:InfiniteRows"))
    with pytest.raises(RecipeError, match="none of the first 4 validation rows matches"):
        check(tiny_project(recipe="broken:InfiniteRows", config={"validation_rows": 4}))


def test_a_loss_may_draw_in_evaluations(tiny_project: Any) -> None:
    """As of a variational autoencoder: whether it is a mean over rows cannot be seen, and the default metrics do."""

    def loss(self: Any, model: Any, batch: Any) -> Any:
        return Tiny.loss(self, model, batch) + 0.5 * torch.randn(())

    told: list[str] = []
    drawn = {"loss": loss, "metrics": RecipeBase.metrics, "finalize": RecipeBase.finalize}
    project = dataclasses.replace(tiny_project(accumulate=2), recipe_class=type("Tiny", (Tiny,), drawn))
    preflight(project, prepare(project), notice=told.append)
    assert told == []


def test_the_part_of_a_loss_that_is_not_finite_is_named(tiny_project: Any) -> None:
    """Before the first step."""

    def loss(self: Any, model: Any, batch: Any) -> Any:
        fit = Tiny.loss(self, model, batch)
        return {"fit": fit, "aux": fit * float("nan")}

    with pytest.raises(RecipeError, match=r"the part aux of Tiny\.loss\(\) is nan on the first rows of train"):
        check(dataclasses.replace(tiny_project(), recipe_class=type("Tiny", (Tiny,), {"loss": loss})))


class Lazy(Tiny):
    """Has a layer whose size is that of its first input."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.LazyLinear(1))


class NumbersAlone(own_ways.Ragged):
    """Collates Python's numbers."""

    def collate(self, items: list[Any]) -> Any:
        return {"x": [item["x"].tolist() for item in items], "label": [item["label"] for item in items]}

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return model(batch["x"]).mean()


class NotStacked(own_ways.Ragged):
    """Has items of unequal length."""

    collate = RecipeBase.collate


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Lazy, r"Lazy\.model\(\) returned a model whose 0\.weight, 0\.bias have no size yet\n.*run one row through"),
        (
            NumbersAlone,
            r"raised TypeError.*; the batch has no tensor: NumbersAlone\.collate\(\) returned a dict of float\n",
        ),
        (NotStacked, r"NotStacked\.collate\(\) raised RuntimeError: stack expects.*\n.* need a collate\(items\)"),
    ],
)
def test_what_no_step_could_take_says_what_to_return(tiny_project: Any, recipe: Any, message: str) -> None:
    """Layers without a size, a batch without a tensor, and items that are not stacked."""
    items = issubclass(recipe, own_ways.Ragged)
    project = tiny_project(**({"recipe": "own_ways:Ragged", "config": {"train_rows": 20}} if items else {}))
    with pytest.raises(RecipeError, match=message):
        check(dataclasses.replace(project, recipe_class=recipe))


def test_sums_in_low_precision_are_told_of(tiny_project: Any) -> None:
    """An eighth of a batch's rows may be lost in them; what torch computes in float32 is left alone."""
    told: list[str] = []
    low = {"metrics": lambda *args: Tiny.metrics(*args) | {"logit": args[1](args[2]).sum()}}
    for precision in ("fp32", "bf16"):
        project = dataclasses.replace(tiny_project(precision=precision), recipe_class=type("Tiny", (Tiny,), low))
        preflight(project, prepare(project), notice=told.append)
    (text,) = told
    assert text.startswith("Tiny.metrics() sums logit in bf16")


class Ids(RecipeBase):
    """Has ids as an input."""

    label = "y"
    largest = 2**24 + 1

    def datasets(self) -> Any:
        rows = {"user": np.arange(self.largest - 19, self.largest + 1), "y": np.arange(20) / 20}
        return Splits(rows, rows, rows)

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch["user"].float()[:, None])[:, 0], batch["label"])

    def predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch["user"].float()[:, None])[:, 0]

    def signature(self) -> Signature:
        return Signature((Column("user", "int"),), (Column("y", "float"),))


class SmallIds(Ids):
    """Has such that float32 has."""

    largest = 2**24


class WholeIds(Ids):
    """Keeps them whole."""

    def encode(self, columns: Any) -> Any:
        return {"user": torch.as_tensor(columns["user"])}


def test_ids_that_the_default_encode_rounds_are_told_of(tiny_project: Any) -> None:
    """2**24 and 2**24 + 1 are one number in float32."""
    told: list[str] = []
    for recipe in (Ids, SmallIds, WholeIds):
        project = dataclasses.replace(tiny_project(), recipe_class=recipe)
        preflight(project, prepare(project), notice=told.append)
    (text,) = told
    assert text.startswith("user has integers up to 16777217, and the default encode() makes float32 of them")


TABLE = {
    "number": (Column("c", "float"), np.arange(40.0), [19.5, 9.75]),
    "count": (Column("c", "int"), np.arange(40), [20, 10]),
    "flag": (Column("c", "bool"), np.arange(40) % 4 > 0, [True, True]),
    "missing": (Column("c", "float", nullable=True), np.array([np.nan, 1.0, 3.0] * 20), [2.0, 1.0]),
    "missing count": (Column("c", "int", nullable=True), np.array([np.nan, *range(40)]), [20, 10]),
    "missing flag": (Column("c", "bool", nullable=True), np.array([np.nan, 0.0, 1.0, 1.0] * 10), [True, False]),
    "group": (Column("c", "string"), np.array(["a"] * 20 + ["b"] * 19 + ["c"], dtype=object), ["a", "a"]),
    "name": (
        Column("c", "string", max_length=3),
        np.array([f"n{row:02}" for row in range(40)], dtype=object),
        ["tex"] * 2,
    ),
    "known": (Column("c", "string", categories=("r", "s")), np.array(["r", "s"] * 9, dtype=object), ["r", "s"]),
    "time": (
        Column("c", "datetime"),
        np.array(["2026-12-03T10:11:12"] * 40, dtype="datetime64[us]"),
        ["2026-12-03T00:00:00.000000Z"] * 2,
    ),
    "tensor": (
        Column("c", "float", shape=(2,)),
        np.stack([np.arange(40.0), np.ones(40)], 1),
        [[19.5, 1.0], [9.75, 1.0]],
    ),
    "few": (Column("c", "float", shape=(2,)), np.array([[0.0, 8.0], [4.0, 8.0]]), [[6.0, 6.0], [3.0, 3.0]]),
}


@pytest.mark.parametrize("kind", TABLE)
def test_an_example_shows_no_row(kind: str) -> None:
    """Quantiles of what many rows have, texts of 20 rows, days: by hand, of 40 rows."""
    column, values, expected = TABLE[kind]
    signature = Signature((column,), (Column("y", "float"),))
    rows = signature.rows({"c": _typical(column, values)})
    assert [row["c"] for row in rows] == expected
    signature.parse_rows(rows)


class WrittenInPython(Pictures):
    """Shows what Python has: files and times."""

    def example(self) -> Any:
        photo = table(1, seed=1)["photo"][0]
        at = datetime(2026, 11, 27, 10, tzinfo=UTC)
        return [
            {"photo": photo, "at": at, "note": b"ab"},
            {"photo": b64encode(photo).decode(), "at": "2026-11-27T10:00:00Z", "note": bytearray(b"ab")},
        ]


def test_an_example_may_hold_bytes_and_times() -> None:
    """They become what a client would send, which is JSON; the file of an image stays as it is."""
    sections = {"project": {"name": "p"}, "recipe": {"import": "pictures:Pictures"}}
    project = bind(ProjectSpec.model_validate(sections), recipe=Pictures)
    prepared = prepare(dataclasses.replace(project, recipe_class=WrittenInPython))
    first, second = json.loads(json.dumps(example_rows(prepared)))
    assert first == second | {"at": "2026-11-27T10:00:00.000000Z"}
    assert first["note"] == "YWI="


def test_an_untrained_model_may_answer_with_infinity(tiny_project: Any) -> None:
    """That says nothing of the trained one."""
    check(tiny_project(recipe="broken:InfiniteAtFirst"))


def test_code_that_cannot_travel_is_refused(tiny_project: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle would not take 17 MiB of data beside the recipe."""
    package = tmp_path / "heavy_package"
    package.mkdir()
    (package / "__init__.py").write_text("from tiny import Tiny\n\n\nclass Heavy(Tiny):\n    pass\n")
    for number in range(17):
        (package / f"{number}.json").write_bytes(bytes(1 << 20))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="the code of package heavy_package is larger than 16 MiB"):
        check(tiny_project(recipe="heavy_package:Heavy"))


def test_a_single_training_row_is_no_batch_to_normalise(tiny_project: Any) -> None:
    """The error says what leaves one row, and what to do; models without batch normalisation train on it."""
    with pytest.raises(RecipeError, match=r"normalises over the rows of a batch.* the training split has one row"):
        check(tiny_project(recipe="broken:Items", config={"train_rows": 1}))
    with pytest.raises(
        RecipeError, match=r"train\.batch_size 8 in 4 micro-batches on each of 2 workers leaves one row"
    ):
        check(tiny_project(recipe="broken:Items", batch_size=8, accumulate=4, num_workers=2))
    check(tiny_project(batch_size=1))


def test_a_model_for_gpus_that_are_elsewhere_is_left_to_the_first_worker(tiny_project: Any) -> None:
    """The driver tries what needs no model: the example, and its encoding."""
    project = tiny_project(recipe="broken:NeedsGpu", num_workers=2, gpus_per_worker=1)
    assert preflight(project, prepare(project), has_gpu=False) is None
    assert has_unused_parameters(project, prepare(project), has_gpu=False) is None
    project = tiny_project(recipe="broken:RaisesInEncode", num_workers=2, gpus_per_worker=1)
    prepared = prepare(project)
    with pytest.raises(RecipeError, match=r"RaisesInEncode\.encode\(\) raised"):
        preflight(project, prepared, has_gpu=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_is_tried_on_the_cpu_where_only_its_trials_have_gpus(tiny_project: Any, workers: int) -> None:
    """A metric that is never reported, or a mean, is refused before the first trial; what may want a GPU is not."""
    more = {"sweep": {"workers_per_trial": workers}}
    for recipe, metric, message in (
        ("tiny:Tiny", "validation/typo", r"train\.metric is 'validation/typo', which is never reported"),
        ("broken:Means", "validation/loss", r"metrics\(\)\['loss'\] does not add up"),
        ("broken:OtherOutput", "validation/loss", r"decode\(\) returned z"),
    ):
        project = tiny_project(recipe=recipe, metric=metric, gpus_per_worker=1, precision="fp16", more=more)
        with pytest.raises(RecipeError, match=message):
            preflight_sweep(project, prepare(project), has_gpu=False)
    for recipe in ("tiny:Tiny", "broken:NeedsGpu", "broken:NeedsMemory"):
        project = tiny_project(recipe=recipe, gpus_per_worker=1, more=more)
        preflight_sweep(project, prepare(project), has_gpu=False)


def test_a_sweep_on_cpus_is_tried_as_a_run_is(tiny_project: Any) -> None:
    """What the recipe's code raises would be raised in every trial."""
    project = tiny_project(recipe="broken:NeedsGpu")
    with pytest.raises(RecipeError, match="no kernel for the CPU"):
        preflight_sweep(project, prepare(project))


@pytest.mark.parametrize("gpus", [0, 1])
def test_what_only_a_request_needs_is_a_warning_to_what_goes_on(tiny_project: Any, gpus: int) -> None:
    """Its training never needed an example; a broken loss is refused all the same."""
    heard: list[str] = []
    project = tiny_project(recipe="broken:NoExample", gpus_per_worker=gpus, num_workers=gpus)
    preflight(project, prepare(project), has_gpu=False, warn=heard.append)
    (text,) = heard
    assert text.startswith(
        "the training continues, but its model could not be registered: NoExample.example() is needed"
    )
    assert "Return a list with one valid request row" in text
    project = tiny_project(recipe="broken:NanLoss")
    with pytest.raises(RecipeError, match=r"NanLoss\.loss\(\) is nan"):
        preflight(project, prepare(project), warn=heard.append)


def test_every_rank_hears_what_the_first_one_found(tiny_project: Any) -> None:
    """Unused parameters, or the error, which names the method as on a driver; a sharded model may need all GPUs."""
    for recipe, expected in (
        ("tiny:Tiny", False),
        ("broken:Items", True),
        ("broken:NeedsMemory", False),
        ("broken:OtherOutput", "OtherOutput.decode() returned z; the signature's outputs are y"),
    ):
        config = tiny_project(recipe=recipe, num_workers=2).to_dict()
        assert ranks().run(2, tried, config) == [expected, expected]


def test_files_that_a_replica_would_lack_are_named(
    tiny_project: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the run, which goes on: they may be nothing that the code reads."""
    package = tmp_path / "lacking_shop"
    package.mkdir()
    (package / "__init__.py").write_text("from tiny import Tiny\n\n\nclass Shop(Tiny):\n    pass\n")
    (package / "spm.model").write_text("m")
    monkeypatch.syspath_prepend(str(tmp_path))
    check(tiny_project(recipe="lacking_shop:Shop"))
    (said,) = caplog.messages
    assert said.startswith("a replica gets the recipe's code without lacking_shop/spm.model: ")
    assert said.endswith("name it in the recipe's package_data")
