"""Code that changed after a training: what shows that it still is the trained model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from local_training import run_local
from tiny import Tiny, TinyModel

from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.errors import NotFoundError, RecipeError, RefusedError
from raymlops.lifecycle.registration.code_changes import CodeChange, check_repair, code_change, differing, trained_model
from raymlops.project import bind

CHANGE = CodeChange("r1", "shop:Recipe", "a" * 64, "b" * 64, "changed: shop.py", "Restore the files")


@pytest.fixture(scope="module")
def trained():
    """A project, the weights that it was trained to, and the tags that say how well."""
    data = {
        "project": {"name": "p"},
        "recipe": {"import": "tiny:Tiny", "config": {"train_rows": 300, "validation_rows": 100}},
        "train": {"epochs": 2, "lr": 0.01, "eval_batch_size": 64},
    }
    project = bind(load_data(data))
    result = run_local(project)
    tags = {f"raymlops.best.{name}": repr(value) for name, value in result.metrics.items()}
    return project, result.model_state, tags


class Repaired(Tiny):
    """Decodes otherwise, which no metric sees."""

    def decode(self, output):
        return {"probability": torch.sigmoid(output).double().numpy()}


class OtherEncoding(Tiny):
    """Takes widths for ten times what they are."""

    def encode(self, columns):
        return super().encode({**columns, "width": [10 * value for value in columns["width"]]})


class OtherModel(Tiny):
    """Has layers that the weights do not fit."""

    def model(self):
        return TinyModel(4, hidden=7, dropout=0.0)


class Fails(Tiny):
    """Cannot evaluate any more."""

    def metrics(self, model, batch):
        raise ValueError


class Stored(dict):
    """The weights of a training."""

    def load_into(self, model):
        model.load_state_dict(self)


def check(trained, recipe, change=CHANGE, tags=None, step=0):
    project, weights, recorded = trained
    prepared = prepare(replace(project, recipe_class=recipe))
    model = trained_model(prepared, Stored(weights), change=change)
    tags = recorded if tags is None else tags
    check_repair(change, project.spec.train, prepared, model=model, step=step, tags=tags)


def test_code_that_gives_the_recorded_metrics_is_accepted(trained, caplog):
    """It is said; both digests are to go on record."""
    check(trained, Repaired)
    assert "shop:Recipe is no longer what run r1 was trained with (changed: shop.py)" in caplog.text
    assert "validation/auc" in caplog.text
    assert CHANGE.tags() == {
        "raymlops.code_sha": "b" * 64,
        "raymlops.trained_code_sha": "a" * 64,
        "raymlops.code_change": "changed: shop.py",
    }


class Noisy(Tiny):
    """Draws in its metrics, as a sampled loss does."""

    def metrics(self, model, batch):
        sums = super().metrics(model, batch)
        return {**sums, "loss": sums["loss"] + torch.randn(len(batch["label"])).sum()}


class RepairedNoisy(Noisy):
    """Draws the same."""


def test_metrics_that_draw_come_out_again(trained):
    """They are seeded by the step of the weights, as in the training; without that they are other numbers."""
    project, *_ = trained
    noisy = replace(project.with_train(project.spec.train.model_copy(update={"epochs": 1})), recipe_class=Noisy)
    result = run_local(noisy)
    tags = {f"raymlops.best.{name}": repr(value) for name, value in result.metrics.items()}
    check((noisy, result.model_state, tags), RepairedNoisy, step=result.steps)
    with pytest.raises(RefusedError, match="validation/loss is"):
        check((noisy, result.model_state, tags), RepairedNoisy, step=result.steps + 1)


class Annealed(Tiny):
    """Has metrics that depend on how far the training is, as an annealed loss does."""

    def metrics(self, model, batch):
        sums = super().metrics(model, batch)
        return {**sums, "loss": sums["loss"] * (1 + sum(self.progress))}


@pytest.mark.parametrize("train", [{"eval_max_rows": 30}, {"eval_every_steps": 3}, {"max_steps": 3}])
def test_a_validation_is_repeated_as_it_was(trained, train):
    """Over the same rows, as far in the training: two epochs of two steps, or what is left; the last is best."""
    project, *_ = trained
    section = project.spec.train.model_copy(update={"mode": "max", **train})
    annealed = replace(project.with_train(section), recipe_class=Annealed)
    result = run_local(annealed)
    tags = {f"raymlops.best.{name}": repr(value) for name, value in result.metrics.items()}
    assert result.best_epoch == len(result.history)
    check((annealed, result.model_state, tags), type("Repaired", (Annealed,), {}), step=result.steps)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            OtherEncoding,
            r"\(changed: shop.py\), and does not evaluate as it did: validation/\w+ is [\d.]+, then [\d.]+",
        ),
        (OtherModel, r"cannot use its weights: [\s\S]*size mismatch"),
        (Fails, r"cannot be evaluated: Fails\.metrics\(\) raised ValueError"),
    ],
)
def test_code_that_is_another_model_is_refused(trained, recipe, message):
    """The error says what does not come out as it was, and how to undo the change."""
    with pytest.raises(RefusedError, match=message) as raised:
        check(trained, recipe)
    assert str(raised.value.hint).startswith("Restore the files and register there")


def test_a_model_that_is_another_one_with_the_same_code_is_named(trained):
    """``model()`` may depend on what is not in the recipe."""
    project, weights, _ = trained
    prepared = prepare(replace(project, recipe_class=OtherModel))
    with pytest.raises(RecipeError, match=r"the weights do not fit OtherModel\.model\(\)[\s\S]*size mismatch"):
        trained_model(prepared, Stored(weights), change=None)


def test_without_anything_to_compare_code_is_refused(trained):
    """A loop of the recipe's own may have reported other names."""
    with pytest.raises(RefusedError, match="the run has no metrics on validation"):
        check(trained, Repaired, tags={"raymlops.best.train/loss": "0.5"})


