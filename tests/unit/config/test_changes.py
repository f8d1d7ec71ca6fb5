from __future__ import annotations

import pytest

from raymlops.config.base import Resume
from raymlops.config.changes import (
    EXTENDABLE,
    differences,
    extended,
    identity,
    refuse_forbidden,
    refuse_sweep_changes,
    rule,
    sweep_changes,
)
from raymlops.config.load import load_data
from raymlops.config.schema import ProjectSpec
from raymlops.errors import UsageError

DECIDES = {
    "recipe.import",
    "recipe.config",
    "train.seed",
    "train.window",
    "train.tables",
    "train.batch_size",
    "train.accumulate",
    "train.strategy",
    "train.precision",
    "train.optimizer",
    "train.lr",
    "train.weight_decay",
    "train.momentum",
    "train.schedule",
    "train.schedule_args",
    "train.lr_floor",
    "train.optimizer_args",
    "train.weight_decay_on",
    "train.drop_last",
    "train.shuffle_window_mb",
    "train.sync_batch_norm",
    "train.eval_every_steps",
    "train.eval_max_rows",
    "train.ema",
    "train.warmup_fraction",
    "train.warmup_steps",
    "train.clip_norm",
    "train.metric",
    "train.mode",
}
PLACES = {"project.name", "storage.path"}
OF_A_TRIAL = {
    "train.init_from",
    "train.epochs",
    "train.max_steps",
    "train.patience",
    "train.min_delta",
    "train.on_non_finite",
}
OF_A_SWEEP = {
    "metric",
    "mode",
    "objectives",
    "constraints",
    "workers_per_trial",
    "sampler",
    "sampler_args",
    "startup_trials",
    "seed",
    "enqueue",
    "scheduler",
    "resource",
    "grace_period",
    "max_resource",
    "reduction_factor",
    "trial_timeout_s",
    "import_study",
    "space",
}
SPACE = {"train.lr": {"float": [0.1, 0.2]}, "train.momentum": {"float": [0.5, 0.9]}}


def spec(*overrides: str, **sections):
    data = {"project": {"name": "a"}, "recipe": {"import": "m:R", "config": {"hidden": 8}}, **sections}
    return load_data(data, overrides=overrides).spec


def fields():
    """Yield each field of each section with its path and its own or its section's statement about a resume."""
    for section, outer in ProjectSpec.model_fields.items():
        for name, field in outer.annotation.model_fields.items():
            said = [mark for mark in (*field.metadata, *outer.metadata) if isinstance(mark, Resume)]
            yield (section, field.alias or name), said


def test_every_field_of_every_section_says_once_what_a_resume_may_do_to_it():
    """In its own annotation, or its section does; a new field without is found here."""
    assert [path for path, said in fields() if len(said) != 1] == []
    assert all(rule(path) == said for path, (said,) in fields())


def test_what_a_resumed_run_and_a_resumed_sweep_may_change():
    """The whole table: what either accepts is released behaviour."""
    fixed_in_run = {".".join(path) for path, (said,) in fields() if not said.run}
    fixed_in_sweep = {".".join(path) for path, (said,) in fields() if not said.sweep}
    assert fixed_in_run == DECIDES | PLACES
    assert fixed_in_sweep == DECIDES | PLACES | OF_A_TRIAL | {f"sweep.{name}" for name in OF_A_SWEEP}
    assert EXTENDABLE == ("num_trials", "timeout_s", "max_cpu_hours", "max_gpu_hours", "max_cost")


@pytest.mark.parametrize(
    "path", [("serve", "log", "flush_s"), ("sweep", "price", "cpu_hour"), ("project", "tags", "a.b")]
)
def test_what_lies_deeper_is_as_mutable_as_what_it_lies_in(path):
    assert rule(path) == Resume(run=True, sweep=True)


def test_what_no_field_describes_is_fixed():
    """Fields of a recipe, and what only an older version knows."""
    assert rule(("recipe", "config", "hidden")) == rule(("train", "gone")) == Resume()


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
    long = "train.epochs=5"  # which max_steps alone would unset
    assert [change.effect for change in differences(spec(long), spec(long, override))] == [effect]


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


def test_a_resumed_sweep_may_be_longer_and_its_trials_may_not():
    found = sweep_changes(
        spec(sweep={"space": SPACE}),
        spec("sweep.num_trials=99", "sweep.price.cpu_hour=2", "train.epochs=9", sweep={"space": SPACE}),
    )
    assert [(str(change), change.allowed) for change in found] == [
        ("train.epochs: was 5, now 9", False),
        ("sweep.num_trials: was 16, now 99", True),
        ("sweep.price.cpu_hour: was 0.0, now 2.0", True),
    ]


def test_a_trial_has_the_workers_that_the_sweep_gives_it_and_no_others():
    """Those of a training of its own change no number of a trial."""
    before, after = (spec(*values, sweep={"space": SPACE}) for values in ((), ("train.num_workers=2",)))
    (change,) = sweep_changes(before, after)
    assert (change.path, change.allowed, change.effect) == ("train.num_workers", True, "")
    changes = sweep_changes(before, spec("sweep.workers_per_trial=2", sweep={"space": SPACE}))
    with pytest.raises(UsageError, match=r"sweep\.workers_per_trial: was 1, now 2"):
        refuse_sweep_changes(changes, sweep_id="s1")


