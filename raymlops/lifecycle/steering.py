"""The former home of the controller's actor: Ray restarts one that raymlops 0.1 started by this name."""

from __future__ import annotations

from raymlops.lifecycle.rollout.actor import Steering

__all__ = ["Steering"]
