"""Tells metrics and routers what the fleet learns of its replicas' health."""

from __future__ import annotations

from collections.abc import Callable

from gateway.fleet import Fleet, Replica
from gateway.telemetry import Metrics


def follow_health(fleet: Fleet, metrics: Metrics, *, forget: Callable[[str], None]) -> None:
    """From now on. `forget` hears the name of each replica whose cache is empty again."""

    def changed(replica: Replica) -> None:
        metrics.replicas.changed(replica.name, replica.health.state, replica.health.reason)

    def restarted(replica: Replica) -> None:
        metrics.replicas.restarted(replica.name)
        forget(replica.name)

    def show() -> None:
        for replica in fleet.replicas:
            health = replica.health
            metrics.replicas.show(replica.name, health.state, health.reason)
            metrics.replicas.healthy.labels(replica.name).set(replica.healthy)
            metrics.replicas.in_flight.labels(replica.name).set(replica.in_flight)

    fleet.on_change, fleet.on_restart = changed, restarted
    metrics.before_flush(show)
