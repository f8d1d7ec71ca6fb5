"""The curves of compared runs as one figure: a panel for each metric, a color for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Curves = Mapping[str, Sequence[tuple[int, float]]]

KINDS = (".html", ".png")
_PANELS_IN_A_ROW = 2
_PANEL_PX = 320


def figure(runs: Sequence[tuple[str, Curves]], metric: str | None = None, *, axis: str) -> Any:
    """Return a plotly ``Figure`` of one metric, or of every metric that any run has points of.

    ``runs`` are names with the points of each metric, over what ``axis`` says.

    Raises:
        UsageError: there is nothing to show.
    """
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    known = list(dict.fromkeys(name for _, curves in runs for name in curves))
    names = known if metric is None else [metric]
    if not known or not set(names) <= set(known):
        what = f"{metric!r} was not reported" if known else "no run has reported a metric yet"
        raise UsageError(f"there is no curve to show: {what}", hint=f"Metrics: {', '.join(known) or 'none'}.")
    columns = min(_PANELS_IN_A_ROW, len(names))
    rows = -(-len(names) // columns)
    drawn = make_subplots(rows, columns, subplot_titles=names, horizontal_spacing=0.08, vertical_spacing=0.3 / rows)
    in_legend: set[int] = set()
    for place, name in enumerate(names):
        for number, (label, curves) in enumerate(runs):
            points = curves.get(name)
            if not points:
                continue
            drawn.add_scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                name=label,
                legendgroup=str(number),
                showlegend=number not in in_legend,
                mode="lines+markers" if len(points) < 50 else "lines",
                line={"color": qualitative.D3[number % len(qualitative.D3)]},
                hovertemplate=f"{axis} %{{x}}: %{{y}}<extra>%{{fullData.name}}</extra>",
                row=place // columns + 1,
                col=place % columns + 1,
            )
            in_legend.add(number)
    drawn.update_xaxes(title=axis, automargin=True)
    drawn.update_yaxes(automargin=True, exponentformat="power")
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0 + 0.14 / rows, "yanchor": "bottom"}
    drawn.update_layout(template="plotly_white", height=60 + _PANEL_PX * rows, legend=legend)
    return drawn


def check_file(file: str) -> None:
    """Refuse a file that cannot be drawn into.

    Raises:
        UsageError: its ending is neither .html nor .png, or .png lacks the package that draws it.
    """
    from importlib.util import find_spec

    if not file.endswith(KINDS):
        raise UsageError(f"{file!r} is no kind of plot", hint=f"Name a file that ends with {' or '.join(KINDS)}.")
    if file.endswith(".png") and find_spec("kaleido") is None:
        raise UsageError(
            "plotly draws a .png with the package kaleido, which is not installed",
            hint="pip install kaleido, or name a .html file.",
        )


def write(drawn: Any, file: str) -> None:
    """Write a figure as one file that is readable offline.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        if file.endswith(".html"):
            drawn.write_html(file, include_plotlyjs=True)
        else:
            drawn.write_image(file)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror or error}") from error
