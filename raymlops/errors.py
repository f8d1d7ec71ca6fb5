"""Exceptions that raymlops raises, and the exit code of each.

::

    RaymlopsError                         1  the run failed
    ├── UsageError                        2  the request cannot be carried out as written
    │   ├── ConfigError                      a configuration file or override, with every problem found
    │   ├── InvalidNameError                 a name with characters that a registry or a URL refuses
    │   ├── RecipeError                      a recipe that breaks its contract
    │   │   └── RecipeImportError            an import string that does not lead to a recipe
    │   ├── InsufficientResourcesError       more than the cluster can ever hold
    │   └── PortTakenError                   a port that another process listens on
    ├── NotFoundError                     3  a run, sweep, model or version that does not exist
    ├── RefusedError                      4  a rule refused it; nothing was changed
    │   ├── LeaseLostError                   another process has taken over; this one writes nothing more
    │   ├── GateRefusedError                 the gate's decision, with its numbers
    │   ├── UnrecordedError                  a version that was registered from another state
    │   ├── DataRefusedError                 what the checks of a recipe's data found, with its numbers
    │   ├── BundleError                      a bundle that is damaged, tampered with or too new
    │   ├── BusyError                        another process changes what is live just now
    │   ├── ElsewhereError                   a state database that is live on another cluster
    │   ├── TakenError                       a model on Serve that belongs to another state database
    │   └── OutdatedStateError               a state database that is older than what Serve runs
    ├── UnreachableError                  5  a service that raymlops needs does not answer
    │   ├── TrackingError                    MLflow is down, or its database has an old schema
    │   └── ClusterError                     Ray or Serve is down, or rejects us
    │       ├── ApiServerAwayError           a Kubernetes API server that does not answer for now
    │       ├── EndpointUnreachableError     an endpoint that accepts no connection
    │       ├── EndpointTimeoutError         an endpoint that did not answer in time
    │       ├── EndpointDisconnectedError    an endpoint that closed the connection without an answer
    │       └── OverloadedError              an endpoint that asks to come back later
    ├── StorageError                      5  a folder, URI or database that cannot be read or written, or is full
    │   └── DamagedError                     a checkpoint whose files are not what was written
    ├── InvalidRowsError                  2  rows that do not fit a signature, each with row and field
    ├── TrainingError                     1  a training that stopped without a result
    │   ├── NonFiniteError                   NaN or infinity where a number is needed
    │   ├── PlacesLostError                  a trial whose workers' places were lost with a node
    │   ├── TrialHungError                   a trial that makes no progress
    │   └── ProcessSpoiledError              a trial's process that cannot start another trial
    ├── SweepError                        1  a sweep without a usable trial
    └── DeployError                       1  a version that did not come up; what was live still is

Each exception survives pickling with its attributes: Ray hands worker exceptions to the driver by pickle, and one that
does not survive arrives as ``UnserializableException``, which no ``except`` expects.

Four exceptions outside of this tree never leave the package: ``Refusal`` (an HTTP response of an endpoint),
``UnknownKeyError`` (becomes a ``Problem``), ``PostLostError`` (a lost mailbox is replaced) and ``StopAskedError`` (ends
an evaluation; a ``BaseException``, so that no recipe catches it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


def describe(error: BaseException) -> str:
    """Return the error's class and the first line of its message."""
    text = error.message if isinstance(error, RaymlopsError) else str(error)
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


MAX_PROBLEMS = 20
"""Problems after which the check of rows stops; with this many there may be more."""


class RaymlopsError(Exception):
    """Base of all raymlops exceptions.

    ``message`` says what happened, what was received and what is allowed; ``hint`` says what to do next.
    """

    exit_code: ClassVar[int] = 1
    message: str
    hint: str | None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _rebuild(cls: type[RaymlopsError], message: str, attributes: dict[str, Any]) -> RaymlopsError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(attributes)
    return error


class UsageError(RaymlopsError):
    """The request cannot be carried out as written."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a configuration: where, and what."""

    path: str
    message: str
    place: str = ""

    def __str__(self) -> str:
        head = f"{self.place}: " if self.place else ""
        return f"{head}{self.path}: {self.message}" if self.path else f"{head}{self.message}"


class ConfigError(UsageError):
    """An invalid configuration; ``problems`` lists everything found in one pass."""

    problems: tuple[Problem, ...]

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        super().__init__("\n".join(map(str, problems)), hint=hint)
        self.problems = tuple(problems)


class InvalidNameError(UsageError):
    """A name with characters that a registry or a URL refuses."""


class RecipeError(UsageError):
    """A recipe that breaks its contract: it raises, returns NaN, or returns means instead of sums."""


