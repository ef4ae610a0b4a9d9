"""Tells metrics and routers what the fleet learns of its replicas' health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from gateway.fleet import Fleet, Replica
from gateway.telemetry import Metrics


def follow_health(
    fleet: Fleet,
    metrics: Metrics,
    *,
    forget: Callable[[str], None],
    replaced: Callable[[Replica], Coroutine[None, None, None]],
) -> None:
    """From now on. `forget` hears the names of all caches that are empty again, and `replaced` of their replicas."""
    tasks: set[asyncio.Task[None]] = set()

    def changed(replica: Replica) -> None:
        metrics.replicas.changed(replica.name, replica.health.state, replica.health.reason)

    def restarted(replica: Replica) -> None:
        metrics.replicas.restarted(replica.name)
        for place in replica.places:
            forget(place)
        task = asyncio.get_running_loop().create_task(replaced(replica), name="replaced")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def show() -> None:
        for replica in fleet.replicas:
            health = replica.health
            metrics.replicas.show(replica.name, health.state, health.reason)
            metrics.replicas.healthy.labels(replica.name).set(replica.healthy)
            metrics.replicas.in_flight.labels(replica.name).set(replica.in_flight)

    fleet.on_change, fleet.on_restart = changed, restarted
    metrics.before_flush(show)
