"""The former home of ``proxy.middleware``, which clusters that raymlops 0.1 started name in their environment."""

from __future__ import annotations

from raymlops.serving.proxy.middleware import middlewares

__all__ = ["middlewares"]
