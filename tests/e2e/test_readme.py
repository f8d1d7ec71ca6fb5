"""The blocks of the documents work unchanged: the demo's lines, the recipe, the calls from Python and a notebook."""

import json
import re
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.e2e


@pytest.fixture
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def steps(text):
    """Return the headings of the demo's steps, whatever their numbers are."""
    return [re.sub(r"\d+", "N", line) for line in text.splitlines() if re.match(r"\[\d/\d\]", line)]


def test_demo_answers_held_out_flights_and_cleans_up(user, readme):
    """The demo's AUC is the one that scikit-learn computes from the answers it saved, and nothing of it runs on."""
    done = user.raymlops("demo", "--trials", "2", "--json")
    report = json.loads(done.stdout)
    answers = json.loads((user.cwd / "raymlops-demo" / "answers.json").read_text())

    assert steps(done.stderr) == steps(blocks(readme, "text")[0])
    assert len(answers["outputs"]) == len(answers["labels"]) == report["rows"] == 300
    scores = [output["probability"] for output in answers["outputs"]]
    assert np.ptp(scores) > 0.1
    assert roc_auc_score(answers["labels"], scores) == pytest.approx(report["auc"], abs=1e-9)
    logistic = next(values for name, values in report["baselines"].items() if "logistic" in name)
    assert report["test_metrics"]["test/auc"] > 0.7
    assert report["test_metrics"]["test/loss"] < logistic["loss"]
    assert user.processes() == []
    assert {path.name for path in (user.cwd / "raymlops-demo").iterdir()} == {"answers.json", "report.json"}


def test_the_recipe_trains_sweeps_and_is_registered_from_python(cluster_user, readme, repository):
    """The README's recipe, configuration and lines from Python, then those of ``docs/sweeps.md`` from a notebook."""
    recipe, script = blocks(readme, "python")
    (config,) = blocks(readme, "yaml")
    (notebook,) = blocks((repository / "docs" / "sweeps.md").read_text(encoding="utf-8"), "python")
    (cluster_user.cwd / "line.py").write_text(recipe)
    (cluster_user.cwd / "config.yaml").write_text(config)
    notebook = notebook.replace('"SWEEP_ID"', "sweep.sweep_id")
    lines = [
        *(script, "print(decision.passed, version.aliases)"),
        *(notebook, "print(len(sweep.trials()), sweep.status().state, version.version)"),
    ]
    cluster_user.raymlops("validate", "config.yaml")
    first, *_, last = cluster_user.run(sys.executable, "-c", "\n".join(lines)).stdout.splitlines()
    assert (first, last) == ("True ('candidate', 'challenger')", "8 finished 2")
