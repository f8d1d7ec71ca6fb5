import signal
import sys
import sysconfig

import numpy as np
import plain_recipe
import pytest
import torch
from plain_recipe import Plain

from raymlops.arrays import Column
from raymlops.errors import RecipeError, RecipeImportError
from raymlops.recipe import RecipeBase, RecipeConfig, call_recipe
from raymlops.recipe_import import reference_of, resolve
from raymlops.signature import Signature

OURS = sys.modules["raymlops.recipe"].__file__


def test_an_import_string_leads_to_its_class():
    """The string and the class itself give the same, and the class gives the string back."""
    assert resolve("plain_recipe:Plain") is resolve(Plain) is Plain
    assert reference_of(Plain) == "plain_recipe:Plain"


@pytest.mark.parametrize(
    ("reference", "message", "hint"),
    [
        ("plain_recipe", "is not of the form package.module:Class", None),
        (":Plain", "is not of the form", None),
        ("plain_recipe:", "is not of the form", None),
        ("plain_recip:Plain", "there is no module 'plain_recip'", "Did you mean plain_recipe?"),
        (
            "raymlops.recipes.flihgts:X",
            "no module 'raymlops.recipes.flihgts'",
            "Did you mean raymlops.recipes.flights?",
        ),
        ("zzqx:Plain", "there is no module 'zzqx'", "Modules are searched in the working directory"),
        ("plain_recipe:Plan", "has no attribute 'Plan'", "Did you mean plain_recipe:Plain?"),
        ("plain_recipe:Plain.Inner", "has no attribute 'Plain.Inner'", "Did you mean"),
        ("plain_recipe:NOT_A_CLASS", "is a int, not a subclass", "Name the class itself"),
        ("plain_recipe:PlainConfig", "is the class PlainConfig, not a subclass", "Name the class itself"),
        ("plain_recipe:Unfinished", "does not define datasets, model, loss, signature", "Every recipe must."),
        ("plain_recipe:LoopAlone", "does not define datasets, model, metrics, signature", "Every recipe must."),
        ("__main__:Plain", "is in __main__", "In a notebook write its cell with `%%raymlops my_recipe.py`"),
        (plain_recipe.make_local(), "defined inside a function", "Move the class to the top level"),
        (int, "'builtins:int' is the class int", "Name the class itself"),
    ],
)
def test_a_bad_reference_says_what_to_do(reference, message, hint):
    """Module missing, attribute missing, wrong kind, not importable by a worker: each with its own advice."""
    with pytest.raises(RecipeImportError) as caught:
        resolve(reference)
    assert message in caught.value.message
    assert (caught.value.hint or "").startswith(hint or "")
    assert (caught.value.hint is None) is (hint is None)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("broken_syntax", "class :", "raised SyntaxError"),
        ("broken_import", "import no_such_module_here", "importing broken_import failed: No module named"),
        ("broken_script", "import sys; sys.exit()", r"importing broken_script called sys\.exit\(\)"),
        ("broken_body", "1 / 0", "importing broken_body raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_does_not_import_is_told_apart(tmp_path, monkeypatch, name, source, message):
    """The recipe's own fault is not mistaken for a missing module."""
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeImportError, match=message):
        resolve(f"{name}:Recipe")


