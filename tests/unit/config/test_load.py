import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from raymlops.config.base import SecretRef
from raymlops.config.load import Origin, dump, json_schema, load, load_data
from raymlops.config.schema import ProjectSpec
from raymlops.errors import ConfigError

DATA = {"project": {"name": "demo"}, "recipe": {"import": "plain_recipe:Plain"}}


def test_later_layers_win(write):
    """Defaults, extends in order, the file, the overlay, overrides in order: each beats the one before."""
    write("base/one.yaml", "train: {epochs: 1, batch_size: 1, lr: 1, momentum: 0.1, seed: 1}")
    write("base/two.yaml", "extends: one.yaml\ntrain: {batch_size: 2, lr: 2, momentum: 0.2, seed: 2}")
    write("a.yaml", "extends: [base/one.yaml, base/two.yaml]\ntrain: {lr: 3, momentum: 0.3, seed: 3}", head=True)
    write("env/prod.yaml", "train: {momentum: 0.4, seed: 4}")
    loaded = load("a.yaml", env="prod", overrides=["train.seed=5", "train.seed=6"])
    train = loaded.spec.train
    got = (train.epochs, train.batch_size, train.lr, train.momentum, train.seed, train.accumulate)
    assert got == (1, 2, 3.0, 0.4, 6, 1)
    assert loaded.origins["train.epochs"] == Origin("file", "base/one.yaml:1:17")
    assert loaded.origins["train.batch_size"] == Origin("file", "base/two.yaml:2:21")
    assert loaded.origins["train.lr"] == Origin("file", "a.yaml:4:13")
    assert loaded.origins["train.momentum"] == Origin("overlay", "env/prod.yaml:1:19")
    assert loaded.origins["train.seed"] == Origin("override", "train.seed")
    assert loaded.origins["train.accumulate"] == Origin("default", "")
    assert [str(file) for file in loaded.files] == ["base/one.yaml", "base/two.yaml", "a.yaml", "env/prod.yaml"]


def test_every_leaf_has_an_origin(write):
    """Lists, distributions and empty mappings are one leaf; nothing of the resolved spec is left out."""
    write(
        "a.yaml",
        """
        sweep: {space: {train.lr: {float: [1e-5, 1e-1], log: true}}}
        storage: {optuna: {env: PG}}
        """,
        head=True,
    )
    loaded = load("a.yaml")

    def leaves(data, path):
        if not isinstance(data, dict) or not data or path == "sweep.space.train.lr":
            return {path}
        return {leaf for key, value in data.items() for leaf in leaves(value, f"{path}.{key}".lstrip("."))}

    assert set(loaded.origins) == leaves(loaded.spec.to_dict(), "")
    assert loaded.origins["sweep.space.train.lr"].kind == "file"
    assert loaded.origins["storage.optuna.env"].kind == "file"
    assert loaded.origins["project.tags"].kind == "default"


def test_mappings_merge_and_lists_distributions_and_secrets_replace(write):
    """A changed range forgets the log of the base; a file reference replaces an env reference."""
    write(
        "base.yaml",
        """
        project: {tags: {a: x, b: x}}
        recipe: {config: {sizes: [1, 2, 3], deep: {one: 1}}}
        sweep: {space: {train.lr: {float: [1e-5, 1e-1], log: true}, train.momentum: {float: [0, 0.9]}}}
        storage: {optuna: {env: PG}}
        """,
    )
    write(
        "a.yaml",
        """
        extends: base.yaml
        project: {name: demo, tags: {b: y}}
        recipe: {import: "m:C", config: {sizes: [9], deep: {two: 2}}}
        sweep: {space: {train.lr: {float: [0.1, 0.2]}}}
        storage: {optuna: {file: /run/pg}}
        """,
    )
    spec = load("a.yaml").spec
    assert spec.project.tags == {"a": "x", "b": "y"}
    assert spec.recipe.config == {"sizes": [9], "deep": {"one": 1, "two": 2}}
    assert spec.to_dict()["sweep"]["space"] == {
        "train.lr": {"float": [0.1, 0.2]},
        "train.momentum": {"float": [0.0, 0.9]},
    }
    assert spec.storage.optuna == SecretRef(file="/run/pg")


FREE = """
    project: {tags: {a: x, b: y}}
    recipe: {config: {width: 4, rate: 1}}
    sweep: {space: {train.lr: {float: [1, 2]}, train.momentum: {float: [0, 0.9]}}, constraints: {m: {max: 1}}}
    """


