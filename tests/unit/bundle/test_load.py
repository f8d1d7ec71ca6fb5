"""A loaded bundle answers as the trained model did, with its own code."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pictures import Pictures
from tiny import Tiny
from tiny_bundle import EXAMPLE, contents_of, tiny_contents

from raymlops import __version__
from raymlops.arrays import Column
from raymlops.bundle.load import answer, load, typed_outputs
from raymlops.bundle.profiles import references_of
from raymlops.bundle.write import write_bundle
from raymlops.config.schema import ProjectSpec
from raymlops.data.prepare import prepare
from raymlops.errors import BundleError, InvalidRowsError, NonFiniteError, RecipeError, RecipeImportError, RowProblem
from raymlops.lifecycle.registration.profiles import references
from raymlops.profiles.file import write_references
from raymlops.project import bind
from raymlops.recipes.digits import Digits
from raymlops.signature import Signature
from raymlops.training.example import example_rows

SHOP = """
    from __future__ import annotations
    from dataclasses import KW_ONLY, dataclass
    from typing import Literal
    import torch
    from pydantic import Field
    from raymlops import Column, RecipeBase, RecipeConfig, Signature
    import shop.scales
    from shop.features import factor

    class Config(RecipeConfig):
        kind: Literal["a", "b"] = "a"
        sizes: tuple[int, ...] = Field((1, 2))

    @dataclass
    class Unit:
        _: KW_ONLY
        value: float = 1.0

    class Shop(RecipeBase):
        Config = Config
        def datasets(self): ...
        def model(self):
            return torch.nn.Identity()
        def loss(self, model, batch): ...
        def signature(self):
            return Signature(inputs=(Column("x", "float"),), outputs=(Column("y", "float"),))
        def decode(self, output):
            from shop.late import offset
            from .late import offset as again
            assert offset is again
            return {"y": output["x"] * factor * shop.scales.SCALE * Unit().value + offset()}
"""


def shop(imported, *, factor: float, offset: float):
    """Return a recipe of a package, whose factor is imported at the top and whose offset late."""
    recipe_class = imported(
        "shop.recipe:Shop",
        {
            "shop/__init__.py": "",
            "shop/recipe.py": SHOP,
            "shop/features.py": f"factor = {factor}\n",
            "shop/scales.py": "SCALE = 1.0\n",
            "shop/late.py": f"def offset():\n    import shop.scales as scales\n    return {offset} * scales.SCALE\n",
        },
    )
    return recipe_class(recipe_class.Config(sizes=(3, 4)))


def test_a_loaded_model_gives_the_numbers_of_the_trained_one(tiny_ref, tmp_path):
    """Same weights, state and code: same bits, and nothing is random or trains any more."""
    contents = tiny_contents()
    recipe = Tiny(Tiny.Config(**contents.recipe_config), state=contents.state, seed=3)
    model = recipe.model()
    model.load_state_dict(contents.weights)
    columns = recipe.signature().parse_rows(contents.example)
    expected = recipe.decode(model.eval()(recipe.encode(columns)))["probability"]

    loaded = load(tiny_ref.uri, tiny_ref.digest)

    assert loaded.predict(columns)["probability"].tolist() == expected.tolist()
    assert loaded.predict_rows(loaded.example) == [{"probability": value} for value in expected.tolist()]
    assert not loaded.model.training
    assert (loaded.recipe.seed, loaded.recipe.state, loaded.recipe.config.hidden) == (3, contents.state, 4)
    assert loaded.row_hashes.tolist() == contents.row_hashes.tolist()
    assert loaded.hashed_share == 1
    part = write_bundle(tmp_path, replace(contents, hashed_share=0.25))
    assert load(part.uri, part.digest).hashed_share == 0.25
    assert loaded.evaluation["metrics"] == {"test/auc": 0.5}
    assert loaded.lineage == {"raymlops.run_id": "r1"}


TOKENS = """
from pathlib import Path
import torch
from raymlops import Column, RecipeBase, Signature

