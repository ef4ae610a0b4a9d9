"""What the gateways do now: a `State` as their metrics tell it, and what happened between two of them. Pure."""

from ._frame import Frame, QueueRow, ReplicaRow, RoutingRow, TenantRow, frame
from ._gather import Metric, gather
from ._state import LimitState, ModelState, ReplicaState, State, TenantState, merged

__all__ = [
    "Frame",
    "LimitState",
    "Metric",
    "ModelState",
    "QueueRow",
    "ReplicaRow",
    "ReplicaState",
    "RoutingRow",
    "State",
    "TenantRow",
    "TenantState",
    "frame",
    "gather",
    "merged",
]
