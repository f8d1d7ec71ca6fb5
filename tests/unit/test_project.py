import pickle

import plain_recipe
import pytest
from plain_recipe import Plain

from raymlops.config.load import load, load_data
from raymlops.errors import ConfigError, RecipeError, RecipeImportError
from raymlops.project import Project, bind

SPACE_AND_CONFIG = """\
project: {name: demo}
recipe:
  import: "plain_recipe:Plain"
  config:
    widht: 3
    rate: 0
    kind: c
    sizes: [1, two]
    bias: 3
    even: 3
sweep:
  space:
    recipe.config.width: {int: [0, 65]}
    recipe.config.witdh: {int: [1, 2]}
    recipe.config.kind: {categorical: [a, z]}
"""


def data(*, reference="plain_recipe:Plain", space=None, **config):
    return {
        "project": {"name": "demo"},
        "recipe": {"import": reference, "config": config},
        "sweep": {"space": space or {}},
    }


def problems_of(given):
    with pytest.raises(ConfigError) as caught:
        bind(load_data(given))
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def test_a_project_holds_the_whole_recipe_config():
    """Defaults are written into the spec, so that params and sha say what was trained."""
    project = bind(load_data(data(width=16)))
    assert project.recipe_class is Plain
    assert project.recipe_config == Plain.Config(width=16)
    assert project.spec.recipe.config == {
        "width": 16,
        "rate": 0.5,
        "kind": "a",
        "sizes": [4, 2],
        "bias": True,
        "limit": 3,
        "even": 2,
    }
    assert project.spec.sha() == bind(load_data(data(width=16, rate=0.5))).spec.sha()
    assert bind(project) is project


def test_the_recipe_gets_its_config_state_and_seed():
    """A recipe is made anew at each call, with the run's seed."""
    project = bind(load_data(data(), overrides=["train.seed=7"]))
    recipe = project.recipe(state={"mean": 1.0})
    assert (recipe.config, recipe.state, recipe.seed) == (project.recipe_config, {"mean": 1.0}, 7)
    assert project.recipe() is not project.recipe()


def test_yaml_types_reach_the_recipe():
    """A list serves as a tuple, ``off`` as false, and a union keeps text as text."""
    config = bind(load_data(data(sizes=[1, 2, 3], bias="off", limit="off", rate=1))).recipe_config
    assert (config.sizes, config.bias, config.limit, config.rate) == ((1, 2, 3), False, "off", 1.0)


def test_everything_wrong_with_recipe_and_space_is_said_at_once(tmp_path, monkeypatch):
    """Each problem has the place of its line; a union gives one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(SPACE_AND_CONFIG)
    with pytest.raises(ConfigError) as caught:
        bind(load("a.yaml"))
    space = "sweep.space.recipe.config"
    assert sorted(map(str, caught.value.problems)) == [
        "a.yaml:10:11: recipe.config.even: got 3; an even number",
        f"a.yaml:13:26: {space}.width: high: got 65; at most 64",
        f"a.yaml:13:26: {space}.width: low: got 0; at least 1",
        f"a.yaml:14:26: {space}.witdh: unknown key 'witdh'; did you mean 'width'?",
        f"a.yaml:15:25: {space}.kind: choice: got 'z'; one of 'a' or 'b'",
        "a.yaml:5:12: recipe.config.widht: unknown key 'widht'; did you mean 'width'?",
        "a.yaml:6:11: recipe.config.rate: got 0; above 0",
        "a.yaml:7:11: recipe.config.kind: got 'c'; one of 'a' or 'b'",
        "a.yaml:8:12: recipe.config.sizes[1]: got 'two' (text); a whole number",
        "a.yaml:9:11: recipe.config.bias: got 3; true or false",
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"limit": [1]}, "recipe.config.limit: got a list; a whole number or text"),
        ({"limit": 1.5}, "recipe.config.limit: got 1.5; a whole number or text"),
        ({"width": 2, "even": 4}, "recipe.config: width must be at least even"),
        ({"width": 8.0}, "recipe.config.width: got 8.0; a whole number"),
        ({"sizes": 3}, "recipe.config.sizes: got 3; a list"),
        ({"rate": object()}, ": is not plain data: Unable to serialize unknown type: <class 'object'>"),
    ],
)
def test_one_value_of_the_recipe_gives_one_problem(config, expected):
    """Unions, rules over several fields and Python objects are named once."""
    (problem,) = problems_of(data(**config))
    assert problem.startswith(expected)


def test_a_missing_field_is_placed_where_the_recipe_is_named(tmp_path, monkeypatch):
    """There is no line of its own to point at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("project: {name: demo}\nrecipe:\n  import: plain_recipe:Needy\n")
    with pytest.raises(ConfigError) as caught:
        bind(load("a.yaml"))
    assert str(caught.value) == "a.yaml:3:11: recipe.config.path: missing; where the rows are"


