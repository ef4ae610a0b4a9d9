"""`mtok economics`, `mtok plan`, `mtok what-if`: what the GPUs' money became, and what would change it."""

# ruff: noqa: PLC0415 - see _app.py: what imports redis or a server is imported by the command that needs it
from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.catalogue import PURCHASES, Gpu, Purchase
from gateway.policy import Policies
from gateway.pricing import usd_of_nanousd

from ._store import ask_store
from ._words import FAILED, MISUSED, STORE_ENVIRONMENT, duration_ms, fail, json_text, loaded, number, table, utc

if TYPE_CHECKING:  # the rooms import redis; a help page should not
    from redis.asyncio import Redis

    from gateway.economics import Economics, ModelEconomics, Need

DAY_S = 86_400
HOUR_S = 3600

_Policies = Annotated[Path, typer.Option(help="The directory of the policies.", metavar="DIR")]
_Span = Annotated[str, typer.Option(help="How far back: 1h, 24h, 7d.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, prices as decimal strings.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("economics", epilog=STORE_ENVIRONMENT)(economics_)
    app.command("plan", epilog=STORE_ENVIRONMENT)(plan_)
    app.command("what-if", epilog=STORE_ENVIRONMENT)(what_if_)


def economics_(
    policies: _Policies,
    span: _Span = "24h",
    total: Annotated[bool, typer.Option("--total", help="The whole span as one, not day by day.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Show where the GPUs' cost went: per model and day cost, use, idle dollars and $/Mtok, beside hosted providers.

    Cost is billed, lost (failed attempts, answers nobody waited for; looked up for spans up to two days), or idle. Use
    is what was made per GPU second over the best hour's. Hosted prices are at this mix; !! marks an own price of more
    than 1.5 times theirs, ? a figure older than 90 days.

    Exit codes: 0 fine, 1 a price is over 1.5 times every hosted one beside it.

    Example: mtok economics --policies policies --span 7d
    """
    served = loaded(policies)
    reports = ask_store(lambda redis: _reports(redis, served, _spans(span, by_day=not total)))
    if as_json:
        typer.echo(json_text([_whole(report) for report in reports]))
    else:
        for report in reports:
            typer.echo(_shown(report))
    beside = [model.hosted for report in reports for model in report.models if model.hosted]
    if any(all(one.is_alarming for one in hosted) for hosted in beside):
        raise typer.Exit(FAILED)


def plan_(  # noqa: PLR0917 - options have names on the command line
    policies: _Policies,
    model: Annotated[str, typer.Option(help="The model to plan for.")],
    params_b: Annotated[Decimal, typer.Option(help="Its parameters, billions.", parser=number, metavar="N")],
    weights: Annotated[str, typer.Option(help="Its weights: fp16, fp8, int4.")] = "fp8",
    config: Annotated[
        Path | None, typer.Option(help="Its config.json, which says what a token's KV takes.", metavar="FILE")
    ] = None,
    kv_bytes: Annotated[int | None, typer.Option(help="Bytes of KV per token, instead.", min=1)] = None,
    fp8_kv: Annotated[bool, typer.Option("--fp8-kv", help="KV in FP8: half of what config.json means.")] = False,
    itl_ms: Annotated[int, typer.Option(help="Target for the time between tokens, in ms.", min=1)] = 80,
    span: _Span = "24h",
    as_json: _AsJson = False,
) -> None:
    """Show which GPUs, how many and how full would serve what was asked in the span, cheapest first.

    The arrival mix is measured, from the ledger. What other GPUs would make is modelled (reads of memory and
    arithmetic), scaled by what this fleet's best hour made where its policy names its GPU.

    Example: mtok plan --policies policies --model llama --params-b 70 --config config.json
    """
    from gateway.economics import BYTES, plan

    served = loaded(policies)
    if weights not in BYTES:
        fail(f"--weights {weights!r} is none of {', '.join(BYTES)}", MISUSED)
    if model not in served.models:
        fail(f"the policies have no model {model!r}", MISUSED)
    if (config is None) == (kv_bytes is None):
        fail("say what a token's KV takes: --config FILE or --kv-bytes N, one of them", MISUSED)
    each = kv_bytes if config is None else _kv_bytes(config, fp8=fp8_kv)
    bounds = next(_spans(span, by_day=False))
    report = ask_store(lambda redis: _reports(redis, served, [bounds]))[0]
    now = next(one for one in report.models if one.model == model)
    if not now.requests:
        fail(f"nothing was asked of {model} in the last {span}", FAILED)
    need = _need(now, bounds[1] - bounds[0], params_b=params_b, weights=weights, kv_bytes=each or 0, itl_ms=itl_ms)
    measured = _measured(served, model, now)
    try:
        made = plan(need, served.catalogue.gpus, measured_tok_s=measured)
    except ValueError as error:
        fail(str(error), MISUSED)
    if as_json:
        typer.echo(json_text({"object": "plan", "need": msgspec.to_builtins(need), **msgspec.to_builtins(made)}))
        return
    typer.echo(
        f"{model}: {need.requests_per_s:.3f} requests/s of {need.input_tokens:.0f} input "
        f"({need.cached_tokens:.0f} cached) and {need.output_tokens:.0f} output tokens, measured; ITL up to {itl_ms} ms"
    )
    head = (
        "GPU",
        "REPLICAS",
        "FULL AT",
        "TOK/S EACH",
        "KV",
        *(f"{way.upper()} $/H" for way in PURCHASES),
        "$/MTOK",
        "",
    )
    rows = [
        (
            f"{one.gpus} x {one.sku}",
            f"{one.replicas}",
            f"{one.concurrency}",
            f"{one.output_tok_s:.0f}",
            f"{one.kv_share:.0%}",
            *(f"{one.usd_per_hour[way]:.2f}" if way in one.usd_per_hour else "-" for way in PURCHASES),
            f"{one.usd_per_mtok['on_demand']:.3f}" if "on_demand" in one.usd_per_mtok else "-",
            "measured" if one.measured else "modelled",
        )
        for one in made.candidates
    ]
    typer.echo(table(head, rows, right=range(1, 9)))
    for sku, why in made.unfit.items():
        typer.echo(f"not {sku}: {why}")
    if now.output_usd_per_mtok is not None:
        typer.echo(f"today: {now.output_usd_per_mtok:.3f} $/Mtok output, all hours of the span paid")


def what_if_(  # noqa: PLR0917 - options have names on the command line
    policies: _Policies,
    model: Annotated[str, typer.Option(help="The model.")],
    fp8_kv: Annotated[bool, typer.Option("--fp8-kv", help="The KV cache in FP8.")] = False,
    chunked_prefill: Annotated[bool, typer.Option("--chunked-prefill", help="Prefill in chunks.")] = False,
    prefix_hit: Annotated[
        Decimal | None, typer.Option(help="Share of input that is cached.", parser=number, metavar="0..1")
    ] = None,
    spec_accept: Annotated[
        Decimal | None, typer.Option(help="Speculative decoding with so much accepted.", parser=number, metavar="0..1")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Another GPU of the catalogue.", metavar="SKU")] = None,
    span: _Span = "24h",
    as_json: _AsJson = False,
) -> None:
    """Show what a lever would do to a model's $/Mtok: from its own mix where that says it, else from cited ranges.

    Example: mtok what-if --policies policies --model llama --prefix-hit 0.8 --gpu B200
    """
    from gateway.economics import ratios, what_if

    served = loaded(policies)
    if model not in served.models:
        fail(f"the policies have no model {model!r}", MISUSED)
    report = ask_store(lambda redis: _reports(redis, served, list(_spans(span, by_day=False))))[0]
    now = next(one for one in report.models if one.model == model)
    input_ratio, cached_ratio = ratios(served, model)
    levers = (*(["fp8-kv"] * fp8_kv), *(["chunked-prefill"] * chunked_prefill))
    try:
        effects = what_if(
            now,
            levers=levers,
            input_ratio=input_ratio,
            cached_ratio=cached_ratio,
            prefix_hit=prefix_hit,
            spec_accept=spec_accept,
            gpu=None if gpu is None else _other(served, model, gpu),
        )
    except ValueError as error:
        fail(str(error), MISUSED)
    if not effects:
        fail("name a lever: --fp8-kv, --chunked-prefill, --prefix-hit, --spec-accept or --gpu", MISUSED)
    if as_json:
        typer.echo(json_text(effects))
        return
    today = now.output_usd_per_mtok
    typer.echo(f"{model}: " + ("nothing was made, so no price" if today is None else f"{today:.4f} $/Mtok output now"))
    for one in effects:
        factor = f"x {one.best:.2f}" if one.best == one.worst else f"x {one.best:.2f} to {one.worst:.2f}"
        then = "" if today is None else f" = {today * one.best:.4f} to {today * one.worst:.4f} $/Mtok"
        typer.echo(f"{one.lever}: {factor}{then}, {one.basis}\n  {one.why}")


async def _reports(redis: Redis, policies: Policies, spans: Iterable[tuple[int, int]]) -> list[Economics]:
    from gateway.economics import economics

    now_ms = int(time.time() * 1000)
    return [await economics(redis, policies, start_s, end_s, now_ms=now_ms) for start_s, end_s in spans]


def _spans(text: str, *, by_day: bool) -> Iterator[tuple[int, int]]:
    """Whole minutes from so long ago until now, cut at midnight UTC."""
    end_s = int(time.time()) // 60 * 60
    start_s = (end_s - max(60, duration_ms(text) // 1000)) // 60 * 60
    while by_day and start_s < end_s:
        until_s = min(end_s, (start_s // DAY_S + 1) * DAY_S)
        yield start_s, until_s
        start_s = until_s
    if not by_day:
        yield start_s, end_s


def _shown(report: Economics) -> str:
    lines = [f"{utc(report.start_s * 1000, seconds=False)} to {utc(report.end_s * 1000, seconds=False)}"]
    head = (
        "MODEL",
        "GPU H",
        "COST",
        "BILLED",
        "LOST",
        "IDLE",
        "USE",
        "OUTPUT",
        "INPUT",
        "CACHED",
        "BLENDED",
        "APC SAVED",
    )
    rows = [
        (
            one.model,
            f"{one.gpu_seconds / HOUR_S:.2f}",
            *(_usd(n) for n in (one.cost_nanousd, one.billed_nanousd, one.lost_nanousd, one.idle_nanousd)),
            "-" if one.utilisation is None else f"{one.utilisation:.0%}",
            *(_price(price) for price in _prices(one)),
            _usd(one.cache_saved_nanousd),
        )
        for one in report.models
    ]
    lines.append(table(head, rows, right=range(1, len(head))))
    for one in report.models:
        for beside in one.hosted:
            ratio = "-" if beside.ratio is None else f"{beside.ratio:.2f} x"
            marks = ("!! " if beside.is_alarming else "") + (f"? figure of {beside.date}" if beside.is_stale else "")
            even = beside.break_even_mtok_per_month
            pays = "" if even is None else f", pays from {even:.0f} Mtok a month on"
            lines.append(
                f"  {one.model} at {beside.provider}: {_price(beside.usd_per_mtok)}, own is {ratio}{pays} {marks}"
            )
    if report.tenants:
        rows = [
            (one.tenant, _usd(one.cost_nanousd), _usd(one.billed_nanousd), _usd(one.margin_nanousd))
            for one in report.tenants
        ]
        lines.append(table(("TENANT", "COST", "BILLED", "MARGIN"), rows, right=(1, 2, 3)))
    return "\n".join(lines) + "\n"


def _prices(one: ModelEconomics) -> tuple[Decimal | None, ...]:
    return (
        one.output_usd_per_mtok,
        one.input_usd_per_mtok,
        one.cached_usd_per_mtok,
        one.blended_usd_per_mtok,
    )


def _usd(nanousd: int) -> str:
    return f"{usd_of_nanousd(nanousd):.4f}"


def _price(price: Decimal | None) -> str:
    return "-" if price is None else f"{price:.4f}"


def _whole(report: Economics) -> dict[str, object]:
    told: dict[str, object] = msgspec.to_builtins(report)
    told["models"] = [{**msgspec.to_builtins(one), "idle_nanousd": one.idle_nanousd} for one in report.models]
    return {"object": "economics", **told}


def _need(now: ModelEconomics, seconds: int, *, params_b: Decimal, weights: str, kv_bytes: int, itl_ms: int) -> Need:
    from gateway.economics import BYTES, Need

    requests = Decimal(now.requests)
    return Need(
        parameters_b=params_b,
        weights=next(one for one in BYTES if one == weights),
        kv_bytes_per_token=kv_bytes,
        requests_per_s=requests / seconds,
        input_tokens=(now.input_tokens + now.cached_tokens) / requests,
        cached_tokens=now.cached_tokens / requests,
        output_tokens=now.output_tokens / requests,
        itl_ms=itl_ms,
    )


def _measured(policies: Policies, model: str, now: ModelEconomics) -> dict[tuple[str, int], Decimal]:
    """Output tokens per second of a replica in the best hour, where the policy names its GPU and it was in use."""
    gpu = policies.models[model].gpu
    if gpu is None or gpu.sku is None or not now.utilisation or not now.gpu_seconds:
        return {}
    per_gpu_s = now.output_tokens / Decimal(now.gpu_seconds) / now.utilisation
    return {(gpu.sku, gpu.count): per_gpu_s * gpu.count}


def _kv_bytes(path: Path, *, fp8: bool) -> int:
    """What a token's KV takes, from a model's config.json: 2 x layers x KV heads x head size x bytes of a number."""
    try:
        told = json.loads(path.read_text("utf-8"))
        told = told.get("text_config", told)
        heads = told["num_attention_heads"]
        size = told.get("head_dim") or told["hidden_size"] // heads
        return int(2 * told["num_hidden_layers"] * told.get("num_key_value_heads", heads) * size * (1 if fp8 else 2))
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror}", MISUSED)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fail(f"{path} is no config.json of a transformer: {error}; give --kv-bytes", MISUSED)


def _other(policies: Policies, model: str, sku: str) -> tuple[Gpu, Gpu, Purchase]:
    gpu = policies.models[model].gpu
    if gpu is None or gpu.sku is None:
        raise ValueError(f"the policy does not name the GPU that {model} runs on: gpu: {{sku: ..}}")
    if sku not in policies.catalogue.gpus:
        raise ValueError(f"--gpu {sku!r} is not in the catalogue: {', '.join(policies.catalogue.gpus)}")
    return policies.catalogue.gpus[gpu.sku], policies.catalogue.gpus[sku], gpu.purchase