def test_modules_are_found_in_the_working_directory(tmp_path, monkeypatch):
    """A console script starts without the working directory on its path; a recipe beside the config is found."""
    (tmp_path / "beside.py").write_text("from plain_recipe import Plain\nclass Mine(Plain): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert resolve("beside:Mine").__name__ == "Mine"


def test_what_torch_raises_in_a_recipe_is_told_with_the_recipes_line():
    """Where in torch or numpy it was says nothing to the recipe's author."""
    with pytest.raises(RecipeError, match=r"decode\(\) raised RuntimeError: .* at .*test_recipe\.py:\d+$"):
        call_recipe("decode()", lambda: torch.nn.Linear(2, 1)(torch.zeros(1, 3)))


def test_an_installed_recipe_is_told_with_its_line_also_where_torch_calls_it():
    """As in a training, where its loss is a module, which DDP can wrap."""
    file = f"{sysconfig.get_path('purelib')}/somebody/recipe.py"
    named = {}
    exec(compile("def loss(model, x):\n\n    return model(x)", file, "exec"), named)

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(2, 1)

        def forward(self, x):
            return named["loss"](self.model, x)

    Loss.forward.__code__ = Loss.forward.__code__.replace(co_filename=OURS)
    loss = Loss()
    called = eval(compile("lambda: loss(x)", OURS, "eval"), {"loss": loss, "x": torch.zeros(1, 3)})
    with pytest.raises(RecipeError, match=rf"loss\(\) raised RuntimeError: .* at {file}:3$"):
        call_recipe("loss()", called)


def test_where_no_line_of_the_recipe_ran_the_caller_says_where_it_was():
    """torch's own line says nothing."""
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    z = (y * 1).sum()
    y.add_(1)
    with pytest.raises(RecipeError, match=r"backward raised RuntimeError: .* in step 3$"):
        call_recipe("backward", z.backward, place=lambda: "in step 3")


def test_what_a_recipe_raises_becomes_an_error_with_its_line():
    """Method, exception and line are named; errors of ours pass through."""
    with pytest.raises(RecipeError, match=r"model\(\) raised ValueError: odd at .*test_recipe\.py:\d+"):
        call_recipe("model()", lambda: _raise(ValueError("odd")))
    error = RecipeError("mine")
    with pytest.raises(RecipeError) as caught:
        call_recipe("model()", lambda: _raise(error))
    assert caught.value is error


@pytest.mark.parametrize(("code", "called"), [((0,), "0"), ((), ""), (("bye",), "'bye'")])
def test_a_recipe_cannot_end_the_process(code, called):
    """sys.exit(0) would look like success."""
    with pytest.raises(RecipeError, match=rf"^model\(\) called sys\.exit\({called}\) at .*test_recipe\.py:\d+"):
        call_recipe("model()", lambda: sys.exit(*code))


def test_a_signal_that_strikes_in_a_recipe_ends_the_process():
    """A handler that exits, such as Ray's in a worker, is not the recipe's doing."""

    def leave(number, _frame):
        sys.exit(number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit):
            call_recipe("model()", lambda: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(error):
    raise error


class Line(RecipeBase):
    """Two inputs, one weight each: loss is the mean of (x + y - label) squared."""

    label = "label"

    def datasets(self):
        return None

    def model(self):
        return torch.nn.Identity()

    def loss(self, model, batch):
        return ((batch["x"] + batch["y"] - batch["label"]) ** 2).mean()

    def signature(self):
        return Signature((Column("x", "float"), Column("y", "float")), (Column("a", "float"), Column("b", "float")))


def test_defaults_encode_every_input_as_float32():
    """One tensor a column; the label becomes a target of its own."""
    recipe = Line()
    batch = recipe.encode({"x": np.array([1, 2]), "y": np.array([3.0, 4.0]), "label": np.array([0.0, 1.0])})
    assert {name: tensor.dtype for name, tensor in batch.items()} == {"x": torch.float32, "y": torch.float32}
    assert recipe.target({"label": np.array([0.0, 1.0])}).dtype == torch.float32
    assert recipe.target({"label": np.array([0, 1])}).dtype == torch.int64


def test_defaults_encode_images_as_torchvision_does():
    """Channels first, from 0 to 1."""
    recipe = Plain()
    recipe.signature = lambda: Signature((Column("x", "image", shape=(2, 3, 3)),), (Column("y", "float"),))
    pixels = np.zeros((4, 2, 3, 3), dtype=np.uint8)
    pixels[1, 0, 2, 1] = 255
    batch = recipe.encode({"x": pixels})
    assert (batch["x"].shape, batch["x"].dtype) == ((4, 3, 2, 3), torch.float32)
    assert batch["x"][1, 1, 0, 2] == 1.0
    assert batch["x"].sum() == 1.0


@pytest.mark.parametrize(
    ("column", "array"),
    [
        (Column("x", "string"), np.array(["a"], dtype=object)),
        (Column("x", "bytes"), np.array([b"a"], dtype=object)),
        (Column("x", "datetime"), np.array(["2026-11-27"], dtype="datetime64[us]")),
        (Column("x", "image", shape=(None, None, 3)), np.array([None], dtype=object)),
        (Column("x", "int", shape=(None,)), np.array([None], dtype=object)),
    ],
)
def test_what_is_no_number_has_no_default_tensor(column, array):
    """A time in float32 would be off by a minute; the error says what to define."""
    recipe = Plain()
    recipe.signature = lambda: Signature((column,), (Column("y", "float"),))
    with pytest.raises(ValueError, match=r"makes no tensor of 'x', .*: define encode\(columns\)"):
        recipe.encode({"x": array})


def test_default_metrics_are_sums_that_merge_exactly():
    """(1+1-0)^2 = 4, (2+2-0)^2 = 16, (0+1-0)^2 = 1: sum 21 over 3 rows, however they are cut into batches."""
    recipe = Line()
    x, y = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 1.0])
    batches = [{"x": x[part], "y": y[part], "label": torch.zeros(len(x[part]))} for part in (slice(2), slice(2, 3))]
    parts = [recipe.metrics(None, batch) for batch in batches]
    totals = {name: float(parts[0][name] + parts[1][name]) for name in parts[0]}
    assert totals == {"loss": 21.0, "count": 3.0}
    assert recipe.finalize({**totals, "histogram": np.ones(4)}) == {"loss": 7.0}


