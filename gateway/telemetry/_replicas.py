"""What replicas' health is, how it changes, and how much they have, as metrics."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge


class ReplicaMetrics:
    """Those of all replicas; `registry` shows them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.healthy = Gauge(
            "mtok_replica_healthy",
            "1 when the replica may get new requests.",
            ("replica",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.in_flight = Gauge(
            "mtok_replica_requests_in_flight",
            "Requests at the replica from here.",
            ("replica",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._state = Gauge(
            "mtok_replica_state",
            "How many workers see the replica in this state, for this reason.",
            ("replica", "state", "reason"),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._changes = Counter(
            "mtok_replica_changes",
            "How often a worker has seen the replica come into this state, for this reason.",
            ("replica", "state", "reason"),
            registry=registry,
        )
        self._restarts = Counter(
            "mtok_replica_restarts",
            "How often a worker has seen that the replica is another process, with an empty cache.",
            ("replica",),
            registry=registry,
        )
        self.discovered = Gauge(
            "mtok_discovered_replicas",
            "Replicas that discovery found last.",
            ("model",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.discovery_failed = Gauge(
            "mtok_discovery_failed",
            "1 while a worker cannot find out where the model's replicas are; those known last stay.",
            ("model",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._states: dict[str, tuple[str, str]] = {}

    def show(self, replica: str, state: str, reason: str) -> None:
        """The replica is in this state now."""
        before = self._states.get(replica)
        if before != (state, reason):
            if before is not None:
                self._state.labels(replica, *before).set(0)
            self._state.labels(replica, state, reason).set(1)
            self._states[replica] = state, reason

    def keep(self, replicas: Collection[str]) -> None:
        """There are these now: any other is in no state and has no requests. What workers share has no way to take
        its series out."""
        for gone in self._states.keys() - replicas:
            self._state.labels(gone, *self._states.pop(gone)).set(0)
            self.in_flight.labels(gone).set(0)

    def changed(self, replica: str, state: str, reason: str) -> None:
        """It has come into this state just now."""
        self._changes.labels(replica, state, reason).inc()
        self.show(replica, state, reason)

    def restarted(self, replica: str) -> None:
        """It is another process than before."""
        self._restarts.labels(replica).inc()
