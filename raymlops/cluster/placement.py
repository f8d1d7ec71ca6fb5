"""Whether requested resources fit on nodes, who holds what is missing, and what to do about it.

Pure: nodes and holders are what the caller read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import floor, inf
from typing import TYPE_CHECKING, Literal

from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    Resources = Mapping[str, float]


SERVED = "Serve application "
"""Begins the name of a holder that answers requests."""

_EPSILON = 1e-6
"""Ray counts resources in steps of 1e-4; ten workers of 0.1 CPU must fit one CPU."""


@dataclass(frozen=True)
class WorkerRequest(Record):
    """Equal workers that must run at the same time."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0.0
    purpose: str = "this run"
    memory_bytes: float = 0.0
    custom: dict[str, float] = field(default_factory=dict)
    """Ray's custom resources."""

    @property
    def each(self) -> dict[str, float]:
        """Return what one worker reserves."""
        wanted = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, "memory": self.memory_bytes, **self.custom}
        return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True)
class Holder(Record):
    """Who holds resources now."""

    name: str
    resources: dict[str, float]

    def __str__(self) -> str:
        return f"{self.name}: {show(self.resources) or 'amount unknown'}"


@dataclass(frozen=True)
class Contender:
    """Another job that has or wants placement groups of this cluster."""

    held: Mapping[str, Resources]
    """What trials of its sweep reserve, by node."""
    pending: tuple[tuple[Resources, ...], ...] = ()
    """What it waits for: the bundles of each placement group, and each task and actor."""


@dataclass(frozen=True)
class Verdict(Record):
    """``fits`` now, ``grows`` to fit when requested, is ``busy`` and may fit later, or can ``never`` fit."""

    kind: Literal["fits", "grows", "busy", "never"]
    message: str


def decide(
    requested: WorkerRequest,
    *,
    total: Sequence[Resources],
    available: Sequence[Resources],
    growth: Sequence[Resources] | None = (),
    holders: Sequence[Holder] = (),
) -> Verdict:
    """Decide whether workers fit a cluster of these nodes.

    ``total`` and ``available`` are the nodes' resources, all and free; ``growth`` the nodes that an autoscaler
    may still add (None: it may add some, but its limit cannot be read). A worker never spans nodes, and all
    workers are equal, so that counting how many fit each node is exact.
    """
    want = f"{requested.purpose} requests {_plural(requested.workers, 'worker')} of {show(requested.each)}"
    if (now := room(requested, available)) >= requested.workers:
        return Verdict("fits", f"{want}; there is room for {_count(now)}")
    if growth is None:
        return Verdict("grows", f"{want}; there is room for {now}, and the autoscaler's limit is not known here")
    if now + room(requested, growth) >= requested.workers:
        return Verdict(
            "grows", f"{want}; there is room for {now}, and the autoscaler may add {_plural(len(growth), 'node')}"
        )
    most = room(requested, [*total, *growth])
    held = "\n".join(f"  held by {holder}" for holder in holders) or "  nothing else is held"
    if most >= requested.workers:
        return Verdict("busy", f"{want}; there is room for {now} now, and for {most} when nothing else runs\n{held}")
    size = f"{show(add([*total, *growth])) or 'no CPU'} on {_plural(len(total) + len(growth), 'node')}"
    if growth:
        size += f", {len(growth)} of which the autoscaler would add"
    return Verdict("never", f"{want}; this cluster holds at most {most} of them: it has {size}\n{held}")


def kept_out(requests: Sequence[Resources], *, rest: Sequence[Resources], held: Sequence[Resources]) -> list[Resources]:
    """Return the requests that fit no node's ``rest``, but would fit one if what is ``held`` of each were given up."""
    whole = [add(parts) for parts in zip(rest, held, strict=True)]
    return [
        each
        for each in requests
        if not any(_fits(each, node) for node in rest) and any(_fits(each, node) for node in whole)
    ]


def _fits(request: Resources, node: Resources) -> bool:
    return all(node.get(name, 0.0) + _EPSILON >= amount for name, amount in request.items())


def without(node: Resources, held: Resources) -> dict[str, float]:
    """Return what is left of a node's resources."""
    return {name: amount - held.get(name, 0.0) for name, amount in node.items()}


def room(requested: WorkerRequest, nodes: Sequence[Resources]) -> int | float:
    """Return how many workers the nodes can hold; infinite when a worker reserves nothing.

    A share of a GPU is one of a single card. Ray tells how much is free on a node, not on which card: a remainder
    counts as one card's.
    """
    if not requested.each:
        return inf
    return sum(
        min(_times(node.get(name, 0.0), amount, cards=name == "GPU") for name, amount in requested.each.items())
        for node in nodes
    )


def _times(free: float, amount: float, *, cards: bool) -> int:
    """Return how often an amount fits."""
    if not cards or amount >= 1:
        return floor((free + _EPSILON) / amount)
    whole = floor(free + _EPSILON)
    return whole * floor((1 + _EPSILON) / amount) + floor((max(free - whole, 0.0) + _EPSILON) / amount)


def some_end(holders: Sequence[Holder]) -> bool:
    """Return whether a holder ends by itself, as jobs do and what is served does not."""
    return any(not holder.name.startswith(SERVED) for holder in holders)


def hint(verdict: Verdict, holders: Sequence[Holder]) -> str:
    """Return what to do about workers that do not fit."""
    if verdict.kind == "never":
        return "lower the workers or the share of each (train.num_workers, train.cpus_per_worker), or add nodes"
    return ". ".join(filter(None, ("wait for the others, end them, or raise cluster.wait_s", remedy(holders))))


def remedy(holders: Sequence[Holder]) -> str:
    """Return how to end what is served and may not be needed; empty where nothing is served."""
    if not any(holder.name.startswith(SERVED) for holder in holders):
        return ""
    return (
        "`raymlops status` shows which versions are only kept warm, "
        "`raymlops deploy NAME --remove --version N` ends one"
    )


def add(parts: Sequence[Resources]) -> dict[str, float]:
    """Return the sum of resources, by name."""
    total: Counter[str] = Counter()
    for part in parts:
        for name, amount in part.items():
            total[name] += amount  # type: ignore[assignment]
    return dict(total)


def show(resources: Resources, *, also: Collection[str] = ()) -> str:
    """Return CPUs and GPUs for a person: ``4 CPU, 1 GPU``; ``also`` names more, such as memory."""
    units = {"CPU": (1.0, "CPU"), "GPU": (1.0, "GPU")}
    units |= {name: (1e9, "GB of memory") if name == "memory" else (1.0, name) for name in also if name not in units}
    shown = ((round(resources.get(name, 0.0) / unit, 4), label) for name, (unit, label) in units.items())
    return ", ".join(f"{amount:g} {label}" for amount, label in shown if amount)


def _count(room_now: float) -> str:
    return "any number" if room_now == inf else str(room_now)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
