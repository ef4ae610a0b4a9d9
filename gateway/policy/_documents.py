"""The policy documents as values: what the YAML of an SRE becomes once it has been checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from typing import Literal
from urllib.parse import urlsplit

from gateway.catalogue import Catalogue, Purchase, builtin
from gateway.engines import EngineName
from gateway.pricing import Price

from ._limits import LimitsSpec, ScopeLimitsSpec
from ._prices import EVERY_MODEL, PriceSpec, PricingSpec, TenantPriceSpec
from ._scopes import Scope, ScopeKind, Scopes, scopes_with

Scheme = Literal["http", "https"]
JournalFailure = Literal["refuse", "serve"]
StoreFailure = Literal["refuse", "degrade"]
EnginePriority = Literal["pass", "ignore"]
Order = Literal["arrival", "shortest"]
Disconnect = Literal["abort", "finish"]
ReplicaLoss = Literal["continue", "error"]
HedgeAfter = Literal["p95"]
SinkFormat = Literal["cloudevents", "lago"]
Excess = Literal["refuse", "cap"]
CacheIsolation = Literal["shared", "tenant"]
ReplicaHeader = Literal["omit", "send"]
ReplicaRole = Literal["both", "prefill", "decode"]
StrategyName = Literal["prefix", "least_loaded", "round_robin", "session", "weighted"]

_SESSIONS = frozenset({"session", "weighted"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """What one replica runs on: `count` GPUs, by a SKU of the catalogue and how they are paid for, or by what one of
    them costs per hour."""

    sku: str | None = None
    count: int = 1
    purchase: Purchase = "on_demand"
    usd_per_hour: Decimal | None = None

    def replica_usd_per_hour(self, catalogue: Catalogue) -> Decimal:
        """What a replica costs per hour, all its GPUs together, in US dollars."""
        if self.usd_per_hour is not None:
            return self.usd_per_hour * self.count
        assert self.sku is not None, "the loader refuses a GPU with neither"
        hourly = catalogue.gpus[self.sku].hourly(self.purchase)
        assert hourly is not None, "the loader refuses a GPU whose price nobody knows"
        return hourly.usd_per_hour * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One engine process. `url` is scheme://host:port without a trailing slash, of a hosted provider with its path;
    `weight` its part of the requests where they are placed by weight; `gpu` what it runs on where that differs from its
    model's. `kv_events` and `kv_replay` are where it tells what it caches, as ZMQ addresses; None: it does not. With
    `data_parallel_ranks` it serves for so many engines, each with a cache of its own; their ranks begin with
    `data_parallel_start_rank`, since those of all nodes are numbered together."""

    url: str
    weight: Decimal = Decimal(1)
    gpu: GpuSpec | None = None
    kv_events: str | None = None
    kv_replay: str | None = None
    data_parallel_ranks: int | None = None
    data_parallel_start_rank: int = 0
    role: ReplicaRole = "both"

    @property
    def name(self) -> str:
        """What metrics, events and logs call it: host:port."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

    @property
    def ranks(self) -> range:
        """Its engines' ranks; none where it is one engine."""
        start = self.data_parallel_start_rank
        return range(start, start + (self.data_parallel_ranks or 0))

    @property
    def places(self) -> list[str]:
        """What the places are called that a request may go to there."""
        return [rank_name(self.name, rank) for rank in self.ranks] or [self.name]


