"""Callbacks: told of every step, evaluation and end, and nothing of theirs reaches the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import watched
from attempts import Attempt
from local_training import run_local
from loop_jobs import evaluated_at_end
from ranks import ranks
from saved_weights import load_weights
from tiny import Tiny, TinyModel

from raymlops.callback import MAX_BYTES, CallbackContext
from raymlops.data.prepare import prepare
from raymlops.errors import RecipeError
from raymlops.training.checkpoints.latest import recall
from raymlops.training.checkpoints.saver import FolderSaver
from raymlops.training.inprocess import run_in_process
from raymlops.training.loop.evaluation import evaluate
from raymlops.training.loop.outcome import Hooks
from raymlops.training.model.ranks import Ranks
from raymlops.training.preflight import preflight
from raymlops.tuning.trial.checkpoints import TrialSaver

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.records import Artifact


@pytest.fixture(autouse=True)
def told() -> list[tuple[str, int, int, dict[str, float]]]:
    watched.TOLD.clear()
    return watched.TOLD


def context(**given: Any) -> tuple[CallbackContext, list[Artifact]]:
    sent: list[Artifact] = []
    values = {"step": 5, "epoch": 1, "metrics": {}, "model": None, "log": sent.append, "send": sent.append}
    return CallbackContext(**(values | {"logged": set()} | given)), sent


def test_each_step_evaluation_and_end_is_told(tiny_project: Any, told: list[Any], tmp_path: Path) -> None:
    """Five steps an epoch for two epochs: metrics are there where they are logged, every second step and the last."""
    done = Attempt(tiny_project(recipe="watched:Watched", log_every_steps=2), tmp_path, token="a")
    assert [(what, step, epoch) for what, step, epoch, _ in told] == [
        *(("step", step, 1) for step in (1, 2, 3, 4, 5)),
        ("evaluation", 5, 1),
        *(("step", step, 2) for step in (6, 7, 8, 9, 10)),
        ("evaluation", 10, 2),
        ("end", 10, 3),
    ]
    assert ["train/loss" in metrics for what, _, _, metrics in told if what == "step"] == [False, True] * 5
    evaluation, end = told[5][3], told[-1][3]
    assert evaluation["validation/auc"] == done.outcome.history[0]["validation/auc"]
    assert "validation/largest" in done.outcome.history[0]
    assert end == {**done.outcome.metrics, **done.outcome.test}


@pytest.mark.parametrize("recipe", ["Watched", "OwnLoop"])
def test_neither_draws_nor_modes_reach_the_training(tiny_project: Any, recipe: str) -> None:
    """A model with dropout ends equal to the bit without the callbacks, in a loop of one's own too."""
    settings = {"config": {"dropout": 0.5}, "epochs": 3, "ema": 0.9 if recipe == "Watched" else None}
    plain = {"Watched": "tiny:Tiny", "OwnLoop": "watched:OwnLoop"}[recipe]
    with_them = run_local(tiny_project(recipe=f"watched:{recipe}", **settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched.Watched, "callbacks", lambda _self: [])
        without = run_local(tiny_project(recipe=plain, **settings))
    for name, tensor in without.model_state.items():
        assert torch.equal(with_them.model_state[name], tensor), name
    assert [{**each, "validation/largest": 0} for each in without.history] == [
        {**each, "validation/largest": 0} for each in with_them.history
    ]


def test_evaluations_see_the_averages(tiny_project: Any, tmp_path: Path) -> None:
    """What was noted of the weights at the best evaluation is that of the weights that are kept."""
    done = Attempt(tiny_project(recipe="watched:Watched", ema=0.9), tmp_path, token="a")
    weights, _ = load_weights(done.saver.best_uri)
    largest = max(float(tensor.abs().max()) for tensor in weights.values())
    assert done.outcome.metrics["validation/largest"] == largest


def test_a_resumed_run_calls_again_what_the_checkpoint_does_not_count(
    tiny_project: Any, told: list[Any], tmp_path: Path
) -> None:
    """Stopped after seven steps: every step and evaluation is told, and the history is that of the whole run."""
    project = tiny_project(recipe="watched:Watched", config={"dropout": 0.5})
    whole = Attempt(project, tmp_path / "whole", token="w")
    expected = [each[:3] for each in told]
    told.clear()
    Attempt(project, tmp_path / "cut", token="a", after=9)
    second = Attempt(project, tmp_path / "cut", token="b")
    assert [each[:3] for each in told] == expected
    assert second.outcome.history == whole.outcome.history


@pytest.mark.parametrize("hook", ["on_step", "on_evaluation", "on_end"])
def test_one_that_raises_is_told_once(tiny_project: Any, told: list[Any], tmp_path: Path, hook: str) -> None:
    """The run ends as without it, the other callback is called, and its history is complete."""
    done = Attempt(tiny_project(recipe="watched:Failing", config={"hook": hook}), tmp_path, token="a")
    messages = [event.message for event in done.events if event.kind == "message"]
    (message,) = messages
    assert message.startswith(f"Fails.{hook}() raised KeyError: 'no such column' at ")
    assert "watched.py" in message
    assert "the training continues" in message
    assert len(told) == 13
    assert len(done.outcome.history) == 2


def test_a_strict_one_fails_the_run(tiny_project: Any) -> None:
    """With the line that raised."""
    with pytest.raises(RecipeError, match=r"Fails.on_evaluation\(\) raised KeyError.*watched.py"):
        run_local(tiny_project(recipe="watched:Failing", config={"hook": "on_evaluation", "strict": True}))


@pytest.mark.parametrize(
    ("returned", "message"), [(watched.Noted(), "return a list"), ([watched.Noted], "return instances")]
)
def test_what_is_no_list_of_callbacks_is_refused(
    tiny_project: Any, monkeypatch: pytest.MonkeyPatch, returned: Any, message: str
) -> None:
    """Before the run."""
    monkeypatch.setattr(watched.Watched, "callbacks", lambda _self: returned)
    project = tiny_project(recipe="watched:Watched")
    with pytest.raises(RecipeError, match=rf"Watched.callbacks\(\) returned .*{message}"):
        preflight(project, prepare(project))


def test_a_model_in_parts_is_not_shown() -> None:
    """With fsdp the error says what to do instead; without, the modes come back."""
    sharded, _ = context()
    with pytest.raises(RecipeError, match="fsdp") as caught:
        _ = sharded.model
    assert "metrics()" in str(caught.value.hint)
    model = TinyModel(3, hidden=2, dropout=0.1)
    model.layers[2].eval()
    whole, _ = context(model=model)
    assert not any(module.training for module in whole.model.modules())
    whole.close()
    assert [module.training for module in (model, model.layers[0], model.layers[2])] == [True, True, False]


def test_what_is_logged_is_named_well_and_bounded() -> None:
    """Each error says what is wrong, and nothing is sent."""
    ctx, sent = context()
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)
    for match, call in {
        "got the key 'a#b'": lambda: ctx.log_image(noise, "a#b"),
        f"at most {MAX_BYTES >> 20} MiB": lambda: ctx.log_image(noise, "noise"),
        "got a Tensor": lambda: ctx.log_image(torch.zeros(2, 2), "tensor"),
        "a .json or a .parquet": lambda: ctx.log_table({"a": [1]}, "a.csv"),
        "a column 'step'": lambda: ctx.log_table({"step": [1]}, "a.json"),
        "no table": lambda: ctx.log_table({"a": [1], "b": [1, 2]}, "b.json"),
        "raymlops' own": lambda: ctx.log_table({"a": [1]}, "evaluation/test.json"),
        "relative path": lambda: ctx.log_figure(None, "../x.png"),
        "got a NoneType": lambda: ctx.log_figure(None, "x.png"),
    }.items():
        with pytest.raises(RecipeError, match=match):
            call()
    assert sent == []


