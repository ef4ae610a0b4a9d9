"""The life of a request, top to bottom: `Lifecycle.serve` is the order, and the order is nowhere else.

    authenticate  key hash → tenant                                401
    read          bounded body                                     413, 408
    parse         the few fields the gateway needs                 400
    permit        the tenant's models                              404
    measure       prompt tokens against context and limits         400 context_length_exceeded
    reserve       requests/min, tokens/min, concurrency, dollars   429
    queue, place  wait for a replica with room, in fair order      429
    relay         bytes through                                    502, 503
    settle        what was really used: ledger, refunds

Authentication comes before the body, so that nobody without a key makes the gateway hold 32 MiB. Every step before the
relay can refuse; a refusal gives back what was reserved. Settling happens on every way out of the reservation.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import partial

from msgspec import Struct

from gateway import refusals
from gateway.admission import Holding, Work
from gateway.alerts import Alerts
from gateway.attempts import Attempts
from gateway.cache_events import CacheEvents
from gateway.call import COST, Call, Outcome, Reservation
from gateway.clock import Clock
from gateway.context import (
    ContextLimits,
    PromptSize,
    bounded,
    check,
    estimate,
    granted,
    least,
    limits_for,
    surely_fits,
)
from gateway.costing import Tariffs
from gateway.counting import PromptCounter
from gateway.dispatch import Dispatcher, Slot
from gateway.engines import engine_body
from gateway.errors import Refusal, Refused
from gateway.exchange import Exchange
from gateway.failover import kept_of
from gateway.fleet import Fleet, ModelFleet
from gateway.floods import Floods
from gateway.isolation import Salts
from gateway.meter import Meter
from gateway.metering import JournalUnavailable, Labels, Ledger
from gateway.placement import Placement, Routers
from gateway.policy import ClassSpec, Policies, RoutingSpec, Scopes, TenantSpec
from gateway.pricing import Price
from gateway.reading import ClientGone, body_at_hand, read_body
from gateway.relay import CLIENT, Client, ClientWatch, Message, Outgoing, Receive, stream_error
from gateway.resorts import Elsewhere, Resort, cover
from gateway.routing import Loads, Query, Router, chain_seed, prefix_chain, session_of
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.tenants import Identity, KeyDirectory, KeysUnavailable, key_of_headers
from gateway.wire import Endpoint, RequestView, parse, prompt_text

log = logging.getLogger(__name__)

PROMPT_TOKENS = b"x-mtok-prompt-tokens"
"""Answers carry it where the prompt had to be counted: how many tokens, and whether that is exact or estimated."""

TERMS_MAX = 10_000
"""Pairs of keys and models whose terms are remembered."""
COUNTED_AT_ONCE = 4
"""Prompts counted only because a budget is nearly used up: whoever asks beyond is held to what its bytes bound."""

_ids = random.Random(secrets.randbits(256))  # noqa: S311 - unique, not secret; the system's own costs 5 µs a call
_UUID7_RANDOM = (1 << 80) - 1 & ~(0xF << 76 | 0x3 << 62)
_UUID7_VERSION = 0x7 << 76 | 0x2 << 62
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}").fullmatch
_PASSED_ON = frozenset({b"traceparent", b"tracestate", b"endpoint-load-metrics-format"})


class Terms(Struct, frozen=True, kw_only=True):
    """What the policies in force say of a tenant's requests with one key for one model. `cover` is the price that a
    budget holds them at: the dearest of `price`, the model's own, and its last resorts'."""

    tenant: TenantSpec
    service: ClassSpec
    scopes: Scopes
    limits: ContextLimits
    price: Price | None
    cover: Price | None
    router: Router
    resorts: Sequence[Resort]
    isolated: bool
    has_sessions: bool


class Lifecycle:
    """Everything a request meets, wired once by the composition root."""

    def __init__(
        self,
        *,
        policies: Policies,
        fleet: Fleet,
        counter: PromptCounter,
        keys: KeyDirectory,
        ledger: Ledger,
        dispatcher: Dispatcher,
        telemetry: Telemetry,
        alerts: Alerts,
        salts: Salts,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self.fleet = fleet
        self.counter = counter
        self.keys = keys
        self.ledger = ledger
        self.dispatcher = dispatcher
        self.telemetry = telemetry
        self._alerts = alerts
        self._floods = Floods(ledger, telemetry, clock.now_ms)
        self._salts = salts
        self.clock = clock
        self.settings = settings
        self.draining = False
        self._counting = 0
        self._running: set[ClientWatch] = set()
        self.routers = Routers(fleet, Loads())
        self.cache_events = CacheEvents(fleet, self.routers, now_ms=clock.now_ms)
        self._labels = Labels(policies.ledger)
        self.policies = policies
        self.apply(policies)

    def apply(self, policies: Policies) -> None:
        """From now on requests are admitted by these policies; those that run keep the ones they were admitted by."""
        if self.policies.ledger != policies.ledger:
            self._labels = Labels(policies.ledger)
        self.dispatcher.relax()
        self.policies = policies
        self.tariffs = Tariffs(policies)
        self._terms: dict[tuple[str, str, str], Terms] = {}
        self.routers.use(policies.models)
        self.cache_events.use(policies.models.values())

    def charge(self, tariffs: Tariffs) -> None:
        """From now on requests are admitted at these prices; those that run pay what held when they were admitted."""
        self.tariffs = tariffs
        self._terms.clear()

    @property
    def idle(self) -> bool:
        """Whether nothing is being relayed."""
        return not self._running

    def interrupt_all(self) -> None:
        """Ends every running answer with an error its client can read: the drain deadline has come."""
        for watch in list(self._running):
            watch.interrupt()

    async def serve(self, endpoint: Endpoint, scope: Message, receive: Receive) -> None:
        """One request, from its head to the settled end of its answer."""
        client: Client = scope["extensions"][CLIENT]
        given = client.headers
        now_ms = self.clock.now_ms()
        call = Call(request_id(given, now_ms), endpoint, now_ms, self.policies.version, wants_cost=COST in given)
        call.traceparent = given.get(b"traceparent", b"").decode("latin-1")
        outgoing = Outgoing(client)
        if self.draining:
            await outgoing.refuse(refusals.DRAINING, call.answer_headers())
            return
        try:
            identity = self.keys.recognise(key_of_headers(given)) or await self.authenticate(given)
            call.tenant, call.key = identity.tenant.name, identity.key_id
            limit_bytes = self.settings.max_body_bytes
            body = body_at_hand(client, limit_bytes=limit_bytes)
            if body is None:
                body = await read_body(given.get(b"content-length", b""), receive, limit_bytes=limit_bytes)
            view = parse(endpoint, body)
            self._label(call, view, given)
            # The body may have come after other policies than the key: one request is decided by one version.
            tenant = self.policies.tenants.get(call.tenant, identity.tenant)
            model = self._permit(tenant, view)
            size = estimate(view)
            call.permitted(
                model.spec.name,
                self.policies.version,
                size.total,
                view.output_tokens,
                shows_replica=tenant.replica_header == "send",
            )
            # Taken now: policies may change at any wait, and this request keeps those it was admitted by.
            terms = self._terms_of(tenant, call.key, model)
            salt = await self._salt(terms, view, model) if terms.isolated and endpoint.computes else ""
            if not surely_fits(view, terms.limits):
                size = await self._measure(call, view, size, body=body, model=model, limits=terms.limits)
            bound = granted(view, size, terms.limits)
            view, limits = bounded(view, terms.limits, bound)
            holding = Holding.of(view, size, limits, price=terms.cover, tenant=tenant.limits, scopes=terms.scopes)
            if await self._floods.refuses(call, tenant, terms.scopes, terms.price, holding, outgoing=outgoing):
                return
            async with self._reserve(
                call, tenant, terms, holding, view=view, body=body, model=model, limits=limits, size=size
            ) as reservation:
                query = Query(
                    chain=prefix_chain(prompt_text(view), chain_seed(salt.encode() or view.cache_salt)),
                    prompt_tokens=size.total if endpoint.computes else 0,
                    streams=view.stream,
                    session=_session(model.spec.routing, call.tenant, given, view) if terms.has_sessions else "",
                )
                keeps = kept_of(view, model, size)
                with ClientWatch(client, self._running, finishes=model.spec.on_disconnect == "finish") as watch:
                    slot = self._slot(
                        call,
                        tenant,
                        terms,
                        view=view,
                        model=model,
                        size=size,
                        query=query,
                        is_retry=given.get(b"x-stainless-retry-count", b"0") != b"0",
                    )
                    at = partial(
                        self._attempts,
                        call,
                        view,
                        body,
                        given=given,
                        salt=salt,
                        query=query,
                        priority=terms.service.priority,
                        bound=reservation.output_cap or bound,
                        meter=reservation.meter,
                        watch=watch,
                    )
                    await Exchange(
                        call=call,
                        view=view,
                        model=model,
                        attempts=at(model, router=terms.router, slot=slot, token_ids=keeps == "token_ids"),
                        elsewhere=[
                            Elsewhere(price=resort.price, attempts=partial(at, resort.model, router=resort.router))
                            for resort in terms.resorts
                            if resort.serves(endpoint, isolated=terms.isolated)
                        ],
                        slot=slot,
                        reservation=reservation,
                        watch=watch,
                        outgoing=outgoing,
                        keeps=keeps,
                        fleet=self.fleet,
                        counter=self.counter,
                        cache_events=self.cache_events,
                        telemetry=self.telemetry,
                        clock=self.clock,
                    ).run()
        except Refused as refused:
            await self._refuse(call, refused.refusal, outgoing)
        except JournalUnavailable as error:
            log.error("an answer could not be booked: %s", error, extra={"data": {"request_id": call.id}})
            await _end_unbooked(call, outgoing)
        except ClientGone:
            log.debug("client left while sending its request", extra={"data": {"request_id": call.id}})
        except Exception:
            log.exception("unexpected failure", extra={"data": {"request_id": call.id}})
            if outgoing.started:
                raise
            await outgoing.refuse(refusals.INTERNAL, call.answer_headers())

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> Identity:
        """Whose key this is. Raises `Refused`: 401, or 503 while a key cannot be looked up."""
        key = key_of_headers(headers)
        try:
            identity = await self.keys.lookup(key) if key else None
        except KeysUnavailable as error:
            raise Refused(refusals.STORE_AWAY) from error
        if identity is None:
            raise Refused(refusals.UNKNOWN_KEY if key else refusals.NO_KEY)
        return identity

    def _label(self, call: Call, view: RequestView, headers: Mapping[bytes, bytes]) -> None:
        """What the request says of itself, for splitting usage."""
        if view.user or self._labels.tagged:
            call.user, call.tags = self._labels.read(
                call.tenant, call.arrived_ms, user=view.user, metadata=view.metadata, headers=headers
            )

    def _permit(self, tenant: TenantSpec, view: RequestView) -> ModelFleet:
        """The model a tenant may use, at this endpoint. One answer for what is forbidden and what is not there."""
        spec = self.policies.model_named(view.model)
        if spec is None or not tenant.may_use(spec):
            raise Refused(refusals.model_not_found(view.model))
        model = self.fleet.models[spec.name]
        if not model.dialect.serves(view.endpoint):
            raise Refused(refusals.not_served(spec.name, view.endpoint.path))
        return model

    def _terms_of(self, tenant: TenantSpec, key: str, model: ModelFleet) -> Terms:
        """What the policies say of such requests, worked out once."""
        of = (tenant.name, key, model.spec.name)
        terms = self._terms.get(of)
        if terms is None or terms.tenant is not tenant or terms.limits.context != model.context_tokens:
            if len(self._terms) >= TERMS_MAX:
                self._terms.clear()
            service = self.policies.class_of(tenant)
            context_tokens, name = model.context_tokens, model.spec.name
            price, resorts = self.tariffs.of(tenant, name), [self._resort(tenant, resort) for resort in model.resorts]
            terms = self._terms[of] = Terms(
                tenant=tenant,
                service=service,
                scopes=self.policies.scopes_of(tenant, key, model.spec.name),
                limits=limits_for(tenant, key, service=service, model=model.spec, context_tokens=context_tokens),
                price=price,
                cover=cover(price, resorts),
                resorts=resorts,
                router=self.routers.by_model[model.spec.name],
                isolated=tenant.isolated_on(model.spec),
                has_sessions=model.spec.routing.has_sessions,
            )
        return terms

    def _resort(self, tenant: TenantSpec, model: ModelFleet) -> Resort:
        name, pool = model.spec.name, model.spec.pools[0].name
        price = self.tariffs.pool(name, pool) or self.tariffs.of(tenant, name)
        return Resort(model=model, router=self.routers.resort(name, pool), price=price)

    async def _salt(self, terms: Terms, view: RequestView, model: ModelFleet) -> str:
        """The `cache_salt` that keeps this tenant's cached blocks from the others. Raises `Refused` where they could
        meet all the same."""
        if view.moves_cache:
            raise Refused(refusals.KV_TRANSFER)
        path = view.endpoint.path
        salts = await self.fleet.salts(model, path)
        if not salts:
            raise Refused(refusals.ISOLATION_UNKNOWN if salts is None else refusals.not_isolated(path))
        return await self._salts.of(terms.tenant.name, view.cache_salt)

    async def _measure(
        self,
        call: Call,
        view: RequestView,
        estimated: PromptSize,
        *,
        body: bytes,
        model: ModelFleet,
        limits: ContextLimits,
    ) -> PromptSize:
        """The size of a prompt that may not fit: exact where a limit lies between its bounds, else as estimated."""
        if not view.endpoint.computes:
            return estimated
        if refusal := check(view, least(view), limits):
            raise Refused(refusal)
        if view.attachments:  # no tokenizer tells their tokens, so what is left of the limits is the engine's to hold
            return estimated
        counted = await self.counter.count(model, view, body) if view.prompt_tokens is None else None
        size = counted or estimated
        call.headers.append((PROMPT_TOKENS, b"%d; %b" % (size.total, b"exact" if size.exact else b"estimated")))
        if refusal := check(view, size, limits):
            raise Refused(refusal)
        return size

    def _reserve(
        self,
        call: Call,
        tenant: TenantSpec,
        terms: Terms,
        holding: Holding,
        *,
        view: RequestView,
        body: bytes,
        model: ModelFleet,
        limits: ContextLimits,
        size: PromptSize,
    ) -> Reservation:
        return Reservation(
            call,
            tenant,
            terms.scopes,
            holding,
            terms.price,
            count_prompt=partial(self._count, view, body, model),
            meter=Meter(view, size, limits),
            ledger=self.ledger,
            telemetry=self.telemetry,
            alerts=self._alerts,
            clock=self.clock,
        )

    async def _count(self, view: RequestView, body: bytes, model: ModelFleet) -> PromptSize | None:
        """A prompt whose size decides whether it may run; None where no tokenizer tells it, or too many are asked."""
        if view.attachments or view.prompt_tokens is not None or self._counting >= COUNTED_AT_ONCE:
            return None
        self._counting += 1
        try:
            return await self.counter.count(model, view, body)
        finally:
            self._counting -= 1

    def _attempts(
        self,
        call: Call,
        view: RequestView,
        body: bytes,
        model: ModelFleet,
        *,
        given: Mapping[bytes, bytes],
        router: Router,
        query: Query,
        priority: int,
        bound: int | None,
        meter: Meter,
        watch: ClientWatch,
        salt: str,
        slot: Slot | None = None,
        token_ids: bool = False,
    ) -> Attempts:
        """What to send to the replicas of the model, or of one of its last resorts, and how."""
        return Attempts(
            call=call,
            view=view,
            body=engine_body(
                model.dialect,
                view,
                body,
                model=model.spec.engine_name,
                bound=bound,
                priority=priority if model.spec.engine_priority == "pass" else None,
                salt=salt,
                token_ids=token_ids,
            ),
            passed_on=_passed_on(given),
            patience_s=given.get(b"x-stainless-timeout", b""),
            model=model,
            placement=Placement(router, query, self.clock.now_ms, has_ranks=model.has_ranks),
            slot=slot,
            meter=meter,
            watch=watch,
            telemetry=self.telemetry,
            clock=self.clock,
        )

    def _slot(
        self,
        call: Call,
        tenant: TenantSpec,
        terms: Terms,
        *,
        view: RequestView,
        model: ModelFleet,
        size: PromptSize,
        query: Query,
        is_retry: bool,
    ) -> Slot | None:
        """What it asks of a replica, as predicted, and its place in its model's line; None: nothing bounds it there."""
        service = terms.service
        if not (service.slo.bounds and view.endpoint.computes):
            return None
        output_tokens = 0
        if view.endpoint.generates:
            output_tokens = view.answers * self.dispatcher.predictor.output_tokens(
                tenant.name, model.spec.name, view.output_tokens
            )
        work = Work(
            id=f"{_ids.getrandbits(64):x}",  # a client may use one request id twice
            tenant=tenant.name,
            band=service.priority,
            weight=float(service.weight),
            input_tokens=size.total,
            cached_tokens=terms.router.cached_most(query),
            output_tokens=output_tokens,
            retry=is_retry,
            arrived_ms=call.arrived_ms,
            deadline_ms=call.arrived_ms + int(service.max_wait_s * 1000),
            prefix=query.chain.blocks[0],
            max_share=float(service.max_share),
            shortest_first=service.order == "shortest",
        )
        return self.dispatcher.slot(model, service.slo, work, streams=view.stream)

    async def _refuse(self, call: Call, refusal: Refusal, outgoing: Outgoing) -> None:
        """Records a refusal that took nothing, then answers it."""
        if call.tenant:
            event = call.event(
                Outcome("refused", code=refusal.code, refused_by=refusal.refused_by), now_ms=self.clock.now_ms()
            )
            self.telemetry.count(event, call.traceparent)
            if not self.ledger.counts(event, call.id, event.ended_ms):
                with contextlib.suppress(JournalUnavailable):  # the client hears why it was refused all the same
                    await self.ledger.record(event)
        elif refusal.status == 401:
            self.telemetry.metrics.unauthorized.inc()
        log.debug("refused: %s", refusal.code, extra={"data": {"request_id": call.id, "key": call.key}})
        await outgoing.refuse(refusal, call.answer_headers())