@pytest.mark.parametrize(
    ("overlay", "section", "left"),
    [
        ("sweep: {space: {train.lr: null}}", ("sweep", "space"), {"train.momentum": {"float": [0.0, 0.9]}}),
        ("sweep: {space: null}", ("sweep", "space"), {}),
        ("sweep: {constraints: {m: null}}", ("sweep", "constraints"), {}),
        ("project: {tags: {a: null, c: z}}", ("project", "tags"), {"b": "y", "c": "z"}),
        ("project: {tags: ~}", ("project", "tags"), {}),
        ("recipe: {config: null}", ("recipe", "config"), {}),
        ("recipe: {config: {rate: null}}", ("recipe", "config"), {"width": 4, "rate": None}),
        ("project:\n  tags:\n", ("project", "tags"), {"a": "x", "b": "y"}),
    ],
)
def test_null_removes_entries_of_a_mapping_with_free_keys(write, overlay, section, left):
    """Of the recipe's own configuration null is a value; a key with all its entries commented out changes nothing."""
    write("a.yaml", FREE, head=False)
    write("b.yaml", 'extends: a.yaml\nproject: {name: demo}\nrecipe: {import: "plain_recipe:Plain"}')
    write("env/e.yaml", overlay)
    data = load("b.yaml", env="e").spec.to_dict()
    assert data[section[0]][section[1]] == left


@pytest.mark.parametrize(
    ("override", "space"),
    [
        ("sweep.space=null", []),
        ("sweep.space.train.lr=null", ["train.momentum"]),
        ("sweep={space: {train.lr: null}}", ["train.momentum"]),
    ],
)
def test_an_override_removes_as_an_overlay_does(write, override, space):
    write("a.yaml", FREE)
    loaded = load("a.yaml", overrides=["project.name=demo", "recipe.import=plain_recipe:Plain", override])
    assert list(loaded.spec.sweep.space) == space
    assert {path for path in loaded.origins if path.startswith("sweep.space")} == (
        {f"sweep.space.{key}" for key in space} or {"sweep.space"}
    )


def test_an_empty_mapping_that_would_change_nothing_is_a_problem(write, problems):
    """It looks as if it removed what is set before."""
    write("a.yaml", FREE)
    given = ["project.name=demo", "recipe.import=plain_recipe:Plain"]
    write("env/e.yaml", "sweep: {space: {}}")
    what = "sweep.space: is empty, which changes nothing: mappings merge; null removes what is set before"
    assert problems(overrides=given, env="e") == [f"env/e.yaml:1:16: {what}"]
    assert problems(overrides=[*given, "sweep.space={}"]) == [f"override: {what}"]
    assert load("a.yaml", overrides=[*given, "sweep={}"]).spec.sweep.space


def test_null_where_nothing_is_to_remove_is_a_problem(write, problems):
    write("a.yaml", "sweep: {space: {train.lr: null}}\nproject: {tags: {a: null}}", head=False)
    given = ["project.name=demo", "recipe.import=plain_recipe:Plain"]
    found = problems(overrides=given)
    assert found[0].startswith("a.yaml:1:27: sweep.space.train.lr: got None; write {float")
    assert found[1].startswith("a.yaml:2:21: project.tags.a: got nothing; text")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.lr=1e-5", ("train", "lr"), 1e-5),
        ("train.patience=null", ("train", "patience"), None),
        ("train={lr: 2, epochs: 3}", ("train", "lr"), 2.0),
        ("project.tags.a.b=c", ("project", "tags", "a.b"), "c"),
        ("project.description=late: or not", ("project", "description"), "late: or not"),
        ("recipe.config.net.width=8", ("recipe", "config", "net", "width"), 8),
        ("sweep.space.train.lr={float: [1, 2]}", ("sweep", "space", "train.lr"), {"float": [1.0, 2.0]}),
        ("gate.thresholds.test/auc.min=0.6", ("gate", "thresholds", "test/auc", "min"), 0.6),
        ("storage.state={env: DB}", ("storage", "state", "env"), "DB"),
        ("storage.state.env=DB", ("storage", "state", "env"), "DB"),
    ],
)
def test_overrides_reach_every_key(override, path, value):
    """Keys of tags, of a search space and of thresholds may hold dots and slashes themselves."""
    found = load_data(DATA, overrides=[override]).spec.to_dict()
    for key in path:
        found = found[key]
    assert found == value


