"""Prometheus metrics of one worker. The hot path adds to plain integers, which are passed on about once a second:

a prometheus_client counter costs 0.6 µs an `inc()` with its child kept, 1.9 µs with its child looked up, and a request
has seven of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.metering import UsageEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Tally:
    """What requests of one (tenant, model, endpoint, status, code) have added since it was last passed on."""

    __slots__ = ("cached", "children", "cost_nanousd", "input", "output", "requests", "seconds", "ttft")

    def __init__(self, metrics: Metrics, event: UsageEvent) -> None:
        who = (event.tenant, event.model)
        self.children = (
            metrics.requests.labels(*who, event.endpoint, event.status, event.code),
            metrics.tokens.labels(*who, "input"),
            metrics.tokens.labels(*who, "input_cached"),
            metrics.tokens.labels(*who, "output"),
            metrics.cost.labels(*who),
        )
        self.ttft = metrics.ttft.labels(event.model)
        self.seconds = metrics.seconds.labels(event.model)
        self._reset()

    def _reset(self) -> None:
        self.requests = self.input = self.cached = self.output = self.cost_nanousd = 0

    def flush(self) -> None:
        """Passes the sums on."""
        if self.requests:
            sums = (self.requests, self.input, self.cached, self.output, self.cost_nanousd / 1e9)
            for child, value in zip(self.children, sums, strict=True):
                child.inc(value)
            self._reset()


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
        self.running = 0
        """Requests being relayed, as a plain number."""
        self._tallies: dict[tuple[str, str, str, str, str], _Tally] = {}
        self._before_flush: list[Callable[[], None]] = []

    def before_flush(self, refresh: Callable[[], None]) -> None:
        """Has `refresh` set gauges just before they are passed on."""
        self._before_flush.append(refresh)

    def count(self, event: UsageEvent) -> None:
        """Counts one finished or refused request. Its sums are passed on by `flush`."""
        key = (event.tenant, event.model, event.endpoint, event.status, event.code)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally(self, event)
        usage = event.usage
        tally.requests += 1
        tally.input += usage.input_tokens
        tally.cached += usage.input_cached_tokens
        tally.output += usage.output_tokens
        tally.cost_nanousd += event.cost_nanousd
        if event.first_token_ms:
            tally.ttft.observe((event.first_token_ms - event.arrived_ms) / 1000)
            tally.seconds.observe((event.ended_ms - event.arrived_ms) / 1000)

    def flush(self) -> None:
        """Passes on what has been counted, for other workers to show; call it about once a second."""
        self.in_flight.set(self.running)
        for tally in self._tallies.values():
            tally.flush()
        for refresh in self._before_flush:
            refresh()

    def exposition(self) -> bytes:
        """Prometheus text of all workers; other workers' numbers are as old as their last `flush`."""
        self.flush()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)