def request_id(headers: Mapping[bytes, bytes], now_ms: int) -> str:
    """The client's id if it is a sane one, else a new one: a UUID of version 7 (RFC 9562) without hyphens, whose time
    says where in the tenant's events to look for it."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_ID(given):
        return given.decode()
    return f"{now_ms << 80 | _ids.getrandbits(80) & _UUID7_RANDOM | _UUID7_VERSION:032x}"


async def _end_unbooked(call: Call, outgoing: Outgoing) -> None:
    """An answer whose usage is not on disk does not end as if it were."""
    if outgoing.started:
        await outgoing.end(stream_error(call.endpoint, refusals.STREAM_UNBOOKED, "journal_unavailable"))
    else:
        await outgoing.refuse(refusals.JOURNAL_AWAY, call.answer_headers())


def _passed_on(given: Mapping[bytes, bytes]) -> bytes:
    """The client's headers that are the engine's business."""
    if _PASSED_ON.isdisjoint(given):
        return b""
    return b"".join(b"%b: %b\r\n" % (name, given[name]) for name in sorted(_PASSED_ON) if name in given)


def _session(routing: RoutingSpec, tenant: str, given: Mapping[bytes, bytes], view: RequestView) -> str:
    """What says that the request belongs together with others."""
    header = routing.session_header
    return session_of(tenant, given.get(header.encode(), b"") if header else b"", view.user)