class Shop(RecipeBase):
    package_data = ("spm.model",)
    def datasets(self): ...
    def model(self):
        return torch.nn.Identity()
    def loss(self, model, batch): ...
    def signature(self):
        return Signature(inputs=(Column("x", "float"),), outputs=(Column("y", "float"),))
    def decode(self, output):
        return {"y": output["x"] * float(Path(__file__).with_name("spm.model").read_text())}
"""


def test_code_finds_its_files_beside_itself(imported, tmp_path):
    """In the bundle, once the sources are gone."""
    shop = imported("nlp.shop:Shop", {"nlp/__init__.py": "", "nlp/shop.py": TOKENS, "nlp/spm.model": "3"})
    ref = write_bundle(tmp_path, contents_of(shop()))
    (tmp_path / "source0" / "nlp" / "spm.model").unlink()
    assert load(ref.uri, ref.digest).predict({"x": np.ones(2)})["y"].tolist() == [3.0, 3.0]


class Heads(NamedTuple):
    """What a model with a head returns."""

    logits: torch.Tensor


class Headed(Tiny):
    """Reads its output by attribute."""

    def predict(self, model, batch):
        return Heads(super().predict(model, batch))

    def decode(self, output):
        return super().decode(output.logits)


def test_an_output_is_the_same_wherever_the_model_runs():
    """``cpu:0`` is a device like another: batch and output are moved."""
    recipe = Headed(Tiny.Config(train_rows=50, hidden=4))
    recipe = Headed(recipe.config, state=recipe.fit(recipe.datasets().train))
    signature, model = recipe.signature(), recipe.model().eval()
    columns = signature.parse_rows(EXAMPLE)
    here, there = (answer(recipe, model, columns, signature=signature, device=device) for device in ("cpu", "cpu:0"))
    assert here["probability"].tolist() == there["probability"].tolist()


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tiny_ref):
    """The initial weights that are thrown away must not change what a notebook draws next."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(tiny_ref.uri, tiny_ref.digest)

    assert torch.rand(1) == expected


def test_two_versions_of_one_package_answer_side_by_side(imported, tmp_path):
    """Each with its own modules, whether imported at the top, by full name, relatively or at the first request."""
    refs = [
        write_bundle(tmp_path, contents_of(shop(imported, factor=factor, offset=offset)))
        for factor, offset in ((2.0, 10.0), (3.0, 100.0))
    ]
    first, second = (load(ref.uri, ref.digest) for ref in refs)

    # 2 * 1.5 + 10 and 3 * 1.5 + 100
    assert [m.predict_rows([{"x": 1.5}]) for m in (first, second, first)] == [[{"y": 13}], [{"y": 104.5}], [{"y": 13}]]
    assert type(first.recipe) is not type(second.recipe)
    assert first.recipe.config.sizes == (3, 4)


def test_a_bundle_needs_neither_the_sources_it_came_from_nor_its_own_folder_later(imported, tmp_path):
    """Sources are read once: an import at the first request works when the files are gone."""
    ref = write_bundle(tmp_path, contents_of(shop(imported, factor=2.0, offset=20.0)))
    loaded = load(ref.uri, ref.digest)
    for path in Path(ref.uri, "code").rglob("*.py"):
        path.unlink()

    assert loaded.predict_rows([{"x": 1}]) == [{"y": 22}]


def test_loading_writes_nothing_into_the_bundle(imported, tmp_path):
    """Byte code there would be a file that the manifest does not list."""
    ref = write_bundle(tmp_path, contents_of(shop(imported, factor=4.0, offset=0.0)))
    load(ref.uri, ref.digest).predict_rows([{"x": 1}])

    load(ref.uri, ref.digest)


def test_a_module_that_did_not_travel_is_missing_rather_than_another_version(imported, tmp_path):
    """The process has a ``shop.tests``; the bundle must not reach it."""
    recipe_class = imported(
        "shop.recipe:Shop",
        {"shop/__init__.py": "", "shop/recipe.py": SHOP + "\n    import shop.tests.data\n", "shop/tests/data.py": "",
         "shop/features.py": "factor = 1", "shop/scales.py": "SCALE = 1", "shop/late.py": ""},
    )  # fmt: skip
    ref = write_bundle(tmp_path, contents_of(recipe_class()))

    with pytest.raises(RecipeImportError, match=r"importing shop\.recipe from bundle .*shop\.tests"):
        load(ref.uri, ref.digest)


