"""The recipe: a user's plug-in of data, model, loss, metrics and signature.

Owns the contract and its defaults. Knows nothing of Ray, MLflow or files; torch is imported only by the defaults
that need it, so that a configuration can be checked without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from raymlops.answer_loss import declared
from raymlops.errors import RecipeError
from raymlops.loss_value import loss_value
from raymlops.pytree import batch_rows as batch_rows  # noqa: PLC0414 - recipes import it from here
from raymlops.pytree import map_tensors, to_numpy
from raymlops.recipe_call import call_recipe as call_recipe  # noqa: PLC0414 - as above
from raymlops.recipe_call import described as described  # noqa: PLC0414
from raymlops.signature import Signature
from raymlops.splits import Splits as Splits  # noqa: PLC0414, TC001
from raymlops.splits import Window as Window  # noqa: PLC0414

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt
    import torch
    from torch import nn

    from raymlops.arrays import Column, Columns
    from raymlops.callback import Callback
    from raymlops.config.train import TrainSection
    from raymlops.loss_value import LossReturned

T = TypeVar("T")
ASKED_AT, LABELLED_AT = "raymlops:asked_at", "raymlops:labelled_at"
"""Columns of labelled rows of the prediction log: when each was asked, and when its first label came in."""
Batch = Any
"""What ``loss`` and ``metrics`` get: by default a dict of tensors, rows first."""


class RecipeConfig(BaseModel):
    """Base of a recipe's own configuration: strict types, unknown keys rejected, immutable, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class Progress(NamedTuple):
    """How far a training is: what an annealed weight or a curriculum depends on."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 1
    """The epoch in progress, counted from 1."""
    steps: int = 1
    """Length of the training in optimizer steps; 1 where none runs, so that ``step / steps`` is 0."""


class RecipeBase:
    """A recipe with a default for everything but ``datasets``, ``model``, ``loss`` and ``signature``.

    ``self.config`` is an instance of ``Config``; ``self.state`` is what ``fit`` returned (``{}`` before); ``self.seed``
    is the run's seed. A recipe is instantiated in every process, so ``__init__`` must be cheap and take nothing else.
    """

    Config: ClassVar[type[RecipeConfig]] = RecipeConfig
    label: ClassVar[str | None] = None
    """Name of the label's column in a table; it becomes ``batch["label"]`` and never reaches a replica."""
    label_type: ClassVar[Column | None] = None
    """What a label may be that a client sends as feedback, such as ``Column("minutes", "float")``; others are refused.

    Without it, a label is accepted if answers can be compared with it; with a ``loss_of`` of the recipe, any is.
    """
    row_order: ClassVar[Literal["ordered", "independent"] | None] = None
    """How rows of a table are related: ``"ordered"`` as they arose, one after the other, or ``"independent"`` draws.

    It decides how much one window of rows may differ from the next without any drift. Not needed with ``row_times``.
    """
    train_loop: Callable[[Any], None] | None = None
    """Replaces the default loop: ``train_loop(self, ctx)``, see ``TrainContext``. Then ``loss`` may be left out."""

    package_data: ClassVar[tuple[str, ...]] = ()
    """Files that the code reads, such as ``("tokenizer.json", "assets/*.model")``, relative to its module's folder.

    Bundles contain them beside the code, which finds them by ``Path(__file__).parent``. Small text files of a package
    (``.json``, ``.csv``, ... of at most 1 MiB) are always contained.
    """

    config: Any
    batch_items: int | None = None
    """Rows of the batch that is evaluated, which a batch of a recipe's own ``collate`` may not show."""
    progress: Progress
    """How far the training is; before and after it, step 0 of epoch 1: metrics must not depend on it."""

    def __init__(
        self, config: RecipeConfig | None = None, *, state: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        self.config = self.Config() if config is None else config
        self.state: dict[str, Any] = dict(state or {})
        self.seed = seed
        self.progress = Progress()

    def datasets(self) -> Splits:
        """Return the three splits: see ``Splits`` for what each may be.

        Called at most once a process; must return the same rows each time. Cache what is slow at module level.

        A recipe that is to be retrained on newer rows takes a window: ``def datasets(self, window: Window | None =
        None)``. With one (``train.window``) it returns the rows that arose within it, and of its training rows at most
        those whose label was known by its end; without one, what it returns otherwise.
        """
        raise NotImplementedError

    def fit(self, train: Any) -> dict[str, Any]:  # noqa: ARG002 - a default that fits nothing
        """Return what is fitted to the training split alone, as JSON data: vocabularies, means, scales.

        ``train`` is the split's columns (name to array) where it is a table or small Parquet, a
        ``pyarrow.dataset.Dataset`` over its files where it is streamed, else the dataset itself.
        """
        return {}

    def row_times(self, columns: Columns) -> Any:  # noqa: ARG002 - a default that knows none
        """Return when each row of a table arose, as ``datetime64`` or seconds since 1970, or None: rows have no time.

        ``columns`` is as for ``target``: the time need not be an input, ``columns["booked_at"]``. Drift is told from
        what is normal by how much consecutive rows of the training split differ; without times, see ``row_order``.
        """
        return None

    def label_times(self, columns: Columns) -> Any:  # noqa: ARG002 - a default that knows none
        """Return when the label of each row of a table was known, as ``row_times``; None: as soon as the row arose.

        A retrained model is compared with the champion on rows whose labels were known after all that it was trained
        on: ``gate.later_rows``.
        """
        return None

    def model(self) -> nn.Module:
        """Return the untrained model, on the CPU: no DDP, no ``.to(device)``."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> LossReturned:
        """Return the loss of a batch, with a gradient.

        It is one of

        - the mean over the rows, a scalar tensor;
        - ``(sum, weight)``: a sum and what it is divided by, such as the sum over tokens and their number, or over rows
          with class weights and the sum of these. The loss of a step is the sum over all micro-batches and workers,
          divided by the sum of weights: the same for any ``train.accumulate`` and number of workers;
        - a dict of named parts in place of the mean or the sum: they are added up, and each is logged as
          ``train/NAME``, so that none is called ``loss``, ``lr`` or ``count``.

        ``self.progress`` says how far the training is. What draws at random in a training step, dropout or
        augmentation, is seeded by (run's seed, step, rank): torch's generators of the CPU and of the device, ``random``
        and ``numpy.random``. So a repeated step draws the same, on the same number of workers; what ``metrics`` draws
        in evaluations is seeded likewise, on another number of workers for other rows. What items of a dataset draw is
        seeded by (run's seed, epoch, row). Generators of your own are not seeded.
        """
        raise NotImplementedError

    def metrics(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return named SUMS over the rows of the batch, of any fixed shape, and their ``count``.

        Sums of two batches must equal the sums of both together: that is what makes them exact to merge. Default: the
        loss and its parts; the count is that of the rows, or the sum of the loss's weights.
        """
        import torch

        found = loss_value(self.loss(model, batch), where=f"{type(self).__name__}.loss()")
        rows = batch_rows(batch) if self.batch_items is None else self.batch_items
        count = torch.tensor(float(rows)) if found.weight is None else found.weight
        times = count if found.weight is None else 1.0
        summed = {name: value.detach() * times for name, value in {**found.parts, "loss": found.value}.items()}
        return {**summed, "count": count}

    def finalize(self, totals: Mapping[str, Any]) -> dict[str, float]:
        """Turn merged sums (float64 arrays) into values. Default: each scalar sum divided by ``count``."""
        if "count" not in totals:
            raise RecipeError(
                f"{type(self).__name__}.metrics() returned {', '.join(sorted(totals))}, and no count to divide them by",
                hint='Return the number of rows as "count", or define finalize().',
            )
        count = float(totals["count"])
        if not count:
            raise RecipeError(
                f"{type(self).__name__}.metrics() counts nothing in the whole split: every weight of loss() is 0 there",
                hint="Look for a split in which no row or token counts, or define metrics() and finalize().",
            )
        return {name: float(total) / count for name, total in totals.items() if name != "count" and np.ndim(total) == 0}

    def optimizer(self, model: nn.Module, train: TrainSection) -> torch.optim.Optimizer | None:  # noqa: ARG002
        """Return an optimizer over parameters of the model, any of torch without a closure. Default: ``train``'s.

        Groups may have a learning rate of their own, say ``{"params": ..., "lr": train.lr / 10}``: the schedule
        multiplies each. Build it from ``train``, the configuration's section, so that a sweep can vary it.
        """
        return None

    def scheduler(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002
        train: TrainSection,  # noqa: ARG002
        *,
        steps: int,  # noqa: ARG002
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Return a scheduler of torch, stepped once an optimizer step. Default: ``train.schedule``.

        ``steps`` is the length of the training. ``ReduceLROnPlateau`` is stepped once a validation, by
        ``train.metric``. Its state is part of checkpoints.
        """
        return None

    def sampler(self, train: Any, epoch: int) -> Iterable[int] | None:  # noqa: ARG002 - a default that draws all rows
        """Return the rows of an epoch in their order, by number, each as often as it is to be trained.

        Default None: every row once, shuffled. ``train`` is the split's columns (name to array) where it is a table,
        else the dataset; streamed and iterable splits have an order of their own. Every ``train.batch_size`` rows in
        turn are a step: rows of similar length side by side make batches of little padding. What draws from torch's
        CPU generator, ``random`` or ``numpy.random`` is seeded by seed and epoch, so that any sampler of torch will do,
        such as ``WeightedRandomSampler``. Every epoch must have as many rows.
        """
        return None

    def collate(self, items: list[Any]) -> Batch:
        """Turn items of a torch dataset into a batch, rows first. Default: torch's ``default_collate``."""
        from torch.utils.data import default_collate

        return default_collate(items)

    def callbacks(self) -> list[Callback]:
        """Return what is told of steps, evaluations and the end, and may log images, tables and figures. Default: none.

        Called before a run, to check it, and in the first worker of each attempt.
        """
        return []

    def initialize(self, model: nn.Module) -> None:
        """Load first weights into a new model, such as pretrained ones.

        Called once, in a new run's first worker, and never where weights of a checkpoint or a bundle follow: a resume,
        a gate and a replica neither need the file nor the network. It changes values alone: layers are added, resized
        and frozen in ``model()``.
        """

    def signature(self) -> Signature:
        """Return the columns of a request and of an answer."""
        raise NotImplementedError

    def example(self) -> list[dict[str, Any]] | None:
        """Return valid request rows, for docs and warm-up. Default None: the first rows of a table.

        A recipe whose splits are torch datasets must define it: their items are not request rows.
        """
        return None

    def shard_layers(self, model: nn.Module) -> list[nn.Module] | None:  # noqa: ARG002 - a default that names none
        """Return the submodules to gather under ``strategy: fsdp``, and to recompute, one at a time.

        Usually the repeated blocks. Each is run by calling it and shares no parameter with the rest. Under fsdp
        ``loss`` and ``metrics`` call ``model(...)`` itself, not its methods. The model's tensors may have no memory yet
        (torch's meta device). Default None: they are found by size.
        """
        return None

    def flops_per_row(self) -> float | None:
        """Return the floating-point operations of a training row, forward and backward. Default: unknown.

        A multiplication and an addition are two. By convention, recomputation to save memory does not count.
        """
        return None

    def tokens_per_row(self) -> int | None:
        """Return the tokens in a training row, for a model of sequences. Default None: rows have none."""
        return None

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return the test metrics of simple models for comparison, ``{name: {metric: value}}``.

        The metrics have the names that ``finalize`` gives. Default: none.
        """
        return {}

    def encode(self, columns: Columns) -> Batch:
        """Turn input columns into a batch: the same code for training rows and for requests.

        Default: every input column as a float32 tensor under its name, images as ``(rows, channels, height, width)``
        from 0 to 1. Text, bytes, times, and what differs in length, have none; ids beyond 2**24 would be rounded.
        """
        import torch

        return {c.name: torch.as_tensor(c.info.numbers(columns[c.name], name=c.name)) for c in self.signature().inputs}

    def target(self, columns: Columns) -> torch.Tensor:
        """Turn the label's column into the tensor ``batch["label"]``. Default: as it is, float64 as float32.

        ``columns`` holds the signature's inputs and the label. Other columns of a table or of Parquet files, such as
        weights of rows, are read by name: ``columns["weight"]``.
        """
        import torch

        assert self.label is not None
        tensor = torch.as_tensor(np.require(columns[self.label], requirements="W"))  # torch warns of read-only memory
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Return the model's output for a batch, without gradient. Default: ``model(batch)``."""
        return model(batch)

    def decode(self, output: Any) -> dict[str, Any]:
        """Turn a model's output into output columns. Default: its last dimension over the signature's outputs."""
        import torch

        if not isinstance(output, torch.Tensor):
            name = type(self).__name__
            raise RecipeError(
                f"{name}.predict() returned {described(output)}, and the default decode() takes a tensor",
                hint="Return one tensor from predict(), by default what the model returns, or define decode(output), "
                "which returns a dict of output columns, rows first.",
            )
        outputs = self.signature().outputs
        array = to_numpy(output)
        if len(outputs) > 1 and (array.ndim < 2 or array.shape[1] < len(outputs)):
            raise RecipeError(
                f"{type(self).__name__}.predict() returned a tensor of shape {array.shape} for {len(outputs)} outputs",
                hint="The default decode() takes (rows, outputs): correct signature() or model(), or define decode().",
            )
        if len(outputs) == 1:
            return {outputs[0].name: array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array}
        return {column.name: array[:, index] for index, column in enumerate(outputs)}

    def loss_of(self, output: Mapping[str, Any], label: Any) -> float | None:
        """Return the loss of one answer, 0 (right) to 1; None where answer and label cannot be compared.

        ``output`` holds one row's output columns as JSON values, ``label`` what a client sent as feedback. A rollout
        compares versions by the mean of this, so that it must be lower for better answers, and bounded. Of bytes and
        images the prediction log has the digest alone.

        Default: the loss of ``answer_loss`` for a class, probabilities, or a number. Registration chooses between them
        by the signature, the model's answers to validation rows and their labels, and measures the scale of a
        number's errors there. Define it for anything else. It runs in a separate process, not in replicas.
        """
        return declared(self.signature()).of(output, label)


def defines_loss(recipe: type[RecipeBase]) -> bool:
    """Return whether a recipe has a loss of a batch: one with a ``train_loop`` of its own may have none."""
    return recipe.loss is not RecipeBase.loss


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return a batch of the CPU with every tensor on ``device``."""
    if str(device) == "cpu":  # walking through it takes as long as a small model's forward pass
        return batch
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def signature_of(recipe: RecipeBase) -> Signature:
    """Return a recipe's signature, or raise RecipeError: ``signature()`` raises or returns something else."""
    return _returned(recipe, "signature", Signature, expected="raymlops.Signature")


def label_type_of(recipe: RecipeBase) -> Column | None:
    """Return the type of labels that a recipe declares, or raise RecipeError: it is no Column."""
    from raymlops.arrays import Column

    found = recipe.label_type
    if found is not None and not isinstance(found, Column):
        raise RecipeError(f"{type(recipe).__name__}.label_type is {described(found)}; set a raymlops.Column, or None")
    return found


def times_of(recipe: RecipeBase, columns: Columns) -> npt.NDArray[Any] | None:
    """Return the times of rows of a table, or raise RecipeError: ``row_times()`` raises, or gives no time a row.

    Rows of the prediction log have times of their own.
    """
    return columns[ASKED_AT] if ASKED_AT in columns else _times(recipe, "row_times", columns)


def known_times_of(recipe: RecipeBase, columns: Columns) -> npt.NDArray[Any] | None:
    """Return when the labels of rows of a table were known: by ``label_times()``, or else with the rows."""
    if LABELLED_AT in columns:
        return columns[LABELLED_AT]
    found = _times(recipe, "label_times", columns)
    return times_of(recipe, columns) if found is None else found


def model_of(recipe: RecipeBase) -> nn.Module:
    """Return a recipe's untrained model, or raise RecipeError: ``model()`` raises or returns something else."""
    from torch import nn

    return _returned(recipe, "model", nn.Module, expected="torch.nn.Module")


def _times(recipe: RecipeBase, method: str, columns: Columns) -> npt.NDArray[Any] | None:
    where = f"{type(recipe).__name__}.{method}()"
    found = call_recipe(where, lambda: getattr(recipe, method)(columns))
    if found is None:
        return None
    times, rows = np.asarray(found), len(next(iter(columns.values())))
    if times.shape != (rows,) or times.dtype.kind not in "Miuf":
        raise RecipeError(
            f"{where} returned an array of {times.dtype} and of shape {times.shape} for {rows} rows",
            hint="Return one time a row: datetime64, or seconds since 1970.",
        )
    return times


def _returned(recipe: RecipeBase, method: str, kind: type[T], *, expected: str) -> T:
    where = f"{type(recipe).__name__}.{method}()"
    found = call_recipe(where, getattr(recipe, method))
    if not isinstance(found, kind):
        raise RecipeError(f"{where} returned {described(found)}; return a {expected}")
    return found
