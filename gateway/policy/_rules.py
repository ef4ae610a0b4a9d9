"""What single values must be, each rule with what to write instead: the field table names them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from ._documents import ContextSpec, DiscoverSpec, GpuSpec, ModelSpec, ReplicaSpec, RoutingSpec, TagsSpec
from ._limits import RuleSpec
from ._numbers import plain
from ._prices import OffPeakSpec, PriceSpec, TenantPriceSpec

ANY_MODEL = "*"
TAGS_MAX = 8

_NOT_FOR_TAGS = frozenset(
    {"authorization", "x-api-key", "cookie", "proxy-authorization", "traceparent", "x-request-id"}
)

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
VARIABLE = r"[A-Z_][A-Z0-9_]{0,127}"
DNS_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?([.][A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?)*[.]?"
DNS_NAME_MAX = 253
PLAIN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def check_model_name(text: str) -> str | None:
    """What is wrong with a model's name, or None."""
    if re.fullmatch(MODEL_NAME, text):
        return None
    return "is a model's name: letters, digits and . _ : / @ + - (at most 128), beginning with a letter or digit"


def check_model_choice(text: str) -> str | None:
    """What is wrong with an entry of a tenant's models, or None."""
    return None if text == ANY_MODEL else check_model_name(text)


def check_name(text: str) -> str | None:
    """What is wrong with the name of a tenant or a class, or None."""
    if re.fullmatch(PLAIN_NAME, text):
        return None
    return "is a name: letters, digits and . _ - (at most 63), beginning with a letter or digit"


def check_url(text: str) -> str | None:
    """What is wrong with a replica's address, or None; with the address to write where one can be guessed. Whether it
    may have a path is for its engine to say: `check_origin`."""
    return _check_address(text) or ("must not hold a query" if set(text) & set("?#") else None)


def check_dns_name(text: str) -> str | None:
    """What is wrong with a name that replicas are looked up by, or None."""
    if re.fullmatch(DNS_NAME, text) and len(text) <= DNS_NAME_MAX:
        return None
    return "must be a name in DNS: letters, digits, _ and -, with dots between, no scheme and no port"


def check_discover(value: object) -> list[tuple[str, str]]:
    """Replicas are looked up in one way, and have a port: the field to blame and what is wrong."""
    discover = cast(DiscoverSpec, value)
    given = [name for name in ("file", "dns", "srv", "kubernetes") if getattr(discover, name) is not None]
    if len(given) != 1:
        return [(given[1] if given else "file", "is one way of several; give one of file, dns, srv and kubernetes")]
    if discover.dns is not None and discover.port is None:
        return [("port", "is missing: a name's addresses say nothing of ports; add the engines' own")]
    if discover.dns is None and discover.port is not None:
        return [("port", "goes with dns alone: the others tell ports themselves; for kubernetes write it there")]
    return []


def check_zmq(text: str) -> str | None:
    """What is wrong with the ZMQ address of a replica's events, or None."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != "tcp" or not host or not port or parts.path:
        return "must be tcp://HOST:PORT"
    return "must name the replica's own host" if host == "*" else None


def check_sink_url(text: str) -> str | None:
    """What is wrong with the address that events are pushed to, or None."""
    return _check_address(text) or ("must not hold a fragment" if urlsplit(text).fragment else None)


def _check_address(text: str) -> str | None:
    if "://" not in text:
        return f"must begin with http:// or https://: write http://{text.lstrip('/').split('/')[0]}"
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises when it is none
    except ValueError:
        return "is no address: write http://HOST:PORT with a port of 1 to 65535"
    if parts.scheme not in ("http", "https"):
        return f"must begin with http:// or https://, not {parts.scheme}://"
    if not parts.hostname or re.search(r"\s", text) or parts.port == 0:
        return "is no address: write http://HOST:PORT"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user or password"
    return None


def check_variable(text: str) -> str | None:
    """What is wrong with the name of an environment variable, or None. Never repeats it: it may be the key itself."""
    if re.fullmatch(VARIABLE, text):
        return None
    return "is the name of an environment variable, such as TOGETHER_API_KEY; the key itself stays out of the policies"


def check_origin(text: str) -> str | None:
    """What is wrong with the address of an engine that has no path of its own, or None."""
    parts = urlsplit(text)
    if parts.path not in ("", "/"):
        origin = f"{parts.scheme}://{parts.netloc}"
        return f"is only the replica's address, the gateway adds /v1/… itself: write {origin}"
    return None


def check_sha256(text: str) -> str | None:
    """What is wrong with a key's hash, or None. Never repeats it: it may be a secret in the wrong place."""
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return None
    return f"is the SHA-256 of the whole key: 64 hex digits, not {len(text)} characters of another kind"


