"""Replicas: upstream connections, health, what context they serve, and control-plane calls to them."""

from ._connection import Connection, Interrupted, UpstreamLost
from ._fleet import Fleet, ModelFleet
from ._replica import ConnectFailed, Replica

__all__ = ["ConnectFailed", "Connection", "Fleet", "Interrupted", "ModelFleet", "Replica", "UpstreamLost"]
