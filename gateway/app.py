"""The composition root: settings and policies in, an ASGI app out. Knows every room; no room knows it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path

from redis.asyncio import Redis
from starlette.routing import Route, Router

from gateway.admin_pages import AdminPages
from gateway.alerts import Alerts
from gateway.audit import DIRECTIONS, Audit, Watch
from gateway.clock import Clock, SystemClock
from gateway.costing import PriceKeeper
from gateway.counting import PromptCounter
from gateway.discovery import Discovery
from gateway.dispatch import Dispatcher
from gateway.draining import Draining
from gateway.endpoints import IN_FORCE, Page, Pages, Relayed, unknown
from gateway.export import Sink
from gateway.fleet import Fleet, Scraper
from gateway.isolation import Salts
from gateway.kv_events import Follower
from gateway.lifecycle import Lifecycle
from gateway.metering import Ledger, LedgerSettings
from gateway.neighbours import Neighbours
from gateway.placement import Caches
from gateway.policy import LimitsSpec, Policies
from gateway.relay import Message, Receive, Send
from gateway.reload import Reloader
from gateway.replica_health import follow_health, show_discovery
from gateway.routing import ShadowedRouter
from gateway.settings import Settings
from gateway.sharing import Sharing
from gateway.store import client
from gateway.telemetry import Metrics, Telemetry, Tracing
from gateway.tenants import KeyDirectory
from gateway.unmatched import RuleWatch
from gateway.usage_pages import LiveUsage, UsagePages
from gateway.wire import Endpoint

log = logging.getLogger(__name__)

METRICS_FLUSH_S = 1.0
CACHES_S = 1.0
"""How often the routers are told what was read of the engines' caches."""
DAY_S = 86_400


