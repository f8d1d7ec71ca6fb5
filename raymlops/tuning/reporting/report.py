"""The report of a sweep: one HTML file with what was tried, what won and what it cost, readable offline.

Owns the page's content: its sections, and what is left out and why. ``report.html.jinja`` is the page, in which every
text is escaped; its content security policy allows two scripts by their digests, and no address. Figures come from
``plots``, rows from ``tables``. Knows nothing of MLflow, Ray or where the file goes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections import Counter
from datetime import UTC
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.display import duration
from raymlops.errors import UsageError
from raymlops.tuning.reporting import plots, tables
from raymlops.tuning.study.ranking import chosen, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.records import Objective, RepeatRecord, SpentRecord, TrialRecord
    from raymlops.tuning.sweep_stores import SweepStores

STATES = {
    "COMPLETE": "complete",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting to resume",
}


class _Figure(NamedTuple):
    anchor: str
    title: str
    height: int
    least_width: int


class _Section(NamedTuple):
    anchor: str
    title: str
    table: tables.Table | None = None
    figures: Sequence[_Figure] = ()
    text: str = ""


def html(
    stores: SweepStores,
    records: Sequence[TrialRecord],
    *,
    best: TrialRecord | None,
    front: Sequence[int],
    spent: SpentRecord,
    stopped: str,
    repeats: Sequence[RepeatRecord] = (),
    best_config_text: str = "",
) -> str:
    """Return the report of a sweep as one self-contained HTML file.

    Args:
        stores: of the sweep.
        records: of all ended trials, carried ones included.
        best: the winner, one of ``records``; None where nothing won.
        front: the numbers of the trials on the Pareto front; empty where there is one objective.
        repeats: the configurations that were trained with several seeds, best mean first.
        spent: what the sweep has used so far.
        stopped: which budget ended it, in words; empty where every trial ran.
        best_config_text: the winner's configuration as YAML; empty where nothing won.
    """
    spec, objectives = stores.project.spec, stores.trials.objectives
    page = _Page(stores.study, objectives)
    params = [name for name in spec.sweep.space if any(name in trial.params for trial in records)]
    constrained = bool(spec.sweep.constraints)
    shown = tables.tables_of(
        records, best=best, objectives=objectives, params=params, front=front, constrained=constrained
    )

    if best is None:
        valued = any(trial.value is not None for trial in records)
        why = "no trial with a value keeps the constraints" if valued else "no trial ended with a usable value"
        page.leave_out(f"Nothing won: {why}.")
    else:
        page.sections.append(_Section("winner", "Winner and runners-up", shown["winner"]))
    if repeats:
        table = tables.repeated(repeats, objective=objectives[0])
        page.sections.append(_Section("repeats", "Several seeds", table))
    columns = len(params) + len(objectives)
    page.draw("history", "History", height=380)
    page.draw("importances", "Importances", height=110 + 34 * len(params))
    page.draw("parallel", "Parallel coordinates", height=400, least_width=95 * columns + 90)
    page.draw("slice", "Slices", height=340, least_width=240 * len(params))
    if len(objectives) > 1:
        page.draw("pareto", "Pareto front", height=480)
    if "failed" in shown:
        page.sections.append(_Section("failed", "Failed trials", shown["failed"]))
    else:
        page.leave_out("No trial failed." if records else "No trial has ended.")
    if "trials" in shown:
        page.sections.append(_Section("trials", "All trials", shown["trials"]))
    if best_config_text:
        page.sections.append(_Section("configuration", "Winning configuration", text=best_config_text))
    return page.render(
        project=spec.project.name,
        sweep_id=stores.parent.sweep_id,
        lead=_lead(best, objectives, repeats=repeats),
        facts=_facts(stores, records, spent=spent, stopped=stopped),
    )


class _Page:
    """Sections in their order, and the figures that the page's script draws."""

    def __init__(self, study: Any, objectives: Sequence[Objective]) -> None:
        self.sections: list[_Section] = []
        self._study = study
        self._objectives = objectives
        self._figures: dict[str, str] = {}
        self._left_out: dict[str, None] = {}

    def leave_out(self, sentence: str) -> None:
        """Say why something is not in the report."""
        self._left_out[sentence] = None

    def draw(self, kind: str, title: str, *, height: int, least_width: int = 0) -> None:
        """Add a section with one kind of figure, for each objective where one figure shows one."""
        drawn = []
        for objective in self._objectives[:1] if kind in plots.WHOLE else self._objectives:
            try:
                figure = plots.figure(kind, self._study, objectives=self._objectives, shown=objective)
            except UsageError as error:
                self.leave_out(f"{error.message[0].upper()}{error.message[1:]}.")
                continue
            anchor, caption = f"figure-{len(self._figures)}-{kind}", str(figure.layout.title.text)
            # The page has the title as text, and the figure is as wide as the page.
            figure.update_layout(title=None, width=None, height=height, margin={"l": 50, "r": 16, "t": 44, "b": 50})
            self._figures[anchor] = figure.to_json()
            drawn.append(_Figure(anchor, caption, height, least_width))
        if drawn:
            self.sections.append(_Section(kind, title, figures=drawn))

    def render(self, **texts: Any) -> str:
        """Return the page."""
        from jinja2 import Environment, PackageLoader
        from jinja2.utils import htmlsafe_json_dumps
        from plotly.offline import get_plotlyjs

        script = files("raymlops.tuning.reporting").joinpath("report.js").read_text(encoding="utf-8")
        library = get_plotlyjs() if self._figures else ""
        figures = ",\n".join(f'"{anchor}":{figure}' for anchor, figure in self._figures.items())
        page = Environment(
            loader=PackageLoader("raymlops.tuning.reporting", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        return page.get_template("report.html.jinja").render(
            sections=self.sections,
            left_out=list(self._left_out),
            figures=htmlsafe_json_dumps(f"{{{figures}}}", dumps=str),  # JSON already: escape it for <script>
            script=script,
            # A third of its size; the page's script unpacks it.
            library=base64.b64encode(gzip.compress(library.encode(), mtime=0)).decode() if library else "",
            digests=[_digest(each) for each in (script, library) if each],
            **texts,
        )


def _lead(best: TrialRecord | None, objectives: Sequence[Objective], *, repeats: Sequence[RepeatRecord]) -> str:
    if best is None:
        return "No trial won."
    by_mean = ""
    if chosen(repeats) is not None:
        by_mean = f" Chosen by its mean over seeds: {verdict(repeats, metric=objectives[0].metric)}."
    return f"Trial {best.number} won: {_reached(best, objectives)}.{by_mean}"


def _reached(winner: TrialRecord, objectives: Sequence[Objective]) -> str:
    values = winner.values if len(objectives) > 1 else [winner.value or 0.0]
    return ", ".join(f"{each.metric} {value:.6g}" for each, value in zip(objectives, values, strict=False))


def _facts(
    stores: SweepStores, records: Sequence[TrialRecord], *, spent: SpentRecord, stopped: str
) -> list[tuple[str, str]]:
    spec = stores.project.spec
    carried = {trial.number for trial in records if trial.carried_from}
    trials = [trial for trial in stores.study.get_trials(deepcopy=False) if trial.number not in carried]
    counts = Counter(trial.state.name for trial in trials)
    states = ", ".join(f"{counts[state]:,} {words}" for state, words in STATES.items() if counts[state]) or "none"
    if carried:
        states += f"; {len(carried):,} more known from another sweep or study"
    better = {"min": "lower is better", "max": "higher is better"}
    facts = [(each.metric, better[each.mode]) for each in stores.trials.objectives]
    facts += [("Trials", f"{len(trials):,} of {stores.trials.total + stores.trials.repeats:,}: {states}")]
    facts += _when(trials)
    facts += [
        ("Ended", stopped or "every trial ran"),
        ("Took", duration(spent.wall_s)),
        ("CPU-hours", f"{spent.cpu_hours:,.3g}"),
        ("GPU-hours", f"{spent.gpu_hours:,.3g}"),
    ]
    price = spec.sweep.price
    if price.cpu_hour or price.gpu_hour:
        facts.append(("Cost", f"{spent.cost:,.2f} {spent.currency}"))
    return facts


def _when(trials: Sequence[Any]) -> Iterator[tuple[str, str]]:
    started = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    for name, moment in (
        ("First trial started", min(started, default=None)),
        ("Last trial ended", max(ended, default=None)),
    ):
        if moment is not None:
            # Optuna's times are local and naive.
            yield name, f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
