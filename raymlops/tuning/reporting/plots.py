"""Figures of a sweep: Optuna's, in one style, and why one cannot be drawn yet.

Owns titles, colors that read on light and dark backgrounds, and the copy of a study that Optuna's plots are given: one
objective where a figure shows one, so that Optuna knows its direction; parameters by their short names; no user
attributes, which Optuna (5.0) writes into the hover text of each point. Knows nothing of pages, MLflow or Ray.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState, create_trial

from raymlops.errors import UsageError
from raymlops.tuning.study.records import repeat_of
from raymlops.tuning.study.storage import quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.records import Objective

MAX_LINES = 300
"""Trials in parallel coordinates: each is a line of its own, and more of them take seconds to draw."""
MAX_POINTS = 1000
"""Trials in a slice."""

BLUE, ORANGE, GREY = "#3f83c8", "#e0700f", "#8b94a3"
"""At least 3:1 against white and against #16191f."""
SCALE = [[0.0, GREY], [0.5, BLUE], [1.0, ORANGE]]
"""From the worst trial, or the first one, to the best, or the last."""
TEMPLATE = {
    "layout": {
        "colorway": [BLUE, ORANGE, GREY],
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "title": {"x": 0, "xref": "paper"},
        "xaxis": {"automargin": True, "exponentformat": "power"},
        "yaxis": {"automargin": True, "exponentformat": "power"},
        "coloraxis": {"colorscale": SCALE},
    }
}
WHOLE = ("parallel", "pareto")
"""Figures that show all objectives at once."""
_INFEASIBLE = {"color": GREY, "symbol": "x", "size": 6}


def figure(kind: str, study: Any, *, objectives: Sequence[Objective], shown: Objective | None = None) -> Any:
    """Draw one figure of a sweep.

    Args:
        kind: ``history``, ``importances``, ``parallel``, ``slice`` or ``pareto``.
        study: the Optuna study of the sweep, running or ended.
        objectives: of the sweep, in the study's order.
        shown: the objective to show, where the sweep has several; default: the first. ``parallel`` and ``pareto`` show
            all of them.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        UsageError: no such figure, or the figure has nothing to show yet; the message says why, the hint
            what can be shown.
    """
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1)
        raise UsageError(
            f"there is no figure {kind!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"Figures: {', '.join(KINDS)}.",
        )
    chosen = list(objectives) if kind in WHOLE else [shown or objectives[0]]
    with quiet_optuna():
        found = _copy(study, objectives, chosen)
        if why := _why_not(kind, found, chosen):
            others = [other for other in KINDS if not _why_not(other, found, objectives)]
            raise UsageError(
                why if why.startswith("pareto") else f"nothing to show for {kind} yet: {why}",
                hint=f"What can be shown now: {', '.join(others) or 'nothing; ask again when a trial has ended'}.",
            )
        return KINDS[kind](found, chosen)


def short(name: str) -> str:
    """Return a parameter's name without ``recipe.config.``; one of ``train`` keeps its section."""
    return name.removeprefix("recipe.config.")


def _copy(study: Any, objectives: Sequence[Objective], shown: Sequence[Objective]) -> Any:
    """Return a study in memory that holds what figures may show; a trial without values is FAIL there."""
    positions = [list(objectives).index(objective) for objective in shown]
    trials = []
    for trial in study.get_trials(deepcopy=False):
        shown_state = trial.state in {TrialState.COMPLETE, TrialState.PRUNED} and repeat_of(trial) is None
        if not shown_state or trial.values is None:
            trials.append(create_trial(state=TrialState.FAIL))  # takes its place: trials are numbered as they are added
            continue
        trials.append(
            create_trial(
                state=trial.state,
                values=[trial.values[position] for position in positions],
                params={short(name): value for name, value in trial.params.items()},
                distributions={short(name): distribution for name, distribution in trial.distributions.items()},
                system_attrs=trial.system_attrs,  # hold the constraints
            )
        )
    return _study(trials, shown)


def _study(trials: Sequence[Any], shown: Sequence[Objective]) -> Any:
    study = optuna.create_study(
        directions=["maximize" if objective.mode == "max" else "minimize" for objective in shown]
    )
    study.set_metric_names([objective.metric for objective in shown])
    study.add_trials(trials)
    return study