def test_an_override_is_named_as_the_place():
    """A bad override of the recipe's section says that it is one."""
    with pytest.raises(ConfigError) as caught:
        bind(load_data(data(), overrides=["recipe.config.width=0"]))
    assert str(caught.value) == "override: recipe.config.width: got 0; at least 1"


def test_field_rules_hold_at_the_ends_and_rules_over_several_fields_are_left_to_the_trial():
    """``even`` refuses 3 at an end; that width must be at least even depends on the other draw."""
    space = {"recipe.config.even": {"int": [2, 3]}, "recipe.config.width": {"int": [1, 9]}}
    assert problems_of(data(space=space)) == ["sweep.space.recipe.config.even: high: got 3; an even number"]


@pytest.mark.parametrize(
    ("searched", "value", "good"),
    [
        ({"int": [2, 8]}, 2, True),
        ({"int": [2, 8]}, 9, False),
        ({"int": [2, 8], "step": 3}, 5, True),
        ({"int": [2, 8], "step": 3}, 4, False),
        ({"int": [2, 8]}, "2", False),
        ({"categorical": [1, 2]}, True, False),
        ({"categorical": [1, 2]}, [3, 2], False),
        ({"categorical": [1, 2]}, [1, 2], True),
    ],
)
def test_a_condition_must_be_possible(searched, value, good):
    """The value of a condition must be one that the other parameter can take; true is not 1."""
    space = {"recipe.config.width": searched, "train.lr": {"float": [0.1, 0.2], "when": {"recipe.config.width": value}}}
    given = data(space=space)
    if good:
        assert bind(load_data(given)).spec.sweep.space["train.lr"].when
    else:
        assert "is never" in problems_of(given)[0]


def test_conditions_in_a_circle_are_refused():
    """Three parameters that wait for one another could never be drawn; the message shows the circle once."""
    space = {
        "train.lr": {"float": [0.1, 0.2], "when": {"train.momentum": 0.1}},
        "train.momentum": {"float": [0.1, 0.2], "when": {"train.weight_decay": 0.1}},
        "train.weight_decay": {"float": [0.1, 0.2], "when": {"train.lr": 0.1}},
        "train.epochs": {"int": [1, 2], "when": {"train.lr": 0.1}},
    }
    assert problems_of(data(space=space)) == [
        "sweep.space.train.lr: when: goes in a circle: train.lr -> train.momentum -> train.weight_decay -> train.lr"
    ]


def test_with_params_gives_a_checked_project():
    """A trial's parameters go into their sections; the project itself stays as it was."""
    project = bind(load_data(data()))
    other = project.with_params({"train.lr": 0.5, "recipe.config.width": 32})
    assert (other.spec.train.lr, other.recipe_config.width) == (0.5, 32)
    assert other.spec.recipe.config["width"] == 32
    assert (project.spec.train.lr, project.recipe_config.width) == (1e-3, 8)