def rank_name(replica: str, rank: int) -> str:
    """What placements call one of the engines behind a replica's address."""
    return f"{replica}@{rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Some of a model's replicas, which are used together: one pool after the other. With an engine, a key or a price
    of its own it is a last resort, apart from the model's other pools: a hosted provider, mostly."""

    name: str
    replicas: tuple[ReplicaSpec, ...]
    engine: EngineName | None = None
    engine_model: str | None = None
    api_key_env: str | None = None
    price: PriceSpec | None = None

    @property
    def is_apart(self) -> bool:
        """Whether it is a last resort."""
        own = (self.engine, self.engine_model, self.api_key_env, self.price)
        return any(value is not None for value in own)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """Where requests go. `session_header` (lower case) names what belongs together, otherwise a request's `user` does;
    `shadow` is a strategy that is scored and not used."""

    strategy: StrategyName = "prefix"
    session_header: str | None = None
    shadow: StrategyName | None = None

    @property
    def has_sessions(self) -> bool:
        """Whether it matters which requests belong together."""
        return not _SESSIONS.isdisjoint((self.strategy, self.shadow))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSpec:
    """How long one request may be, in tokens; None means no limit. `max_total_tokens` binds a prompt together with its
    answer. `on_excess` is what happens to a request that asks for a longer answer than one of these allows."""

    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_total_tokens: int | None = None
    on_excess: Excess = "refuse"

    @property
    def limits(self) -> bool:
        """Whether there is any limit."""
        lengths = (self.max_input_tokens, self.max_output_tokens, self.max_total_tokens)
        return any(length is not None for length in lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSpec:
    """A Service of Kubernetes. `port` is the engines' own; None: the one that its EndpointSlices name. `namespace` is
    the gateway's own where None."""

    service: str
    namespace: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverSpec:
    """Where a model's replicas are told, one of: a file with a list of addresses; a name whose addresses in DNS have
    an engine at `port`; a name with SRV records; a Service of Kubernetes."""

    file: str | None = None
    dns: str | None = None
    srv: str | None = None
    kubernetes: KubernetesSpec | None = None
    port: int | None = None
    scheme: Scheme = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A served model. `name` is what clients send; engines know it by the same name, or by `engine_model`.
    `api_key_env` names the environment variable with the key they want. `on_disconnect` is what happens to an answer
    whose client hangs up: the engine stops, or finishes it and all of it is billed. `on_replica_loss` is what happens
    to a stream whose replica dies: another goes on with it where that can be right, or it ends with an error.
    `hedge_after` and `hedge_after_ms`: when a stream that has no first byte yet is tried on a second replica as well,
    at the later of the two; neither: never. `tokenizer` is the path of its `tokenizer.json`; `limits` are of all
    tenants together. `engine_priority`: its engines schedule by priority, and are told that of the request's class.
    `locality_tokens`: what a tenant may be given out of its turn, where its prompt begins as the last one did.
    `cache_isolation`: whether tenants find each other's prompts in the engines' caches, where the tenant itself says
    nothing else. `replicas` are those of all `pools` but the last resorts, where it has any: in their order, each used
    when those before it have no room. `discover` is where more of them are told while the gateway serves."""

    name: str
    replicas: tuple[ReplicaSpec, ...] = ()
    pools: tuple[PoolSpec, ...] = ()
    discover: DiscoverSpec | None = None
    engine: EngineName = "vllm"
    engine_model: str | None = None
    api_key_env: str | None = None
    aliases: tuple[str, ...] = ()
    context_tokens: int | None = None
    context: ContextSpec | None = None
    tokenizer: str | None = None
    on_disconnect: Disconnect = "abort"
    on_replica_loss: ReplicaLoss = "continue"
    hedge_after: HedgeAfter | None = None
    hedge_after_ms: int | None = None
    engine_priority: EnginePriority = "ignore"
    locality_tokens: int = 2000
    cache_isolation: CacheIsolation = "shared"
    routing: RoutingSpec = field(default_factory=RoutingSpec)
    gpu: GpuSpec | None = None
    hosted_as: str | None = None
    price: PriceSpec | None = None
    limits: ScopeLimitsSpec | None = None

    def __post_init__(self) -> None:
        if self.pools:
            own = (pool for pool in self.pools if not pool.is_apart)
            object.__setattr__(self, "replicas", tuple(one for pool in own for one in pool.replicas))

    @property
    def resorts(self) -> list[ModelSpec]:
        """The model as each of its last resorts serves it, which is a pool alone then."""
        return [self._at(pool) for pool in self.pools if pool.is_apart]

    def _at(self, pool: PoolSpec) -> ModelSpec:
        return replace(
            self,
            pools=(PoolSpec(name=pool.name, replicas=pool.replicas),),
            engine=pool.engine or self.engine,
            engine_model=pool.engine_model or self.engine_model,
            api_key_env=pool.api_key_env,
            context_tokens=None,
            tokenizer=None,
            on_replica_loss="error",
            hedge_after=None,
            hedge_after_ms=None,
            engine_priority="ignore",
            routing=RoutingSpec(strategy="least_loaded"),
            price=pool.price or self.price,
        )

    @property
    def hedges(self) -> bool:
        """Whether late streams are tried twice."""
        return self.hedge_after is not None or self.hedge_after_ms is not None

    @property
    def engine_name(self) -> str:
        """What its engines call it."""
        return self.engine_model or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """A key by its public id and the SHA-256 of the whole key, in lower-case hex."""

    id: str
    sha256: str
    limits: ScopeLimitsSpec | None = None
    context: ContextSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """Limits that its tenants share. Days and months begin at midnight in `time_zone`, an IANA name."""

    name: str
    limits: ScopeLimitsSpec = field(default_factory=ScopeLimitsSpec)
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """Limits that all tenants share; days and months are UTC's."""

    limits: ScopeLimitsSpec = field(default_factory=ScopeLimitsSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """Who may use what. `models` holds names and aliases of models, or "*" for all. `time_zone` is an IANA name; the
    limits take it over. `group` shares limits with others; `prices` are this tenant's own, by model. `cache_isolation`
    goes before its models'. `replica_header`: whether its answers say which replica they are from."""

    name: str
    group: str | None = None
    keys: tuple[KeySpec, ...] = ()
    models: tuple[str, ...] = ("*",)
    class_name: str | None = None
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    context: ContextSpec | None = None
    prices: dict[str, TenantPriceSpec] = field(default_factory=dict)
    time_zone: str = "UTC"
    cache_isolation: CacheIsolation | None = None
    replica_header: ReplicaHeader = "omit"
    _key_limits: dict[str, ScopeLimitsSpec] = field(init=False, repr=False, compare=False, default_factory=dict)
    _key_contexts: dict[str, ContextSpec] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._key_limits.update({key.id: key.limits for key in self.keys if key.limits is not None})
        self._key_contexts.update({key.id: key.context for key in self.keys if key.context is not None})
        if self.time_zone != self.limits.time_zone:
            object.__setattr__(self, "limits", replace(self.limits, time_zone=self.time_zone))

    def limits_of_key(self, key: str) -> ScopeLimitsSpec | None:
        """The limits of one of its keys by public id."""
        return self._key_limits.get(key)

    def context_of_key(self, key: str) -> ContextSpec | None:
        """How long requests with one of its keys may be, by public id."""
        return self._key_contexts.get(key)

    def isolated_on(self, model: ModelSpec) -> bool:
        """Whether this tenant's prompts at the model have cached blocks of their own."""
        return (self.cache_isolation or model.cache_isolation) == "tenant"

    def price_of(self, model: str) -> TenantPriceSpec | None:
        """Its own terms for a model, if it has any."""
        return (self.prices.get(model) or self.prices.get(EVERY_MODEL)) if self.prices else None

    def may_use(self, model: ModelSpec) -> bool:
        """Whether this tenant's requests for the model are served."""
        allowed = self.models
        return "*" in allowed or model.name in allowed or any(alias in allowed for alias in model.aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class SloSpec:
    """Latency targets of a class, in milliseconds."""

    ttft_p99_ms: int | None = None
    itl_p99_ms: int | None = None

    @property
    def bounds(self) -> bool:
        """Whether there is a target at all: only then does a request wait for room."""
        return self.ttft_p99_ms is not None or self.itl_p99_ms is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSpec:
    """A service class: strict priority band, weight within it, longest wait in the queue. A tenant holds at most
    `max_share` of the replicas' places; its own requests go in `order`. Its prices are times `price_multiplier`."""

    name: str
    priority: int = 0
    weight: Decimal = Decimal(1)
    max_wait_s: Decimal = Decimal(2)
    max_share: Decimal = Decimal(1)
    order: Order = "arrival"
    slo: SloSpec = field(default_factory=SloSpec)
    context: ContextSpec | None = None
    price_multiplier: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TagsSpec:
    """Free tags to split usage by: the members `names` of a request's `metadata`, or of the header `header` (lower
    case) where that names one. A tag has `values_max` values per tenant, worker and day; then it is "other"."""

    names: tuple[str, ...] = ()
    header: str | None = None
    values_max: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    """Where usage events are pushed to, in requests of at most `batch_max` events. The token comes from the
    environment, `MTOK_SINK_TOKEN`."""

    url: str
    format: SinkFormat = "cloudevents"
    batch_max: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsSpec:
    """Where it is told that a soft limit is used by 50, 80, 95 %. The token comes from the environment,
    `MTOK_ALERTS_TOKEN`; the address may be a secret itself."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSpec:
    """How usage is kept. Days are how long after an event its journal row, its entry in the stream and its buckets
    stay; day buckets stay for ever. `on_journal_failure` is what happens when events cannot be written to disk,
    `on_store_failure` when Redis is away: then each worker may admit `degraded_share` of a limit by itself.
    `users_max` users are told apart per tenant, worker and day; then it is "other"; 0 keeps no users at all."""

    on_journal_failure: JournalFailure = "refuse"
    on_store_failure: StoreFailure = "refuse"
    degraded_share: Decimal = Decimal("0.1")
    keep_journal_days: int = 3
    keep_events_days: int = 35
    keep_minutes_days: int = 7
    keep_hours_days: int = 120
    users_max: int = 1000
    tags: TagsSpec = field(default_factory=TagsSpec)
    sink: SinkSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Policies:
    """Everything one directory of policy documents says, checked as a whole. `sha256` is of the files' contents."""

    models: dict[str, ModelSpec]
    tenants: dict[str, TenantSpec]
    classes: dict[str, ClassSpec]
    groups: dict[str, GroupSpec] = field(default_factory=dict)
    fleet: FleetSpec = field(default_factory=FleetSpec)
    ledger: LedgerSpec = field(default_factory=LedgerSpec)
    alerts: AlertsSpec | None = None
    pricing: PricingSpec = field(default_factory=PricingSpec)
    catalogue: Catalogue = field(default_factory=builtin)
    sha256: str

    def model_named(self, name: str) -> ModelSpec | None:
        """The model clients mean by this name or alias."""
        return self._by_name.get(name)

    def models_of(self, tenant: TenantSpec) -> list[ModelSpec]:
        """The models this tenant may use, in the order of the documents."""
        return [model for model in self.models.values() if tenant.may_use(model)]

    def limits_of(self, tenant: str) -> LimitsSpec:
        """The limits of a tenant by its name; none for one that is no longer there."""
        spec = self.tenants.get(tenant)
        return LimitsSpec() if spec is None else spec.limits

    def class_of(self, tenant: TenantSpec) -> ClassSpec:
        """The tenant's service class; one with the defaults when it names none, or one of policies that were before."""
        return DEFAULT_CLASS if tenant.class_name is None else self.classes.get(tenant.class_name, DEFAULT_CLASS)

    @cached_property
    def version(self) -> str:
        """What answers, events and logs call these documents: the first 12 hex digits of their SHA-256."""
        return self.sha256[:12]

    def scopes_of(self, tenant: TenantSpec, key: str, model: str) -> Scopes:
        """Whose limits a request meets beyond its tenant's own: its key's, by public id, its model's, by name, .."""
        name = tenant.name
        scopes = [*self._scopes_with("tenant", "", tenant.limits, tenant.time_zone, owner=name)]
        if (of_key := tenant.limits_of_key(key)) is not None:
            scopes += self._scopes_with("key", key, of_key, tenant.time_zone, owner=name)
        if tenant.group is not None and (group := self.groups.get(tenant.group)) is not None:
            scopes += self._scopes_with("group", group.name, group.limits, group.time_zone)
        if (spec := self.models.get(model)) is not None and spec.limits is not None:
            scopes += self._scopes_with("model", model, spec.limits)
        scopes += self._scopes_with("fleet", "", self.fleet.limits)
        met = (tenant.limits, *(scope.limits for scope in scopes))
        return Scopes(
            tuple(scopes),
            is_budgeted=any(limits.budgets for limits in met),
            holds_tokens=any(limits.holds_tokens for limits in met),
        )

    def _scopes_with(
        self, kind: ScopeKind, of: str, limits: ScopeLimitsSpec, time_zone: str = "UTC", *, owner: str = ""
    ) -> tuple[Scope, ...]:
        """The same ones each time: whoever works something out for a scope knows it again."""
        known, scopes = self._scopes.get((kind, owner, of), (None, ()))
        if known is not limits:
            scopes = tuple(scopes_with(kind, of, limits, time_zone))
            self._scopes[kind, owner, of] = limits, scopes
        return scopes

    @cached_property
    def has_windows(self) -> bool:
        """Whether any limit is of an hour, a day or a month."""
        found: list[ScopeLimitsSpec | None] = [self.fleet.limits, *(model.limits for model in self.models.values())]
        found += [group.limits for group in self.groups.values()]
        for tenant in self.tenants.values():
            found += [tenant.limits, *(key.limits for key in tenant.keys)]
        rules = [rule for limits in found if limits is not None for rule in (limits, limits.soft, limits.audit)]
        return any(rule is not None and (rule.budgets or rule.tokens_per_day is not None) for rule in rules)

    @property
    def price_epoch(self) -> str:
        """The name under which events carry the prices of these documents."""
        return f"policy:{self.version}"

    @cached_property
    def prices(self) -> dict[str, Price]:
        """The price of each model that has one, by the model's name, ready to charge."""
        return {
            model.name: Price.of(model.price, epoch=self.price_epoch)
            for model in self.models.values()
            if model.price is not None
        }

    @cached_property
    def pool_prices(self) -> dict[tuple[str, str], Price]:
        """The prices of pools that have their own, by model and pool; their epochs name the pool."""
        return {
            (model.name, pool.name): Price.of(pool.price, epoch=f"{self.price_epoch}/{pool.name}")
            for model in self.models.values()
            for pool in model.pools
            if pool.price is not None
        }

    @cached_property
    def covers(self) -> dict[str, Price]:
        """What a budget holds for a request to each model that has a price: the dearest that it may come to."""
        return {
            name: Price.dearest([price, *(of for (model, _), of in self.pool_prices.items() if model == name)])
            for name, price in self.prices.items()
        }

    @cached_property
    def _scopes(self) -> dict[tuple[ScopeKind, str, str], tuple[ScopeLimitsSpec | None, tuple[Scope, ...]]]:
        return {}

    @cached_property
    def _by_name(self) -> dict[str, ModelSpec]:
        return {name: model for model in self.models.values() for name in (model.name, *model.aliases)}


DEFAULT_CLASS = ClassSpec(name="default")
