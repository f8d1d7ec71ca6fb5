"""The slices of a deployment: those that its bundle was registered with, since no others are counted and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.bundle.profiles import references_of
from raymlops.errors import BundleError, NotFoundError, StorageError

if TYPE_CHECKING:
    from raymlops.config.schema import MonitorSection
    from raymlops.profiles.slices import Value
    from raymlops.records import BundleRef


def as_registered(monitor: MonitorSection, bundle: BundleRef) -> tuple[MonitorSection, tuple[str, ...]]:
    """Return how a version is watched: with the slices that are judged, and a warning where others were asked for.

    A bundle that cannot be read, or has no profiles, changes nothing.
    """
    try:
        found = references_of(bundle.uri, bundle.digest).values()
    except (BundleError, NotFoundError, StorageError):
        return monitor, ()
    judged = dict.fromkeys(each for reference in found for each in reference.slices)
    known = judged | dict.fromkeys(each for reference in found for each in reference.few)
    asked = [(column, value) for column, values in monitor.slices.items() for value in values]
    slices: dict[str, tuple[Value, ...]] = {}
    for each in judged:
        slices[each.column] = (*slices.get(each.column, ()), each.value)
    warnings: tuple[str, ...] = ()
    if {*asked} != {*known}:
        names = ", ".join(each.name for each in known) or "none"
        told = ", ".join(f"{column}={value}" for column, value in asked) or "none"
        why = f"monitor.slices asks for {told}, and the version was registered with {names}, which are judged"
        warnings = (f"{why}: register its run again",)
    return monitor.model_copy(update={"slices": slices}), warnings
