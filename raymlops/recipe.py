"""The recipe: a user's plug-in of data, model, loss, metrics and signature; and resolving its import string.

Owns the contract and its defaults. Knows nothing of Ray, MLflow or files; torch is imported only by the defaults
that need it, so that a configuration can be checked without it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import sysconfig
from dataclasses import dataclass
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from raymlops.answer_loss import declared
from raymlops.errors import RaymlopsError, RecipeError, RecipeImportError
from raymlops.pytree import batch_rows as batch_rows  # noqa: PLC0414 - recipes import it from here
from raymlops.pytree import map_tensors, to_numpy
from raymlops.signals import from_handler
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from raymlops.arrays import Columns

_OURS = str(Path(__file__).parent / "_")[:-1]
_SHIPPED = str(Path(__file__).parent / "recipes" / "_")[:-1]
_LIBRARIES = tuple(sorted({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}))
T = TypeVar("T")
Batch = Any
"""What ``loss`` and ``metrics`` get: by default a dict of tensors, rows first."""


class RecipeConfig(BaseModel):
    """Base of a recipe's own configuration: strict types, unknown keys rejected, immutable, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts of the data.

    Each may be

    - a table in memory: a mapping of names to arrays of one length, a ``pyarrow.Table``, a pandas ``DataFrame``;
    - Parquet files: a path, a folder, a glob (``"data/2024-*/*.parquet"``), a URI (``s3://``, ``gs://``, ``file://``,
      any that pyarrow knows), or a list of them. Up to 64 MB are read as a table; more is streamed by row groups
      in bounded memory and shuffled within windows of them. Every process must reach the files, and they must not
      change during a run;
    - a ``ray.data.Dataset``: written once as Parquet below ``storage.path``, in its order, then as above. Ray must run;
    - a torch dataset with ``__len__`` and ``__getitem__``, whose items are collated into batches. Random numbers of
      training items are seeded as in ``RecipeBase.loss``. A split whose items draw from a generator of their own
      is identified by its length and the dataset's ``fingerprint()``, if it has one;
    - an iterable torch dataset, or any object whose ``__iter__`` starts a new pass. A pass is an epoch, must end, and
      must yield the same number of items each time. It may shuffle itself by drawing from torch's CPU generator,
      ``random`` or ``numpy.random``, which in its code are a separate stream that depends on seed and epoch
      alone, or in ``set_epoch(epoch)``, which is called before a pass if it exists. A generator that it keeps between
      passes must be reseeded there, or workers and restarts see other rows: only their number and the first few
      are checked. Every worker reads all rows, keeps its share, and in mid-epoch reads up to its place.

    A table, Parquet and Ray Data hold the columns of the signature and the label. The order of an epoch depends on
    seed and epoch alone, so a resumed run draws what it would have drawn, on any number of workers.
    """

    train: Any
    validation: Any
    test: Any


class RecipeBase:
    """A recipe with a default for everything but ``datasets``, ``model``, ``loss`` and ``signature``.

    ``self.config`` is an instance of ``Config``; ``self.state`` is what ``fit`` returned (``{}`` before); ``self.seed``
    is the run's seed. A recipe is instantiated in every process, so ``__init__`` must be cheap and take nothing else.
    """

    Config: ClassVar[type[RecipeConfig]] = RecipeConfig
    label: ClassVar[str | None] = None
    """Name of the label's column in a table; it becomes ``batch["label"]`` and never reaches a replica."""
    train_loop: Callable[[Any], None] | None = None
    """Replaces the default loop: ``train_loop(self, ctx)``; it calls ``ctx.report`` equally often on every rank."""

    package_data: ClassVar[tuple[str, ...]] = ()
    """Files that the code reads, such as ``("tokenizer.json", "assets/*.model")``, relative to its module's folder.

    Bundles contain them beside the code, which finds them by ``Path(__file__).parent``. Small text files of a package
    (``.json``, ``.csv``, ... of at most 1 MiB) are always contained.
    """

    config: Any

    def __init__(
        self, config: RecipeConfig | None = None, *, state: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        self.config = self.Config() if config is None else config
        self.state: dict[str, Any] = dict(state or {})
        self.seed = seed

    def datasets(self) -> Splits:
        """Return the three splits: see ``Splits`` for what each may be.

        Called at most once a process; must return the same rows each time. Cache what is slow at module level.
        """
        raise NotImplementedError

    def fit(self, train: Any) -> dict[str, Any]:  # noqa: ARG002 - a default that fits nothing
        """Return what is fitted to the training split alone, as JSON data: vocabularies, means, scales.

        ``train`` is the split's columns (name to array) where it is a table or small Parquet, a
        ``pyarrow.dataset.Dataset`` over its files where it is streamed, else the dataset itself.
        """
        return {}

    def model(self) -> nn.Module:
        """Return the untrained model, on the CPU: no DDP, no ``.to(device)``."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss over the batch, a scalar with a gradient.

        What draws at random in a training step, dropout or augmentation, is seeded by (run's seed, step, rank): torch's
        generators of the CPU and of the device, ``random`` and ``numpy.random``. So a repeated step draws the same, on
        the same number of workers; what ``metrics`` draws in evaluations is seeded likewise. Generators of your own
        are not seeded, and a custom ``train_loop`` has to call ``ctx.seed_step`` at each step.
        """
        raise NotImplementedError

    def metrics(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Return named SUMS over the rows of the batch, of any fixed shape, and their ``count``.

        Sums of two batches must equal the sums of both together: that is what makes them exact to merge.
        """
        import torch

        count = batch_rows(batch)
        return {"loss": self.loss(model, batch).detach() * count, "count": torch.tensor(float(count))}

    def finalize(self, totals: Mapping[str, Any]) -> dict[str, float]:
        """Turn merged sums (float64 arrays) into values. Default: each scalar sum divided by ``count``."""
        count = float(totals["count"])
        return {name: float(total) / count for name, total in totals.items() if name != "count" and np.ndim(total) == 0}

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
        ``loss`` and ``metrics`` call ``model(...)`` itself, not its methods. Default None: they are found by size.
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

        Default: every input column as one float32 tensor under its name.
        """
        import torch

        return {
            column.name: torch.as_tensor(np.asarray(columns[column.name], dtype=np.float32))
            for column in self.signature().inputs
        }

    def target(self, columns: Columns) -> torch.Tensor:
        """Turn the label's column into the tensor ``batch["label"]``. Default: as it is, float64 as float32.

        ``columns`` holds the signature's inputs and the label; of a table in memory the other columns too.
        """
        import torch

        assert self.label is not None
        tensor = torch.as_tensor(np.asarray(columns[self.label]))
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Return the model's output for a batch, without gradient. Default: ``model(batch)``."""
        return model(batch)

    def decode(self, output: Any) -> dict[str, Any]:
        """Turn a model's output into output columns. Default: its last dimension over the signature's outputs."""
        outputs = self.signature().outputs
        array = to_numpy(output)
        if len(outputs) == 1:
            return {outputs[0].name: array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array}
        return {column.name: array[:, index] for index, column in enumerate(outputs)}

    def loss_of(self, output: Mapping[str, Any], label: Any) -> float | None:
        """Return the loss of one answer, 0 (right) to 1; None where answer and label cannot be compared.

        ``output`` holds one row's output columns as JSON values, ``label`` what a client sent as feedback. A rollout
        compares versions by the mean of this, so that it must be lower for better answers, and bounded.

        Default: the loss of ``answer_loss`` for a class, probabilities, or a number. Registration chooses between them
        by the signature, the model's answers to validation rows and their labels, and measures the scale of a
        number's errors there. Define it for anything else. It runs in a separate process, not in replicas.
        """
        return declared(self.signature()).of(output, label)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return the batch with every tensor on ``device``."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def resolve(reference: str | type) -> type[RecipeBase]:
    """Import a recipe class by ``"package.module:Class"``, or check a given class.

    Raises:
        RecipeImportError: the module or attribute is missing, is not a recipe, or is in ``__main__``,
            which no worker can import.
    """
    found: Any = _import(reference) if isinstance(reference, str) else reference
    text = reference if isinstance(reference, str) else f"{reference.__module__}:{reference.__qualname__}"
    if not (inspect.isclass(found) and issubclass(found, RecipeBase)):
        raise RecipeImportError(
            f"recipe {text!r} is {described(found)}, not a subclass of raymlops.RecipeBase",
            hint="Name the class itself: package.module:Class.",
        )
    if found.__module__ == "__main__":
        raise _main_error(text)
    if "<locals>" in found.__qualname__:
        raise RecipeImportError(
            f"recipe {text!r} is defined inside a function, which no worker can import",
            hint="Move the class to the top level of its module.",
        )
    missing = [
        name for name in ("datasets", "model", "loss", "signature") if getattr(found, name) is getattr(RecipeBase, name)
    ]
    if missing:
        raise RecipeImportError(f"recipe {text!r} does not define {', '.join(missing)}", hint="Every recipe must.")
    return found


def reference_of(recipe: type[RecipeBase]) -> str:
    """Return the import string of a recipe class."""
    return f"{recipe.__module__}:{recipe.__qualname__}"


def call_recipe(where: str, function: Callable[[], Any]) -> Any:
    """Call a recipe's code and convert an exception into a ``RecipeError`` that names the method and the line.

    Also ``sys.exit``, which would end the process as if it had succeeded; a signal handler's passes through.
    """
    try:
        return function()
    except RaymlopsError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and from_handler(error):
            raise
        raise RecipeError(f"{where} {_done(error)}{_place_of(error)}") from error


def signature_of(recipe: RecipeBase) -> Signature:
    """Return a recipe's signature, or raise RecipeError: ``signature()`` raises or returns something else."""
    return _returned(recipe, "signature", Signature, expected="raymlops.Signature")


def model_of(recipe: RecipeBase) -> nn.Module:
    """Return a recipe's untrained model, or raise RecipeError: ``model()`` raises or returns something else."""
    from torch import nn

    return _returned(recipe, "model", nn.Module, expected="torch.nn.Module")


def _returned(recipe: RecipeBase, method: str, kind: type[T], *, expected: str) -> T:
    where = f"{type(recipe).__name__}.{method}()"
    found = call_recipe(where, getattr(recipe, method))
    if not isinstance(found, kind):
        raise RecipeError(f"{where} returned {described(found)}; return a {expected}")
    return found


def described(value: Any) -> str:
    """Describe a value for an error message."""
    if value is None:
        return "None"
    return f"the class {value.__qualname__}" if inspect.isclass(value) else f"a {type(value).__name__}"


def _place_of(error: BaseException) -> str:
    """Return where the recipe raised: its own innermost line, not one of torch or numpy.

    Of a recipe that is installed as a library, its outermost line.
    """
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    places = [(frame.filename, frame.lineno) for frame in frames]
    called = [place for place in places if not place[0].startswith(_OURS) or place[0].startswith(_SHIPPED)]
    own = [place for place in called if not place[0].startswith(("<", *_LIBRARIES))]
    chosen = own[-1:] or called[:1] or places[-1:]
    return "".join(f" at {name}:{line}" for name, line in chosen)


def _done(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    return f"raised {type(error).__name__}: {error}"


def _import(reference: str) -> Any:
    module_name, colon, attribute = reference.partition(":")
    if not (colon and module_name and attribute):
        raise RecipeImportError(f"recipe {reference!r} is not of the form package.module:Class")
    if module_name == "__main__":
        raise _main_error(reference)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # a console script starts without it; Ray passes it to its workers
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise RecipeImportError(f"recipe {reference!r}: importing {module_name} failed: {error}") from error
        raise RecipeImportError(
            f"recipe {reference!r}: there is no module {error.name!r}",
            hint=_module_hint(error.name),
        ) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and from_handler(error):
            raise
        raise RecipeImportError(f"recipe {reference!r}: importing {module_name} {_done(error)}") from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        names = [name for name, value in vars(module).items() if inspect.isclass(value)]
        near = get_close_matches(attribute, names, n=1)
        raise RecipeImportError(
            f"recipe {reference!r}: module {module_name} has no attribute {attribute!r}",
            hint=f"Did you mean {module_name}:{near[0]}?" if near else f"Its classes: {', '.join(names) or 'none'}.",
        ) from error


def _main_error(text: str) -> RecipeImportError:
    return RecipeImportError(
        f"recipe {text!r} is in __main__, which only this process can import",
        hint="In a notebook write its cell with `%%raymlops my_recipe.py` (after `%load_ext raymlops`), which makes it "
        f"a module, and name it my_recipe:{text.rpartition(':')[2]}; else move the class to a module of its own.",
    )


def _module_hint(missing: str) -> str:
    parent, _, leaf = missing.rpartition(".")
    try:
        path = list(importlib.import_module(parent).__path__) if parent else None
    except (ImportError, AttributeError):
        path = None
    names = [info.name for info in pkgutil.iter_modules(path)]
    near = get_close_matches(leaf, names, n=1)
    if near:
        return f"Did you mean {parent + '.' if parent else ''}{near[0]}?"
    return "Modules are searched in the working directory and the installed packages."
