"""Prometheus metrics of one worker. The hot path adds to plain integers, which are passed on about once a second:

a prometheus_client counter costs 0.6 µs an `inc()` with its child kept, 1.9 µs with its child looked up, and a request
has seven of them; its two histograms are six calls each.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.metering import UsageEvent

from ._replicas import ReplicaMetrics
from ._routing import RoutingMetrics

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ERROR_SECONDS = (-30, -10, -5, -2.5, -1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BOUNDS_MS = [round(1000 * bound_s) for bound_s in _SECONDS]


class _Observed:
    """Durations that wait to be passed on to a histogram with the buckets `_SECONDS`, as sums."""

    __slots__ = ("_counts", "_histogram", "_total_ms")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._reset()

    def _reset(self) -> None:
        self._total_ms = 0
        self._counts = [0] * (len(_BOUNDS_MS) + 1)

    def add(self, ms: int) -> None:
        self._total_ms += ms
        self._counts[bisect_left(_BOUNDS_MS, ms)] += 1

    def flush(self) -> None:
        # The library has no way to observe many at once; this is what its `observe` does with each.
        histogram = self._histogram
        histogram._sum.inc(self._total_ms / 1000)
        for bucket, count in zip(histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._reset()


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
        self.ttft = _Observed(metrics.ttft.labels(event.model))
        self.seconds = _Observed(metrics.seconds.labels(event.model))
        self._reset()

    def _reset(self) -> None:
        self.requests = self.input = self.cached = self.output = self.cost_nanousd = 0

    def flush(self) -> None:
        """Passes the sums on."""
        if self.requests:
            sums = (self.requests, self.input, self.cached, self.output, self.cost_nanousd / 1e9)
            for child, value in zip(self.children, sums, strict=True):
                child.inc(value)
            self.ttft.flush()
            self.seconds.flush()
            self._reset()


class KvEventMetrics:
    """How well the engines' KV events are followed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.trusted = Gauge(
            "mtok_kv_events_trusted",
            "1 while all KV events of the replica have been read since its process began, or its cache was cleared.",
            ("replica",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.unread = Gauge(
            "mtok_kv_events_unread",
            "KV events of the replica that could not be read, and blocks stored after one that nobody has told of.",
            ("replica",),
            registry=registry,
            multiprocess_mode="livemax",
        )


class Metrics:
    """Every metric of the gateway. With several workers they share files, so that any worker answers for all."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "mtok_requests",
            "Requests by outcome, refused ones included.",
            ("tenant", "model", "endpoint", "status", "code"),
            registry=registry,
        )
        self.denied = Counter(
            "mtok_denied_requests",
            "Requests refused by a limit, by which one: of the tenant, its key or group, the model or the fleet.",
            ("tenant", "scope", "limit"),
            registry=registry,
        )
        self._audited_refusals = Counter(
            "mtok_audited_refusals",
            "Requests that were served and that an audited or candidate limit would have refused, by whose it is.",
            ("tenant", "scope", "of", "dimension"),
            registry=registry,
        )
        self._soft_limit_used = Gauge(
            "mtok_soft_limit_used_ratio",
            "Part of a soft limit that is used, from a half on: the most that a worker was told lately; 0: less.",
            ("scope", "of", "dimension"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.alerts = Counter(
            "mtok_alerts",
            "Alerts that the webhook has taken (sent), or never will (lost).",
            ("outcome",),
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
        self.lost_tokens = Counter(
            "mtok_lost_tokens",
            "The most tokens that failed attempts can have burnt: the platform's loss, billed to nobody.",
            ("replica", "kind"),
            registry=registry,
        )
        self.lost_streams = Counter(
            "mtok_lost_streams",
            "Streams whose replica was lost, by how another went on: token_ids, text, anew; or none could: error.",
            ("model", "how"),
            registry=registry,
        )
        self.replicas = ReplicaMetrics(registry)
        self.kv_events = KvEventMetrics(registry)
        self._policy_info = Gauge(
            "mtok_policy_info",
            "1 for the policies in force, by the start of their SHA-256; two are 1 while workers change.",
            ("sha256",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._policy = ""
        self._rule_unmatched = Gauge(
            "mtok_policy_rule_unmatched",
            "1 for what the policies name and no request has matched for a day; looked at once a day by one worker.",
            ("kind", "name"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._unmatched: set[tuple[str, str]] = set()
        self.policy_failed = Gauge(
            "mtok_policy_reload_failed",
            "1 while the policies' directory holds what cannot be used: the log says why, and the last good serve.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.queue_length = Gauge(
            "mtok_queue_length",
            "Admitted requests that wait for a replica with room.",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_wait = Histogram(
            "mtok_queue_wait_seconds",
            "Wait for a replica with room, of requests that had to wait and then ran.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_wait_error = Histogram(
            "mtok_queue_wait_error_seconds",
            "By how much a wait was longer than predicted, or shorter, of those in mtok_queue_wait_seconds.",
            ("model",),
            buckets=_ERROR_SECONDS,
            registry=registry,
        )
        self.client_attempts = Counter(
            "mtok_client_attempts",
            "Requests of classes with latency targets, by whether the client's SDK had tried before.",
            ("model", "attempt"),
            registry=registry,
        )
        self.knee_limit = Gauge(
            "mtok_knee_limit",
            "What a replica may have of this gateway's at once: sequences, and uncached prompt tokens being read.",
            ("replica", "quantity"),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.knee_load = Gauge(
            "mtok_knee_load",
            "What it has of them now.",
            ("replica", "quantity"),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.routing = RoutingMetrics(registry)
        self.itl_beside = Gauge(
            "mtok_itl_beside_long_prompts_seconds",
            "Mean time between tokens of the other answers while a long prompt was read, when measured last; over the "
            "SLO the engine needs --long-prefill-token-threshold 512.",
            ("replica",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._add_ledger(registry)
        self.running = 0
        """Requests being relayed, as a plain number."""
        self._tallies: dict[tuple[str, str, str, str, str], _Tally] = {}
        self._denied: Tally[tuple[str, str, str]] = Tally()
        self._audited: Tally[tuple[str, str, str, str]] = Tally()
        self._soft_used: dict[tuple[str, str, str], tuple[float, float]] = {}
        self._before_flush: list[Callable[[], None]] = []

    def _add_ledger(self, registry: CollectorRegistry) -> None:
        """What says whether the books are right and up to date."""
        self.unbooked = Gauge(
            "mtok_unbooked_events",
            "Usage events on disk that Redis does not have yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.sink_events = Counter(
            "mtok_sink_events",
            "Usage events the sink has taken (delivered) or refused for good (parked).",
            ("outcome",),
            registry=registry,
        )
        self.sink_failures = Counter(
            "mtok_sink_failures", "Pushes to the sink that are tried again.", ("reason",), registry=registry
        )
        self.sink_lag_events = Gauge(
            "mtok_sink_lag_events",
            "Usage events the sink does not have yet.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.sink_lag_seconds = Gauge(
            "mtok_sink_lag_seconds",
            "Age of the oldest usage event the sink does not have yet.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.replayed = Gauge(
            "mtok_replayed_events",
            "Usage events that Redis had lost and was sent again.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.given_up = Gauge(
            "mtok_lost_events",
            "Usage events that could not be kept; they are in the log. Alert on any.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.prices_stale = Gauge(
            "mtok_prices_stale",
            "1 while nobody has made the present epoch's prices: the last ones hold",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.journal_failing = Gauge(
            "mtok_journal_failing",
            "1 while usage cannot be written to disk.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.reconciled = Gauge(
            "mtok_reconciled_tokens",
            "What became of the tokens an engine counted in the last audited minutes; unexplained should be 0.",
            ("replica", "direction", "kind"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.reconciled_requests = Gauge(
            "mtok_reconciled_requests",
            "Requests of the last audited minutes that were sent and have no event (lost), or came from elsewhere.",
            ("replica", "kind"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.reconciled_until = Gauge(
            "mtok_reconciled_until_seconds",
            "Unix time up to which the ledger was held against the engines' counters; 0: by another worker.",
            registry=registry,
            multiprocess_mode="max",
        )

    def show_policy(self, version: str) -> None:
        """These policies are in force from now on."""
        if self._policy:
            self._policy_info.labels(self._policy).set(0)
        self._policy_info.labels(version).set(1)
        self._policy = version

    def show_unmatched(self, rules: Iterable[tuple[str, str]]) -> None:
        """These are the rules, by kind and name, that nothing matches."""
        now = set(rules)
        for rule in self._unmatched | now:
            self._rule_unmatched.labels(*rule).set(rule in now)
        self._unmatched |= now

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
            tally.ttft.add(event.first_token_ms - event.arrived_ms)
            tally.seconds.add(event.ended_ms - event.arrived_ms)
            if event.pool:
                self.routing.pools[event.model, event.pool] += 1

    def count_denial(self, tenant: str, scope: str, limit: str) -> None:
        """Counts one request that a limit refused, of a scope of that kind; `count` counts it too."""
        self._denied[tenant, scope, limit] += 1

    def count_audited(self, tenant: str, scope: str, of: str, dimension: str) -> None:
        """Counts one request that was served although an audited limit would have refused it."""
        self._audited[tenant, scope, of, dimension] += 1

    def show_soft(self, scope: str, of: str, dimension: str, *, ratio: float, until_ms: float) -> None:
        """So much of a soft limit is used; unless something newer comes, what that says holds until `until_ms`."""
        self._soft_used[scope, of, dimension] = ratio, until_ms

    def end_soft(self, now_ms: float) -> None:
        """What was said of soft limits until now, and not again since, holds no longer."""
        for labels, (_, until_ms) in self._soft_used.items():
            if until_ms <= now_ms:
                self._soft_used[labels] = 0.0, inf

    def flush(self) -> None:
        """Passes on what has been counted, for other workers to show; call it about once a second."""
        self.in_flight.set(self.running)
        for tally in self._tallies.values():
            tally.flush()
        for labels, count in self._denied.items():
            self.denied.labels(*labels).inc(count)
        self._denied.clear()
        for named, count in self._audited.items():
            self._audited_refusals.labels(*named).inc(count)
        self._audited.clear()
        self.routing.flush()
        for refresh in self._before_flush:
            refresh()
        for of, (ratio, _) in self._soft_used.items():
            self._soft_limit_used.labels(*of).set(ratio)

    def exposition(self) -> bytes:
        """Prometheus text of all workers; other workers' numbers are as old as their last `flush`."""
        return generate_latest(self._of_all_workers())

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """The same as name, labels and value."""
        for family in self._of_all_workers().collect():
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def _of_all_workers(self) -> CollectorRegistry:
        self.flush()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self.registry
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return shared