def _limited(study: Any, shown: Sequence[Objective], at_most: int) -> Any:
    """Keep the best trial, the worst, and others evenly by rank between them."""
    sign = -1.0 if shown[0].mode == "max" else 1.0
    ranked = sorted(_complete(study), key=lambda trial: (sign * trial.values[0], trial.number))
    if len(ranked) <= at_most:
        return study
    kept = {ranked[round(place * (len(ranked) - 1) / (at_most - 1))].number for place in range(at_most)}
    failed = create_trial(state=TrialState.FAIL)
    return _study([trial if trial.number in kept else failed for trial in _trials(study)], shown)


def _trials(study: Any, *states: TrialState) -> list[Any]:
    found: list[Any] = study.get_trials(deepcopy=False, states=states or None)
    return found


def _complete(study: Any) -> list[Any]:
    return _trials(study, TrialState.COMPLETE)


def _params(study: Any) -> list[str]:
    return sorted({name for trial in _complete(study) for name in trial.params})


def _why_not(kind: str, study: Any, shown: Sequence[Objective]) -> str:
    """Return why a figure cannot be drawn; empty where it can."""
    complete = _complete(study)
    if kind == "pareto" and len(shown) < 2:
        return f"pareto needs several objectives, and this sweep has one, {shown[0].metric}"
    if kind == "history":
        return "" if _trials(study, TrialState.COMPLETE, TrialState.PRUNED) else "no trial has ended with a value"
    if not complete:
        return "no trial has run to its end"
    if kind == "importances":
        if len(complete) < 2:
            return "it needs two trials that ran to their end, and there is one"
        differing = [name for name in _params(study) if len({repr(t.params.get(name)) for t in complete}) > 1]
        if len(differing) < 2:
            return f"it needs two parameters that differ between trials, and there is {', '.join(differing) or 'none'}"
    return ""


def _history(study: Any, shown: Sequence[Objective]) -> Any:
    name = shown[0].metric
    drawn = optuna.visualization.plot_optimization_history(study, target_name=name)
    drawn.update_traces(selector={"name": name}, patch={"name": "ran to its end", "marker": {"color": BLUE, "size": 7}})
    drawn.update_traces(
        selector={"mode": "lines"}, patch={"name": "best so far", "line": {"shape": "hv", "color": ORANGE}}
    )
    drawn.for_each_trace(
        lambda trace: trace.update(name="breaks a constraint", showlegend=bool(trace.x), marker=_INFEASIBLE),
        selector={"name": "Infeasible Trial"},
    )
    if pruned := _trials(study, TrialState.PRUNED):
        drawn.add_scatter(
            x=[trial.number for trial in pruned],
            y=[trial.values[0] for trial in pruned],
            mode="markers",
            name="stopped early",
            marker={"color": GREY, "size": 6, "symbol": "circle-open"},
        )
    drawn.update_traces(hovertemplate="trial %{x}: %{y}<extra>%{fullData.name}</extra>")
    ended = _trials(study, TrialState.COMPLETE, TrialState.PRUNED)
    drawn.update_xaxes(title="trial", zeroline=False, dtick=1 if ended[-1].number - ended[0].number < 10 else None)
    drawn.update_yaxes(title=name, type=_axis_type(ended))
    return _styled(drawn, f"{name}, trial by trial", showlegend=True)


def _importances(study: Any, shown: Sequence[Objective]) -> Any:
    name = shown[0].metric
    drawn = optuna.visualization.plot_param_importances(study, params=_params(study), target_name=name)
    drawn.update_traces(marker={"color": BLUE}, hovertemplate="%{y}: %{x:.3f}<extra></extra>")
    most = max(max(trace.x) for trace in drawn.data)
    drawn.update_xaxes(title="importance", range=[0, 1.25 * most])  # room for the numbers beside the bars
    drawn.update_yaxes(title=None)
    return _styled(drawn, f"What decides {name}", showlegend=False)