def test_default_decode_spreads_the_last_dimension():
    """Two outputs take a column each; a single output may come as (n,) or (n, 1)."""
    decoded = Line().decode(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert {name: array.tolist() for name, array in decoded.items()} == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    plain = Plain()
    assert plain.decode(torch.tensor([[1.0], [2.0]]))["y"].tolist() == [1.0, 2.0]
    assert plain.decode(torch.tensor([1.0, 2.0]))["y"].tolist() == [1.0, 2.0]


def test_default_decode_needs_a_value_for_each_output():
    """Where it spreads them; more dimensions are the shapes of outputs."""
    for output in (torch.ones(3, 1), torch.ones(3)):
        with pytest.raises(
            RecipeError, match=r"Line\.predict\(\) returned a tensor of shape .* for 2 outputs\n.*decode"
        ):
            Line().decode(output)
    assert Line().decode(torch.ones(3, 2, 4))["b"].shape == (3, 4)


@pytest.mark.parametrize(
    ("method", "fails", "hint"),
    [
        ("encode", lambda: {}["y"], "without the label"),
        ("model", lambda: Line().width, "what fit() returns"),
        ("model", lambda: torch.nn.Liner, None),
        ("predict", lambda: torch.nn.Linear(1, 1)({}), "define predict(model, batch)"),
        ("predict", lambda: {}["y"], None),
    ],
)
def test_what_is_often_meant_is_said(method, fails, hint):
    """Where the error alone is of torch or of Python."""
    with pytest.raises(RecipeError) as caught:
        call_recipe(f"Line.{method}()", fails)
    assert caught.value.hint is None if hint is None else hint in caught.value.hint


def test_default_decode_says_what_predict_returned():
    """A dict of tensors is what decode() returns, not what it takes."""
    with pytest.raises(
        RecipeError, match=r"Plain\.predict\(\) returned a dict, and the default decode\(\) takes"
    ) as no:
        Plain().decode({"y": torch.zeros(2)})
    assert "define decode(output)" in (no.value.hint or "")


def test_default_decode_takes_what_numpy_lacks():
    """A model in bfloat16 answers as one in float32."""
    output = torch.tensor([[1.5], [2.0]], dtype=torch.bfloat16, requires_grad=True)
    assert Plain().decode(output)["y"].tolist() == [1.5, 2.0]


def test_a_config_is_strict_frozen_and_finite():
    """No text for a number, no unknown key, no change, no infinity."""

    class Config(RecipeConfig):
        rate: float = 1.0

    for bad in ({"rate": "1"}, {"rta": 1.0}, {"rate": float("inf")}):
        with pytest.raises(ValueError):
            Config(**bad)
    with pytest.raises(ValueError):
        Config().rate = 2.0
