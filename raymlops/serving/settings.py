"""Settings of a running replica: limits, traffic, keys, logs. Serve passes them as ``user_config``.

Owns how that data is read. Pure; ``render`` writes it. A change restarts no replica.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raymlops.predictions.settings import LogSettings
from raymlops.serving.auth import Access
from raymlops.serving.refusal import Limits
from raymlops.serving.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one version that may change in place."""

    limits: Limits = field(default_factory=Limits)
    traffic: Traffic = field(default_factory=Traffic)
    access: Access = field(default_factory=Access)
    log: LogSettings = field(default_factory=LogSettings)
    access_log: bool = False
    otlp_endpoint: str | None = None
    threads: int = 1
    """Threads of torch for one batch."""
    compile: bool = False
    """Read when a replica starts: a change takes effect in new replicas only, as compiling takes minutes."""
    memory_bytes: int | None = None
    """Most memory that a replica may use; None is no bound."""
    slow_s: float = 0.25
    """An answer that takes at least this long counts as slow in a rollout."""
    state: str = ""
    """Id of the state database that the version belongs to; empty if unknown."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Read a ``user_config``; missing keys keep their defaults, unknown ones are ignored."""
        limits = data.get("limits", {})
        state = str(data.get("state", {}).get("id", ""))
        plain = ("access_log", "otlp_endpoint", "threads", "compile", "memory_bytes", "slow_s")
        return cls(
            limits=Limits(**{key: limits[key] for key in Limits.__dataclass_fields__ if key in limits}),
            traffic=Traffic.from_dict(data.get("traffic", {})),
            access=Access.from_dict(data.get("access", {})),
            log=LogSettings.from_dict({**data.get("log", {}), "state": state}),
            state=state,
            **{key: data[key] for key in plain if key in data},
        )
