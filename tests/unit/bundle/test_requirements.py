"""Which distributions a bundle's code needs, and what is said where others are installed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_bundle import tiny_contents

from raymlops.bundle.code import owners
from raymlops.bundle.load import load
from raymlops.bundle.pyfunc import save_pyfunc
from raymlops.bundle.requirements import differing, requirements
from raymlops.bundle.write import write_bundle

CODE = {
    "shop/__init__.py": b"",
    "shop/recipe.py": b"""
import json, os.path
import yaml_that_is_not_installed
from PIL_that_is_not_installed import Image
from raymlops.recipe import RecipeBase
from . import features
import shop.features
""",
    "shop/features.py": b"def f():\n    from sklearn.preprocessing import StandardScaler\n    import google.protobuf\n",
    "shop/notes.txt": b"import pandas",
}


def test_imports_are_traced_to_the_distributions_that_hold_them():
    """In a function too, by another name than the module's, in a shared namespace; not what is optional, or our own."""
    found = requirements(CODE, trained_with={"scikit-learn": "1.0.1", "torch": "2.0.0+cu118"})
    assert found == {
        "numpy": version("numpy"),
        "protobuf": version("protobuf"),
        "scikit-learn": "1.0.1",
        "torch": "2.0.0+cu118",
    }


def test_what_is_installed_meanwhile_is_a_requirement(tmp_path, monkeypatch):
    """As in a notebook, where somebody installs what the recipe lacked and goes on."""
    monkeypatch.syspath_prepend(tmp_path)
    code = {"mine.py": b"import a_shop"}
    assert "a-shop" not in requirements(code, trained_with={})
    (tmp_path / "a_shop.py").touch()
    folder = tmp_path / "a_shop-1.5.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: a-shop\nVersion: 1.5\n")
    (folder / "top_level.txt").write_text("a_shop\n")
    assert requirements(code, trained_with={})["a-shop"] == "1.5"


def test_a_folder_of_modules_alone_lists_nothing_anew(tmp_path, monkeypatch):
    found = owners()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").touch()
    assert owners() is found


def test_other_versions_are_told_from_other_builds():
    here = version("numpy")
    recorded = {"numpy": f"{here}+local", "torch": "0.1.0", "no-such-thing": "1"}
    assert list(differing(recorded)) == [
        f"torch 0.1.0, {version('torch')} here",
        "no-such-thing 1, which is not installed here",
    ]


@pytest.mark.parametrize("torch_then", [version("torch"), "0.1.0"])
def test_a_replica_with_other_versions_says_so(tmp_path, caplog, torch_then):
    """It answers all the same."""
    ref = write_bundle(tmp_path, tiny_contents(trained_with={"torch": torch_then}))
    with caplog.at_level(logging.WARNING):
        loaded = load(ref.uri, ref.digest)
    said = f"bundle {ref.digest[:12]} was made with torch 0.1.0, {version('torch')} here"
    assert caplog.messages == ([said] if torch_then == "0.1.0" else [])
    assert loaded.predict_rows(loaded.example)


def test_the_environment_of_mlflow_names_them(tmp_path):
    """Without builds, which no index has: what ``mlflow models serve`` installs."""
    ref = write_bundle(tmp_path / "store", tiny_contents(trained_with={"torch": "2.13.0+cpu"}))
    save_pyfunc(ref, tmp_path / "model")
    names = [line.partition("==")[0] for line in (tmp_path / "model" / "requirements.txt").read_text().split()]
    assert "torch==2.13.0\n" in (tmp_path / "model" / "requirements.txt").read_text()
    assert names == ["raymlops", "numpy", "pydantic", "torch"]


def test_files_that_came_after_the_training_make_no_other_bundle(tmp_path):
    """The list is that of the training."""
    ref = write_bundle(tmp_path, replace(tiny_contents(), left_out=["shop/spm.model"]))
    assert json.loads(Path(ref.uri, "recipe.json").read_text())["left_out"] == ["shop/spm.model"]
