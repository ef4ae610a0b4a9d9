"""Tells metrics and routers what is learnt of replicas: their health, and where they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from gateway.discovery import Discovery
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
        metrics.replicas.keep({replica.name for replica in fleet.replicas})
        for replica in fleet.replicas:
            health = replica.health
            metrics.replicas.show(replica.name, health.state, health.reason)
            metrics.replicas.healthy.labels(replica.name).set(replica.healthy)
            metrics.replicas.in_flight.labels(replica.name).set(replica.in_flight)

    fleet.on_change, fleet.on_restart = changed, restarted
    metrics.before_flush(show)


def show_discovery(discovery: Discovery, metrics: Metrics) -> None:
    """How many replicas are found of each model, and whether that is still being told."""
    for model in discovery.found.keys() | discovery.failing.keys():
        metrics.replicas.discovered.labels(model).set(len(discovery.found.get(model, ())))
        metrics.replicas.discovery_failed.labels(model).set(model in discovery.failing)
