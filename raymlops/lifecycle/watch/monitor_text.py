"""How a model is watched, in words: what its ``monitor`` section asks for, and how that differs from another. Pure.

Owns the sentences of ``status``, ``audit`` and ``deploy``. References to credentials are named, never resolved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.config.data import SkillSection
from raymlops.errors import StorageError
from raymlops.lifecycle.live.lineup import champion_of, monitored
from raymlops.monitor.baseline import baseline_days
from raymlops.state.store import Deployment

if TYPE_CHECKING:
    from raymlops.config.base import SecretRef
    from raymlops.config.schema import MonitorSection
    from raymlops.config.serve import LogSection


def monitor_text(monitor: MonitorSection) -> str:
    """Return by what windows a model is judged, within which bounds, and whom incidents notify."""
    parts = [f"windows of {monitor.window_h} h"]
    if monitor.between_columns:
        parts.append("correlations")
    if monitor.slices:
        parts.append(f"slices {_shown(monitor.slices)}")
    if bounds := {name: value for name, value in monitor.quality if value is not None}:
        parts.append(f"bounds {_shown(bounds)}")
    if monitor.skill != SkillSection():
        parts.append(f"labels {_skill(monitor.skill)}")
    parts.append("no notify" if monitor.notify is None else f"notifies {_reference(monitor.notify)}")
    return "; ".join(parts)


def too_short_log(monitor: MonitorSection, log: LogSection) -> str | None:
    """Return why nothing is ever judged, or compared with windows that were served; None where the log is enough."""
    needed, kept = baseline_days(monitor.window_h * 3600), log.retention_days
    if not log.enabled:
        bounds = [name for name, value in monitor.quality if value is not None]
        return f"serve.log.enabled is false: without a log nobody is told of {', '.join(bounds)}" if bounds else None
    if kept is None or kept >= needed:
        return None
    return (
        f"a serving baseline of windows of {monitor.window_h} h takes {needed} days of the log, and "
        f"serve.log.retention_days keeps {kept:g}: what needs one, as a column that is acknowledged or is served "
        f"otherwise than trained, is never judged. Keep {needed} days or more, or take shorter windows "
        "(monitor.window_h)"
    )


def monitor_changes(before: Any, after: Any) -> str:
    """Return what differs in how the champion is watched, by the sides of an audit event; empty if nothing.

    It is empty too where they are no deployments, or such as this release cannot read.
    """
    try:
        old, new = (_monitor(side) for side in (before, after))
    except StorageError:  # of another release
        return ""
    if old is None or new is None:
        return ""
    were, are = _fields(old), _fields(new)
    return ", ".join(f"monitor.{name}: {were[name]} -> {are[name]}" for name in were if were[name] != are[name])


def _monitor(side: Any) -> MonitorSection | None:
    champion = champion_of([Deployment.from_dict(item) for item in side]) if isinstance(side, list) else None
    return None if champion is None else monitored(champion)


def _fields(monitor: MonitorSection) -> dict[str, str]:
    """Return each value as a text, those of ``quality`` one by one."""
    inner = {"quality": monitor.quality, "skill": monitor.skill}
    flat = {name: value for name, value in monitor if name not in inner}
    flat |= {f"{section}.{name}": value for section, found in inner.items() for name, value in found}
    return {name: _reference(value) if name == "notify" else _shown(value) for name, value in flat.items()}


def _skill(skill: SkillSection) -> str:
    """Return by which metric and windows labelled answers are judged, and what else is not as by default."""
    other = {name: value for name, value in skill if value != SkillSection.model_fields[name].default}
    shown = {name: value for name, value in other.items() if name not in {"metric", "window_h"}}
    return f"by {skill.metric} of {skill.window_h} h" + (f", {_shown(shown)}" if shown else "")


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
