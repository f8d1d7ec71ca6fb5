"""The former home of ``grpc_messages``, which a Serve that raymlops 0.1 started names in its gRPC options."""

from __future__ import annotations

from raymlops.serving.protocols.grpc_messages import add_servicer

__all__ = ["add_servicer"]
