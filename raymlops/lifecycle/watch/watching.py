"""How a model is watched, in words: what its ``monitor`` section asks for, and how that differs from another. Pure.

Owns the sentences of ``status`` and ``audit``. References to credentials are named, never resolved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.config.schema import MonitorSection
from raymlops.config.stored import read_stored
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.state.store import Deployment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.base import SecretRef


def watching(monitor: MonitorSection) -> str:
    """Return by what windows a model is judged, within which bounds, and who is told."""
    parts = [f"windows of {monitor.window_h} h"]
    if monitor.between_columns:
        parts.append("correlations")
    if monitor.slices:
        parts.append(f"slices {_shown(monitor.slices)}")
    if bounds := {name: value for name, value in monitor.quality if value is not None}:
        parts.append(f"bounds {_shown(bounds)}")
    parts.append(f"told by {_reference(monitor.notify)}" if monitor.notify is not None else "nobody is told")
    return "; ".join(parts)


def watching_changed(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Return what differs in how the champion is watched, of deployments as an audit event has them; empty if nothing.

    Raises:
        StorageError: another release stored what this one cannot read.
    """
    old, new = (_champion(items) for items in (before, after))
    if old is None or new is None:
        return ""
    were, are = _fields(old), _fields(new)
    return ", ".join(f"monitor.{name}: {were[name]} -> {are[name]}" for name in were if were[name] != are[name])


def _champion(items: Sequence[Mapping[str, Any]]) -> MonitorSection | None:
    found = champion_of([Deployment.from_dict(item) for item in items])
    return None if found is None else read_stored(MonitorSection, found.monitor)


def _fields(monitor: MonitorSection) -> dict[str, str]:
    """Return each value as a text, those of ``quality`` one by one."""
    flat = {name: value for name, value in monitor if name != "quality"}
    flat |= {f"quality.{name}": value for name, value in monitor.quality}
    return {name: _reference(value) if name == "notify" else _shown(value) for name, value in flat.items()}


def _reference(notify: SecretRef | None) -> str:
    if notify is None:
        return "none"
    return f"env {notify.env}" if notify.env is not None else f"file {notify.file}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "/".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