def test_an_equal_sweep_does_not_differ():
    assert sweep_changes(spec(sweep={"space": SPACE}), spec("train.seed=0", sweep={"space": SPACE})) == []


def test_every_difference_of_a_sweep_is_named_and_a_fork_offered():
    """A distribution is one value."""
    other = {"train.lr": {"float": [0.1, 0.3], "log": True}}
    changes = sweep_changes(
        spec(sweep={"space": SPACE}), spec("sweep.seed=1", "sweep.target=1", sweep={"space": other})
    )
    with pytest.raises(UsageError) as caught:
        refuse_sweep_changes(changes, sweep_id="s1")
    assert caught.value.message == (
        "sweep s1 cannot be resumed with this configuration, which differs in what its trials are:\n"
        "  sweep.seed: was 0, now 1\n"
        '  sweep.space.train.lr: was {"float": [0.1, 0.2]}, now {"float": [0.1, 0.3], "log": true}\n'
        '  sweep.space.train.momentum: was {"float": [0.5, 0.9]}, now nothing'
    )
    assert caught.value.hint is not None
    assert "raymlops sweep --fork s1 --config FILE" in caught.value.hint
    assert caught.value.hint.endswith("Without --config the sweep keeps what it was started with.")
    refuse_sweep_changes([change for change in changes if change.allowed], sweep_id="s1")


def test_the_order_of_parameters_and_objectives_decides_too():
    """Points in a seeded order follow the first, and what is reported of a trial the second."""
    back = dict(reversed(SPACE.items()))
    (change,) = sweep_changes(spec(sweep={"space": SPACE}), spec(sweep={"space": back}))
    assert str(change) == 'sweep.space: was ["train.lr", "train.momentum"], now ["train.momentum", "train.lr"]'
    one, other = ({"objectives": dict(pairs)} for pairs in ((("a", "min"), ("b", "max")), (("b", "max"), ("a", "min"))))
    (change,) = sweep_changes(spec(sweep=one), spec(sweep=other))
    assert str(change) == 'sweep.objectives: was ["a: min", "b: max"], now ["b: max", "a: min"]'
    assert not change.allowed


@pytest.mark.parametrize(
    ("sweep", "extensions", "expected"),
    [
        ({"num_trials": 30}, ["num_trials=+20"], ["sweep.num_trials=50"]),
        ({}, ["num_trials=+4"], ["sweep.num_trials=20"]),  # 16 by default
        ({"num_trials": 30}, ["num_trials=60"], ["sweep.num_trials=60"]),
        ({"timeout_s": 60.5}, ["timeout_s = +3600"], ["sweep.timeout_s=3660.5"]),
        ({"timeout_s": 60.0}, ["sweep.timeout_s=+60"], ["sweep.timeout_s=120"]),
        (
            {"num_trials": 1, "max_cost": 2.0},
            ["num_trials=+1", "max_cost=+0.5", "num_trials=+1"],
            ["sweep.num_trials=3", "sweep.max_cost=2.5"],
        ),
        ({}, [], []),
    ],
)
def test_an_extension_is_the_override_that_it_amounts_to(sweep, extensions, expected):
    assert extended({"sweep": sweep}, extensions) == expected


def test_what_is_extended_is_read_as_an_override():
    before = spec("sweep.timeout_s=60")
    overrides = extended(before.to_dict(), ["timeout_s=+3600", "num_trials=+20"])
    after = load_data(before.to_dict(), overrides=overrides).spec.sweep
    assert (after.timeout_s, after.num_trials) == (3660.0, 36)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "num_trial=+5",
            r"did you mean num_trials=\+N\? Write NAME=\+N or NAME=N with one of num_trials, timeout_s, max_",
        ),
        ("train.epochs=+5", r"'train\.epochs=\+5'; write NAME=\+N or NAME=N with one of num_trials, timeout_s"),
        ("num_trials", r"'num_trials'; write NAME=\+N"),
        ("num_trials=+many", r"num_trials=\+many; a whole number, such as num_trials=\+20"),
        ("num_trials=+2.5", r"num_trials=\+2\.5; a whole number"),
        ("timeout_s=+", r"timeout_s=\+; a number"),
        ("timeout_s=inf", r"timeout_s=inf; a number"),
        ("num_trials=10", r"num_trials=10, which makes it 10; more than it is now, 16"),
        ("num_trials=+0", r"which makes it 16; more than it is now, 16"),
        ("num_trials=-3", r"which makes it -3; more"),
        ("max_cost=+5", r"sweep\.max_cost is not set, so there is no limit to extend"),
        ("max_cost=5", r"sweep\.max_cost is not set"),
    ],
)
def test_an_extension_that_extends_nothing_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        extended({"sweep": {"timeout_s": 60.0}}, [text])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("num_trials=10", "To lower it write sweep.num_trials=10 as an override."),
        ("num_trials=+0", "For example --extend num_trials=+16."),
        ("num_trials=16", "For example --extend num_trials=+16."),
        ("num_trials=-3", "For example --extend num_trials=+16."),
    ],
)
def test_what_extends_nothing_is_told_what_would(text, hint):
    """A lower limit is an override; the same one would change nothing."""
    with pytest.raises(UsageError) as caught:
        extended({}, [text])
    assert caught.value.hint == hint
