"""Prometheus metrics of one worker. Children are kept, not looked up: `labels()` costs three times an `inc()`."""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.metering import UsageEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Children:
    """The metric children of one (tenant, model, endpoint, status, code)."""

    __slots__ = ("cached", "cost", "input", "output", "requests", "seconds", "ttft")

    def __init__(self, metrics: Metrics, event: UsageEvent) -> None:
        who = (event.tenant, event.model)
        self.requests = metrics.requests.labels(*who, event.endpoint, event.status, event.code)
        self.input = metrics.tokens.labels(*who, "input")
        self.cached = metrics.tokens.labels(*who, "input_cached")
        self.output = metrics.tokens.labels(*who, "output")
        self.cost = metrics.cost.labels(*who)
        self.ttft = metrics.ttft.labels(event.model)
        self.seconds = metrics.seconds.labels(event.model)


class Metrics:
    """Every metric of the gateway. With several workers they share files, so that any worker answers for all."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "mtok_requests",
            "Requests by outcome, refused ones included.",
            ("tenant", "model", "endpoint", "status", "code"),
            registry=registry,
        )
        self.tokens = Counter(
            "mtok_tokens",
            "Tokens billed; kind input includes input_cached.",
            ("tenant", "model", "kind"),
            registry=registry,
        )
        self.cost = Counter("mtok_cost_usd", "Dollars billed.", ("tenant", "model"), registry=registry)
        self.ttft = Histogram(
            "mtok_ttft_seconds",
            "Arrival to the engine's first bytes.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.seconds = Histogram(
            "mtok_request_seconds", "Arrival to the last byte.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.in_flight = Gauge(
            "mtok_requests_in_flight", "Requests being relayed.", registry=registry, multiprocess_mode="livesum"
        )
        self.unauthorized = Counter("mtok_unauthorized", "Requests without a valid key.", registry=registry)
        self.retries = Counter(
            "mtok_upstream_retries",
            "Requests tried on another replica.",
            ("replica", "reason"),
            registry=registry,
        )
        self.replica_healthy = Gauge(
            "mtok_replica_healthy",
            "1 when the replica answered its last probe.",
            ("replica",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.unsettled = Gauge(
            "mtok_unsettled_events",
            "Usage events that wait for Redis.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._children: dict[tuple[str, str, str, str, str], _Children] = {}
        self._before_scrape: list[Callable[[], None]] = []

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Has `refresh` set gauges just before they are read."""
        self._before_scrape.append(refresh)

    def count(self, event: UsageEvent) -> None:
        """Counts one finished or refused request."""
        key = (event.tenant, event.model, event.endpoint, event.status, event.code)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = _Children(self, event)
        children.requests.inc()
        usage = event.usage
        if usage.input_tokens:
            children.input.inc(usage.input_tokens)
            if usage.input_cached_tokens:
                children.cached.inc(usage.input_cached_tokens)
        if usage.output_tokens:
            children.output.inc(usage.output_tokens)
        if event.cost_nanousd:
            children.cost.inc(event.cost_nanousd / 1e9)
        if event.first_token_ms:
            children.ttft.observe((event.first_token_ms - event.arrived_ms) / 1000)
            children.seconds.observe((event.ended_ms - event.arrived_ms) / 1000)

    def exposition(self) -> bytes:
        """Prometheus text of all workers."""
        for refresh in self._before_scrape:
            refresh()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)