class Gateway:
    """One worker's gateway. `asgi` is the app; its lifespan starts and stops everything in order."""

    def __init__(
        self,
        policies: Policies,
        settings: Settings,
        redis_url: str,
        *,
        clock: Clock | None = None,
        directory: Path | None = None,
    ) -> None:
        """`directory`, where it is given, is where `policies` are from: changes there are put in force."""
        self.clock = clock or SystemClock()
        self._policies = policies
        self._directory = directory
        self._settings = settings
        self._redis_url = redis_url
        self._draining = False
        self._lifecycle: Lifecycle | None = None
        self._relayed: dict[str, Relayed] = {}
        self._pages = Router([], redirect_slashes=False, default=unknown, lifespan=self._lifespan)

    def asgi(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        """The ASGI app. Paths that go to engines are fixed, so a dictionary finds them; Starlette routes the rest.

        It hands the endpoint's coroutine on instead of waiting for it: each time a request goes on after a wait,
        Python resumes every coroutine between its task and the wait.
        """
        scope[IN_FORCE] = self._policies.version
        relayed = self._relayed.get(scope.get("path", ""))
        return (relayed or self._pages)(scope, receive, send)

    @property
    def draining(self) -> bool:
        """Whether the gateway has been told to stop."""
        return self._draining

    def drain(self) -> None:
        """From now on no request is admitted, not even by a gateway that still starts; what runs may finish."""
        self._draining = True
        if self._lifecycle is not None:
            self._lifecycle.draining = True

    @property
    def idle(self) -> bool:
        """Whether nothing is being relayed."""
        return self._lifecycle is None or self._lifecycle.idle

    def interrupt_all(self) -> None:
        """Cuts every running answer with an error its client can read."""
        if self._lifecycle is not None:
            self._lifecycle.interrupt_all()

    def _limits_of(self, tenant: str) -> LimitsSpec:
        return self._policies.limits_of(tenant)

    def _apply(
        self,
        policies: Policies,
        *,
        lifecycle: Lifecycle,
        watch: Watch,
        rules: RuleWatch,
        alerts: Alerts,
        prices: PriceKeeper,
    ) -> None:
        """Puts new policies in force, between two requests. How the ledger keeps usage stays as it was at the start."""
        if policies.ledger != self._policies.ledger:
            log.warning("the `ledger` section has changed: but for tags and users that needs a restart")
        self._policies = policies
        lifecycle.fleet.update(policies.models.values())
        lifecycle.counter.use(policies.models.values())
        lifecycle.keys.use(policies)
        lifecycle.apply(policies)
        lifecycle.telemetry.metrics.show_policy(policies.version)
        watch.use(policies.tenants)
        prices.apply(policies)
        rules.use(policies)
        alerts.use(policies.alerts)
        lifecycle.telemetry.metrics.end_soft(inf)

    def _apply_on_change(
        self, stack: AsyncExitStack, discovery: Discovery, apply: Callable[[Policies], None], metrics: Metrics
    ) -> None:
        """Puts in force what is discovered, and what changes in the directory, by itself or by SIGHUP."""
        discovery.on_change = apply
        metrics.before_flush(lambda: show_discovery(discovery, metrics))
        if self._directory is None:
            return
        reloader = Reloader(self._directory, self._policies, lambda new: apply(discovery.declare(new)))
        reloading = asyncio.create_task(reloader.run(), name="policies")
        stack.callback(reloading.cancel)
        metrics.before_flush(lambda: metrics.policy_failed.set(bool(reloader.failed)))
        with contextlib.suppress(ValueError, RuntimeError):  # not the process's main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.now)

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        settings, clock = self._settings, self.clock
        async with AsyncExitStack() as stack:
            discovery = await stack.enter_async_context(Discovery())
            policies = self._policies = await discovery.first(self._policies)
            redis = await stack.enter_async_context(client(self._redis_url))
            keys = await stack.enter_async_context(KeyDirectory(policies, redis, now_ms=clock.now_ms))
            metrics = Metrics()
            metrics.show_policy(policies.version)
            tracing = Tracing.from_environment()
            stack.callback(tracing.close)
            ledger = await stack.enter_async_context(
                Ledger(
                    redis,
                    settings.data_dir / "journal",
                    settings=LedgerSettings.of(policies.ledger),
                    limits_of=self._limits_of,
                    now_ms=clock.now_ms,
                )
            )
            fleet = await stack.enter_async_context(Fleet(policies.models.values()))
            counter = await stack.enter_async_context(PromptCounter(fleet, policies.models.values()))
            await stack.enter_async_context(
                Scraper(fleet.replicas, redis, now_ms=clock.now_ms, kept_s=policies.ledger.keep_minutes_days * DAY_S)
            )
            watch = Watch(
                redis,
                tenants=policies.tenants,
                now_ms=clock.now_ms,
                show=lambda audit: _show(metrics, audit),
            )
            await stack.enter_async_context(watch)
            rules = RuleWatch(redis, policies, now_ms=clock.now_ms, show=metrics.show_unmatched)
            await stack.enter_async_context(rules)
            alerts = Alerts(redis, policies.alerts, token=settings.alerts_token, metrics=metrics, now_ms=clock.now_ms)
            await stack.enter_async_context(alerts)
            metrics.before_flush(lambda: metrics.end_soft(clock.now_ms()))
            dispatcher = Dispatcher(clock.now_ms)
            dispatching = asyncio.create_task(dispatcher.run(), name="dispatcher")
            stack.callback(dispatching.cancel)
            await stack.enter_async_context(Sharing(dispatcher, redis, now_ms=clock.now_ms))
            lifecycle = self._lifecycle = Lifecycle(
                policies=policies,
                fleet=fleet,
                counter=counter,
                keys=keys,
                ledger=ledger,
                dispatcher=dispatcher,
                telemetry=Telemetry(metrics, tracing),
                alerts=alerts,
                salts=Salts(redis, settings.cache_secret),
                clock=clock,
                settings=settings,
            )
            lifecycle.draining = self._draining
            await stack.enter_async_context(lifecycle.cache_events)
            neighbours = await stack.enter_async_context(Neighbours(lifecycle.routers, redis, now_ms=_loop_ms))
            lifecycle.routers.share(placed=neighbours.placed, said=neighbours.engine_said)
            draining = await stack.enter_async_context(Draining(fleet, redis, now_ms=clock.now_ms))
            follow_health(fleet, metrics, forget=lifecycle.routers.forget, replaced=draining.replaced)
            metrics.before_flush(lambda: _refresh(metrics, ledger, lifecycle))
            prices = PriceKeeper(
                redis,
                policies,
                replicas=lambda: fleet.replicas,
                now_ms=clock.now_ms,
                use=lifecycle.charge,
            )
            await stack.enter_async_context(prices)
            metrics.before_flush(lambda: metrics.prices_stale.set(prices.stale))
            self._relayed.update({endpoint.path: Relayed(lifecycle, endpoint) for endpoint in Endpoint})
            self._pages.routes[:] = _routes(lifecycle, redis, draining)
            reading = asyncio.create_task(_read_caches(lifecycle, neighbours), name="caches")
            stack.callback(reading.cancel)
            flushing = asyncio.create_task(_flush(metrics), name="metrics")
            stack.callback(flushing.cancel)
            if policies.ledger.sink is not None:
                sink = Sink(
                    redis,
                    policies.ledger.sink,
                    token=settings.sink_token,
                    metrics=metrics,
                    tenants=tuple(policies.tenants),
                    clock=clock,
                    random=random.random,
                )
                await stack.enter_async_context(sink)
            apply = partial(self._apply, lifecycle=lifecycle, watch=watch, rules=rules, alerts=alerts, prices=prices)
            self._apply_on_change(stack, discovery, apply, metrics)
            log.info("serving %d models to %d tenants", len(policies.models), len(policies.tenants))
            yield
            log.info("stopping")


def _routes(lifecycle: Lifecycle, redis: Redis, draining: Draining) -> list[Route]:
    """Every path that does not go to an engine."""
    pages, usage = Pages(lifecycle), UsagePages(lifecycle, redis)
    admin = AdminPages(lifecycle, redis, draining)
    return [
        Route("/v1/models", Page(pages.models)),
        Route("/v1/models/{name:path}", Page(pages.model)),
        Route("/v1/usage", Page(usage.usage)),
        Route("/v1/usage/requests", Page(usage.requests)),
        Route("/v1/usage/requests/{id}", Page(usage.request)),
        Route("/v1/usage/stream", LiveUsage(usage, lifecycle, redis)),
        Route("/v1/organization/usage/completions", Page(usage.organization_completions)),
        Route("/v1/organization/usage/embeddings", Page(usage.organization_embeddings)),
        Route("/v1/organization/costs", Page(usage.organization_costs)),
        Route("/healthz", Page(pages.healthz)),
        Route("/readyz", Page(pages.readyz)),
        Route("/metrics", Page(pages.metrics)),
        Route("/admin/state", Page(admin.state)),
        Route("/admin/drain", Page(admin.drain, also=("POST", "DELETE"))),
    ]


def _refresh(metrics: Metrics, ledger: Ledger, lifecycle: Lifecycle) -> None:
    booked = ledger.statistics()
    metrics.unbooked.set(booked.unbooked)
    metrics.replayed.set(booked.replayed)
    metrics.given_up.set(booked.given_up)
    metrics.journal_failing.set(bool(booked.journal_failure))
    for model, router in lifecycle.routers.by_model.items():
        for place, told in router.take_told().items():
            metrics.routing.show_told(place, told)
            metrics.routing.index_blocks.labels(model, place).set(router.index.of(place).count)
        if isinstance(router, ShadowedRouter) and (shadow := router.counts()).requests:
            metrics.routing.show_shadow(
                model,
                requests=shadow.requests,
                elsewhere=shadow.elsewhere,
                input_tokens=shadow.input_tokens,
                cached_tokens=(shadow.cached_tokens, shadow.cached_tokens_shadow),
                ttft_ms=(shadow.ttft_ms, shadow.ttft_ms_shadow),
            )
    for model, line in lifecycle.dispatcher.lines.items():
        metrics.queue_length.labels(model).set(len(line.queue))
        counts = line.counts()
        metrics.client_attempts.labels(model, "first").inc(counts.first_attempts)
        metrics.client_attempts.labels(model, "retry").inc(counts.retries)
        for wait_ms in counts.waits_ms:
            metrics.queue_wait.labels(model).observe(wait_ms / 1000)
        for error_ms in counts.wait_errors_ms:
            metrics.queue_wait_error.labels(model).observe(error_ms / 1000)
        for replica, knee in line.knees.items():
            if knee.itl_beside_ms:
                metrics.itl_beside.labels(replica.name).set(knee.itl_beside_ms / 1000)
            for gauge, of in ((metrics.knee_limit, knee.allowed), (metrics.knee_load, knee.load)):
                gauge.labels(replica.name, "sequences").set(of.sequences)
                gauge.labels(replica.name, "prefill_tokens").set(of.prefill_tokens)
                gauge.labels(replica.name, "kv_tokens").set(of.kv_tokens or 0)
    _show_kv_events(metrics, lifecycle.cache_events.followers)


def _show_kv_events(metrics: Metrics, followers: Mapping[str, Follower]) -> None:
    for follower in followers.values():
        for name, followed in follower.replicas.items():
            metrics.kv_events.trusted.labels(name).set(followed.stream.trusted)
            metrics.kv_events.unread.labels(name).set(followed.undecodable + followed.cache.orphans)


def _show(metrics: Metrics, audit: Audit | None) -> None:
    """Sets the gauges of reconciliation; those of an audit that another worker has taken over are cleared."""
    metrics.reconciled_until.set(0 if audit is None else audit.settled_ms / 1000)
    metrics.reconciled.clear()
    metrics.reconciled_requests.clear()
    for name, verdict in ({} if audit is None else audit.replicas).items():
        for direction in DIRECTIONS:
            for kind, tokens in verdict.totals(direction).items():
                metrics.reconciled.labels(name, direction, kind).set(tokens)
        metrics.reconciled_requests.labels(name, "not_ours").set(sum(row.requests_not_ours for row in verdict.spans))
        metrics.reconciled_requests.labels(name, "lost").set(sum(row.requests_lost for row in verdict.spans))


async def _read_caches(lifecycle: Lifecycle, neighbours: Neighbours) -> None:
    def on_restart(replica: str) -> None:
        neighbours.restarted(replica)
        lifecycle.cache_events.restarted(replica)

    caches = Caches(on_restart)
    while True:
        caches.look(lifecycle.fleet.models.values(), lifecycle.routers.by_model)
        await asyncio.sleep(CACHES_S)


def _loop_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


async def _flush(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(METRICS_FLUSH_S)
        metrics.flush()