def test_code_that_was_edited_under_a_running_process_is_refused(trained):
    """What is tried there may not be what travels."""
    with pytest.raises(RefusedError, match=r"shop\.py changed after this process had started.* in a new process"):
        check(trained, Repaired, change=replace(CHANGE, edited=("shop.py",)))


def test_values_differ_by_more_than_rounding():
    """One in a thousand is rounding; NaN is NaN; a name that is gone differs."""
    recorded = {"a": 1.0, "b": float("nan"), "c": 0.5, "d": 2.0, "e": 0.0}
    found = {"a": 1.0009, "b": float("nan"), "c": 0.51, "e": 1e-7}
    assert differing(recorded, found, tolerance=1e-3) == ["c", "d"]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A recipe's module, imported, and its project."""
    path = tmp_path / "repairs_shop.py"
    path.write_text("from tiny import Tiny\n\n\nclass Shop(Tiny):\n    pass\n")
    os.utime(path, (0, 0))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "repairs_shop", raising=False)
    return path, bind(load_data({"project": {"name": "p"}, "recipe": {"import": "repairs_shop:Shop"}}))


def changed(project, files, tags):
    def read_text(run_id, name):
        if files is None:
            raise NotFoundError(name)
        return files

    return code_change(project, SimpleNamespace(read_text=read_text), run_id="r1", tags=tags)


def test_the_change_is_named(shop):
    """By files, with how to get back to them; a file that is newer than this process is known to be."""
    path, project = shop
    was = changed(project, None, {})
    assert changed(project, None, {"raymlops.code_sha": was.now}) is None
    assert (was.then, was.edited) == ("unknown", ())

    path.write_text(path.read_text() + "\n\nEDITED = True\n")
    now = changed(
        project,
        '{"repairs_shop.py": "0", "tiny.py": "1"}',
        {"raymlops.code_sha": was.now, "raymlops.git_commit": "c" * 40, "raymlops.git_dirty": "true"},
    )
    assert (now.then, now.what) == (was.now, "changed: repairs_shop.py, tiny.py")
    assert now.back == "Check out commit cccccccccccc with the changes in the run's artifact code/uncommitted.diff"
    assert now.edited == ("repairs_shop.py",)


def test_a_file_that_was_saved_just_before_the_process_is_not_newer(tmp_path):
    """Who saves a recipe and registers at once is not told that it changed meanwhile."""
    saved = tmp_path / "shop.py"
    saved.write_text("")
    code = "from raymlops.lifecycle.registration.code_changes import process_start_s; print(process_start_s())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert saved.stat().st_mtime - 0.05 < float(found) < time.time()