def _parallel(study: Any, shown: Sequence[Objective]) -> Any:
    from plotly.colors import sample_colorscale

    limited, names = _limited(study, shown, MAX_LINES), [objective.metric for objective in shown]
    drawn = optuna.visualization.plot_parallel_coordinate(limited, target_name=names[0])
    lines = [trace for trace in drawn.data if trace.customdata is not None]
    others = [trace for trace in drawn.data if trace.customdata is None]
    goodness = _goodness(lines, shown)
    for line, good in zip(lines, goodness, strict=True):
        broken = line.line.dash == "dot"  # it breaks a constraint: its values do not count
        color = GREY if broken else sample_colorscale(SCALE, [good])[0]
        line.update(line={"color": color}, opacity=0.35 if broken else 0.35 + 0.55 * good)
    for trace in others:
        if trace.name:
            trace.update(name={"Feasible": "keeps the constraints"}.get(trace.name, "breaks one"), line={"color": GREY})
        else:
            trace.marker.update(colorscale=SCALE, colorbar={"thickness": 12, "title": {"side": "right"}})
    ranked = sorted(range(len(lines)), key=lambda place: (lines[place].line.dash != "dot", goodness[place]))
    drawn.data = [*(lines[place] for place in ranked), *others]  # the best on top
    drawn.update_annotations(selector={"text": "None"}, text="not set")  # a parameter whose condition does not hold
    drawn.update_annotations(font={"color": None})
    title = "How parameters lead to " + " and ".join(names)
    total, kept = len(_complete(study)), len(_complete(limited))
    if kept < total:
        title += f" ({kept} of {total} trials, evenly from best to worst)"
    return _styled(drawn, title, margin={"t": 90})


def _goodness(lines: Sequence[Any], shown: Sequence[Objective]) -> list[float]:
    """Return how good each line's trial is, from 0 to 1."""
    if len(shown) > 1:  # Optuna draws the last Pareto rank first, and gives each rank a color of its own
        ranks = list(dict.fromkeys(line.line.color for line in lines))
        return [ranks.index(line.line.color) / max(1, len(ranks) - 1) for line in lines]
    return [float(line.y[0] if shown[0].mode == "max" else 1.0 - line.y[0]) for line in lines]


def _slice(study: Any, shown: Sequence[Objective]) -> Any:
    name = shown[0].metric
    drawn = optuna.visualization.plot_slice(_limited(study, shown, MAX_POINTS), target_name=name)
    drawn.update_traces(
        marker={"colorscale": SCALE, "colorbar": {"title": "trial", "thickness": 12}, "size": 7, "line": {"width": 0}},
        hovertemplate="%{x}: %{y}<extra></extra>",
    )
    drawn.update_traces(
        selector={"name": "Infeasible Trial"}, patch={"name": "breaks a constraint"} | {"marker": _INFEASIBLE}
    )
    drawn.update_yaxes(type=_axis_type(_complete(study)))
    return _styled(drawn, f"{name} by each parameter", width=max(500, 240 * len(_params(study))))


def _pareto(study: Any, shown: Sequence[Objective]) -> Any:
    names = [objective.metric for objective in shown[:3]]
    drawn = optuna.visualization.plot_pareto_front(
        study, target_names=names, targets=lambda trial: trial.values[: len(names)]
    )
    for trace in drawn.data:
        if "Best" in trace.hovertemplate:
            trace.update(name="beaten by none", marker={"color": ORANGE, "size": 9})
        elif "Infeasible" in trace.hovertemplate:
            trace.update(name="breaks a constraint", marker=_INFEASIBLE if len(names) == 2 else {"color": GREY})
        else:
            trace.update(name="beaten", marker={"color": BLUE, "size": 6})
        trace.update(showlegend=bool(trace.text), hovertemplate="%{text}<extra>%{fullData.name}</extra>")
        trace.update(marker={"showscale": False, "line": {"width": 0}})
    of = "" if len(names) == len(shown) else f", the first {len(names)} of {len(shown)} objectives"
    return _styled(drawn, f"What {' and '.join(names)} cost each other{of}", showlegend=True)


def _axis_type(trials: Sequence[Any]) -> str:
    """Return the scale on which a few diverged trials do not press all others flat."""
    ordered = sorted(trial.values[0] for trial in trials)
    return "log" if ordered[0] > 0 and ordered[-1] > 50 * ordered[len(ordered) // 2] else "linear"


def _styled(drawn: Any, title: str, **layout: Any) -> Any:
    legend = dict.fromkeys(("orientation", "x", "xanchor", "y", "yanchor"))
    place = dict.fromkeys(("x", "xref", "y", "yref", "yanchor"))
    drawn.update_layout(template="plotly_white")
    drawn.update_layout(template=TEMPLATE, title={"text": title, **place}, legend=legend, plot_bgcolor=None, **layout)
    return drawn


KINDS: dict[str, Callable[[Any, Sequence[Objective]], Any]] = {
    "history": _history,
    "importances": _importances,
    "parallel": _parallel,
    "slice": _slice,
    "pareto": _pareto,
}
"""The figures, in the order in which they are read."""
