"""Callbacks of a training: what a recipe does beside the steps, such as logging images, tables and figures.

Owns the base class, and how what is logged becomes bytes of a bounded size. Knows nothing of the training, nor of how
the bytes reach MLflow.
"""

from __future__ import annotations

import io
import posixpath
import re
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raymlops.errors import RecipeError
from raymlops.records import STEP, Artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

MAX_BYTES = 16 << 20
"""Size of one image, table or figure as a file."""
OWN_FOLDERS = ("code", "config", "data", "environment", "evaluation", "images", "sweep")
"""Folders of a run's artifacts that callbacks do not write to."""


class Callback:
    """Base of a callback: called after steps and evaluations and at the end of a training. Override what is of use.

    Callbacks run in the first worker while the others wait, without gradient. What they draw at random, and the mode
    that they put the model in, do not reach the training; they must not change weights. Where one raises, the training
    continues and the run says so, once for each kind of error; with ``strict`` the run fails.

    A run that resumes repeats the steps since its checkpoint, and calls them again. What was logged for a step before
    is not logged again.
    """

    strict: ClassVar[bool] = False
    """Whether the run fails where this raises."""

    def on_step(self, ctx: CallbackContext) -> None:
        """Act after an optimizer step; ``ctx.metrics`` are those that were logged at it, if any were."""

    def on_evaluation(self, ctx: CallbackContext) -> None:
        """Act after an evaluation, which ``ctx.metrics`` are of; scalars that are logged here are reported with them.

        The model has the weights that were evaluated: with ``train.ema``, the averages.
        """

    def on_end(self, ctx: CallbackContext) -> None:
        """Act once the training has ended, and not where it is interrupted; again, if the process dies in it.

        ``ctx.metrics`` are those of the report that is kept, and the test metrics. The model has its weights; in a
        trial of a sweep, which keeps none, the last ones.
        """


