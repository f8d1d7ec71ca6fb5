"""Figures of a sweep, each the answer to one question: how it went, what mattered, what one objective costs another.

Owns what a figure says (names, titles, colours that read on light and on dark ground) and when it has nothing to show
yet. The drawing is Optuna's, from a ``reading`` of the study. Knows nothing of pages, notebooks, MLflow or Ray.
"""

from __future__ import annotations

import json
import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from optuna.study import StudyDirection
from optuna.trial import TrialState

from raymlops.errors import UsageError
from raymlops.tuning.reporting.study_columns import Reading, counted, few_of, read
from raymlops.tuning.study.storage import quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raymlops.records import Objective

MAX_LINES = 300
"""Trials in parallel coordinates: each is a line of its own, and more of them are a blot that takes seconds to draw."""
MAX_POINTS = 1000
"""Trials in one panel of a slice."""

BLUE, ORANGE, GREY = "#3f83c8", "#e0700f", "#8b94a3"
"""At least 3:1 against white and against a page of #16191f."""
SCALE = ((0.0, "#8b94a3"), (0.5, "#3f83c8"), (1.0, "#e0700f"))
"""From the worst trial, or the first one, to the best, or the last."""


def figure(kind: str, study: Any, *, objectives: Sequence[Objective], objective: str | None = None) -> Any:
    """Draw one figure of a sweep.

    Args:
        kind: ``history``, ``importances``, ``parallel``, ``slice`` or ``pareto``.
        study: the Optuna study of the sweep, running or ended.
        objectives: of the sweep, in the study's order.
        objective: the metric that the figure is about, where the sweep has several; default: the first.
            ``parallel`` shows all of them unless told otherwise, ``pareto`` always.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        UsageError: no such figure or objective, or the figure has nothing to show yet; the message says why, the hint
            what can be shown.
    """
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1)
        raise UsageError(
            f"there is no figure {kind!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"Figures: {', '.join(KINDS)}.",
        )
    reading = _reading(kind, study, objectives=objectives, objective=objective)
    why = _why_not(kind, reading)
    if why:
        whole = read(study, objectives)
        others = [other for other in KINDS if not _why_not(other, whole)]
        raise UsageError(
            why if why.startswith("pareto") else f"nothing to show for {kind} yet: {why}",
            hint=f"What can be shown now: {', '.join(others) or 'nothing; ask again when a trial has ended'}.",
        )
    with quiet_optuna():
        return KINDS[kind](reading)


def slices(study: Any, *, objectives: Sequence[Objective], objective: str | None = None) -> dict[str, Any]:
    """Return the panels of ``slice`` as figures of their own, by parameter, for pages that wrap.

    Raises:
        UsageError: as ``figure`` does.
    """
    figure("slice", study, objectives=objectives, objective=objective)
    reading = few_of(_reading("slice", study, objectives=objectives, objective=objective), MAX_POINTS)
    with quiet_optuna():
        return {name: _slice_of(reading, [name]) for name in reading.params}


def _reading(kind: str, study: Any, *, objectives: Sequence[Objective], objective: str | None) -> Reading:
    known = [each.metric for each in objectives]
    if objective is not None and objective not in known:
        raise UsageError(
            f"the sweep has no objective {objective!r}",
            hint=f"It is about {', '.join(known)}, as its configuration says.",
        )
    if kind == "pareto" and objective is not None:
        raise UsageError("pareto is about all objectives at once", hint=f"Leave objective={objective!r} out.")
    if kind == "pareto" or (kind == "parallel" and objective is None):
        return read(study, objectives)
    return read(study, objectives, index=0 if objective is None else known.index(objective))


def _why_not(kind: str, reading: Reading) -> str:
    complete = reading.complete
    if kind == "pareto" and len(reading.names) < 2:
        return f"pareto needs several objectives, and this sweep has one, {reading.names[0]}"
    if kind == "history":
        return "" if reading.finished else "no trial has ended with a value"
    if not complete:
        return "no trial has run to its end"
    if kind == "importances":
        if len(complete) < 2:
            return "it needs two trials that ran to their end, and there is one"
        differing = [name for name in reading.params if len({repr(t.params.get(name)) for t in complete}) > 1]
        if len(differing) < 2:
            return f"it needs two parameters that differ between trials, and there is {', '.join(differing) or 'none'}"
    return ""