class RecipeImportError(RecipeError):
    """An import string that does not lead to a recipe."""


class InsufficientResourcesError(UsageError):
    """More CPUs, GPUs or workers than the cluster can ever hold."""


class PortTakenError(UsageError):
    """A port that another process listens on."""


class NotFoundError(RaymlopsError):
    """A run, sweep, model or version that does not exist."""

    exit_code = 3


class RefusedError(RaymlopsError):
    """A rule refused the request; nothing was changed."""

    exit_code = 4


class LeaseLostError(RefusedError):
    """Another process has taken over what this one was doing; this one writes nothing more."""


class GateRefusedError(RefusedError):
    """The gate refused a version; the message carries its numbers."""


class UnrecordedError(RefusedError):
    """A version that was registered from another state, so that this one does not vouch for it."""


class DataRefusedError(RefusedError):
    """The checks of a recipe's data refused it before a run; the message carries what they found."""


class BundleError(RefusedError):
    """A bundle that is damaged, tampered with, or written by a newer raymlops."""


class BusyError(RefusedError):
    """Another process changes what is live just now."""


class TakenError(RefusedError):
    """A model on Serve that belongs to another state database, or whose name or route a foreign application has."""


class OutdatedStateError(RefusedError):
    """A state database that is older than what Serve runs: a restored backup, or a copy."""


class ElsewhereError(RefusedError):
    """A state database that is live on another cluster."""


class UnreachableError(RaymlopsError):
    """A service that raymlops needs does not answer."""

    exit_code = 5


class TrackingError(UnreachableError):
    """MLflow is down, rejects us, or its database has an old schema."""


class ClusterError(UnreachableError):
    """Ray or Ray Serve is down, or rejects us."""


class ApiServerAwayError(ClusterError):
    """Kubernetes' API server, which does not answer, or is too busy to: the same request may succeed later."""


class EndpointUnreachableError(ClusterError):
    """An endpoint that accepts no connection: nothing listens there, or its name does not resolve."""


class EndpointTimeoutError(ClusterError):
    """An endpoint, or the model behind it, that did not answer within the deadline."""


class EndpointDisconnectedError(ClusterError):
    """An endpoint that closed the connection without an answer, or lost the replica that was to give it."""


class OverloadedError(ClusterError):
    """An endpoint that rejects requests for now: it is busy, or the key's rate limit is reached.

    ``retry_after_s`` is the delay that it asked for, None without one.
    """

    retry_after_s: float | None

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class StorageError(RaymlopsError):
    """A folder, URI or database that cannot be read or written, or is full.

    No ``UsageError``: a disk that fills up at hour 30 is not the fault of the command line.
    """

    exit_code = 5


class DamagedError(StorageError):
    """A checkpoint whose files are not what was written; ``problem`` says which, and an earlier one may be whole."""

    def __init__(self, message: str, *, hint: str | None = None, uri: str = "", problem: str = "") -> None:
        super().__init__(message, hint=hint)
        self.uri = uri
        self.problem = problem


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One value that does not fit its column. ``row`` counts from 0; None when it concerns the whole request."""

    row: int | None
    field: str | None
    message: str


class InvalidRowsError(RaymlopsError):
    """Rows that do not fit a signature; ``problems`` names row and field of each."""

    exit_code = 2
    problems: tuple[RowProblem, ...]

    def __init__(self, problems: Sequence[RowProblem]) -> None:
        first = problems[0]
        where = "" if first.row is None else f"row {first.row}"
        if first.field is not None:
            where += f"{', ' if where else ''}field {first.field!r}"
        least = "at least " if len(problems) >= MAX_PROBLEMS else ""
        more = f" (and {least}{len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{where}: {first.message}{more}" if where else f"{first.message}{more}")
        self.problems = tuple(problems)


class TrainingError(RaymlopsError):
    """A training that stopped without a result."""


class NonFiniteError(TrainingError):
    """NaN or infinity where a number is needed."""


class PlacesLostError(TrainingError):
    """A trial whose workers' places were lost with a node, and are not given again."""


class TrialHungError(TrainingError):
    """A trial that makes no progress. Its process cannot be used any more."""


class ProcessSpoiledError(TrainingError):
    """A trial's process that cannot start another trial, because the previous one does not end."""


class SweepError(RaymlopsError):
    """A sweep that ended without a usable trial; the message says how each one failed."""


class DeployError(RaymlopsError):
    """A version that did not come up. What was live still is."""


def error_class(name: str) -> type[RaymlopsError] | None:
    """Return the exception class of a name, as errors written as JSON name it; None for an unknown one."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, RaymlopsError) else None