def test_a_step_has_one_image_of_a_key() -> None:
    """As a metric has one value a step; a figure's file is overwritten."""
    ctx, sent = context()
    ctx.log_image(np.zeros((2, 2)), "a")
    with pytest.raises(RecipeError, match="'a' twice at step 5"):
        ctx.log_image(np.ones((2, 2)), "a")
    assert [(each.kind, each.name, each.step) for each in sent] == [("image", "a", 5)]


def test_a_trial_keeps_the_scalars_of_evaluations(tiny_project: Any, tmp_path: Path) -> None:
    """They are part of its reports; no image is drawn, and no test split evaluated."""
    project = tiny_project(recipe="watched:Logging")
    events: list[Any] = []
    saver = TrialSaver(project.spec.train, str(tmp_path), every_s=60.0, token="t", identity={})
    outcome = run_in_process(
        project, prepare(project), saver=saver, hooks=Hooks(emit=events.append, trial=True), identity={}
    )
    assert [report["validation/watched"] for report in outcome.history] == [0.5, 1.0]
    assert outcome.test == {}
    assert not [event for event in events if event.kind == "artifact"]


def test_the_end_of_a_trial_sees_its_last_weights(tiny_project: Any, tmp_path: Path) -> None:
    """Also where it is repeated: a trial keeps no best ones."""
    project = tiny_project(recipe="watched:Watched", lr=2.0, epochs=4, metric="validation/auc", mode="max")
    section, found = project.spec.train, []
    for token in "ab":
        before, events = recall(str(tmp_path), metric=section.metric, mode=section.mode), []
        run_in_process(
            project,
            prepare(project),
            saver=FolderSaver(section, str(tmp_path), token=token, identity={}, kept=before.kept),
            hooks=Hooks(emit=events.append, trial=True),
            resume=before.uri,
            identity={},
        )
        found += [event.metrics["end/largest"] for event in events if "end/largest" in event.metrics]
    assert found == [found[0]] * 2