def _history(reading: Reading) -> Any:
    from optuna.visualization import plot_optimization_history
    from plotly.graph_objects import Scatter

    name = reading.names[0]
    numbers = [trial.number for trial in reading.finished]
    drawn = plot_optimization_history(counted(reading), target_name=name)
    for trace in drawn.data:
        trace.x = [numbers[place] for place in trace.x]
        if trace.mode == "lines":
            trace.update(name="best so far", line={"shape": "hv", "color": ORANGE, "width": 2})
        elif trace.name == name:
            trace.update(name="ran to its end", marker={"color": BLUE, "size": 7})
        else:
            trace.update(name="breaks a constraint", showlegend=bool(trace.x), marker=_INFEASIBLE)
    pruned = [trial for trial in reading.finished if trial.state == TrialState.PRUNED]
    if pruned:
        x, y = [trial.number for trial in pruned], [trial.values[0] for trial in pruned]
        marker = {"color": GREY, "size": 6, "symbol": "circle-open"}
        drawn.add_trace(Scatter(x=x, y=y, mode="markers", name="stopped early", marker=marker))
    drawn.update_traces(hovertemplate="trial %{x}: %{y}<extra>%{fullData.name}</extra>")
    drawn.update_xaxes(title="trial", zeroline=False, dtick=1 if numbers[-1] - numbers[0] < 10 else None)
    drawn.update_yaxes(title=name, **_value_axis([trial.values[0] for trial in reading.finished]))
    return _styled(drawn, f"{name}, trial by trial", showlegend=True)


def _importances(reading: Reading) -> Any:
    from optuna.visualization import plot_param_importances

    drawn = plot_param_importances(reading, params=reading.params, target_name=reading.names[0])
    drawn.update_traces(marker={"color": BLUE})
    drawn.update_traces(hovertemplate="%{y}: %{x:.3f}<extra></extra>")
    most = max(max(trace.x) for trace in drawn.data)
    drawn.update_xaxes(title="importance", range=[0, 1.25 * most])  # room for the numbers beside the bars
    drawn.update_yaxes(title=None, automargin=True)
    return _styled(drawn, f"What decides {reading.names[0]}", showlegend=False)


def _parallel(reading: Reading) -> Any:
    from optuna.visualization import plot_parallel_coordinate
    from plotly.colors import sample_colorscale

    few = few_of(reading, MAX_LINES)
    drawn = plot_parallel_coordinate(few, target_name=few.names[0])
    lines = [trace for trace in drawn.data if trace.customdata is not None]
    places = _places(few, [line for line in lines if line.line.dash != "dot"])
    for line in lines:
        # None: it breaks a constraint, and whatever it reached does not count.
        place = places.get(id(line))
        color = GREY if place is None else sample_colorscale([list(stop) for stop in SCALE], [place])[0]
        line.update(line={"color": color, "width": 1.2 + (place or 0.0)}, opacity=0.35 + 0.55 * (place or 0.0))
    others = [trace for trace in drawn.data if trace.customdata is None]
    for trace in others:
        if trace.name:
            trace.update(name={"Feasible": "keeps the constraints"}.get(trace.name, "breaks one"), line={"color": GREY})
        else:
            colorbar = {"title": {"side": "right"}, "thickness": 12, "outlinewidth": 0}
            if len(few.names) > 1:
                colorbar |= {"title": {"side": "right", "text": "Pareto rank, 0: beaten by none"}, "tickvals": None}
            trace.marker.update(colorscale=SCALE, colorbar=colorbar)
    # The best lie on top of the others.
    drawn.data = [*sorted(lines, key=lambda line: places.get(id(line), -1.0)), *others]
    drawn.update_annotations(selector={"text": "None"}, text="not set")  # a parameter whose condition does not hold
    drawn.update_annotations(font={"color": None}, bgcolor="rgba(255,255,255,0.75)", borderpad=1)
    left_out = len(reading.complete) - len(few.complete)
    title = "How parameters lead to " + " and ".join(few.names)
    if left_out:
        title += f" ({len(few.complete)} of {len(reading.complete)} trials, evenly from best to worst)"
    return _styled(drawn, title, margin={"t": 90})


def _places(reading: Reading, lines: Sequence[Any]) -> dict[int, float]:
    """Return how good each line is by its ``id``, from 0 to 1."""
    if len(reading.directions) > 1:
        # Optuna draws the last Pareto rank first, and gives each rank a colour of its own.
        ranks = list(dict.fromkeys(line.line.color for line in lines))
        heights = [float(ranks.index(line.line.color)) for line in lines]
    else:
        sign = -1.0 if reading.direction == StudyDirection.MINIMIZE else 1.0
        heights = [sign * line.y[0] for line in lines]
    low, high = min(heights, default=0.0), max(heights, default=0.0)
    return {
        id(line): (height - low) / (high - low) if high > low else 1.0
        for line, height in zip(lines, heights, strict=True)
    }


