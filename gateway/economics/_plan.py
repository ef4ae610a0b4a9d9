"""Which GPUs, how many and how full: the cheapest that holds the SLO, by a roofline model or by what was measured.

    step = (weights + N x tokens x KV) / (bandwidth x GPUs x DECODE_SHARE)         reads of memory, per decode step
    prefill = 2 x parameters / (arithmetic x GPUs x PREFILL_SHARE)                 per uncached input token
    one output token takes  step / N + uncached / output x prefill  of a replica

A replica's concurrency N is the largest whose step with its share of prefill is within the ITL target and whose tokens
fit beside the weights. The roofline is the usual one of LLM serving (Pope et al. 2022, "Efficiently Scaling Transformer
Inference"); its two shares are set so that the economics article's scenario A comes out. Where the fleet has measured
what a GPU makes, the model only scales that from one GPU to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal

from msgspec import Struct

from gateway.catalogue import PURCHASES, Gpu, Purchase

Weights = Literal["fp16", "fp8", "int4"]

_WIDE = Context(prec=30)
_GB = Decimal(10) ** 9

DECODE_SHARE = Decimal("0.8")
PREFILL_SHARE = Decimal("0.6")
"""Of the data sheets' bandwidth and arithmetic. With them 2 x H100 serve Llama 3.3 70B (FP8, 1,500/500 tokens, 40 %
cached, ITL 80 ms) at about the article's 4,800 output tokens per second."""

KV_SHARE_LEAST = Decimal("0.30")
"""The smallest GPU that fits leaves 30 to 50 % of its memory to the KV cache (article)."""
USABLE = Decimal("0.92")
"""vLLM's default share of memory."""
BYTES: Mapping[Weights, Decimal] = {"fp16": Decimal(2), "fp8": Decimal(1), "int4": Decimal("0.57")}
"""Of a parameter; INT4 with scales: 70B weigh 40 GB (article)."""
GPUS_OF_A_REPLICA = (1, 2, 4, 8)
BUSY_LEAST = Decimal("0.4")
"""A first guess is off by up to 2.5 times (article); what makes less than that of the model's figure was idle."""


class Need(Struct, frozen=True, kw_only=True):
    """What is to be served: a model and a mean request, how many a second, and the target."""

    parameters_b: Decimal
    weights: Weights
    kv_bytes_per_token: int
    requests_per_s: Decimal
    input_tokens: Decimal
    cached_tokens: Decimal
    output_tokens: Decimal
    itl_ms: int = 80


class Candidate(Struct, frozen=True, kw_only=True):
    """Replicas of so many GPUs of one SKU. Prices are dollars per million output tokens, by how GPUs are paid for;
    `measured` says whether the rate comes from this fleet rather than from the model alone."""

    sku: str
    gpus: int
    replicas: int
    concurrency: int
    output_tok_s: Decimal
    itl_ms: Decimal
    kv_share: Decimal
    usd_per_hour: dict[Purchase, Decimal]
    usd_per_mtok: dict[Purchase, Decimal]
    measured: bool


class Plan(Struct, frozen=True, kw_only=True):
    """Candidates, the cheapest on demand first, and why the others are none."""

    candidates: list[Candidate]
    unfit: dict[str, str]


def weights_gb(parameters_b: Decimal, weights: Weights) -> Decimal:
    """What a model weighs, in GB."""
    return parameters_b * BYTES[weights]


def plan(
    need: Need, gpus: Mapping[str, Gpu], *, measured_tok_s: Mapping[tuple[str, int], Decimal] | None = None
) -> Plan:
    """Every SKU with the fewest GPUs a replica that fit, and twice as many.

    `measured_tok_s` is output tokens per second of a replica, by SKU and GPUs: it scales the model's own figures, its
    own SKU's exactly, unless it is below `BUSY_LEAST` of them: then it was no full hour. Raises `ValueError` for a need
    of nothing.
    """
    if min(need.parameters_b, need.requests_per_s, need.output_tokens) <= 0:
        raise ValueError("parameters, requests per second and output tokens are more than 0")
    found: list[Candidate] = []
    unfit: dict[str, str] = {}
    scales = _scales(need, gpus, measured_tok_s or {})
    scale = sum(scales.values(), Decimal(0)) / len(scales) if scales else None
    busy = {of: rate for of, rate in (measured_tok_s or {}).items() if of in scales}
    for sku, gpu in gpus.items():
        fitted = [_fit(need, gpu, count) for count in GPUS_OF_A_REPLICA]
        fits = [one for one in fitted if not isinstance(one, str)]
        if not fits:
            unfit[sku] = str(fitted[-1])
            continue
        found += [_candidate(need, gpu, one, scale, busy.get((sku, one.gpus))) for one in fits[:2]]
    found.sort(key=lambda one: (one.usd_per_mtok.get("on_demand", Decimal("Infinity")), one.sku, one.gpus))
    return Plan(candidates=found, unfit=unfit)


