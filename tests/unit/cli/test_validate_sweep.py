"""``validate`` and ``sweep`` refuse the same configurations, for the same reasons."""

from __future__ import annotations

import json

import pytest

from raymlops.cli.main import main
from raymlops.errors import RaymlopsError
from raymlops.lifecycle.sweeps.run import sweep_request

LR = "space: {train.lr: {float: [0.1, 0.2]}}"
WIDTH = "space: {recipe.config.width: {int: [1, 4]}, recipe.config.even: {categorical: [6]}}"
AUC = "metric: validation/auc, mode: max"


@pytest.fixture
def write(tmp_path):
    def write_file(sweep, train=""):
        file = tmp_path / "a.yaml"
        file.write_text(
            "project: {name: x}\nrecipe: {import: 'plain_recipe:Plain', config: {width: 64}}\n"
            f"train: {{{train}}}\nsweep: {{{sweep}}}\nstorage: {{path: {tmp_path}}}\n"
        )
        return str(file)

    return write_file


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (f"{LR}, metric: validation/auc", "sweep.mode is not set"),
        (f"{LR}, metric: validation/auc, grace_period: 6", "sweep.grace_period is 6, longer than a whole trial"),
        (f"{LR}, grace_period: 6, scheduler: median", "so median would never stop one"),
        (f"{LR}, resource: step", "the length of a whole trial is not set"),
        (f"{LR}, target: 0.2, constraints: {{validation/loss: {{min: 0.3}}}}", "breaks the constraint"),
        (f"{LR}, max_gpu_hours: 2", "trials reserve no GPU"),
        (f"{LR}, max_cost: 2, price: {{gpu_hour: 3}}", "trials cost nothing"),
        ("space: {train.seed: {int: [0, 200000]}}, sampler: grid", "more than 100,000 points"),
        (f"{WIDTH}", "accepts no point of sweep.space"),
        (f"{WIDTH}, sampler: grid", "accepts no point of sampler grid"),
        (f"{WIDTH}, sampler: qmc", "accepts no point of sampler qmc"),
        (
            f"{WIDTH}, enqueue: [{{recipe.config.width: 4, recipe.config.even: 6}}]",
            "sweep.enqueue[0] is rejected: recipe.config: width must be at least even",
        ),
        (f"{LR}, sampler: 'json:dumps'", "json:dumps"),
        (f"{LR}, sampler: 'no_such_module:Sampler'", "no_such_module"),
        (f"{LR}, sampler: grid", "is continuous"),
        (f"{LR}, enqueue: [{{train.lr: 5.0}}]", "0.1 to 0.2"),
        (f"{LR}, enqueue: [{{train.rate: 0.1}}]", "train.rate"),
        (f"{LR}, enqueue: [{{train.lr: 0.1}}, {{train.lr: 0.2}}], num_trials: 1", "at most num_trials"),
        ("space: {train.momentum: {float: [0.1, 0.9], when: {train.optimizer: sgd}}}", "train.optimizer"),
        ("space: {train.lr: {float: [0.2, 0.1]}}", "train.lr"),
        ("space: {train.lr: {float: [-1, 0.1]}}", "train.lr"),
        ("space: {train.rate: {float: [0.1, 0.2]}}", "train.rate"),
        ("space: {recipe.config.width: {int: [1, 65]}}", "width"),
        ("space: {recipe.config.bias: {categorical: [1, true]}}", "1 and true are equal"),
        (f"{LR}, objectives: {{a: min, b: max}}, scheduler: asha", "several objectives"),
        ("space: {train.seed: {int: [0, 9]}}, repeats: {seeds: 3}", "train.seed is in the space"),
    ],
)
def test_what_a_sweep_refuses_is_refused_by_validate(write, capsys, sweep, said):
    """Each with its whole message and hint."""
    file = write(sweep)
    with pytest.raises(RaymlopsError) as caught:
        sweep_request(file)
    assert main(["validate", file, "--json"]) == caught.value.exit_code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["message"], error["hint"]) == (caught.value.message, caught.value.hint)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "sweep",
    [
        LR,
        f"{LR}, {AUC}",
        f"{LR}, grace_period: 6, scheduler: none",
        f"{LR}, resource: step, scheduler: median",
        f"{LR}, max_cost: 2, price: {{cpu_hour: 3}}",
        f"{LR}, objectives: {{validation/loss: min, validation/auc: max}}",
        "space: {recipe.config.width: {int: [1, 6]}, recipe.config.even: {categorical: [6]}}",
        "space: {recipe.config.kind: {categorical: [a, b]}}, sampler: grid",
    ],
)
def test_what_a_sweep_takes_is_taken_by_validate(write, sweep):
    file = write(sweep)
    assert sweep_request(file).project.spec.sweep.space
    assert main(["validate", file, "--json"]) == 0
