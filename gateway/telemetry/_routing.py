"""Metrics of where requests go: the pools they ran in, and what a shadow strategy would have done."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.routing import Told


class RoutingMetrics:
    """One worker's. `pools` counts requests by model and pool until they are passed on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pools: Tally[tuple[str, str]] = Tally()
        self._pool_requests = Counter(
            "mtok_pool_requests",
            "Requests by the pool that answered them, of models that have several.",
            ("model", "pool"),
            registry=registry,
        )
        self._cached = Counter(
            "mtok_prefix_tokens",
            "Prompt tokens of answers that were predicted to be cached at the replica, those that it reported, and "
            "the differences (error): an error beside the reports says that the index is stale.",
            ("replica", "kind"),
            registry=registry,
        )
        self._first_tokens = Counter(
            "mtok_placed_ttft_seconds",
            "Sum of the times from a placement to the first token, of streams: as expected when placed, and real.",
            ("replica", "kind"),
            registry=registry,
        )
        self.index_blocks = Gauge(
            "mtok_prefix_index_blocks",
            "Blocks of 256 bytes of prompts that a replica is taken to have cached; of the worker that knows most.",
            ("model", "replica"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._shadowed = Counter(
            "mtok_shadow_requests",
            "Requests that a shadow strategy would have sent to the same replica, or elsewhere.",
            ("model", "to"),
            registry=registry,
        )
        self._shadow_tokens = Counter(
            "mtok_shadow_input_tokens",
            "Prompt tokens of these requests, and of them those expected to be cached: where they went (taken), and "
            "where the shadow strategy would have sent them, had it sent all of them (shadow).",
            ("model", "kind"),
            registry=registry,
        )
        self._shadow_ttft = Counter(
            "mtok_shadow_ttft_seconds",
            "Sum of their expected times to first token, likewise; of this gateway's own requests.",
            ("model", "kind"),
            registry=registry,
        )

    def show_told(self, replica: str, told: Told) -> None:
        """Adds how predictions of a replica have come true."""
        self._cached.labels(replica, "predicted").inc(told.predicted_tokens)
        self._cached.labels(replica, "reported").inc(told.reported_tokens)
        self._cached.labels(replica, "error").inc(told.error_tokens)
        self._first_tokens.labels(replica, "expected").inc(told.expected_ms / 1000)
        self._first_tokens.labels(replica, "real").inc(told.real_ms / 1000)

    def show_shadow(
        self,
        model: str,
        *,
        requests: int,
        elsewhere: int,
        input_tokens: int,
        cached_tokens: tuple[int, int],
        ttft_ms: tuple[int, int],
    ) -> None:
        """Adds what a shadow has seen. Of a pair the first is of what was taken, the second of the shadow."""
        self._shadowed.labels(model, "same").inc(requests - elsewhere)
        self._shadowed.labels(model, "elsewhere").inc(elsewhere)
        self._shadow_tokens.labels(model, "all").inc(input_tokens)
        for kind, tokens, ms in zip(("taken", "shadow"), cached_tokens, ttft_ms, strict=True):
            self._shadow_tokens.labels(model, f"cached_{kind}").inc(tokens)
            self._shadow_ttft.labels(model, kind).inc(ms / 1000)

    def flush(self) -> None:
        """Passes on what has been counted."""
        for pool, count in self.pools.items():
            self._pool_requests.labels(*pool).inc(count)
        self.pools.clear()
