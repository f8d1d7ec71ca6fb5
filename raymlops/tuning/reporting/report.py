"""The report of a sweep: one HTML file that says what was tried, what won and what it cost, without a network.

Owns the page: its sections, what is left out and why, and that nothing in it can run or load but what was written
here: all text is escaped, and the page's own policy allows two scripts by their digests and no address at all. Figures
are those of ``plots``, rows those of ``tables``, looks and behaviour ``report.css`` and ``report.js`` beside this file.
Knows nothing of MLflow, Ray or where the file goes.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from datetime import UTC
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from raymlops.errors import SweepError, UsageError
from raymlops.tuning.objectives import num_own_trials
from raymlops.tuning.reporting import plots, tables
from raymlops.tuning.study.selection import pareto, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import Objective, SpentRecord, TrialRecord

STATES = {
    "COMPLETE": "complete",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting to go on",
}


def html(
    study: Any,
    *,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    spec: ProjectSpec,
    spent: SpentRecord,
    sweep_id: str,
    stopped: str,
    best: TrialRecord | None = None,
    best_config_text: str = "",
) -> str:
    """Return the report of a sweep as one self-contained HTML file.

    Args:
        study: the Optuna study.
        records: of all ended trials, carried ones with them.
        objectives: of the sweep, in the study's order.
        spec: the sweep's configuration.
        spent: what it took so far.
        sweep_id: the parent MLflow run.
        stopped: which budget ended it, in words; empty where every trial ran.
        best: the winner, where it is known already; one of ``records``.
        best_config_text: the winner's configuration as YAML; empty where nothing won.
    """
    page = _Page(study, objectives)
    winner = best or _winner(records, objectives)
    order = tables.ranked(records, objectives=objectives)
    params = [name for name in spec.sweep.space if any(name in trial.params for trial in records)]
    front = pareto(records, objectives=objectives)

    if winner is None:
        valued = any(trial.value is not None for trial in records)
        why = "no trial with a value keeps the constraints" if valued else "no trial ended with a usable value"
        page.left_out(f"Nothing won: {why}.")
    else:
        others = [trial for trial in order if trial.number != winner.number]
        rivals = [trial for trial in others if trial.value is not None and trial.feasible]
        rivals.sort(key=lambda trial: trial.number not in front)  # of several objectives, the front before the beaten
        table = tables.top([winner, *rivals], objectives=objectives, params=params)
        page.section("winner", "Winner and runners-up", table)
    page.figures("history", "History", height=380)
    page.figures("importances", "Importances", height=110 + 34 * len(params))
    page.figures("parallel", "Parallel coordinates", height=400, least=95 * (len(params) + len(objectives)) + 90)
    page.panels("slice", "Slices")
    if len(objectives) > 1:
        page.figures("pareto", "Pareto front", height=480)
    failed = tables.failures(records)
    if failed:
        page.section("failed", "Failed trials", failed)
    else:
        page.left_out("No trial failed." if records else "No trial has ended.")
    if records:
        constrained = bool(spec.sweep.constraints)
        table = tables.everything(order, objectives=objectives, params=params, front=front, constrained=constrained)
        page.section("trials", "All trials", table)
    if best_config_text:
        page.section("configuration", "Winning configuration", f"<pre><code>{escape(best_config_text)}</code></pre>")
    facts = _facts(study, records=records, objectives=objectives, spec=spec, spent=spent, stopped=stopped)
    lead = f"Trial {winner.number} won: {_reached(winner, objectives)}." if winner is not None else "No trial won."
    return page.whole(spec.project.name, sweep_id=sweep_id, facts=facts, lead=lead)


class _Page:
    """Sections as they are added, and the figures that its script draws."""

    def __init__(self, study: Any, objectives: Sequence[Objective]) -> None:
        self._study = study
        self._objectives = objectives
        self._sections: list[tuple[str, str, str]] = []
        self._figures: list[tuple[str, str]] = []
        self._left_out: list[str] = []

    def section(self, anchor: str, title: str, body: str) -> None:
        self._sections.append((anchor, title, body))

    def left_out(self, sentence: str) -> None:
        if sentence not in self._left_out:
            self._left_out.append(sentence)

    def figures(self, kind: str, title: str, *, height: int, least: int = 0) -> None:
        """Add a section with one kind of figure, for each objective where one figure shows one."""
        per_objective: Sequence[str | None] = [each.metric for each in self._objectives]
        if kind in {"parallel", "pareto"}:
            per_objective = [None]
        drawn = []
        for objective in per_objective:
            try:
                figure = plots.figure(kind, self._study, objectives=self._objectives, objective=objective)
            except UsageError as error:
                self.left_out(f"{error.message[0].upper()}{error.message[1:]}.")
                continue
            drawn.append(self._figure(figure, kind=kind, height=height, least=least))
        if drawn:
            self.section(kind, title, "\n".join(drawn))

    def panels(self, kind: str, title: str) -> None:
        """Add a section with the panels of a slice, as many in a row as there is room for."""
        parts = []
        for objective in self._objectives:
            try:
                panels = plots.slices(self._study, objectives=self._objectives, objective=objective.metric)
            except UsageError as error:
                self.left_out(f"{error.message[0].upper()}{error.message[1:]}.")
                continue
            drawn = "\n".join(self._figure(panel, kind=kind, height=280) for panel in panels.values())
            parts.append(f'<h3>{escape(objective.metric)}</h3>\n<div class="panels">\n{drawn}\n</div>')
        if parts:
            self.section(kind, title, "\n".join(parts))

    def _figure(self, figure: Any, *, kind: str, height: int, least: int = 0) -> str:
        place, title = f"figure-{len(self._figures)}-{kind}", str(figure.layout.title.text)
        # The page has the title as text, the scheme's colours, and the width that there is.
        figure.update_layout(title=None, template=None, width=None, height=height, plot_bgcolor=None)
        figure.update_layout(margin={"l": 50, "r": 16, "t": 44, "b": 50})
        figure.update_xaxes(automargin=True)
        figure.update_yaxes(automargin=True)
        self._figures.append((place, _in_script(figure.to_json())))
        plot = f'<div class="plot" id="{place}" role="img" aria-label="{escape(title)}"'
        plot += f' style="height:{height}px{f";--least:{least}px" if least else ""}"></div>'
        if least:
            plot = f'<div class="wide" role="region" tabindex="0" aria-label="{escape(title)}">{plot}</div>'
        return f"<figure><figcaption>{escape(title)}</figcaption>{plot}</figure>"

    def whole(self, project: str, *, sweep_id: str, facts: str, lead: str) -> str:
        """Return the page."""
        from plotly.offline import get_plotlyjs

        ours = files("raymlops.tuning.reporting")
        scripts = [ours.joinpath("report.js").read_text(encoding="utf-8")]
        if self._figures:
            # Without the first line plotly would look for MathJax.
            scripts.insert(0, "window.PlotlyConfig = {MathJaxConfig: 'local'};\n" + get_plotlyjs())
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
            f"script-src {' '.join(map(_digest, scripts))}"
        )
        if self._left_out:
            listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in self._left_out)
            self.section("left-out", "Left out", f"<ul>{listed}</ul>")
        contents = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title, _ in self._sections)
        sections = "\n".join(
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
            f'<h2 id="{anchor}-title">{escape(title)}</h2>\n{body}\n</section>'
            for anchor, title, body in self._sections
        )
        data = ",\n".join(f'"{place}":{figure}' for place, figure in self._figures)
        tail = f'<script type="application/json" id="figures">{{{data}}}</script>\n'
        tail += "\n".join(f"<script>{script}</script>" for script in scripts)
        drawn = "<noscript><p>The figures are drawn by a script in this page; the tables need none.</p></noscript>"
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sweep {escape(sweep_id)} of {escape(project)}</title>
<style>{ours.joinpath("report.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>Sweep of {escape(project)}</h1>
<p class="lead">{escape(lead)}</p>
<p class="lead"><code>{escape(sweep_id)}</code></p>
{facts}
{drawn if self._figures else ""}
</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{sections}
</main>
<footer><p>Written by raymlops. The Optuna study holds the trials, MLflow their runs.</p></footer>
{tail}
</body>
</html>
"""