class CallbackContext:
    """What a callback is told, and how it logs: by the names of MLflow's client, for the step that it is told of."""

    def __init__(
        self,
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        model: nn.Module | None,
        log: Callable[[Mapping[str, Any]], None],
        send: Callable[[Artifact], None] | None,
        logged: set[str],
    ) -> None:
        """``send`` is None where artifacts are not kept; ``logged`` holds the names that the step has already."""
        self.step = step
        """Optimizer steps taken."""
        self.epoch = epoch
        self.metrics = dict(metrics)
        self._model = model
        self._modes: list[tuple[nn.Module, bool]] = []
        self._log = log
        self._send = send
        self._logged = logged

    @property
    def model(self) -> nn.Module:
        """Return the plain model, in evaluation mode until the callback returns.

        Raises:
            RecipeError: the workers hold a part of it each.
        """
        if self._model is None:
            raise RecipeError(
                "ctx.model is not available with train.strategy fsdp: each worker holds a part of it, and callbacks "
                "run in the first one alone",
                hint="Compute it in metrics(): sums of any shape are merged over the workers for finalize().",
            )
        if not self._modes:
            self._modes = [(module, module.training) for module in self._model.modules()]
            self._model.eval()
        return self._model

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log scalars: numbers, or tensors of one element.

        Raises:
            RecipeError: one is something else, or in an evaluation has the name of one of its metrics.
        """
        self._log(metrics)

    def log_image(self, image: Any, key: str) -> None:
        """Log an image under a key: MLflow shows the images of a key over the steps.

        ``image`` is an array of shape ``(height, width)`` or ``(height, width, channels)``, integers from 0 to 255 or
        floats from 0 to 1, a PIL image or an ``mlflow.Image``.

        Raises:
            RecipeError: it is no image, too large, or the step has one of this key.
            ValueError: integers are not from 0 to 255.
        """
        if not re.fullmatch(r"[\w\-./ ]+", key, re.ASCII):
            raise RecipeError(f"log_image() got the key {key!r}; letters, digits, spaces, and _ - . / are allowed")
        self._once("image", key)
        if self._send is not None:
            self._keep("image", key, _png(image))

    def log_table(self, data: Any, artifact_file: str) -> None:
        """Append rows to a table, a ``.json`` or ``.parquet`` file. They get a column ``step``.

        ``data`` is a pandas ``DataFrame`` or a dict of columns.

        Raises:
            RecipeError: the file's name or the columns do not fit, it is too large, or the step has rows in it.
        """
        _check_file("log_table", artifact_file)
        if not artifact_file.endswith((".json", ".parquet")):
            raise RecipeError(f"log_table() got the file {artifact_file!r}; a table is a .json or a .parquet file")
        self._once("table", artifact_file)
        if self._send is not None:
            self._keep("table", artifact_file, _table(data, step=self.step))

    def log_figure(self, figure: Any, artifact_file: str) -> None:
        """Log a figure of matplotlib or plotly as a file, of which the last one counts.

        Raises:
            RecipeError: the file's name does not fit, the figure is of another kind, or too large.
        """
        _check_file("log_figure", artifact_file)
        if self._send is not None:
            self._keep("figure", artifact_file, _figure(figure, artifact_file))

    def close(self) -> None:
        """Give the model its modes back."""
        for module, training in self._modes:
            module.training = training
        self._modes = []

    def _once(self, kind: str, name: str) -> None:
        if f"{kind} {name}" in self._logged:
            raise RecipeError(
                f"log_{kind}() got {name!r} twice at step {self.step}, which has one of a name",
                hint="Add a number to the name, or put them into one." if kind == "image" else "Put the rows together.",
            )
        self._logged.add(f"{kind} {name}")

    def _keep(self, kind: Literal["image", "table", "figure"], name: str, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise RecipeError(
                f"log_{kind}() got {name!r} of {len(data) / (1 << 20):.1f} MiB; at most {MAX_BYTES >> 20} MiB are kept",
                hint="Scale it down, or log a sample of its rows.",
            )
        assert self._send is not None
        self._send(Artifact(kind, name, self.step, data, int(time.time() * 1000)))


def _check_file(method: str, path: str) -> None:
    normal = posixpath.normpath(path)
    if normal != path or path.startswith(("/", "..")) or path == ".":
        raise RecipeError(f"{method}() got the file {path!r}; a relative path such as 'plots/confusion.png' is allowed")
    folder = path.partition("/")[0]
    if folder in OWN_FOLDERS:
        raise RecipeError(f"{method}() got the file {path!r}; the folder {folder!r} of a run is raymlops' own")


def _png(image: Any) -> bytes:
    import numpy as np

    if hasattr(image, "to_pil"):  # mlflow.Image
        image = image.to_pil()
    elif isinstance(image, np.ndarray):
        from mlflow.tracking.multimedia import convert_to_pil_image

        image = convert_to_pil_image(image)
    elif not hasattr(image, "save"):
        raise RecipeError(f"log_image() got a {type(image).__name__}; an array, a PIL image or an mlflow.Image will do")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _table(data: Any, *, step: int) -> bytes:
    import pandas as pd

    try:
        frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data)
    except ValueError as error:
        raise RecipeError(f"log_table() got data that is no table: {error}") from error
    if STEP in frame.columns:
        raise RecipeError(f"log_table() got a column {STEP!r}, which it adds itself")
    return str(frame.assign(**{STEP: step}).to_json(orient="split", index=False, date_format="iso")).encode()


def _figure(figure: Any, path: str) -> bytes:
    file, extension = io.BytesIO(), posixpath.splitext(path)[1]
    # Neither library is imported here: who has a figure has imported its library.
    matplotlib, plotly = sys.modules.get("matplotlib.figure"), sys.modules.get("plotly.graph_objects")
    if matplotlib is not None and isinstance(figure, matplotlib.Figure):
        figure.savefig(file, format=extension[1:] or "png")
    elif plotly is not None and isinstance(figure, plotly.Figure):
        if extension == ".html":
            return str(figure.to_html(include_plotlyjs="cdn")).encode()
        file.write(figure.to_image(format=extension[1:] or "png"))
    else:
        raise RecipeError(f"log_figure() got a {type(figure).__name__}; a figure of matplotlib or plotly is allowed")
    return file.getvalue()