def test_an_empty_section_is_the_default(write):
    """A section whose keys are all commented out changes nothing."""
    write("a.yaml", "train:\nsweep:\n  space:\n", head=True)
    assert load("a.yaml").spec == load_data(DATA).spec


def test_text_stays_text(write):
    """``off`` and ``1:30`` are text where text is asked for, and a byte-order mark is no part of it."""
    write("a.yaml", "\ufeffproject: {name: demo, description: off, tags: {on: 1:30}}\nrecipe: {import: m:C}\n")
    section = load("a.yaml").spec.project
    assert (section.description, section.tags) == ("off", {"on": "1:30"})


def test_log_takes_the_old_words():
    """``log: off`` in a distribution is false, as it was in YAML 1.1."""
    space = {"train.lr": {"float": [1, 2], "log": "off"}, "train.momentum": {"float": [0.1, 0.2], "log": "on"}}
    spec = load_data({**DATA, "sweep": {"space": space}}).spec
    assert [spec.sweep.space[key].log for key in space] == [False, True]


def test_data_may_be_python():
    """Tuples, paths and a class in place of its import string are taken from Python callers."""
    data = {"project": {"name": "demo"}, "recipe": {"import": SecretRef}, "storage": {"path": Path("/x")}}
    spec = load_data({**data, "sweep": {"space": {"train.lr": {"float": (1, 2)}}}}).spec
    assert spec.recipe.import_ == "raymlops.config.base:SecretRef"
    assert spec.storage.path == "/x"
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_data([1])


def test_dump_comes_back_equal():
    """What is written as the resolved configuration loads to an equal spec with the same sha."""
    spec = load_data(
        {
            "project": {"name": "demo", "tags": {"a": "1:30", "b": "010", "c": "off", "d": "é\n", "e": "null"}},
            "recipe": {"import": "m:C", "config": {"rate": 1e-5, "sizes": [1, [2]], "none": None, "deep": {"x": {}}}},
            "sweep": {
                "space": {
                    "train.lr": {"float": [1e-5, 1e-1], "log": True},
                    "train.momentum": {"float": [0, 0.9], "step": 0.1, "when": {"train.optimizer": ["sgd", "adam"]}},
                    "train.optimizer": {"categorical": ["sgd", "adam"]},
                }
            },
            "storage": {"state": {"env": "DB"}},
        }
    ).spec
    again = load_data(YAML(typ="safe").load(dump(spec))).spec
    assert again == spec
    assert again.sha() == spec.sha()
    assert "train.lr: {float: [1e-05, 0.1], log: true}" in dump(spec)
    assert ProjectSpec.model_validate(spec.to_dict()) == spec


def test_schema_in_configs_is_current():
    """``configs/schema.json`` is what ``raymlops config schema`` prints; write it anew after a change."""
    file = Path(__file__).parents[3] / "configs" / "schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json_schema()


@pytest.mark.parametrize(
    ("data", "good"),
    [
        ({"extends": "base.yaml", "train": {"lr": 0.1}}, True),
        ({"extends": ["a.yaml", "b.yaml"]}, True),
        ({"sweep": {"space": {"train.lr": {"float": [1e-5, 0.1], "log": True, "when": {"train.epochs": 2}}}}}, True),
        ({"sweep": {"space": {"train.lr": {"float": [0, 1], "when": {"train.epochs": {"min": 2}}}}}}, True),
        ({"sweep": {"space": {"recipe.config.a": {"categorical": [[1, 2], "x"]}}}}, True),
        ({"sweep": {"space": {"train.lr": {"float": [0, 1], "when": {"train.epochs": {"mn": 2}}}}}}, False),
        ({"sweep": {"space": {"train.lr": {"categorical": ["a", 1, None]}}}}, True),
        ({"storage": {"optuna": {"env": "PG"}, "state": "sqlite:///x"}}, True),
        ({"project": {"tags": {"a": None}}, "sweep": {"space": {"train.lr": None}, "constraints": None}}, True),
        ({"train": {"lr": 0}}, False),
        ({"train": {"learning": 1}}, False),
        ({"sweep": {"space": {"train.lr": {"float": [1]}}}}, False),
        ({"sweep": {"space": {"train.lr": {"kind": "float", "low": 1, "high": 2}}}}, False),
    ],
)
def test_schema_knows_files_as_they_are_written(data, good):
    """The JSON Schema takes partial files and distributions in YAML's form, and marks mistakes."""
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    assert validator.is_valid(data) is good