def test_the_test_split_is_evaluated_with_the_weights_that_are_kept(tiny_project: Any, tmp_path: Path) -> None:
    """They are those of the best epoch, which is not the last: the model is loaded again."""
    project = tiny_project(lr=2.0, epochs=4, metric="validation/auc", mode="max")
    done = Attempt(project, tmp_path, token="a")
    assert done.outcome.best_epoch < 4
    prepared = prepare(project)
    model = prepared.recipe.model()
    model.load_state_dict(load_weights(done.saver.best_uri)[0])
    test = evaluate(prepared.recipe, model, prepared.splits["test"], project.spec.train, ranks=Ranks())
    assert done.outcome.test == test
    assert set(test) == {"test/loss", "test/accuracy", "test/auc", "test/rows"}


def test_the_end_sees_the_weights_that_are_kept(tiny_project: Any, tmp_path: Path) -> None:
    """Also in an attempt that finds the training finished, since the process died in the end of the one before."""
    project = tiny_project(recipe="watched:Watched", lr=2.0, epochs=4, metric="validation/auc", mode="max", ema=0.9)
    first, again = (Attempt(project, tmp_path, token=token) for token in "ab")
    assert first.outcome.best_epoch < 4
    for attempt in (first, again):
        found = [value for name, value, _ in attempt.points if name == "end/largest"]
        assert found == [first.outcome.metrics["validation/largest"]]
    assert again.outcome.test == {}


def test_a_test_split_that_fails_costs_nothing(
    tiny_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run says so and ends; one that resumes at that point does not try it again."""
    project, metrics = tiny_project(), Tiny.metrics
    calls: list[int] = []

    def fails_on_the_test_split(recipe: Any, model: Any, batch: Any) -> Any:
        if len(batch["label"]) != 64 and len(batch["label"]) not in {37, 101}:  # 300 = 4 * 64 + 44
            calls.append(1)
            msg = "a label of no training row"
            raise ValueError(msg)
        return metrics(recipe, model, batch)

    monkeypatch.setattr(Tiny, "metrics", fails_on_the_test_split)
    first = Attempt(project, tmp_path, token="a")
    again = Attempt(project, tmp_path, token="b")
    assert len(calls) == 1
    assert first.outcome.test == again.outcome.test == {}
    assert again.outcome.history == first.outcome.history
    (message,) = [event.message for event in first.events if event.kind == "message"]
    assert "the test split is not evaluated here, but at registration" in message
    assert "a label of no training row" in message


def test_a_stop_during_it_ends_the_run(tiny_project: Any, tmp_path: Path) -> None:
    """Ten steps, two evaluations of two batches and two reports, and a stop at the next test batch."""
    done = Attempt(tiny_project(), tmp_path, token="a", after=10 + 2 * 2 + 2 + 1)
    assert done.outcome.stopped == ""
    assert done.outcome.test == {}
    assert "at registration: it was interrupted" in [event.message for event in done.events][-1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_evaluate_the_test_split_together(tiny_project: Any, tmp_path: Path, strategy: str) -> None:
    """Two ranks have the metrics of one process; with fsdp the model is in parts, and its callbacks say so."""
    settings = {"lr": 1.0, "epochs": 3, "ema": 0.9}
    alone = Attempt(tiny_project(**settings), tmp_path / "alone", token="a").outcome.test
    project = tiny_project(recipe="watched:Watched", num_workers=2, strategy=strategy, **settings).to_dict()
    (first, told), (second, silent) = ranks().run(2, evaluated_at_end, project, str(tmp_path / strategy))
    assert first == second == pytest.approx(alone, abs=2e-3)
    assert silent == []
    assert len(told) == (0 if strategy == "ddp" else 1)
    assert all("ctx.model is not available with train.strategy fsdp" in text for text in told)
    # The last attempt of a run that broke in its test split: the first rank alone loads weights, for its callbacks.
    (first, said), _ = ranks().run(2, evaluated_at_end, project, str(tmp_path / strategy))
    assert (first, len(said)) == ({}, len(told))
