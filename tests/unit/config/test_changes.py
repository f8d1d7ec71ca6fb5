from __future__ import annotations

import pytest

from raymlops.config.changes import MAY_CHANGE, differences, identity, refuse_forbidden
from raymlops.config.load import load_data
from raymlops.config.schema import ProjectSpec
from raymlops.errors import UsageError

DECIDES = {
    "recipe.import",
    "recipe.config",
    "train.seed",
    "train.batch_size",
    "train.accumulate",
    "train.strategy",
    "train.precision",
    "train.optimizer",
    "train.lr",
    "train.weight_decay",
    "train.momentum",
    "train.schedule",
    "train.warmup_fraction",
    "train.clip_norm",
    "train.metric",
    "train.mode",
}
PLACES = {"project.name", "storage.path"}


def spec(*overrides: str, **sections):
    data = {"project": {"name": "a"}, "recipe": {"import": "m:R", "config": {"hidden": 8}}, **sections}
    return load_data(data, overrides=overrides).spec


def test_every_field_either_may_change_or_may_not():
    """A new field of the schema has to be put on one side before it is released."""
    fields = {
        f"{section}.{field.alias or name}"
        for section, model in ProjectSpec.model_fields.items()
        for name, field in model.annotation.model_fields.items()
    }
    may = {field for field in fields if field in MAY_CHANGE or field.partition(".")[0] in MAY_CHANGE}
    assert fields - may == DECIDES | PLACES
    assert {field for field in MAY_CHANGE if "." in field} <= fields


def test_equal_configurations_do_not_differ():
    """Also where one says a default aloud, or writes the same folder in another way."""
    assert differences(spec("storage.path=/x/y"), spec("storage.path=file:///x/y", "train.seed=0")) == []


def test_a_difference_has_both_values_and_says_whether_it_may():
    """Of two changed fields one decides the result."""
    found = differences(spec("train.lr=0.003"), spec("train.lr=0.01", "train.num_workers=[1, 2]"))
    assert [(change.path, change.allowed) for change in found] == [("train.num_workers", True), ("train.lr", False)]
    assert [str(change) for change in found] == [
        "train.num_workers: was 0, now [1, 2]",
        "train.lr: was 0.003, now 0.01",
    ]


def test_every_forbidden_difference_is_named_at_once():
    """With what may change, so that the next try can work."""
    changes = differences(spec("train.lr=0.003"), spec("train.lr=0.01", "recipe.config.hidden=9", "train.epochs=9"))
    with pytest.raises(UsageError) as caught:
        refuse_forbidden(changes, run_id="r1")
    assert "\n  recipe.config.hidden: was 8, now 9\n  train.lr: was 0.003, now 0.01\n" in str(caught.value)
    assert "was 5, now 9" not in str(caught.value)
    assert caught.value.hint is not None
    assert "start a new run with `raymlops train`" in caught.value.hint
    assert len(caught.value.hint) < 300
    refuse_forbidden([change for change in changes if change.allowed], run_id="r1")


def test_a_recipe_field_that_is_new_shows_as_such():
    """It was nothing before."""
    (change,) = differences(spec(), spec("recipe.config.depth=2"))
    assert str(change) == "recipe.config.depth: was nothing, now 2"


@pytest.mark.parametrize(
    "override",
    ["train.epochs=9", "train.num_workers=3", "cluster.num_cpus=2", "storage.path=/elsewhere", "project.name=b"],
)
def test_a_checkpoint_keeps_its_identity_where_the_result_is_the_same(override):
    """More epochs, other machines, another place: what was learnt is the same."""
    assert identity(spec(override)) == identity(spec())


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.lr=0.5", "config"),
        ("train.batch_size=8", "config"),
        ("train.accumulate=2", "config"),
        ("recipe.config.hidden=9", "config"),
        ("recipe.import=m:Other", "recipe"),
        ("train.strategy=fsdp", "strategy"),
    ],
)
def test_identity_says_which_part_is_another(override, part):
    """So that an error can name it."""
    before, after = identity(spec("train.num_workers=2")), identity(spec("train.num_workers=2", override))
    assert [key for key in before if before[key] != after[key]] == [part]


def test_what_decides_which_numbers_come_out_is_refused():
    """Batch normalisation sees other micro-batches, and dropout draws otherwise."""
    with pytest.raises(UsageError, match=r"train\.accumulate"):
        refuse_forbidden(differences(spec(), spec("train.accumulate=2")), run_id="r1")


@pytest.mark.parametrize("override", ["train.on_non_finite=skip", "train.on_non_finite=rollback"])
def test_a_run_that_ended_by_nan_may_go_on_without_the_batch(override):
    """Until then no number depended on it, so that its checkpoints stay its own."""
    refuse_forbidden(differences(spec(), spec(override)), run_id="r1")
    assert identity(spec(override)) == identity(spec())


@pytest.mark.parametrize(
    ("override", "effect"),
    [
        ("train.epochs=9", "the learning rate follows the new length from here on"),
        ("train.max_steps=9", "the learning rate follows the new length from here on"),
        ("train.num_workers=2", "dropout and batch normalisation depend on the number of workers"),
        ("train.compile=true", "rounding may differ"),
        ("train.activation_checkpointing=true", "rounding may differ"),
        ("train.threads_per_worker=2", "rounding may differ"),
        ("train.gpus_per_worker=1", "rounding may differ"),
        ("train.patience=2", ""),
        ("train.on_non_finite=skip", ""),
        ("train.lr=0.5", ""),
    ],
)
def test_what_a_permitted_change_does_to_the_numbers_is_said(override, effect):
    """One that is refused does nothing to them."""
    assert [change.effect for change in differences(spec(), spec(override))] == [effect]


def test_a_constant_learning_rate_follows_no_length():
    """But its warm-up is a share of all steps."""
    flat = ("train.schedule=constant",)
    warm = (*flat, "train.warmup_fraction=0.1")
    assert [change.effect for change in differences(spec(*flat), spec(*flat, "train.epochs=9"))] == [""]
    (change,) = differences(spec(*warm), spec(*warm, "train.epochs=9"))
    assert "follows the new length" in change.effect


@pytest.mark.parametrize("override", ["train.compile=true", "train.activation_checkpointing=true"])
def test_how_the_numbers_are_computed_may_change(override):
    """And with it the checkpoint's identity stays."""
    refuse_forbidden(differences(spec(), spec(override)), run_id="r1")
    assert identity(spec(override)) == identity(spec())