class _Fit(Struct, frozen=True, kw_only=True):
    gpus: int
    concurrency: int
    output_tok_s: Decimal
    itl_ms: Decimal
    kv_share: Decimal


def _fit(need: Need, gpu: Gpu, count: int) -> _Fit | str:
    """How full such a replica may be, or why it cannot serve this."""
    if need.weights not in gpu.precisions:
        return f"{gpu.sku} has no {need.weights.upper()}"
    memory_gb = gpu.memory_gb * count * USABLE
    weighs_gb = weights_gb(need.parameters_b, need.weights)
    kv_gb = memory_gb - weighs_gb
    kv_share = _WIDE.divide(kv_gb, Decimal(gpu.memory_gb * count))
    if kv_share < KV_SHARE_LEAST:
        return f"{weighs_gb:f} GB of weights leave less than {KV_SHARE_LEAST:.0%} of {gpu.memory_gb * count} GB to KV"
    each_gb = (need.input_tokens + need.output_tokens) * need.kv_bytes_per_token / _GB
    fitting = int(kv_gb / each_gb)
    bandwidth = gpu.bandwidth_gb_s * count * DECODE_SHARE
    # A token of an answer half done reads the prompt and half of the answer.
    read_gb = (need.input_tokens + need.output_tokens / 2) * need.kv_bytes_per_token / _GB
    arithmetic = 2 if need.weights == "fp8" else 1
    flops = gpu.fp16_tflops * arithmetic * count * PREFILL_SHARE * 10**12
    prefill_s = 2 * need.parameters_b * 10**9 / flops
    beside_s = _WIDE.divide(need.input_tokens - need.cached_tokens, need.output_tokens) * prefill_s
    target_s = Decimal(need.itl_ms) / 1000
    # itl = (weights + N x read) / bandwidth + N x beside: linear in N
    slope = read_gb / bandwidth + beside_s
    within = int((target_s - weighs_gb / bandwidth) / slope)
    concurrency = min(fitting, within)
    if concurrency < 1:
        return f"one request alone is over {need.itl_ms} ms a token, or does not fit"
    itl_s = weighs_gb / bandwidth + concurrency * slope
    return _Fit(
        gpus=count,
        concurrency=concurrency,
        output_tok_s=_WIDE.divide(Decimal(concurrency), itl_s),
        itl_ms=itl_s * 1000,
        kv_share=kv_share,
    )


def _scales(
    need: Need, gpus: Mapping[str, Gpu], measured_tok_s: Mapping[tuple[str, int], Decimal]
) -> dict[tuple[str, int], Decimal]:
    """What was measured over what the model says, where there is both and the GPUs had enough to do."""
    ratios: dict[tuple[str, int], Decimal] = {}
    for (sku, count), rate in measured_tok_s.items():
        fit = _fit(need, gpus[sku], count) if sku in gpus else "unknown"
        if not isinstance(fit, str):
            ratio = _WIDE.divide(rate, fit.output_tok_s)
            if ratio >= BUSY_LEAST:
                ratios[sku, count] = ratio
    return ratios


def _candidate(need: Need, gpu: Gpu, fit: _Fit, scale: Decimal | None, measured: Decimal | None) -> Candidate:
    rate = measured or fit.output_tok_s * (scale or 1)
    wanted = need.requests_per_s * need.output_tokens
    replicas = max(1, int((wanted / rate).to_integral_value(ROUND_CEILING)))
    hourly: dict[Purchase, Decimal] = {}
    per_mtok: dict[Purchase, Decimal] = {}
    for purchase in PURCHASES:
        price = gpu.hourly(purchase)
        if price is not None:
            hourly[purchase] = price.usd_per_hour * fit.gpus * replicas
            made = min(wanted, rate * replicas) * 3600 / 10**6
            per_mtok[purchase] = _WIDE.divide(hourly[purchase], made)
    return Candidate(
        sku=gpu.sku,
        gpus=fit.gpus,
        replicas=replicas,
        concurrency=fit.concurrency,
        output_tok_s=rate,
        itl_ms=fit.itl_ms,
        kv_share=fit.kv_share,
        usd_per_hour=hourly,
        usd_per_mtok=per_mtok,
        measured=measured is not None or scale is not None,
    )
