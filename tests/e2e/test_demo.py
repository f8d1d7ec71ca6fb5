import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.e2e


def test_demo_answers_held_out_flights_and_cleans_up(user):
    """The demo's AUC is the one that scikit-learn computes from the answers it saved, and nothing of it runs on."""
    printed = user.raymlops("demo", "--trials", "3", "--json").stdout
    report = json.loads(printed)
    answers = json.loads((user.cwd / "raymlops-demo" / "answers.json").read_text())

    assert len(answers["outputs"]) == len(answers["labels"]) == report["rows"] == 300
    scores = [output["probability"] for output in answers["outputs"]]
    assert np.ptp(scores) > 0.1
    assert roc_auc_score(answers["labels"], scores) == pytest.approx(report["auc"], abs=1e-9)
    logistic = next(values for name, values in report["baselines"].items() if "logistic" in name)
    assert report["test_metrics"]["test/auc"] > 0.7
    assert report["test_metrics"]["test/loss"] < logistic["loss"]
    assert user.processes() == []
    assert {path.name for path in (user.cwd / "raymlops-demo").iterdir()} == {"answers.json", "report.json"}


def test_interrupted_demo_leaves_nothing(user):
    """Ctrl-C in the middle of the sweep exits 130 and ends every process; the folder can be used again."""
    process = user.start("demo", "--trials", "3")
    for line in process.stderr:
        if line.startswith("[2/"):
            break
    process.send_signal(2)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert user.processes() == []
    assert not (user.cwd / "raymlops-demo" / "state").exists()
