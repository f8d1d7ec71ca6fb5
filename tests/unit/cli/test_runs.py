"""What ``sweep`` prints of a sweep that has ended."""

from __future__ import annotations

from dataclasses import replace

from recorded_sweep import project_in, recorded_sweep

from raymlops.cli.main import main
from raymlops.cli.runs import sweep_text
from raymlops.records import Objective, SweepRecord, TrialRecord
from raymlops.tuning.study.ranking import ranking

LOSS, ACCURACY = Objective("validation/loss", "min"), Objective("validation/accuracy", "max")
TRIALS = (
    TrialRecord(0, {"train.lr": 0.125}, "complete", 0.5, epochs=3),
    TrialRecord(1, {"train.lr": 0.25}, "complete", 0.25, epochs=3),
)
RECORD = SweepRecord(
    sweep_id="s1",
    project="p",
    study="p-s1",
    storage="x",
    metric="validation/loss",
    mode="min",
    trials=TRIALS,
    best=TRIALS[1],
    best_config="best.yaml",
    duration_s=1.0,
    objectives=(LOSS,),
)


def words(record: SweepRecord) -> list[list[str]]:
    """Return the lines as words."""
    return [line.split() for line in sweep_text(record).splitlines()]


def test_one_objective_has_one_column_and_a_best_trial():
    """The best first."""
    lines = words(RECORD)
    assert lines[:4] == [
        ["trial", "status", "validation/loss", "epochs"],
        ["1", "complete", "0.25", "3"],
        ["0", "complete", "0.5", "3"],
        [],
    ]
    assert "best    trial 1: validation/loss 0.25 with train.lr=0.25" in sweep_text(RECORD).splitlines()


def test_a_winner_of_several_seeds_says_how_sure_the_choice_is():
    """The trials of the search are counted, and each repeat names the one whose configuration it trained."""
    values = (0.35, 0.55)
    repeats = [
        replace(trial, number=2 + place, value=value, repeat_of=trial.number, seed=1)
        for place, (trial, value) in enumerate(zip(TRIALS[::-1], values, strict=True))
    ]
    trials = (*TRIALS, *repeats)
    ranked = ranking(trials, objectives=[LOSS])
    lines = sweep_text(replace(RECORD, trials=trials, best=trials[1], repeats=ranked)).splitlines()
    assert lines[0].split() == ["trial", "status", "validation/loss", "epochs", "repeats"]
    assert lines[2].split() == ["2", "complete", "0.35", "3", "1"]
    assert "sweep   s1, 2 trials and 2 repeats in 1.0 s" in lines
    # Means 0.3 and 0.525, of values that differ by 0.1 and 0.05.
    found = (
        "trial 1: validation/loss 0.3 ± 0.05 (2 seeds, 0.35 without the search's), better with a probability of 0.97"
    )
    assert f"repeats {found} than trial 0: 0.525 ± 0.025 (2 seeds, 0.55 without the search's)" in lines


def test_each_of_several_objectives_has_a_column_and_the_front_is_marked():
    """The front is shown before the others, however good these are in the first objective."""
    trials = (
        TrialRecord(0, {}, "complete", 0.5, values=(0.5, 0.75)),
        TrialRecord(1, {"train.lr": 0.25}, "complete", 0.25, values=(0.25, 0.5)),
        TrialRecord(2, {}, "pruned", 0.125, values=(0.125, 0.5)),
        TrialRecord(3, {}, "failed", None, reason="RecipeError: no"),
    )
    record = replace(RECORD, trials=trials, best=trials[1], objectives=(LOSS, ACCURACY), pareto=(0, 1))
    lines = words(record)
    assert lines[:6] == [
        ["trial", "status", "front", "validation/loss", "validation/accuracy", "epochs"],
        ["1", "complete", "*", "0.25", "0.5", "0"],
        ["0", "complete", "*", "0.5", "0.75", "0"],
        ["2", "pruned", "0.125", "0.5", "0"],
        ["3", "failed", "-", "-", "0"],
        ["1", "x", "RecipeError:", "no", "(trial", "3)"],
    ]
    chosen = "chosen  trial 1 (best in validation/loss of the front): validation/loss 0.25, validation/accuracy 0.5"
    assert f"{chosen} with train.lr=0.25" in sweep_text(record).splitlines()
    assert "best " not in sweep_text(record).replace("(best in", "")


def test_carried_trials_say_from_where():
    """And are none of the sweep's own."""
    carried = replace(TRIALS[0], carried_from="s0/7")
    lines = words(replace(RECORD, trials=(carried, TRIALS[1])))
    assert lines[0][-1] == "from"
    assert (lines[1], lines[2]) == (["1", "complete", "0.25", "3"], ["0", "complete", "0.5", "3", "s0/7"])
    assert ["sweep", "s1,", "1", "trials", "in", "1.0", "s"] in lines


def test_only_the_best_trials_are_printed():
    """The others are counted."""
    many = tuple(replace(TRIALS[0], number=number) for number in range(12))
    assert sweep_text(replace(RECORD, trials=many)).splitlines()[11] == "... and 2 more"


def test_a_resumed_sweep_is_extended(storage_path, monkeypatch, capsys):
    """By more trials than the four that it was started with; nothing else changes."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(storage_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    requests = []

    def run_sweep(request):
        requests.append(request)
        return RECORD

    monkeypatch.setattr("raymlops.lifecycle.sweeps.run.run_sweep", run_sweep)
    with recorded_sweep(project_in(storage_path)) as recorded:
        sweep_id, before = recorded.sweep_id, recorded.project.spec
    extend = ["--extend", "num_trials=+2", "--extend", "timeout_s=+60"]
    assert main(["sweep", "--resume", sweep_id, *extend]) == 2
    assert "timeout_s" in capsys.readouterr().err
    assert main(["sweep", "--resume", sweep_id, *extend[:2]]) == 0
    (request,) = requests
    after = request.project.spec
    assert (request.resume, after.sweep.num_trials) == (sweep_id, 6)
    assert after.model_copy(update={"sweep": before.sweep}) == before
    assert capsys.readouterr().out == sweep_text(RECORD) + "\n"
