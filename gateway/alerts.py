"""Tells a webhook that a soft limit is used by 50, 80 or 95 %: once for all workers and gateways; nobody waits.

A request only puts what it was told of limits into a queue. Who first notes in Redis that a threshold is told posts it.
What Redis, the webhook or a full queue keep from being told is lost, unless the limit is met again later: then, a
minute on at the earliest, it is tried anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import httpx
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import Alert, Crossing, Note, Thresholds
from gateway.policy import AlertsSpec
from gateway.store import alert_told, end_tasks
from gateway.telemetry import Metrics

log = logging.getLogger(__name__)

WAITING_MAX: Final = 1000

_encode = msgspec.json.Encoder(decimal_format="number").encode
_TRIED_AGAIN: Final = frozenset({408, 429})
"""Of the statuses that blame the request these are of the moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsSettings:
    """Seconds. A post is tried once more after each of `pauses_s`; at the end what waits gets `drain_s`."""

    timeout_s: float = 10.0
    pauses_s: tuple[float, ...] = (1.0, 5.0)
    drain_s: float = 2.0


class Alerts:
    """One worker's part, which `async with` does meanwhile. Without a `spec` nothing is told. `now_ms` is Unix time."""

    def __init__(
        self,
        redis: Redis,
        spec: AlertsSpec | None,
        *,
        token: str | None,
        metrics: Metrics,
        now_ms: Callable[[], int],
        settings: AlertsSettings | None = None,
    ) -> None:
        self._redis = redis
        self._spec = spec
        self._headers = {"content-type": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._metrics = metrics
        self._now_ms = now_ms
        self._settings = settings or AlertsSettings()
        self._thresholds = Thresholds()
        self._waiting: asyncio.Queue[Crossing] = asyncio.Queue(WAITING_MAX)
        self._troubles: set[str] = set()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Alerts:
        self.use(self._spec)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                await self._waiting.join()
        if self._running is not None:
            await end_tasks([self._running])

    def use(self, spec: AlertsSpec | None) -> None:
        """From now on this is where alerts go."""
        self._spec = spec
        if spec is not None and self._running is None:  # its client takes 50 ms and more to make: none is made for none
            self._running = asyncio.create_task(self._run(), name="alerts")

    def tell(self, tenant: str, notes: Iterable[Note]) -> None:
        """Queues what these notes on a request of the tenant say of thresholds, unless that was asked for lately."""
        if self._spec is None:
            return
        now_ms = self._now_ms()
        for note in notes:
            crossing = self._thresholds.crossed(tenant, note, now_ms)
            if crossing is None:
                continue
            try:
                self._waiting.put_nowait(crossing)
            except asyncio.QueueFull:
                self._lost("more alerts wait than are kept")

    async def _run(self) -> None:
        async with httpx.AsyncClient(headers=self._headers, timeout=self._settings.timeout_s) as http:
            while True:
                crossing = await self._waiting.get()
                try:
                    await self._tell_once(http, crossing)
                except (RedisError, OSError) as error:
                    self._lost(f"Redis does not answer: {error}", kind="redis")
                except Exception:
                    self._metrics.alerts.labels("lost").inc()
                    log.exception("telling of a soft limit failed unexpectedly")
                finally:
                    self._waiting.task_done()

    async def _tell_once(self, http: httpx.AsyncClient, crossing: Crossing) -> None:
        spec, alert = self._spec, crossing.alert
        if spec is None:
            return
        noted = await self._note(crossing)
        if alert.threshold not in noted:
            return
        told = False
        try:
            told = await self._post(http, spec, alert)
        finally:
            if not told:
                with contextlib.suppress(RedisError, OSError):  # then they stay told
                    await self._redis.delete(*(_name(crossing, threshold) for threshold in noted))
        if told:
            self._metrics.alerts.labels("sent").inc()
            log.info("%s of %s %s is used by %d %%", alert.dimension, alert.scope, alert.of, alert.percent)

    async def _note(self, crossing: Crossing) -> list[int]:
        """Notes that the threshold is told, and lower ones with it; those of them that nobody had noted."""
        pipeline = self._redis.pipeline(transaction=False)
        for threshold in crossing.told:
            pipeline.set(_name(crossing, threshold), crossing.alert.at, nx=True, ex=crossing.kept_s)
        answers = await pipeline.execute()
        self._works("redis")
        return [threshold for threshold, answer in zip(crossing.told, answers, strict=True) if answer]

    async def _post(self, http: httpx.AsyncClient, spec: AlertsSpec, alert: Alert) -> bool:
        body = _encode(alert)
        for pause_s in (*self._settings.pauses_s, None):
            trouble, again = await self._try(http, spec, body)
            if not trouble:
                self._works("webhook")
                return True
            if pause_s is None or not again:
                break
            await asyncio.sleep(pause_s)
        self._lost(f"the webhook did not take it: {trouble}", kind="webhook")
        return False

    async def _try(self, http: httpx.AsyncClient, spec: AlertsSpec, body: bytes) -> tuple[str, bool]:
        """What went wrong, empty for nothing, and whether trying again may help."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                status = (await http.post(spec.url, content=body)).status_code
        except (TimeoutError, httpx.TimeoutException):
            return "timeout", True
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__, True
        if 200 <= status < 300:
            return "", False
        return str(status), status >= 500 or status in _TRIED_AGAIN

    def _lost(self, why: str, *, kind: str = "queue") -> None:
        """Counts it, and says so in the log once, until that works again."""
        self._metrics.alerts.labels("lost").inc()
        if kind not in self._troubles:
            self._troubles.add(kind)
            log.warning("an alert is lost, and others may be: %s", why)

    def _works(self, kind: str) -> None:
        if kind in self._troubles:
            self._troubles.discard(kind)
            log.info("alerts are told again")


def _name(crossing: Crossing, threshold: int) -> str:
    alert = crossing.alert
    return alert_told(alert.scope, alert.of, alert.dimension, crossing.period, threshold)
