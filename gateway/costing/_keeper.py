"""What a worker does so that every request has a price: it follows the epochs, and one of all workers makes them."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable
from decimal import Decimal
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission import period_at
from gateway.audit import tenants, write_prices
from gateway.policy import Policies
from gateway.pricing import GpuSpan, Measured, cost_nanousd
from gateway.store import PRICE_LEASE, StoreUnavailable, end_tasks, load_script
from gateway.usage import Billed, billed_by_tenant_and_model

from ._epochs import LEAD_S, MINUTE_S, Epoch, decide, epoch_start, measured_window, of_pool, pools
from ._hours import gpu_terms, read_spans, tell_gpus
from ._records import read_epochs, write_epoch
from ._split import measured_input_ratio
from ._tariffs import Tariffs

log = logging.getLogger(__name__)

TICK_S = 5.0
LEASE_MS = 15_000
BEFORE_MAX = 12
"""So many epochs back a price is looked for that the next one starts from; before that it is the policy's."""


class Seen(Protocol):
    """A replica as GPU hours need it."""

    @property
    def url(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def is_there(self) -> bool: ...


class PriceKeeper:
    """`async with` runs it. `use` gets the tariffs whenever they change; it has them before the first request.

    `replicas` are those of now; `now_ms` is Unix time. While nobody makes epochs the last one holds, and `stale` says
    so.
    """

    def __init__(
        self,
        redis: Redis,
        policies: Policies,
        *,
        replicas: Callable[[], Iterable[Seen]],
        now_ms: Callable[[], int],
        use: Callable[[Tariffs], None],
    ) -> None:
        self.stale = False
        self._redis = redis
        self._policies = policies
        self._replicas = replicas
        self._now_ms = now_ms
        self._use = use
        self._me = secrets.token_hex(6)
        self._lead = redis.register_script(load_script("lease").text)
        self._epoch: Epoch | None = None
        self._next: Epoch | None = None
        self._unwritten = [Tariffs(policies)]
        self._task: asyncio.Task[None] | None = None
        self._away = False

    async def __aenter__(self) -> PriceKeeper:
        await self._tick_once()
        self._task = asyncio.create_task(self._run(), name="prices")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await end_tasks([self._task])

    def apply(self, policies: Policies) -> None:
        """These are the policies from now on."""
        self._policies = policies
        self._show()

    async def tick(self) -> None:
        """Follows the epochs, and makes the next one if that is this worker's to do.

        Raises `RedisError`, `OSError`, `StoreUnavailable`.
        """
        now_s = self._now_ms() // 1000
        fence = int(await self._lead(keys=[PRICE_LEASE], args=[self._me, LEASE_MS]))
        if fence:
            await self._count_hours(now_s)
        if not _has_epochs(self._policies):
            self._epoch = self._next = None
            self.stale = False
        else:
            await self._follow(now_s, fence)
        await self._write_down()

    async def _follow(self, now_s: int, fence: int) -> None:
        epoch_s = self._policies.pricing.epoch_s
        start_s = epoch_start(now_s, epoch_s)
        current, upcoming = await read_epochs(self._redis, [start_s, start_s + epoch_s])
        if fence and current is None:
            current = await self._make(start_s, now_s, fence)
        if fence and upcoming is None and now_s >= start_s + epoch_s - min(LEAD_S, epoch_s // 4):
            upcoming = await self._make(start_s + epoch_s, now_s, fence)
        if upcoming is not None and upcoming != self._next:
            self._unwritten.append(Tariffs(self._policies, upcoming))
        self._next = upcoming
        self.stale = current is None
        if current is not None:
            self._hold(current)

    def _hold(self, epoch: Epoch) -> None:
        if self._epoch is None or epoch.start_s != self._epoch.start_s:
            self._epoch = epoch
            self._show()

    def _show(self) -> None:
        tariffs = Tariffs(self._policies, self._epoch)
        self._unwritten.append(tariffs)
        self._use(tariffs)

    async def _make(self, start_s: int, now_s: int, fence: int) -> Epoch:
        policies = self._policies
        epoch_s = policies.pricing.epoch_s
        earlier = [start_s - back * epoch_s for back in range(1, BEFORE_MAX + 1)]
        before = next((epoch for epoch in await read_epochs(self._redis, earlier) if epoch is not None), None)
        names = await tenants(self._redis)
        measured = await self._measure(start_s, epoch_s, names)
        made = decide(
            policies,
            start_s,
            before=before,
            measured=measured,
            input_ratios=await self._input_ratios(start_s),
            volumes=await self._volumes(start_s),
            decided_s=now_s,
            fence=fence,
        )
        kept = await write_epoch(self._redis, made)
        if kept == made:
            for model, price in made.prices.items():
                log.info("%s: %s $/Mtok from %s on", model, price.output_usd_per_mtok, made.name)
        return kept

    async def _measure(self, start_s: int, epoch_s: int, names: Collection[str]) -> dict[str, Measured]:
        """What each live model's pool cost and made in its window."""
        shared = pools(self._policies)
        read: dict[tuple[int, int], tuple[dict[str, Billed], list[GpuSpan]]] = {}
        found: dict[str, Measured] = {}
        for model in self._policies.models.values():
            if model.price is None or not model.price.follows_cost:
                continue
            window = measured_window(start_s, epoch_s, model.price.smooth)
            if window not in read:
                read[window] = await self._billed(window, names), await read_spans(self._redis, *window)
            billed, spans = read[window]
            pool = shared[model.name]
            tokens = sum((billed.get(name, Billed()) for name in pool), Billed())
            found[model.name] = Measured(
                cost_nanousd=cost_nanousd(of_pool(spans, pool), *window),
                input_tokens=tokens.input_tokens,
                cached_tokens=tokens.cached_tokens,
                output_tokens=tokens.output_tokens,
            )
        return found

    async def _billed(self, window: tuple[int, int], names: Collection[str]) -> dict[str, Billed]:
        by_model: dict[str, Billed] = {}
        found = await billed_by_tenant_and_model(self._redis, list(names), *window)
        for (_, model), billed in found.items():
            by_model[model] = by_model.get(model, Billed()) + billed
        return by_model

    async def _input_ratios(self, start_s: int) -> dict[str, Decimal]:
        """What input costs of output where that is to be measured and can be."""
        found: dict[str, Decimal] = {}
        names = {one.url: one.name for one in self._replicas()}
        for model in self._policies.models.values():
            price = model.price
            if price is None or not price.follows_cost or price.ratios == "set":
                continue
            replicas = [names[replica.url] for replica in model.replicas if replica.url in names]
            window = measured_window(start_s, self._policies.pricing.epoch_s, price.smooth)
            ratio = await measured_input_ratio(self._redis, replicas, *window)
            if ratio is not None:
                found[model.name] = ratio
        return found

    async def _volumes(self, start_s: int) -> dict[str, dict[str, int]]:
        """Tokens of this month so far, of tenants whose price depends on that."""
        volumes: dict[str, dict[str, int]] = {}
        for tenant in self._policies.tenants.values():
            if any(terms.tiers for terms in tenant.prices.values()):
                month_s = period_at("month", start_s, tenant.time_zone).start_s
                until_s = start_s // MINUTE_S * MINUTE_S
                found = await billed_by_tenant_and_model(self._redis, [tenant.name], month_s, until_s)
                volumes[tenant.name] = {model: billed.tokens for (_, model), billed in found.items()}
        return volumes

    async def _count_hours(self, now_s: int) -> None:
        terms = gpu_terms(self._policies)
        here = {one.name: terms[one.url] for one in self._replicas() if one.is_there and one.url in terms}
        await tell_gpus(self._redis, here, now_s)

    async def _write_down(self) -> None:
        """Every price that may be charged is in the book."""
        due = list(self._unwritten)  # policies may change while Redis is written to
        if due:
            await write_prices(self._redis, [priced for tariffs in due for priced in tariffs.all()])
            del self._unwritten[: len(due)]

    async def _tick_once(self) -> None:
        try:
            await self.tick()
            self._away = False
        except (RedisError, OSError, StoreUnavailable) as error:
            if not self._away:
                log.warning("prices stay as they are: %s", error)
            self._away = True
            self.stale = _has_epochs(self._policies)

    async def _run(self) -> None:
        while True:
            epoch_s = self._policies.pricing.epoch_s
            left_s = epoch_s - self._now_ms() / 1000 % epoch_s
            if left_s < TICK_S and self._next is not None:
                await asyncio.sleep(left_s)
                self._hold(self._next)
            else:
                await asyncio.sleep(TICK_S)
            await self._tick_once()


def _has_epochs(policies: Policies) -> bool:
    """Whether any price changes with time."""
    if any(model.price is not None and model.price.follows_cost for model in policies.models.values()):
        return True
    terms = [terms for tenant in policies.tenants.values() for terms in tenant.prices.values()]
    return any(one.tiers or one.off_peak is not None for one in terms)