def test_a_tampered_bundle_runs_no_code(tiny_ref):
    """Verification comes before the import."""
    code = Path(tiny_ref.uri, "code", "tiny.py")
    code.write_text("raise SystemExit('ran')\n", encoding="utf-8")

    with pytest.raises(BundleError, match=r"code/tiny\.py"):
        load(tiny_ref.uri, tiny_ref.digest)


def test_a_bundle_of_a_shipped_recipe_runs_with_the_installed_one_and_says_so(tmp_path, caplog):
    """No code travels; when the version is another than at training, the log has both."""
    ref = write_bundle(tmp_path, contents_of(Digits()))
    about = json.loads(Path(ref.uri, "recipe.json").read_bytes())
    image = {"image": [[0.0] * 8] * 8}

    with caplog.at_level(logging.WARNING):
        answer = load(ref.uri, ref.digest).predict_rows([image])
        assert caplog.messages == []
        digest = revise(Path(ref.uri), {**about, "raymlops_version": "0.0.1"})
        assert load(ref.uri, digest).predict_rows([image]) == answer

    assert (about["import"], about["code"], about["distribution"]) == (
        "raymlops.recipes.digits:Digits",
        "installed",
        "raymlops",
    )
    assert not Path(ref.uri, "code").exists()
    assert f"raymlops 0.0.1; it runs with that of the installed {__version__}" in caplog.text


