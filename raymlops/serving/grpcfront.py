"""The former home of ``replica.grpc_front``: replicas that raymlops 0.1 started send their answers by this name."""

from __future__ import annotations

from raymlops.serving.replica.grpc_front import GrpcReply

__all__ = ["GrpcReply"]