def _winner(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> TrialRecord | None:
    try:
        return select(records, objectives=objectives)
    except SweepError:
        return None


def _reached(winner: TrialRecord, objectives: Sequence[Objective]) -> str:
    values = winner.values if len(objectives) > 1 else [winner.value or 0.0]
    return ", ".join(f"{each.metric} {value:.6g}" for each, value in zip(objectives, values, strict=False))


def _facts(
    study: Any,
    *,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    spec: ProjectSpec,
    spent: SpentRecord,
    stopped: str,
) -> str:
    carried = {trial.number for trial in records if trial.carried_from}
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.number not in carried]
    counts = Counter(trial.state.name for trial in trials)
    states = ", ".join(f"{counts[state]:,} {words}" for state, words in STATES.items() if counts[state]) or "none"
    if carried:
        states += f"; {len(carried):,} more known from another sweep"
    best = {"min": "the smaller the better", "max": "the larger the better"}
    facts = [(each.metric, best[each.mode]) for each in objectives]
    facts += [("Trials", f"{len(trials):,} of {max(len(trials), num_own_trials(spec)):,}: {states}")]
    facts += _when(trials)
    going = counts["RUNNING"] + counts["WAITING"]
    facts.append(("Ended", stopped or ("not yet" if going else "every trial ran")))
    facts += [
        ("Took", tables.seconds(spent.wall_s)),
        ("CPU-hours", f"{spent.cpu_hours:,.3g}"),
        ("GPU-hours", f"{spent.gpu_hours:,.3g}"),
    ]
    price = spec.sweep.price
    if price.cpu_hour or price.gpu_hour:
        facts.append(("Cost", f"{spent.cost:,.2f} {spent.currency}"))
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{pairs}</dl>'


def _when(trials: Sequence[Any]) -> Iterator[tuple[str, str]]:
    started = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    for name, moment in (
        ("First trial began", min(started, default=None)),
        ("Last trial ended", max(ended, default=None)),
    ):
        if moment is not None:
            # Optuna keeps local time without saying so.
            yield name, f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _in_script(json_text: str) -> str:
    """Make JSON safe inside ``<script>``: the parser must find no tag, comment or line end of JavaScript in it."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