def revise(folder: Path, about: dict) -> str:
    """Write another recipe.json, and return the digest that would vouch for the result."""
    data = json.dumps(about).encode()
    (folder / "recipe.json").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["recipe.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


EXCLUSIVE = """
    import sys
    from raymlops.bundle.load import load
    loaded = load(sys.argv[1], sys.argv[2], exclusive=True)
    print(loaded.predict_rows([{"x": 1.5}]), type(loaded.recipe).__module__)
    import importlib
    print(importlib.import_module("shop.late").__file__.startswith(sys.argv[1]))
    load(sys.argv[1], sys.argv[2], exclusive=True)
    try:
        load(sys.argv[3], sys.argv[4], exclusive=True)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_process_that_serves_one_bundle_has_its_modules_under_their_names(imported, tmp_path):
    """So that everything works as in training; a second version in the same process is refused."""
    refs = [write_bundle(tmp_path, contents_of(shop(imported, factor=factor, offset=1.0))) for factor in (2.0, 3.0)]
    script = tmp_path / "replica.py"
    script.write_text(dedent(EXCLUSIVE), encoding="utf-8")
    arguments = [text for ref in refs for text in (ref.uri, ref.digest)]

    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=True)

    lines = done.stdout.splitlines()
    assert lines[:2] == ["[{'y': 4.0}] shop.recipe", "True"]
    assert lines[2].startswith("RecipeImportError the bundle's module shop")
    load(refs[0].uri, refs[0].digest)


class Outputs(Tiny):
    """Answers with whatever the test puts here."""

    answer: object = None

    def decode(self, output):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            {"probability": np.array([0.5, np.nan])},
            NonFiniteError,
            r"'probability' is nan at \(1,\); 1 of its 2 values",
        ),
        ({"probability": np.array([0.5, np.inf])}, NonFiniteError, "is inf"),
        ({"probability": np.array([0.5])}, RecipeError, "1 values for 2 rows"),
        ({"probability": np.float64(0.5)}, RecipeError, "a single value for 2 rows"),
        ({"probability": np.array([[0.5], [0.5]])}, RecipeError, r"values of shape \(1,\); the signature says \(\)"),
        ({"probability": np.array(["a", "b"])}, RecipeError, "an array of <U1; the signature says float"),
        ({"p": np.array([0.5, 0.5])}, RecipeError, "returned p; the signature's outputs are probability"),
        (np.array([0.5, 0.5]), RecipeError, "returned a ndarray"),
    ],
)
def test_outputs_that_do_not_fit_the_signature_are_named(tiny_ref, answer, error, message):
    """A replica must not answer with them."""
    loaded = load(tiny_ref.uri, tiny_ref.digest)
    recipe = Outputs(loaded.recipe.config, state=loaded.recipe.state)
    recipe.answer = answer

    with pytest.raises(error, match=message):
        replace(loaded, recipe=recipe).predict_rows(loaded.example)


def test_answers_that_are_not_finite_are_computed_and_found_row_by_row(tiny_ref):
    """Requests share a batch, and each is told of its own rows."""
    loaded = load(tiny_ref.uri, tiny_ref.digest)
    recipe = Outputs(loaded.recipe.config, state=loaded.recipe.state)
    recipe.answer = {"probability": np.array([0.5, np.nan])}
    outputs = replace(loaded, recipe=recipe).compute(loaded.signature.parse_rows(loaded.example))

    assert np.isnan(outputs["probability"]).tolist() == [False, True]
    loaded.require_finite({"probability": outputs["probability"][:1]})
    with pytest.raises(NonFiniteError, match=r"output 'probability' is nan at \(0,\); 1 of its 1 values"):
        loaded.require_finite({"probability": outputs["probability"][1:]})
    with pytest.raises(NonFiniteError, match=r"is nan at \(1025,\); 1 of its 2 values"):
        loaded.require_finite(outputs, 1024)
    free = Signature(loaded.signature.inputs, (Column("path", "float", shape=(None,)),))
    paths = np.empty(2, dtype=object)
    paths[:] = [np.zeros(3), np.array([0.0, np.inf])]
    with pytest.raises(NonFiniteError, match=r"output 'path', row 1025 is inf at \(1,\)"):
        replace(loaded, signature=free).require_finite({"path": paths}, 1024)


def test_an_error_about_a_row_that_the_recipe_raises_stays_one(tiny_ref):
    """So that a recipe's own check of its inputs is answered 422 and not 500."""

    class Strict(Tiny):
        def encode(self, columns):
            raise InvalidRowsError([RowProblem(1, "length", "is negative")])

    loaded = load(tiny_ref.uri, tiny_ref.digest)

    with pytest.raises(InvalidRowsError, match="row 1, field 'length': is negative"):
        replace(loaded, recipe=Strict(loaded.recipe.config)).predict_rows(loaded.example)


def test_weights_that_do_not_fit_the_model_are_named(tmp_path):
    """A recipe that builds something else than what was trained."""
    contents = tiny_contents()
    ref = write_bundle(tmp_path, tiny_contents(recipe_config={**contents.recipe_config, "hidden": 5}))

    with pytest.raises(RecipeError, match=r"weights do not fit Tiny\.model\(\)"):
        load(ref.uri, ref.digest)


def test_a_state_comes_back_as_it_was(tmp_path):
    """In its order, which a vocabulary may rely on, and with NaN."""
    state = {**tiny_contents().state, "vocabulary": {"z": 0, "a": 1}, "gap": float("nan")}
    ref = write_bundle(tmp_path, tiny_contents(state=state))

    loaded = load(ref.uri, ref.digest)

    assert list(loaded.recipe.state["vocabulary"]) == ["z", "a"]
    assert np.isnan(loaded.recipe.state["gap"])


def typed(column, values):
    """Return what ``decode`` returned as the array of an output."""
    signature = Signature((Column("x", "float"),), (column,))
    return typed_outputs({"y": values}, signature, rows=2, where="decode()")["y"]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (Column("y", "bytes"), [b"a\0", b""], [b"a\0", b""]),
        (Column("y", "bytes"), np.array([b"a", b"bc"]), [b"a", b"bc"]),
        (Column("y", "bytes", nullable=True), [None, b"x"], [None, b"x"]),
        (
            Column("y", "datetime"),
            [datetime(2026, 1, 1, tzinfo=UTC), datetime.fromisoformat("2026-01-02")],
            ["2026-01-01", "2026-01-02"],
        ),
        (Column("y", "datetime"), np.array(["2026-01-01", "2026-01-02"], "M8[D]"), ["2026-01-01", "2026-01-02"]),
        (
            Column("y", "image", shape=(1, 1, 1)),
            torch.tensor([[[[7]]], [[[8]]]], dtype=torch.uint8),
            [[[[7]]], [[[8]]]],
        ),
    ],
    ids=str,
)
def test_bytes_times_and_images_are_outputs_too(column, values, expected):
    """As ``decode`` has them; bytes keep the zeros at their end."""
    array = typed(column, values)
    assert array.dtype == column.info.dtype
    wanted = np.array(expected, dtype=array.dtype) if column.type != "bytes" else expected
    assert array.tolist() == (wanted.tolist() if column.type != "bytes" else wanted)