def _slice(reading: Reading) -> Any:
    few = few_of(reading, MAX_POINTS)
    drawn = _slice_of(few, None)
    drawn.update_traces(marker={"colorscale": SCALE, "colorbar": {"title": "trial", "thickness": 12}})
    return _styled(drawn, f"{reading.names[0]} by each parameter", width=max(500, 240 * len(few.params)))


def _slice_of(reading: Reading, params: list[str] | None) -> Any:
    from optuna.visualization import plot_slice

    name = reading.names[0]
    drawn = plot_slice(reading, params=params, target_name=name)
    for trace in drawn.data:
        if trace.name == "Infeasible Trial":
            trace.update(name="breaks a constraint", marker=_INFEASIBLE)
        else:
            trace.update(name="", marker={"line": {"width": 0}, "opacity": 0.8, "size": 7})
        trace.update(hovertemplate="%{x}: %{y}<extra>%{fullData.name}</extra>")
        trace.x = [_unquoted(value) for value in trace.x]
    drawn.for_each_xaxis(lambda axis: _ticks(axis, reading))
    drawn.update_yaxes(**_value_axis([trial.values[0] for trial in reading.complete]))
    if params is not None:
        drawn.update_traces(marker={"showscale": False, "color": BLUE}, selector={"name": ""})
        return _styled(drawn, f"{name} by {params[0]}")
    return drawn


def _pareto(reading: Reading) -> Any:
    from optuna.visualization import plot_pareto_front

    names = list(reading.names[:3])
    drawn = plot_pareto_front(reading, target_names=names, targets=lambda trial: trial.values[: len(names)])
    for trace in drawn.data:
        trace.text = [_point(text, names) for text in trace.text or ()]
        if "Best" in trace.hovertemplate:
            trace.update(name="beaten by none", marker={"color": ORANGE, "size": 9})
        elif "Infeasible" in trace.hovertemplate:
            trace.update(name="breaks a constraint", marker=_INFEASIBLE if len(names) == 2 else {"color": GREY})
        else:
            trace.update(name="beaten", marker={"color": BLUE, "size": 6})
        marker = {"showscale": False, "line": {"width": 0}, "opacity": 0.85}
        trace.update(showlegend=bool(trace.text), marker=marker, hovertemplate="%{text}<extra>%{fullData.name}</extra>")
    of = "" if len(names) == len(reading.names) else f", the first {len(names)} of {len(reading.names)} objectives"
    return _styled(drawn, f"What {' and '.join(names)} cost each other{of}", showlegend=True)


_INFEASIBLE = {"color": GREY, "symbol": "x", "size": 6}


def _value_axis(values: Sequence[float]) -> dict[str, Any]:
    """Make the axis logarithmic where a few diverged trials would press all others flat."""
    ordered = sorted(values)
    if ordered[0] > 0 and ordered[-1] > 50 * ordered[len(ordered) // 2]:
        return {"type": "log", **_log_ticks(values)}
    return {"type": "linear"}


def _log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Write ticks in full: 1e-05 and not 10µ, 200 and not a small 2."""
    low, high = min(values), max(values)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _unquoted(value: Any) -> Any:
    # Optuna writes choices as Python does.
    return (
        value[1:-1]
        if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        else value
    )


def _ticks(axis: Any, reading: Reading) -> None:
    """Write choices as the configuration does."""
    name = axis.title.text
    if axis.categoryarray is not None:
        axis.categoryarray = [_unquoted(choice) for choice in axis.categoryarray]
    elif axis.type == "log":
        axis.update(_log_ticks([trial.params[name] for trial in reading.complete if name in trial.params]))


def _point(text: str, names: Sequence[str]) -> str:
    data = json.loads(text.replace("<br>", "\n"), strict=False)
    lines = [f"trial {data['number']}"]
    lines += [f"{name} {value:.6g}" for name, value in zip(names, data["values"], strict=False)]
    lines += [
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in data["params"].items()
    ]
    return "<br>".join(lines)


def _styled(drawn: Any, title: str, **layout: Any) -> Any:
    drawn.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0, "xref": "paper", "y": None, "yref": "container", "yanchor": "auto"},
        plot_bgcolor=None,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        **layout,
    )
    return drawn


KINDS: dict[str, Callable[[Reading], Any]] = {
    "history": _history,
    "importances": _importances,
    "parallel": _parallel,
    "slice": _slice,
    "pareto": _pareto,
}
"""The figures, in the order in which they are read."""