def check_time_zone(text: str) -> str | None:
    """What is wrong with a time zone's name, or None."""
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # not found, no name at all, a directory of zones
        return "is no time zone: write an IANA name, such as Europe/Berlin or UTC"
    return None


def check_tokenizer(text: str) -> str | None:
    """What is wrong with the path of a tokenizer, or None."""
    path = Path(text)
    if not path.is_absolute():
        return "must be the whole path, beginning with /"
    if path.is_dir():
        return f"is a directory: write {path / 'tokenizer.json'}"
    if not path.is_file():
        return "is not there: copy the model's tokenizer.json to it, or leave the field out; then the engine counts"
    return None


def check_tag_header(text: str) -> str | None:
    """What is wrong with the header that carries tags, or None."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", text):
        return "is a header's name: letters, digits and -"
    if text.lower() in _NOT_FOR_TAGS:
        return "has a meaning of its own; name another header, such as x-mtok-tags"
    return None


def check_context(value: object) -> list[tuple[str, str]]:
    """Context limits limit something: the field to blame and what is wrong."""
    if cast(ContextSpec, value).limits:
        return []
    return [("on_excess", "says nothing alone; add max_input_tokens, max_output_tokens or max_total_tokens")]


def check_tags(value: object) -> list[tuple[str, str]]:
    """Few tags, each once: the field to blame and what is wrong."""
    names = cast(TagsSpec, value).names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return [("names", f"{', '.join(twice)} is in the list twice")]
    if len(names) > TAGS_MAX:
        return [("names", f"has {len(names)} tags; at most {TAGS_MAX}, since usage is kept for each combination")]
    return []


def check_gpu(value: object) -> list[tuple[str, str]]:
    """A GPU has its price from one place: the field to blame and what is wrong."""
    gpu = cast(GpuSpec, value)
    if gpu.sku is not None and gpu.usd_per_hour is not None:
        return [("usd_per_hour", "both sku and usd_per_hour say what the GPU costs; keep one")]
    if gpu.sku is None and gpu.usd_per_hour is None:
        return [("", "needs either sku (its price is in the catalogue) or usd_per_hour")]
    return []


def check_routing(value: object) -> list[tuple[str, str]]:
    """What is said of a strategy is of one that there is: the field to blame and what is wrong."""
    routing = cast(RoutingSpec, value)
    if routing.shadow == routing.strategy:
        return [("shadow", "is the strategy that is used already; name another, or leave it out")]
    if routing.session_header is not None and not routing.has_sessions:
        return [("session_header", "says nothing here: only the strategies session and weighted know sessions")]
    return []


def check_model(value: object) -> list[tuple[str, str]]:
    """Pools have names of their own, and weights are looked at and leave somebody to send to: the field to blame and
    what is wrong."""
    model = cast(ModelSpec, value)
    names = [pool.name for pool in model.pools]
    if model.discover is not None and model.pools:
        return [("discover", "tells replicas that are in no pool; leave out the pools, or name their replicas there")]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        return [("pools", f"{', '.join(twice)} is in the list twice")]
    weights = [replica.weight for replica in model.replicas]
    if "weighted" in (model.routing.strategy, model.routing.shadow):
        return [] if any(weights) or not weights else [("replicas", "all weigh 0; give one of them more")]
    if any(weight != 1 for weight in weights):
        return [("replicas", "have weights, which only routing.strategy: weighted looks at; add it, or leave them out")]
    return []


def check_replica(value: object) -> list[tuple[str, str]]:
    """What a replica is, is something the gateway can send requests to: the field to blame and what is wrong."""
    replica = cast(ReplicaSpec, value)
    problems = []
    if replica.role != "both":
        message = (
            "prefill and decode apart are not routed here: two engines would answer one request, and its tokens be "
            "counted twice. Name as the replica the proxy that joins them (vLLM's, llm-d's, Dynamo's)"
        )
        problems.append(("role", message))
    if replica.kv_events is not None and replica.data_parallel_ranks is not None:
        problems.append(("kv_events", "are those of one engine; leave them out where there are data_parallel_ranks"))
    if replica.data_parallel_start_rank and replica.data_parallel_ranks is None:
        problems.append(
            ("data_parallel_start_rank", "says nothing without data_parallel_ranks; add how many there are")
        )
    return problems


def check_rule(value: object) -> list[tuple[str, str]]:
    """A candidate is tried beside a limit that does something: the field to blame and what is wrong."""
    rule = cast(RuleSpec, value)
    if rule.candidate is not None and rule.mode == "audit":
        return [("candidate", "the limit itself is only audited; write the number to try as its limit")]
    return []


def check_price(value: object) -> list[tuple[str, str]]:
    """Cached input costs no more than uncached: the field to blame and what is wrong."""
    price = cast(PriceSpec, value)
    problems = _check_live(price)
    if price.cached_ratio <= price.input_ratio:
        return problems
    meant = price.cached_ratio * price.input_ratio
    return [
        *problems,
        (
            "cached_ratio",
            f"cached input would cost more than uncached: both ratios are of the output price; for {price.cached_ratio}"
            f" of the input price write {plain(meant)}",
        ),
    ]


def _check_live(price: PriceSpec) -> list[tuple[str, str]]:
    floor, ceiling = price.floor_usd_per_mtok, price.ceiling_usd_per_mtok
    problems = []
    if floor is not None and ceiling is not None and floor > ceiling:
        problems.append(("floor_usd_per_mtok", f"is above the ceiling of {plain(ceiling)}"))
    bounds = (floor, ceiling, price.max_step)
    if price.mode == "fixed" and (price.overhead != 1 or any(bound is not None for bound in bounds)):
        problems.append(("mode", "overhead, floor, ceiling and max_step are a live price's; add mode: live"))
    if price.mode != "cost_plus" and price.margin:
        problems.append(("margin", "is for mode: cost_plus"))
    return problems


def check_off_peak(value: object) -> list[tuple[str, str]]:
    """Hours of no length are none: the field to blame and what is wrong."""
    hours = cast(OffPeakSpec, value)
    return [("to_hour", "is from_hour: these hours have no length")] if hours.from_hour == hours.to_hour else []


def check_tenant_price(value: object) -> list[tuple[str, str]]:
    """What a mode needs is there and what it does not know is not: the field to blame and what is wrong."""
    price = cast(TenantPriceSpec, value)
    problems = []
    if price.mode == "fixed" and price.output_usd_per_mtok is None:
        problems.append(("output_usd_per_mtok", "is missing: a fixed price is this many dollars"))
    if price.mode in ("live", "cost_plus") and price.output_usd_per_mtok is not None:
        problems.append(("output_usd_per_mtok", f"says nothing in mode {price.mode}, which follows the model's price"))
    if price.output_usd_per_mtok is None and (price.input_ratio is not None or price.cached_ratio is not None):
        problems.append(("input_ratio", "is of a price of the tenant's own; add output_usd_per_mtok"))
    own = (price.discount, price.tiers, price.off_peak, price.committed_usd_per_month)
    if price.mode != "contract" and any(own):
        problems.append(("mode", "discount, tiers, off_peak and committed_usd_per_month are a contract's"))
    if price.mode != "cost_plus" and price.margin:
        problems.append(("margin", "is for mode: cost_plus"))
    starts = [tier.from_mtok for tier in price.tiers]
    if starts != sorted(set(starts)):
        problems.append(("tiers", "go up: each begins at more tokens than the one before"))
    return problems
