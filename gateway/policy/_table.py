"""The field table: every field of a policy document, once. Loader, JSON Schema and messages all come from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from gateway.catalogue import PURCHASES, builtin
from gateway.engines import DIALECTS

from . import _numbers as units
from ._documents import (
    AlertsSpec,
    ClassSpec,
    ContextSpec,
    DiscoverSpec,
    FleetSpec,
    GpuSpec,
    GroupSpec,
    KeySpec,
    KubernetesSpec,
    LedgerSpec,
    ModelSpec,
    PoolSpec,
    ReplicaSpec,
    RoutingSpec,
    SinkSpec,
    SloSpec,
    TagsSpec,
    TenantSpec,
)
from ._keys import check_public_id
from ._limits import LimitsSpec, RuleSpec, ScopeLimitsSpec
from ._modes import limits_from
from ._prices import OffPeakSpec, PriceSpec, PricingSpec, TenantPriceSpec, TierSpec
from ._rules import (
    DNS_NAME,
    MODEL_NAME,
    PLAIN_NAME,
    VARIABLE,
    check_context,
    check_discover,
    check_dns_name,
    check_gpu,
    check_model,
    check_model_choice,
    check_model_name,
    check_name,
    check_off_peak,
    check_price,
    check_replica,
    check_routing,
    check_rule,
    check_sha256,
    check_sink_url,
    check_tag_header,
    check_tags,
    check_tenant_price,
    check_time_zone,
    check_tokenizer,
    check_url,
    check_variable,
    check_zmq,
)
from ._shapes import Choice, Field, ListOf, MapOf, Number, Record, Rule, Text, Unit

BUDGET_USD_MAX = Decimal(9_000_000)
"""In nano-dollars just below 2**53: Redis scripts compare in doubles, and up to there every nano-dollar is exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What one file says."""

    models: dict[str, ModelSpec] = field(default_factory=dict)
    tenants: dict[str, TenantSpec] = field(default_factory=dict)
    classes: dict[str, ClassSpec] = field(default_factory=dict)
    groups: dict[str, GroupSpec] = field(default_factory=dict)
    fleet: FleetSpec | None = None
    ledger: LedgerSpec | None = None
    alerts: AlertsSpec | None = None
    pricing: PricingSpec | None = None


_MODEL = Text(what="a model's name", check=check_model_name, pattern=MODEL_NAME)
_MODEL_OR_ANY = Text(what="a model's name", check=check_model_choice, pattern=rf"\*|{MODEL_NAME}")
_TENANT = Text(what="a tenant's name", check=check_name, pattern=PLAIN_NAME)
_GROUP = Text(what="a group's name", check=check_name, pattern=PLAIN_NAME)
_CLASS = Text(what="a class's name", check=check_name, pattern=PLAIN_NAME)
_RATIO = Number(unit=units.SHARE_OF_OUTPUT, whole=False, minimum=Decimal(0), maximum=Decimal(1))
_SHARE = Number(unit=units.PLAIN, whole=False, minimum=Decimal(0), maximum=Decimal(1))
_HOUR = Number(unit=units.PLAIN, minimum=Decimal(0), maximum=Decimal(24))


def _usd_per_mtok(about: str, *aka: str) -> Field:
    return Field(
        shape=Number(unit=units.USD_PER_MTOK, whole=False, minimum=Decimal(0), exclusive=True), about=about, aka=aka
    )


def _limit(unit: Unit, about: str, *aka: str) -> Field:
    return Field(shape=Number(unit=unit, absent="no limit"), about=about, aka=aka)


_CONTEXT_FIELDS = {
    "max_input_tokens": _limit(units.TOKENS, "Longest prompt, in tokens.", "max_prompt_tokens"),
    "max_output_tokens": _limit(units.TOKENS, "Longest answer, in tokens.", "max_tokens", "max_completion_tokens"),
    "max_total_tokens": _limit(units.TOKENS, "Longest prompt and answer together, in tokens.", "max_model_len"),
    "on_excess": Field(
        shape=Choice(options=("refuse", "cap")),
        about="A request that asks for a longer answer than a limit of this block allows is refused (default), or "
        "gets as many tokens as it allows (cap).",
    ),
}

CONTEXT = Record(
    what="context limits",
    build=ContextSpec,
    example="{max_output_tokens: 1000, on_excess: cap}",
    check=check_context,
    fields=_CONTEXT_FIELDS,
)

CONTEXT_BESIDE_OTHERS = Record(
    what="context limits",
    build=ContextSpec,
    example="{max_output_tokens: 1000, on_excess: cap}",
    fields=_CONTEXT_FIELDS,
)
"""Where `on_excess` alone says something too: of a tenant's `limits`, of a model's own context."""


def _rule(number: Number, about: str, aka: tuple[str, ...]) -> Field:
    """A limit that counts: a number, or a record that also says what it does."""
    record = Record(
        what="a rule",
        build=RuleSpec,
        example="{limit: 600, mode: audit}",
        check=check_rule,
        fields={
            "limit": Field(shape=number, required=True, about=about, aka=("value", "max")),
            "mode": Field(
                shape=Choice(options=("enforce", "soft", "audit")),
                about="Refuse (enforce, the default); only tell how much is used, from 50 % on (soft); only tell what "
                "would have been refused (audit).",
                aka=("action", "kind"),
            ),
            "candidate": Field(
                shape=number, about="Another limit, tried beside this one: it tells what it would have refused."
            ),
        },
    )
    return Field(shape=Rule(number=number, record=record), about=about, aka=aka)


def _count(unit: Unit, about: str, *aka: str) -> Field:
    return _rule(Number(unit=unit, absent="no limit"), about, aka)


def _budget(about: str, *aka: str) -> Field:
    number = Number(
        unit=units.USD,
        whole=False,
        minimum=Decimal(0),
        exclusive=True,
        maximum=BUDGET_USD_MAX,
        absent="no budget",
    )
    return _rule(number, about, aka)


RULES = {
    "requests_per_minute": _count(units.REQUESTS_PER_MINUTE, "Requests per minute.", "rpm", "rpm_limit"),
    "tokens_per_minute": _count(
        units.TOKENS_PER_MINUTE, "Input and output tokens per minute, together.", "tpm", "tpm_limit"
    ),
    "input_tokens_per_minute": _count(units.TOKENS_PER_MINUTE, "Input tokens per minute.", "itpm"),
    "output_tokens_per_minute": _count(units.TOKENS_PER_MINUTE, "Output tokens per minute.", "otpm"),
    "concurrent_requests": _count(
        units.REQUESTS, "Requests running or waiting at once.", "concurrency", "max_parallel_requests"
    ),
    "concurrent_tokens": _count(
        units.TOKENS, "Tokens that all running requests together may use at most, prompts and answers."
    ),
    "tokens_per_day": _count(
        units.TOKENS, "Input and output tokens per day. Reserved before a request runs, so never overrun.", "tpd"
    ),
    "usd_per_hour": _budget("US dollars per hour of UTC. Reserved before a request runs, so never overrun."),
    "usd_per_day": _budget("US dollars per day. Reserved before a request runs, so never overrun."),
    "usd_per_month": _budget("US dollars per month. Reserved before a request runs, so never overrun."),
}
"""What may be limited of anything: a tenant, a key, a group, a model, the fleet."""


def _limits_of(what: str) -> Record:
    return Record(what=f"{what}'s limits", build=limits_from(ScopeLimitsSpec), example="{usd_per_day: 5}", fields=RULES)


GPU = Record(
    what="a GPU",
    build=GpuSpec,
    example="{sku: H100, count: 1}",
    check=check_gpu,
    fields={
        "sku": Field(
            shape=Text(what="a GPU", check=check_name, pattern="|".join(builtin().gpus)),
            about="Name in the GPU catalogue, which knows its price.",
            aka=("type", "name", "model"),
        ),
        "count": Field(
            shape=Number(unit=units.GPU_COUNT, maximum=Decimal(1024)), about="GPUs of one replica (default 1)."
        ),
        "purchase": Field(
            shape=Choice(options=PURCHASES),
            about="How they are paid for, where the sku says the price (default on_demand).",
            aka=("billing", "pricing"),
        ),
        "usd_per_hour": Field(
            shape=Number(unit=units.USD_PER_HOUR, whole=False, minimum=Decimal(0)),
            about="What one GPU costs, US dollars per hour, instead of the catalogue's price for its sku; 0 where that "
            "comes from outside (mtok cost import).",
            aka=("price", "usd_per_hr", "price_per_hour"),
        ),
    },
)

REPLICA = Record(
    what="a replica",
    build=ReplicaSpec,
    example='{url: "http://127.0.0.1:9001"}',
    fields={
        "url": Field(
            shape=Text(
                what="an address",
                check=check_url,
                normalise=lambda text: text.rstrip("/"),
                pattern=r"https?://[^/\s]+(/[^?#\s]*)?",
            ),
            required=True,
            about="Address of the engine, http://HOST:PORT, without a path. A hosted provider's has the path before "
            "/chat/completions.",
            aka=("base_url", "address", "host", "endpoint", "api_base"),
        ),
        "weight": Field(
            shape=Number(unit=units.PLAIN, whole=False, minimum=Decimal(0), maximum=Decimal(1_000_000)),
            about="Its part of the requests, against the others' weights, where the strategy is weighted (default 1).",
            aka=("share", "percent"),
        ),
        "gpu": Field(shape=GPU, about="What this one runs on, where that differs from the model's.", aka=("hardware",)),
        "kv_events": Field(
            shape=Text(what="a ZMQ address", check=check_zmq, pattern=r"tcp://[^/\s]+:[0-9]+"),
            about="Where its KV events are published, tcp://HOST:PORT: what it caches is then known, not guessed.",
            aka=("kv_events_endpoint", "kv-events-config"),
        ),
        "kv_replay": Field(
            shape=Text(what="a ZMQ address", check=check_zmq, pattern=r"tcp://[^/\s]+:[0-9]+"),
            about="Where events that were missed are had again (its replay_endpoint), tcp://HOST:PORT.",
            aka=("replay_endpoint",),
        ),
        "data_parallel_ranks": Field(
            shape=Number(unit=units.PLAIN, maximum=Decimal(1024), absent="one engine"),
            about="How many engines with caches of their own serve behind this address (vLLM's --data-parallel-size or "
            "-local): each is a place of its own, by X-data-parallel-rank.",
            aka=("data_parallel_size", "dp", "dp_size", "ranks"),
        ),
        "data_parallel_start_rank": Field(
            shape=Number(unit=units.PLAIN, minimum=Decimal(0), maximum=Decimal(1024)),
            about="The first of their ranks, which vLLM numbers over all nodes (default 0).",
            aka=("dp_start_rank",),
        ),
        "role": Field(
            shape=Choice(options=("both", "prefill", "decode")),
            about="both: it reads prompts and writes answers. Prefill and decode apart are not routed here.",
            aka=("kind", "worker_type"),
        ),
    },
    check=check_replica,
)

_STRATEGIES = ("prefix", "least_loaded", "round_robin", "session", "weighted")

_PORT = Number(unit=units.PLAIN, maximum=Decimal(65535))
_DNS_NAME = Text(what="a name in DNS", check=check_dns_name, pattern=DNS_NAME)

KUBERNETES = Record(
    what="a Service of Kubernetes",
    build=KubernetesSpec,
    example="{service: vllm, namespace: models, port: 8000}",
    fields={
        "service": Field(
            shape=_DNS_NAME, required=True, about="Its name, whose EndpointSlices are watched.", aka=("name",)
        ),
        "namespace": Field(shape=_DNS_NAME, about="Its namespace (default: the gateway's own).", aka=("ns",)),
        "port": Field(shape=_PORT, about="The engines' port (default: the one that the Service leads to).", aka=()),
    },
)

DISCOVER = Record(
    what="a discover section",
    build=DiscoverSpec,
    example="{dns: vllm.models.svc, port: 8000}",
    check=check_discover,
    fields={
        "file": Field(
            shape=Text(what="a path", check=lambda text: None),
            about="A YAML or JSON list of addresses, read again when it changes.",
            aka=("path",),
        ),
        "dns": Field(
            shape=_DNS_NAME,
            about="A name, each of whose addresses has an engine at port; asked again by its TTL.",
            aka=("host", "hostname", "name"),
        ),
        "srv": Field(shape=_DNS_NAME, about="A name with SRV records; asked again by their TTL.", aka=("dns_srv",)),
        "kubernetes": Field(
            shape=KUBERNETES, about="A Service of the cluster that the gateway runs in, watched.", aka=("k8s",)
        ),
        "port": Field(shape=_PORT, about="The engines' port, with dns.", aka=()),
        "scheme": Field(shape=Choice(options=("http", "https")), about="How engines are asked (default http).", aka=()),
    },
)

ROUTING = Record(
    what="a routing section",
    build=RoutingSpec,
    example="{strategy: prefix, shadow: least_loaded}",
    check=check_routing,
    fields={
        "strategy": Field(
            shape=Choice(options=_STRATEGIES),
            about="prefix (default): where the first token is expected soonest; least_loaded; round_robin; session: a "
            "session has a replica of its own; weighted: by the replicas' weights.",
            aka=("policy", "algorithm", "mode"),
        ),
        "session_header": Field(
            shape=Text(
                what="a header's name",
                check=check_tag_header,
                normalise=str.lower,
                pattern=r"[A-Za-z0-9][A-Za-z0-9-]*",
            ),
            about="Request header that names the session (default: the request's user).",
            aka=("session_key", "sticky_header", "header"),
        ),
        "shadow": Field(
            shape=Choice(options=_STRATEGIES),
            about="Another strategy, scored beside the one that is used: mtok_shadow_* say where it would have gone.",
            aka=("dry_run", "compare"),
        ),
    },
)

PRICE = Record(
    what="a price",
    build=PriceSpec,
    example="{output_usd_per_mtok: 0.35, input_ratio: 0.28, cached_ratio: 0.1}",
    check=check_price,
    fields={
        "output_usd_per_mtok": Field(
            shape=Number(unit=units.USD_PER_MTOK, whole=False, minimum=Decimal(0), exclusive=True),
            required=True,
            about="US dollars per million output tokens.",
            aka=("output", "usd_per_mtok", "price"),
        ),
        "input_ratio": Field(shape=_RATIO, about="Price of an uncached input token over an output token's (0.28)."),
        "cached_ratio": Field(shape=_RATIO, about="Price of a cached input token over an output token's (0.1)."),
        "mode": Field(
            shape=Choice(options=("fixed", "live", "cost_plus")),
            about="fixed (default): that price; live: what the GPUs cost over what they produced, that price until "
            "there is something to measure; cost_plus: live and the margin.",
            aka=("type", "kind"),
        ),
        "overhead": Field(
            shape=Number(unit=units.PLAIN, whole=False, minimum=Decimal(1), maximum=Decimal(10)),
            about="What the GPUs' own cost is multiplied by in a live price: 1.4 to 1.8 in production (default 1).",
        ),
        "margin": Field(shape=_SHARE, about="What cost_plus adds to the live price, 0.2 is a fifth.", aka=("markup",)),
        "floor_usd_per_mtok": _usd_per_mtok("A live price is never below this, output.", "floor", "min"),
        "ceiling_usd_per_mtok": _usd_per_mtok("A live price is never above this, output.", "ceiling", "max"),
        "max_step": Field(
            shape=_SHARE, about="The largest change from one epoch to the next, a share of the price (default: any)."
        ),
        "smooth": Field(
            shape=Choice(options=("epoch", "hour", "day")),
            about="The time a live price is measured over (default hour).",
            aka=("smoothing", "window"),
        ),
        "ratios": Field(
            shape=Choice(options=("set", "measured")),
            about="input_ratio as it is set (default), or measured: from the engines' own time for prefill and decode, "
            "where they tell it.",
        ),
    },
)

TIER = Record(
    what="a tier",
    build=TierSpec,
    example="{from_mtok: 1000, discount: 0.1}",
    fields={
        "from_mtok": Field(
            shape=Number(unit=units.PLAIN, whole=False, minimum=Decimal(0)),
            required=True,
            about="Million tokens, input and output, of a month from which it holds.",
            aka=("from", "above"),
        ),
        "discount": Field(shape=_SHARE, required=True, about="Share that is taken off."),
    },
)

OFF_PEAK = Record(
    what="off-peak hours",
    build=OffPeakSpec,
    example="{from_hour: 22, to_hour: 6, discount: 0.3}",
    check=check_off_peak,
    fields={
        "from_hour": Field(shape=_HOUR, required=True, about="Hour of the day it begins, in the tenant's time zone."),
        "to_hour": Field(shape=_HOUR, required=True, about="Hour of the day it ends."),
        "discount": Field(shape=_SHARE, required=True, about="Share that is taken off."),
    },
)

TENANT_PRICE = Record(
    what="a tenant's price",
    build=TenantPriceSpec,
    example="{mode: contract, output_usd_per_mtok: 0.30}",
    check=check_tenant_price,
    fields={
        "mode": Field(
            shape=Choice(options=("live", "fixed", "cost_plus", "contract")),
            about="live: the model's price; fixed: one of its own; cost_plus: the model's price and the margin; "
            "contract (default): one of its own or the model's, with discounts, tiers and a commitment.",
        ),
        "output_usd_per_mtok": _usd_per_mtok("US dollars per million output tokens, instead of the model's.", "output"),
        "input_ratio": Field(shape=_RATIO, about="As the model's price has it, for this tenant's own price."),
        "cached_ratio": Field(shape=_RATIO, about="Likewise, of cached input."),
        "margin": Field(shape=_SHARE, about="What cost_plus adds to the model's price.", aka=("markup",)),
        "discount": Field(shape=_SHARE, about="Share that a contract takes off at all times."),
        "tiers": Field(
            shape=ListOf(item=TIER, example="[{from_mtok: 1000, discount: 0.1}]"),
            about="Discounts by the tokens of the month so far; the last one reached holds from the next epoch on.",
        ),
        "off_peak": Field(shape=OFF_PEAK, about="Hours of the day that cost less."),
        "committed_usd_per_month": Field(
            shape=Number(unit=units.USD, whole=False, minimum=Decimal(0), exclusive=True, maximum=BUDGET_USD_MAX),
            about="What the tenant pays for this model in a month at least; a bill shows what is missing.",
            aka=("commitment", "minimum"),
        ),
    },
)

PRICING = Record(
    what="how prices are made",
    build=PricingSpec,
    example="{epoch_s: 300}",
    fields={
        "epoch_s": Field(
            shape=Number(unit=units.SECONDS, minimum=Decimal(10), maximum=Decimal(86_400)),
            about="How long a live price holds, in seconds (default 300).",
            aka=("epoch", "interval"),
        ),
        "recover_idle": Field(
            shape=_SHARE, about="Share of GPU cost that no bill paid for, put on the bills by use (default 0)."
        ),
    },
)

_ENGINE = Field(
    shape=Choice(options=tuple(DIALECTS)),
    about="What the replicas run (default vllm); openai is any hosted provider behind OpenAI's API.",
    aka=("backend", "runtime", "provider"),
)
_ENGINE_MODEL = Field(
    shape=_MODEL,
    about="What the engines call this model, where that is not the name clients send.",
    aka=("served_model_name", "provider_model", "upstream_model"),
)
_API_KEY_ENV = Field(
    shape=Text(what="an environment variable", check=check_variable, secret=True, pattern=VARIABLE),
    about="Environment variable of the gateway that holds the key its engines want, sent as a bearer token. "
    "The key itself is never written down.",
    aka=("api_key_variable", "key_env"),
)

_POOL_REPLICAS = ListOf(item=REPLICA, minimum=1, example='[{url: "http://127.0.0.1:9001"}]')

POOL = Record(
    what="a pool",
    build=PoolSpec,
    example='{name: reserved, replicas: [{url: "http://127.0.0.1:9001"}]}',
    fields={
        "name": Field(
            shape=Text(what="a pool's name", check=check_name, pattern=PLAIN_NAME),
            required=True,
            about="What events, metrics and x-mtok-replica call it.",
        ),
        "replicas": Field(
            shape=_POOL_REPLICAS,
            required=True,
            about="Its engine processes.",
            aka=("endpoints", "urls", "servers", "upstreams", "backends"),
        ),
        "engine": _ENGINE,
        "engine_model": _ENGINE_MODEL,
        "api_key_env": _API_KEY_ENV,
        "price": Field(
            shape=PRICE,
            about="What tenants pay for what runs here, instead of the model's price. With an engine, a key or a "
            "price of its own a pool is a last resort: used when the others have no room in time.",
            aka=("pricing", "cost"),
        ),
    },
)

_CACHE_ISOLATION = Field(
    shape=Choice(options=("shared", "tenant")),
    about="tenant: no tenant's prompts are found in the engines' prefix caches by another one's, so that none can tell "
    "from the time to the first token what others ask; each pays for its own first prompt. A tenant's own word goes "
    "before its models' (shared, the default).",
    aka=("cache_salt", "isolation", "prefix_cache_isolation"),
)

MODEL = Record(
    what="a model",
    build=ModelSpec,
    example='{replicas: [{url: "http://127.0.0.1:9001"}]}',
    check=check_model,
    fields={
        "engine": _ENGINE,
        "engine_model": _ENGINE_MODEL,
        "api_key_env": _API_KEY_ENV,
        "replicas": Field(
            shape=_POOL_REPLICAS,
            about="The engine processes that serve this model.",
            aka=("endpoints", "urls", "servers", "upstreams", "backends"),
        ),
        "pools": Field(
            shape=ListOf(
                item=POOL, minimum=1, example="[{name: reserved, replicas: [..]}, {name: spot, replicas: [..]}]"
            ),
            about="Instead of replicas: several groups of them, each used when those before it have no room.",
            aka=("groups", "fallbacks", "tiers", "spill_over"),
        ),
        "discover": Field(
            shape=DISCOVER,
            about="Where replicas are told while the gateway serves, beside those that stand here.",
            aka=("discovery", "service_discovery"),
        ),
        "aliases": Field(
            shape=ListOf(item=_MODEL, example="[small]"), about="Other names clients may send for this model."
        ),
        "context_tokens": Field(
            shape=Number(unit=units.CONTEXT_TOKENS, absent="what the engine says"),
            about="Longest prompt and answer together, in tokens; read from the engine's /v1/models when absent.",
            aka=("max_model_len", "context_length", "max_context"),
        ),
        "context": Field(
            shape=CONTEXT_BESIDE_OTHERS,
            about="How long requests for this model may be; on_excess holds for the model's own context too.",
        ),
        "tokenizer": Field(
            shape=Text(what="a file", check=check_tokenizer, pattern="/.+"),
            about="Path of the model's tokenizer.json: prompts are counted here once that has proven to agree with the "
            "engine; without it the engine is asked.",
            aka=("tokenizer_path", "tokenizer_file"),
        ),
        "on_disconnect": Field(
            shape=Choice(options=("abort", "finish")),
            about="When a client hangs up the engine stops (abort, the default), or its answer is read to its end and "
            "billed whole (finish).",
            aka=("on_client_disconnect", "disconnect"),
        ),
        "on_replica_loss": Field(
            shape=Choice(options=("continue", "error")),
            about="When a replica dies in the middle of a stream another goes on from what was sent (continue, the "
            "default), where that can be right, or the stream ends with an error event (error).",
            aka=("failover", "on_upstream_lost"),
        ),
        "hedge_after": Field(
            shape=Choice(options=("p95",)),
            about="A stream whose first token is later than 95 % of the recent ones is tried on a second replica as "
            "well; the slower one is ended, at the platform's cost. Left out: never.",
            aka=("hedge", "hedging"),
        ),
        "hedge_after_ms": Field(
            shape=Number(unit=units.MILLISECONDS, maximum=Decimal(600_000), absent="no second attempt"),
            about="As hedge_after, after a fixed time; with both, after the later of the two.",
            aka=("hedge_ms", "hedge_delay_ms"),
        ),
        "locality_tokens": Field(
            shape=Number(unit=units.TOKENS, minimum=Decimal(0), maximum=Decimal(1_000_000)),
            about="How far the fair order may be bent so that requests of one warm prefix go together, in uncached "
            "input tokens per tenant (default 2000, about one chat request; 0: never).",
            aka=("locality", "deficit"),
        ),
        "engine_priority": Field(
            shape=Choice(options=("pass", "ignore")),
            about="pass: the engines run with --scheduling-policy priority, and get the priority of a request's class; "
            "what a client sends as priority is replaced. Default ignore.",
            aka=("priority", "scheduling_policy"),
        ),
        "cache_isolation": _CACHE_ISOLATION,
        "routing": Field(shape=ROUTING, about="Where requests go.", aka=("load_balancing", "router", "lb_policy")),
        "gpu": Field(shape=GPU, about="What each replica runs on.", aka=("hardware",)),
        "hosted_as": Field(
            shape=_MODEL,
            about="Its name in hosted.yaml, whose prices `mtok economics` holds beside its own (default: the same).",
            aka=("compare_to", "hosted"),
        ),
        "limits": Field(shape=_limits_of("a model"), about="What all tenants may use of it together.", aka=("limit",)),
        "price": Field(shape=PRICE, about="What tenants pay for this model.", aka=("pricing", "cost")),
    },
)


KEY = Record(
    what="a key",
    build=KeySpec,
    example='{id: acme-ci, sha256: "<64 hex digits>"}',
    fields={
        "id": Field(
            shape=Text(what="a key's public id", check=check_public_id, secret=True, pattern=r"[A-Za-z0-9-]{1,64}"),
            required=True,
            about="The public part of the key, mtok-<id>-<secret>. Shown, logged, and usage is split by it.",
            aka=("name", "key_id", "public_id"),
        ),
        "sha256": Field(
            shape=Text(
                what="a key's SHA-256",
                check=check_sha256,
                normalise=str.lower,
                secret=True,
                pattern="[0-9A-Fa-f]{64}",
            ),
            required=True,
            about="SHA-256 of the whole key, in hex. The key itself is never written down.",
            aka=("hash", "sha", "digest", "key_hash"),
        ),
        "limits": Field(shape=_limits_of("a key"), about="What this key may use of what its tenant may."),
        "context": Field(shape=CONTEXT, about="How long requests with this key may be; the smallest limit wins."),
    },
)


LIMITS = Record(
    what="limits",
    build=limits_from(LimitsSpec),
    example="{requests_per_minute: 600, tokens_per_minute: 200000}",
    fields={
        **RULES,
        "budget_usd": _budget(
            "US dollars per budget_period. Reserved before a request runs, so never overrun.",
            "budget",
            "max_budget",
            "spend_limit",
        ),
        "budget_period": Field(
            shape=Choice(options=("hour", "day", "month")),
            about="When the budget begins anew (default month): hours of UTC, days and months of the tenant's zone.",
            aka=("budget_duration", "period"),
        ),
        "reserve": Field(
            shape=Choice(options=("worst_case", "sliced")),
            about="What a stream holds of dollars and tokens: the most it can use (worst_case, the default), or its "
            "prompt and the next few hundred tokens, extended as it goes (sliced).",
            aka=("reservation",),
        ),
        "max_input_tokens": _limit(units.TOKENS, "Longest prompt, in tokens.", "max_prompt_tokens"),
        "max_output_tokens": _limit(units.TOKENS, "Longest answer, in tokens.", "max_tokens", "max_completion_tokens"),
    },
)

_TIME_ZONE = Field(
    shape=Text(what="a time zone", check=check_time_zone, pattern=r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*"),
    about="IANA name of the zone in which days and months of the budget begin (default UTC).",
    aka=("timezone", "tz", "zone"),
)

GROUP = Record(
    what="a group",
    build=GroupSpec,
    example="{limits: {usd_per_day: 100}}",
    fields={
        "limits": Field(
            shape=_limits_of("a group"), about="What its tenants may use together.", aka=("limit", "quota")
        ),
        "time_zone": _TIME_ZONE,
    },
)

FLEET = Record(
    what="the fleet",
    build=FleetSpec,
    example="{limits: {concurrent_requests: 2000}}",
    fields={
        "limits": Field(shape=_limits_of("the fleet"), about="What all tenants may use together.", aka=("limit",)),
    },
)

TENANT = Record(
    what="a tenant",
    build=TenantSpec,
    example='{models: ["*"], class: interactive}',
    fields={
        "keys": Field(
            shape=ListOf(item=KEY, example='[{id: acme-ci, sha256: "<64 hex digits>"}]'),
            about="Keys kept here rather than made by `mtok keys create`.",
            aka=("api_keys",),
        ),
        "models": Field(
            shape=ListOf(item=_MODEL_OR_ANY, minimum=1, example='["*"]'),
            about='Models this tenant may use, by name or alias; "*" (the default) is all.',
            aka=("allowed_models",),
        ),
        "class": Field(
            shape=_CLASS, attribute="class_name", about="Service class, one of `classes`.", aka=("priority_class",)
        ),
        "group": Field(shape=_GROUP, about="One of `groups`, whose limits it shares.", aka=("organization", "team")),
        "limits": Field(shape=LIMITS, about="What the tenant may use; without it, no limit.", aka=("limit", "quota")),
        "context": Field(
            shape=CONTEXT_BESIDE_OTHERS,
            about="How long this tenant's requests may be; on_excess holds for the lengths in its limits too.",
        ),
        "prices": Field(
            shape=MapOf(name=_MODEL_OR_ANY, item=TENANT_PRICE, example="tiny: {output_usd_per_mtok: 0.30}"),
            about='What this tenant pays, by model or "*", where that is not the model\'s price.',
            aka=("pricing", "contract"),
        ),
        "time_zone": _TIME_ZONE,
        "cache_isolation": _CACHE_ISOLATION,
        "replica_header": Field(
            shape=Choice(options=("omit", "send")),
            about="send: x-mtok-replica in its answers says which replica they are from, and the pool (default omit).",
            aka=("sees_replica", "x_mtok_replica", "show_replica"),
        ),
    },
)


def _target_ms(about: str) -> Field:
    return Field(shape=Number(unit=units.MILLISECONDS, maximum=Decimal(3_600_000), absent="no target"), about=about)


SLO = Record(
    what="latency targets",
    build=SloSpec,
    example="{ttft_p99_ms: 600, itl_p99_ms: 80}",
    fields={
        "ttft_p99_ms": _target_ms("Time to first token that 99 of 100 requests stay below, in milliseconds."),
        "itl_p99_ms": _target_ms("Time between tokens that 99 of 100 stay below, in milliseconds."),
    },
)

CLASS = Record(
    what="a class",
    build=ClassSpec,
    example="{priority: 10, weight: 1, max_wait_s: 2}",
    fields={
        "priority": Field(
            shape=Number(unit=units.PLAIN, minimum=Decimal(0), maximum=Decimal(1000)),
            about="Strict band: higher goes first (default 0).",
        ),
        "weight": Field(
            shape=Number(unit=units.PLAIN, whole=False, minimum=Decimal(0), exclusive=True, maximum=Decimal(1000)),
            about="Share within the band, against the others' weights (default 1).",
        ),
        "max_wait_s": Field(
            shape=Number(unit=units.SECONDS, whole=False, minimum=Decimal(0), exclusive=True, maximum=Decimal(600)),
            about="Longest wait for a slot, in seconds (default 2).",
            aka=("timeout", "max_wait", "queue_timeout_s"),
        ),
        "max_share": Field(
            shape=Number(unit=units.PLAIN, whole=False, minimum=Decimal(0), exclusive=True, maximum=Decimal(1)),
            about="Part of the replicas' places that one tenant may hold, even where the rest is idle (default 1).",
            aka=("share", "max_fraction"),
        ),
        "order": Field(
            shape=Choice(options=("arrival", "shortest")),
            about="Whose turn it is within a tenant: first come first served (arrival, the default), or the shortest.",
            aka=("ordering", "discipline"),
        ),
        "slo": Field(shape=SLO, about="Latency targets of this class."),
        "context": Field(shape=CONTEXT, about="How long requests of this class may be; the smallest limit wins."),
        "price_multiplier": Field(
            shape=Number(unit=units.PLAIN, whole=False, minimum=Decimal(0), maximum=Decimal(100)),
            about="What prices are multiplied by for tenants of this class: 0.5 for batch (default 1).",
        ),
    },
)


def _days(about: str) -> Field:
    return Field(shape=Number(unit=units.DAYS, maximum=Decimal(3660)), about=about)


TAGS = Record(
    what="tags",
    build=TagsSpec,
    example="{names: [team, app], header: x-mtok-tags}",
    check=check_tags,
    fields={
        "names": Field(
            shape=ListOf(
                item=Text(what="a tag's name", check=check_name, pattern=PLAIN_NAME), minimum=1, example="[team, app]"
            ),
            required=True,
            about="Members of a request's metadata that usage can be split by, at most 8.",
            aka=("metadata", "keys", "allowed"),
        ),
        "header": Field(
            shape=Text(
                what="a header's name", check=check_tag_header, normalise=str.lower, pattern=r"[A-Za-z0-9][A-Za-z0-9-]*"
            ),
            about='A request header that may say them too, as "team=search, app=chat" (default none).',
        ),
        "values_max": Field(
            shape=Number(unit=units.PLAIN, maximum=Decimal(10_000)),
            about='Values of one tag per tenant, worker and day (default 100); further ones are counted as "other".',
        ),
    },
)

SINK = Record(
    what="a sink",
    build=SinkSpec,
    example='{url: "https://openmeter.example.com/api/v1/events"}',
    fields={
        "url": Field(
            shape=Text(what="an address", check=check_sink_url, pattern=r"https?://[^\s#]+"),
            required=True,
            about="Where each batch of events is posted to, the whole address.",
            aka=("endpoint", "address", "webhook"),
        ),
        "format": Field(
            shape=Choice(options=("cloudevents", "lago")),
            about="CloudEvents 1.0 in JSON batches (default; OpenMeter and others) or Lago's /api/v1/events/batch.",
            aka=("type", "kind"),
        ),
        "batch_max": Field(
            shape=Number(unit=units.PLAIN, maximum=Decimal(1000)),
            about="Events of one request at most (default 100, which is also Lago's limit).",
            aka=("batch_size", "max_batch"),
        ),
    },
)

LEDGER = Record(
    what="the ledger's rules",
    build=LedgerSpec,
    example="{keep_events_days: 35}",
    fields={
        "on_journal_failure": Field(
            shape=Choice(options=("refuse", "serve")),
            about="When usage cannot be written to disk: refuse requests with 503 (default), or serve on, loudly.",
        ),
        "on_store_failure": Field(
            shape=Choice(options=("refuse", "degrade")),
            about="When Redis is away: refuse requests with 503 (default), or let each worker admit degraded_share of "
            "every tenant's limits by itself; tenants with a budget are refused all the same.",
            aka=("on_redis_failure",),
        ),
        "degraded_share": Field(
            shape=Number(unit=units.PLAIN, whole=False, minimum=Decimal(0), exclusive=True, maximum=Decimal(1)),
            about="Share of a limit that one worker may admit while Redis is away (default 0.1): nothing is overrun "
            "while workers times share is at most 1.",
        ),
        "keep_journal_days": _days("Days a worker's journal keeps what Redis has too (default 3)."),
        "keep_events_days": _days("Days single usage events are kept in Redis (default 35)."),
        "keep_minutes_days": _days("Days minute buckets are kept (default 7)."),
        "keep_hours_days": _days("Days hour buckets are kept (default 120); day buckets stay for ever."),
        "users_max": Field(
            shape=Number(unit=units.PLAIN, minimum=Decimal(0), maximum=Decimal(100_000)),
            about=(
                "Users (a request's user or safety_identifier) told apart per tenant, worker and day (default 1000); "
                'further ones are counted as "other". 0: users are not kept.'
            ),
        ),
        "tags": Field(shape=TAGS, about="Free tags to split usage by.", aka=("labels", "metadata")),
        "sink": Field(
            shape=SINK,
            about="Pushes every usage event over HTTP, at least once; its token is MTOK_SINK_TOKEN.",
            aka=("push", "webhook", "export"),
        ),
    },
)

ALERTS = Record(
    what="where alerts go",
    build=AlertsSpec,
    example='{url: "https://alerts.example.com/mtok"}',
    fields={
        "url": Field(
            shape=Text(what="an address", check=check_sink_url, secret=True, pattern=r"https?://[^\s#]+"),
            required=True,
            about="Where each alert is posted to as JSON, the whole address.",
            aka=("endpoint", "address", "webhook", "webhook_url"),
        ),
    },
)

DOCUMENT = Record(
    what="a policy document",
    build=Document,
    example="models, tenants and classes",
    fields={
        "models": Field(
            shape=MapOf(name=_MODEL, item=MODEL, example="tiny: {replicas: [..]}"),
            about="Models by the name clients send.",
        ),
        "tenants": Field(
            shape=MapOf(name=_TENANT, item=TENANT, example='acme: {models: ["*"]}'),
            about="Tenants by name.",
            aka=("teams", "users", "customers"),
        ),
        "classes": Field(
            shape=MapOf(name=_CLASS, item=CLASS, example="interactive: {priority: 10}"),
            about="Service classes by name.",
        ),
        "groups": Field(
            shape=MapOf(name=_GROUP, item=GROUP, example="research: {limits: {usd_per_day: 100}}"),
            about="Groups of tenants that share limits, by name.",
            aka=("organizations", "orgs"),
        ),
        "fleet": Field(shape=FLEET, about="Limits that all tenants share.", aka=("global", "cluster")),
        "ledger": Field(shape=LEDGER, about="How usage is kept.", aka=("metering", "billing", "journal")),
        "pricing": Field(shape=PRICING, about="How live prices are made.", aka=("prices",)),
        "alerts": Field(
            shape=ALERTS,
            about="A webhook that is told when a soft limit is used by 50, 80 or 95 %; its token is MTOK_ALERTS_TOKEN.",
            aka=("webhook", "alerting", "notifications"),
        ),
    },
)