def test_fields_of_sections_within_the_recipes_config_are_searched():
    """Also of one that is not there by default."""
    space = {
        "recipe.config.opt.lr": {"float": [0.1, 1]},
        "recipe.config.opt.betas": {"categorical": [[0.9], [0.8, 0.7]]},
        "recipe.config.other.lr": {"float": [0.1, 1]},
    }
    project = bind(load_data(data(reference="plain_recipe:Nested", space=space)))
    params = {"recipe.config.opt.lr": 0.5, "recipe.config.opt.betas": "[0.8, 0.7]", "recipe.config.other.lr": 0.2}
    config = project.with_params(params).recipe_config
    assert (config.opt.lr, config.opt.betas, config.other.lr) == (0.5, (0.8, 0.7), 0.2)
    assert (project.recipe_config.opt.lr, project.recipe_config.other) == (0.1, None)


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("opt.lr", {"float": [0, 1]}, "low: got 0.0; above 0"),
        ("opt.beta", {"float": [0, 1]}, "unknown key 'beta'; did you mean 'betas'?"),
        ("opt.lr.x", {"float": [0, 1]}, "opt.lr is one value and has no key 'x'"),
        ("opt", {"float": [0, 1]}, "low: got 0.0; a mapping"),
        ("opt.betas", {"categorical": [[0.9], ["x"]]}, "choice: got 'x' (text); a number"),
    ],
)
def test_a_search_within_the_recipes_config_is_checked(key, written, expected):
    key = f"recipe.config.{key}"
    found = problems_of(data(reference="plain_recipe:Nested", space={key: written}))
    assert found[0] == f"sweep.space.{key}: {expected}"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"train.lr": -1}, "train.lr: got -1; above 0"),
        ({"recipe.config.width": 65}, "recipe.config.width: got 65; at most 64"),
        ({"recipe.config.wdth": 6}, "recipe.config.wdth: unknown key 'wdth'; did you mean 'width'?"),
        ({"train.epoch": 1}, "train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_with_params_refuses_what_a_file_could_not_say(params, expected):
    """Unknown keys and bad values are configuration errors."""
    with pytest.raises(ConfigError) as caught:
        bind(load_data(data())).with_params(params)
    (problem,) = caught.value.problems
    assert f"{problem.path}: {problem.message}" == expected


def test_a_project_travels_as_plain_data():
    """What a worker rebuilds equals what the driver had; keys of another version are ignored."""
    project = bind(load_data(data(width=4, space={"train.lr": {"float": [0.1, 0.2]}})))
    sent = pickle.loads(pickle.dumps(project.to_dict()))
    assert Project.from_dict(sent) == project
    sent["train"]["from_the_future"] = 1
    sent["recipe"]["config"]["from_the_future"] = 1
    assert Project.from_dict(sent) == project
    sent["train"]["lr"] = -1
    with pytest.raises(ConfigError, match=r"train\.lr: got -1"):
        Project.from_dict(sent)


def test_a_trial_keeps_the_sweep_that_it_is_of():
    """Start points and several objectives, with what follows from them, are the same in a trial's project."""
    sweep = {
        "objectives": {"validation/loss": "min", "validation/auc": "max"},
        "enqueue": [{"recipe.config.width": 4}],
        "space": {"recipe.config.width": {"int": [2, 8]}},
    }
    project = bind(load_data({**data(), "sweep": sweep}))
    trial = project.with_params({"recipe.config.width": 4})
    assert trial.spec.sweep == project.spec.sweep
    assert Project.from_dict(trial.to_dict()) == trial
    assert trial.spec.sweep.scheduler == "none"


def test_the_python_door_takes_a_class():
    """A class in place of the spec's recipe is bound under its own import string."""
    project = bind(load_data(data(reference="no.such:Recipe")), recipe=Plain)
    assert project.reference == project.spec.recipe.import_ == "plain_recipe:Plain"
    assert bind(project.spec, recipe="plain_recipe:Plain") == project


def test_an_import_error_has_a_place(tmp_path, monkeypatch):
    """The line that names the recipe, and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("project: {name: demo}\nrecipe: {import: plain_recipe:Plane}\n")
    with pytest.raises(RecipeImportError) as caught:
        bind(load("a.yaml"))
    assert str(caught.value).startswith("a.yaml:2:18: recipe.import: recipe 'plain_recipe:Plane'")
    assert caught.value.hint == "Did you mean plain_recipe:Plain?"


def test_a_config_must_be_ours_and_survive_json():
    """Workers rebuild the config from JSON, so a lossy one is refused before any worker starts."""
    with pytest.raises(RecipeError, match=r"is not a raymlops\.RecipeConfig"):
        bind(load_data(data(reference="plain_recipe:Bare")))
    with pytest.raises(RecipeError, match="does not survive its JSON form"):
        bind(load_data(data(reference="plain_recipe:Lossy")))
    assert plain_recipe.Bare.Config().width == 1
