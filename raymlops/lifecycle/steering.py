"""The former home of the controller's actor, by whose name Ray restarts one that raymlops 0.1 started."""

from __future__ import annotations

from raymlops.lifecycle.rollout.actor import ControllerActor as Steering

__all__ = ["Steering"]
