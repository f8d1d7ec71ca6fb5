"""The report as a browser's parser sees it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from html_page import Page
from optuna.trial import TrialState, create_trial

from raymlops.config.schema import ProjectSpec
from raymlops.records import Objective, SpentRecord, TrialRecord
from raymlops.tuning.reporting import report
from raymlops.tuning.search_space import num_trials
from raymlops.tuning.study.ranking import ranking
from raymlops.tuning.study.selection import pareto, winner

AUC = (Objective("validation/auc", "max"),)
BOTH = (*AUC, Objective("validation/cost", "min"))
EVIL = "</script><script>alert('&amp;')</script><!-- <img src=http://evil.example/x onerror=alert(1)>"
STATUS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def spec_of(**sweep):
    space = {
        "train.lr": {"float": [1e-5, 1e-1], "log": True},
        "train.optimizer": {"categorical": ["sgd", "adamw"]},
        "train.momentum": {"float": [0.5, 0.99], "when": {"train.optimizer": "sgd"}},
    }
    data = {"project": {"name": "flights"}, "recipe": {"import": "a.b:C"}, "sweep": {"space": space, **sweep}}
    return ProjectSpec.model_validate(data)


def study_of(states, *, objectives=AUC):
    """Return a study whose trials end as told, with a conditional parameter; later trials are better."""
    directions = ["maximize" if objective.mode == "max" else "minimize" for objective in objectives]
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=1))
    for state in states:
        trial = study.ask()
        trial.suggest_float("train.lr", 1e-5, 1e-1, log=True)
        if trial.suggest_categorical("train.optimizer", ["sgd", "adamw"]) == "sgd":
            trial.suggest_float("train.momentum", 0.5, 0.99)
        values = [0.5 + trial.number / 100, float(trial.number)][: len(objectives)]
        if state == TrialState.PRUNED:
            trial.report(values[0], 1)
        if state != TrialState.RUNNING:
            study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)
    return study


def records_of(study, *, reason="ValueError: no"):
    return [
        TrialRecord(
            number=trial.number,
            params=trial.params,
            status=STATUS[trial.state],
            value=trial.values[0] if trial.values else None,
            values=tuple(trial.values) if trial.values and len(trial.values) > 1 else (),
            reason=reason if trial.state == TrialState.FAIL else "",
            epochs=3,
            duration_s=12.5,
        )
        for trial in study.trials
        if trial.state in STATUS
    ]


def html_of(study, *, objectives=AUC, spec=None, records=None, **details):
    options = {"spent": SpentRecord(wall_s=3720.0, cpu_hours=2.5), "stopped": "", **details}
    found, spec = records_of(study) if records is None else records, spec or spec_of()
    own = len(study.trials) - sum(bool(record.carried_from) for record in found)
    stores = SimpleNamespace(
        study=study,
        trials=SimpleNamespace(objectives=objectives, total=max(own, num_trials(spec.sweep)), repeats=0),
        project=SimpleNamespace(spec=spec),
        parent=SimpleNamespace(sweep_id="s1"),
    )
    front = pareto(found, objectives=objectives)
    options = {"best": winner(found, objectives=objectives), "front": front, **options}
    return report.html(stores, found, **options)


COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
MIXED = [COMPLETE, FAIL, PRUNED, *[COMPLETE] * 6]


@pytest.fixture(scope="module")
def text():
    study = study_of(MIXED)
    yaml = f"project:\n  name: flights  # {EVIL}\n"
    records = records_of(study, reason=f"ValueError: {EVIL}")
    return html_of(study, records=records, stopped=f"timeout_s {EVIL}", best_config_text=yaml)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_section_is_there_and_in_the_table_of_contents(page):
    expected = ["winner", "history", "importances", "parallel", "slice", "failed", "trials", "configuration"]
    assert page.sections == expected
    assert [load for load in page.loads if load.startswith("#")] == [f"#{section}" for section in expected]


def test_the_page_is_well_formed(page):
    assert page.open == []


def test_nothing_is_loaded_from_a_network(page):
    assert all(load.startswith("#") for load in page.loads)
    assert not re.search(r"@import|url\(", "".join(page.styles))
    assert "default-src 'none'" in page.policy


def test_the_policy_allows_the_page_s_own_script_and_the_packed_library_and_no_other(page):
    """A digest each, so that a script that got into the page would not run; a packed library is no script yet."""
    (own,) = [text for kind, text in page.scripts if kind is None]
    (packed,) = [text for kind, text in page.scripts if kind == "application/gzip"]
    allowed = [own.encode(), gzip.decompress(base64.b64decode(packed))]
    digests = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in allowed]
    assert page.policy.endswith("script-src " + " ".join(f"'sha256-{digest}'" for digest in digests))


def test_text_of_others_makes_no_tag(page, text):
    assert page.tags.count("script") == 3
    assert "img" not in page.tags
    assert page.words.count(EVIL) >= 3  # the reason, why it stopped, the configuration
    assert EVIL not in text


def test_json_in_a_script_is_json_and_cannot_end_the_script():
    objectives = (Objective(f"validation/{EVIL}", "max"),)
    text = html_of(study_of(MIXED), objectives=objectives)
    page = Page(text)
    (data,) = [script for kind, script in page.scripts if kind == "application/json"]
    assert not re.search("[<>&\u2028\u2029]", data)
    assert json.loads(data)["figure-0-history"]["layout"]["yaxis"]["title"]["text"] == f"validation/{EVIL}"


def test_each_figure_has_its_place(page, text):
    (data,) = [script for kind, script in page.scripts if kind == "application/json"]
    figures = json.loads(data)
    assert [place.rpartition("-")[2] for place in figures] == ["history", "importances", "parallel", "slice"]
    assert all(text.count(f'id="{place}"') == 1 for place in figures)


def test_the_header_counts_states_and_says_what_it_took():
    study = study_of([*MIXED, RUNNING])
    page = Page(html_of(study, stopped="max_cpu_hours 2.5 is used up"))
    assert "10 of 16: 7 complete, 1 stopped early, 1 failed, 1 running" in page.words
    assert "max_cpu_hours 2.5 is used up" in page.words
    assert "1:02:00" in page.words
    assert "Trial 8 won: validation/auc 0.58." in page.words
    assert "Cost" not in page.words


def test_the_header_names_the_cost_where_there_is_a_price():
    spec = spec_of(price={"cpu_hour": 0.5, "currency": "EUR"})
    spent = SpentRecord(cpu_hours=2.5, cost=1.25, currency="EUR")
    assert "1.25 EUR" in Page(html_of(study_of(MIXED), spec=spec, spent=spent)).words


def test_trials_known_from_another_sweep_are_counted_apart():
    study = study_of([COMPLETE] * 3)
    first, *others = records_of(study)
    carried = TrialRecord(**{**first.to_dict(), "carried_from": "s0/4"})
    words = Page(html_of(study, records=[carried, *others])).words
    assert "2 complete; 1 more known from another sweep" in words
    assert "from s0/4" in words


def test_a_grid_of_fewer_points_is_whole_without_the_trials_it_has_no_points_for():
    grid = {"sampler": "grid", "space": {"train.epochs": {"int": [1, 3]}}, "num_trials": 16}
    assert "3 of 3: 3 complete" in Page(html_of(study_of([COMPLETE] * 3), spec=spec_of(**grid))).words


def test_a_winner_that_is_known_already_is_not_chosen_again():
    study = study_of([COMPLETE] * 3)
    records = records_of(study)
    page = Page(html_of(study, records=records, best=records[0]))
    assert "Trial 0 won: validation/auc 0.5." in page.words


def test_configurations_of_several_seeds_have_a_table_and_say_how_sure_the_choice_is():
    """Their repeats are marked in the table of all trials, and are in no figure."""
    study = study_of([COMPLETE] * 2)
    for trial, value in zip(study.trials, (0.52, 0.53), strict=True):
        own = {"params": trial.params, "distributions": trial.distributions}
        study.add_trial(create_trial(value=value, user_attrs={"raymlops:repeat_of": trial.number}, **own))
    records = [
        replace(record, repeat_of=record.number - 2 if record.number > 1 else None) for record in records_of(study)
    ]
    page = Page(html_of(study, records=records, repeats=ranking(records, objectives=AUC)))
    # Means 0.51 and 0.52, each of two values that differ by 0.02.
    assert "Trial 3 won: validation/auc 0.53. Chosen by its mean over seeds: trial 1: validation/auc 0.52" in page.words
    assert "better with a probability of 0.72 than trial 0: 0.51 ± 0.01" in page.words
    assert "Several seeds" in page.words
    assert "repeats 1" in page.words
    (data,) = [script for kind, script in page.scripts if kind == "application/json"]
    (history,) = [each for place, each in json.loads(data).items() if place.endswith("history")]
    assert sorted(
        number for trace in history["data"] if trace.get("name") == "ran to its end" for number in trace["x"]
    ) == [
        0,
        1,
    ]


def test_several_objectives_have_figures_each_and_a_pareto_front():
    study = study_of([COMPLETE] * 6, objectives=BOTH)
    page = Page(html_of(study, objectives=BOTH))
    assert "pareto" in page.sections
    (data,) = [script for kind, script in page.scripts if kind == "application/json"]
    assert [place.rpartition("-")[2] for place in json.loads(data)].count("history") == 2


def test_trials_that_all_failed_leave_tables_and_say_why_there_are_no_figures():
    page = Page(html_of(study_of([FAIL] * 4)))
    assert page.sections == ["failed", "trials", "left-out"]
    assert "Nothing won: no trial ended with a usable value." in page.words
    assert "Nothing to show for history yet: no trial has ended with a value." in page.words
    assert len(page.scripts) == 2  # data and the page's own script, which sorts tables; no drawing library


def test_where_constraints_leave_no_winner_the_report_says_so():
    study = study_of([COMPLETE] * 3)
    records = [TrialRecord(**{**record.to_dict(), "feasible": False}) for record in records_of(study)]
    page = Page(html_of(study, records=records))
    assert "Nothing won: no trial with a value keeps the constraints." in page.words


def test_one_trial_is_a_report_without_importances():
    page = Page(html_of(study_of([COMPLETE])))
    assert page.sections == ["winner", "history", "parallel", "slice", "trials", "left-out"]
    assert "it needs two trials that ran to their end, and there is one" in page.words


def test_a_sweep_before_its_first_trial_is_a_report_too():
    page = Page(html_of(study_of([])))
    assert page.sections == ["left-out"]
    assert "0 of 16: none" in page.words


def test_thousands_of_trials_fit_in_one_page():
    study = study_of([])
    trials = study_of([COMPLETE] * 40).trials
    study.add_trials([trial for _ in range(50) for trial in trials])
    assert len(html_of(study).encode()) < 5_000_000
