"""What the figures of invented studies say, and when there is none."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from raymlops.errors import UsageError
from raymlops.records import Objective
from raymlops.tuning.reporting import plots

AUC = (Objective("validation/auc", "max"),)
BOTH = (*AUC, Objective("validation/cost", "min"))
SPACE = {
    "train.lr": FloatDistribution(1e-5, 1e-1, log=True),
    "train.optimizer": CategoricalDistribution(["sgd", "adamw"]),
    "train.momentum": FloatDistribution(0.5, 0.99),
    "recipe.config.hidden": IntDistribution(16, 256),
}


def params(number):
    found = {
        "train.lr": 10.0 ** -(1 + number % 4),
        "train.optimizer": "sgd" if number % 2 else "adamw",
        "recipe.config.hidden": 16 + number,
    }
    return {**found, "train.momentum": 0.6} if number % 2 else found


def trial_of(number, values, *, state=TrialState.COMPLETE, attributes=None, **details):
    chosen = params(number)
    return create_trial(
        state=state,
        values=values,
        params=chosen,
        distributions={name: SPACE[name] for name in chosen},
        user_attrs=attributes or {},
        **details,
    )


def study_of(trials, *, directions=("maximize",)):
    study = optuna.create_study(directions=list(directions))
    study.add_trials(trials)
    return study


@pytest.fixture
def study():
    """Six whole trials, one stopped early, one failed; the best is number 4."""
    values = [0.5, 0.7, 0.6, 0.65, 0.9, 0.8]
    return study_of(
        [
            *(trial_of(number, [value]) for number, value in enumerate(values)),
            trial_of(6, [0.4], state=TrialState.PRUNED),
            trial_of(7, None, state=TrialState.FAIL),
        ]
    )


@pytest.fixture
def trade():
    """Of two objectives; none is better than 0 and 2 in both."""
    values = [(0.9, 10.0), (0.8, 20.0), (0.7, 5.0)]
    return study_of([trial_of(number, pair) for number, pair in enumerate(values)], directions=("maximize", "minimize"))


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def shown(figure):
    return figure.to_json()


def test_history_follows_the_mode_and_tells_stopped_trials_apart(study):
    figure = plots.figure("history", study, objectives=AUC)
    assert list(named(figure, "best so far").y)[:6] == [0.5, 0.7, 0.7, 0.7, 0.9, 0.9]
    assert (list(named(figure, "stopped early").x), list(named(figure, "stopped early").y)) == ([6], [0.4])
    assert figure.layout.yaxis.title.text == "validation/auc"


def test_history_keeps_the_numbers_of_trials_after_failed_ones():
    trials = [trial_of(0, None, state=TrialState.FAIL), trial_of(1, None, state=TrialState.FAIL), trial_of(2, [0.5])]
    figure = plots.figure("history", study_of(trials), objectives=AUC)
    assert list(named(figure, "ran to its end").x) == [2]


def test_history_is_logarithmic_where_one_trial_diverged():
    losses = [0.4, 0.5, 0.6, 4e6]
    study = study_of([trial_of(number, [loss]) for number, loss in enumerate(losses)], directions=("minimize",))
    loss = (Objective("validation/loss", "min"),)
    assert plots.figure("history", study, objectives=loss).layout.yaxis.type == "log"


@pytest.mark.parametrize("kind", ["history", "importances", "parallel", "slice"])
def test_parameters_have_short_names_and_learning_curves_stay_out(kind, study):
    study.add_trial(trial_of(8, [0.1], attributes={"raymlops": {"history": "a whole learning curve"}}))
    text = shown(plots.figure(kind, study, objectives=AUC))
    assert "recipe.config" not in text
    assert "learning curve" not in text
    assert kind == "history" or ("train.lr" in text and "hidden" in text)


def test_importances_are_those_of_the_objective_requested():
    """Hidden sizes decide the second objective alone, learning rates the first."""
    trials = [trial_of(number, [-abs(3 - (1 + number % 4)), float(number)]) for number in range(40)]
    study = study_of(trials, directions=("maximize", "minimize"))

    def most_important(objective):
        bars = plots.figure("importances", study, objectives=BOTH, shown=objective).data[0]
        return max(zip(bars.x, bars.y, strict=True))[1]

    assert [most_important(name) for name in (None, *BOTH)] == [
        "train.lr",
        "train.lr",
        "hidden",
    ]


def test_the_best_line_of_parallel_coordinates_lies_on_top_and_a_missing_parameter_is_not_set(study):
    figure = plots.figure("parallel", study, objectives=AUC)
    lines = [trace for trace in figure.data if trace.customdata is not None]
    assert [lines[0].customdata[0][1], lines[-1].customdata[0][1]] == ["0.5", "0.9"]
    assert "not set" in {note.text for note in figure.layout.annotations}


def test_parallel_coordinates_of_many_trials_show_some_evenly_and_say_so():
    number = plots.MAX_LINES * 3
    study = study_of([trial_of(index % 200, [float(index)]) for index in range(number)])
    figure = plots.figure("parallel", study, objectives=AUC)
    lines = [trace for trace in figure.data if trace.customdata is not None]
    assert len(lines) == plots.MAX_LINES
    assert [lines[0].customdata[0][1], lines[-1].customdata[0][1]] == ["0", f"{number - 1:.6g}"]
    assert f"{plots.MAX_LINES} of {number} trials" in figure.layout.title.text


def test_a_slice_has_a_panel_for_each_parameter(study):
    figure = plots.figure("slice", study, objectives=AUC)
    axes = {axis.title.text: axis for axis in figure.select_xaxes()}
    assert set(axes) == {"hidden", "train.lr", "train.momentum", "train.optimizer"}
    assert axes["train.lr"].type == "log"
    momentum = figure.data[list(axes).index("train.momentum")]
    assert set(momentum.y) == {0.7, 0.65, 0.8}  # the trials that have it


def test_pareto_tells_the_beaten_from_those_that_none_beats(trade):
    figure = plots.figure("pareto", trade, objectives=BOTH)
    assert sorted(named(figure, "beaten by none").x) == [0.7, 0.9]
    assert '"number": 1,' in named(figure, "beaten").text[0]


@pytest.mark.parametrize("count", [3, 4])
def test_pareto_takes_three_objectives_and_more(count):
    objectives = tuple(Objective(f"validation/m{index}", "min") for index in range(count))
    study = study_of(
        [trial_of(number, [float(number)] * count) for number in range(3)], directions=["minimize"] * count
    )
    figure = plots.figure("pareto", study, objectives=objectives)
    assert ("first 3 of 4" in figure.layout.title.text) is (count == 4)


@pytest.mark.parametrize("kind", plots.KINDS)
def test_trials_that_break_a_constraint_are_told_apart(kind):
    study = optuna.create_study(directions=["maximize", "minimize"])
    for value in (0.9, 0.5, 0.6):
        trial = study.ask({"train.lr": SPACE["train.lr"], "recipe.config.hidden": SPACE["recipe.config.hidden"]})
        trial.set_constraint("validation/size max", value - 0.7)
        study.tell(trial, [value, value])
    text = shown(plots.figure(kind, study, objectives=BOTH))
    assert kind == "importances" or "breaks a constraint" in text or "breaks one" in text


def test_an_unknown_figure_is_refused_with_the_known_ones(study):
    with pytest.raises(UsageError, match=r"'histroy'; did you mean 'history'\?(.|\n)*importances, parallel, slice"):
        plots.figure("histroy", study, objectives=AUC)


def test_pareto_of_one_objective_is_refused(study):
    with pytest.raises(UsageError, match="needs several objectives, and this sweep has one, validation/auc"):
        plots.figure("pareto", study, objectives=AUC)


@pytest.mark.parametrize("kind", ["history", "importances", "parallel", "slice"])
def test_a_study_whose_trials_all_failed_has_nothing_to_show(kind):
    study = study_of([trial_of(number, None, state=TrialState.FAIL) for number in range(3)])
    with pytest.raises(UsageError, match=f"nothing to show for {kind} yet(.|\n)*nothing; ask again"):
        plots.figure(kind, study, objectives=AUC)


def test_importances_need_two_trials_and_the_message_names_what_works():
    with pytest.raises(UsageError, match=r"two trials that ran to their end(.|\n)*now: history, parallel, slice"):
        plots.figure("importances", study_of([trial_of(0, [0.5])]), objectives=AUC)


def test_importances_need_two_parameters_that_differ():
    space = {"train.lr": SPACE["train.lr"]}
    trials = [create_trial(value=lr, params={"train.lr": lr}, distributions=space) for lr in (1e-3, 1e-2)]
    with pytest.raises(UsageError, match=r"two parameters that differ between trials, and there is train\.lr"):
        plots.figure("importances", study_of(trials), objectives=AUC)


def test_a_sweep_in_which_all_were_stopped_early_has_a_history_alone():
    study = study_of([trial_of(number, [0.5], state=TrialState.PRUNED) for number in range(3)])
    assert list(named(plots.figure("history", study, objectives=AUC), "stopped early").x) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"no trial has run to its end(.|\n)*now: history"):
        plots.figure("slice", study, objectives=AUC)


def test_drawing_changes_nothing_in_the_study(study):
    before = [(trial.params, trial.values, trial.state) for trial in study.trials]
    for kind in ("history", "importances", "parallel", "slice"):
        plots.figure(kind, study, objectives=AUC)
    assert [(trial.params, trial.values, trial.state) for trial in study.trials] == before