def test_truth_values_that_may_be_missing_are_floats():
    """1, 0 and NaN, of objects, tensors and such floats; a probability is none."""
    column = Column("y", "bool", nullable=True)
    for values in ([True, None], np.array([1.0, np.nan]), torch.tensor([1.0, np.nan])):
        np.testing.assert_array_equal(typed(column, values), [1.0, np.nan])
    assert typed(column, torch.tensor([True, False])).dtype == np.float64
    with pytest.raises(RecipeError, match=r"0\.5; the signature says bool"):
        typed(column, np.array([1.0, 0.5]))


def test_images_of_several_sizes_are_outputs_too():
    """An array for each."""
    column = Column("y", "image", shape=(None, None, 1))
    one, other = torch.zeros(2, 1, 1, dtype=torch.uint8), np.zeros((1, 3, 1), dtype=np.uint8)
    assert [item.shape for item in typed(column, [one, other])] == [(2, 1, 1), (1, 3, 1)]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (Column("y", "bytes"), ["a", "b"], "'a' in an array of shape (2,); the signature says bytes"),
        (Column("y", "bytes"), [b"a", None], "None in an array"),
        (Column("y", "bytes"), b"ab", "a single value for 2 rows"),
        (Column("y", "string"), [b"a", b"b"], "b'a' in an array"),
        (Column("y", "datetime"), ["2026-01-01", "2026-01-02"], "the signature says datetime"),
        (Column("y", "datetime"), [1, 2], "an array of int64; the signature says datetime"),
        (Column("y", "datetime"), np.array(["2026-01-01", "NaT"], "M8[us]"), "NaT; the signature says datetime"),
        (
            Column("y", "image", shape=(1, 1, 1)),
            np.zeros((2, 1, 1, 1)),
            "an array of float64; the signature says image",
        ),
        (Column("y", "image", shape=(1, 1, 1)), np.zeros((2, 1, 1, 1), dtype=np.uint16), "an array of uint16"),
        (Column("y", "image", shape=(1, 1, 1)), np.zeros((2, 1, 1, 3), dtype=np.uint8), "values of shape (1, 1, 3)"),
    ],
    ids=str,
)
def test_outputs_of_another_type_are_refused(column, values, message):
    """The error names the output and what the signature says."""
    with pytest.raises(RecipeError) as caught:
        typed(column, values)
    assert message in caught.value.message
    assert "'y'" in caught.value.message


def test_a_bundle_of_pictures_answers_its_example(tmp_path):
    """From a table with files of images to JSON rows: example, profiles, bundle, answer."""
    sections = {"project": {"name": "p"}, "recipe": {"import": "pictures:Pictures"}}
    prepared = prepare(bind(ProjectSpec.model_validate(sections), recipe=Pictures))
    rows = example_rows(prepared)
    found = references(prepared, prepared.recipe.model().eval(), batch_size=16, device="cpu")
    measures = [(series.column, series.measure) for series in found["features"].layout.series]
    assert measures == [("photo", "mean"), ("photo", "deviation"), ("at", "time"), ("note", "size")]
    assert "thumb" in found["predictions"].layout.by_column
    hashes = np.concatenate([*prepared.splits["train"].hashes()])
    ref = write_bundle(tmp_path, contents_of(prepared.recipe, example=rows, references=found, row_hashes=hashes))
    assert write_references(references_of(ref.uri, ref.digest)) == write_references(found)
    loaded = load(ref.uri, ref.digest)
    assert loaded.signature == prepared.signature
    answers = loaded.predict_rows(loaded.example)
    assert json.loads(json.dumps(answers)) == answers
    assert [set(row) for row in answers] == [{"y", "thumb", "due", "raw"}] * 2
    assert answers[0]["due"].endswith("T00:00:00.000000Z")
