"""What a lever would do to $/Mtok: from the fleet's own mix where that says it, else from the cited range. Pure."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import Literal

from msgspec import Struct

from gateway.catalogue import Gpu, Purchase

from ._report import ModelEconomics

Basis = Literal["measured", "cited", "modelled"]

_WIDE = Context(prec=40)
_ARTICLE = "vLLM Cost Economics: 2026 Deep Dive on $/Million Tokens"


class LeverEffect(Struct, frozen=True, kw_only=True):
    """What a lever multiplies the price per output token by, at best and at worst, and where that is from."""

    lever: str
    best: Decimal
    worst: Decimal
    basis: Basis
    why: str


class Lever(Struct, frozen=True, kw_only=True):
    """A lever whose effect is known from elsewhere: how many times the tokens per second, at least and at most."""

    name: str
    least: Decimal
    most: Decimal
    why: str


LEVERS: dict[str, Lever] = {
    lever.name: lever
    for lever in (
        Lever(
            name="fp8-kv",
            least=Decimal("1.3"),
            most=Decimal("1.8"),
            why="half the KV memory is 1.5 to 2 times the batch; nothing where memory is not the bound",
        ),
        Lever(
            name="chunked-prefill",
            least=Decimal("1.1"),
            most=Decimal("1.25"),
            why="on mixed lengths; vLLM has it on by default",
        ),
    )
}
"""The article's table of levers, as factors of tokens per second."""

_SPECULATED = ((Decimal("0.6"), Decimal("1.5")), (Decimal("0.8"), Decimal("2.5")))
"""Acceptance and speed-up at batch 1 to 32, of the article; above a batch of about 64 it costs."""


def what_if(
    now: ModelEconomics,
    *,
    levers: tuple[str, ...] = (),
    input_ratio: Decimal,
    cached_ratio: Decimal,
    prefix_hit: Decimal | None = None,
    spec_accept: Decimal | None = None,
    gpu: tuple[Gpu, Gpu, Purchase] | None = None,
) -> list[LeverEffect]:
    """The effect of each lever on what an output token costs. `gpu` is from one to another, paid for so; `prefix_hit`
    and `spec_accept` are shares, 0 to 1. Raises `ValueError` for a figure that nobody has."""
    effects = [_cited(LEVERS[name]) for name in levers]
    if prefix_hit is not None:
        effects.append(_prefix(now, prefix_hit, input_ratio, cached_ratio))
    if spec_accept is not None:
        effects.append(_speculation(spec_accept))
    if gpu is not None:
        effects.append(_other_gpu(*gpu))
    return effects


def _cited(lever: Lever) -> LeverEffect:
    return LeverEffect(
        lever=lever.name,
        best=_WIDE.divide(Decimal(1), lever.most),
        worst=_WIDE.divide(Decimal(1), lever.least),
        basis="cited",
        why=f"{lever.least} to {lever.most} times the tokens per second: {lever.why} ({_ARTICLE})",
    )


def _prefix(now: ModelEconomics, share: Decimal, input_ratio: Decimal, cached_ratio: Decimal) -> LeverEffect:
    """The same requests with that share of their input cached: what they weigh then over what they weigh now."""
    if not 0 <= share <= 1:
        raise ValueError(f"a hit rate is a share, 0 to 1, not {share}")
    prompt = now.input_tokens + now.cached_tokens
    if not now.weighted_tokens:
        raise ValueError("nothing was made in this span, so there is no mix to change")
    cached = prompt * share
    then = now.output_tokens + input_ratio * (prompt - cached) + cached_ratio * cached
    was = Decimal(now.cached_tokens) / prompt if prompt else Decimal(0)
    factor = _WIDE.divide(then, now.weighted_tokens)
    return LeverEffect(
        lever=f"prefix-hit {share}",
        best=factor,
        worst=factor,
        basis="measured",
        why=f"this span's own mix, of whose input {was:.1%} was cached; the GPUs' time goes with what tokens weigh",
    )


def _speculation(accepted: Decimal) -> LeverEffect:
    (low, slow), (high, fast) = _SPECULATED
    if not low <= accepted <= high:
        raise ValueError(f"acceptance is known to help from {low} to {high}; what {accepted} does has to be measured")
    speed = slow + _WIDE.divide((accepted - low) * (fast - slow), high - low)
    return LeverEffect(
        lever=f"spec-accept {accepted}",
        best=_WIDE.divide(Decimal(1), speed),
        worst=Decimal(1),
        basis="cited",
        why=f"{speed.normalize():f} times the tokens per second at batch 1 to 32, none or a loss above 64 ({_ARTICLE})",
    )


def _other_gpu(old: Gpu, new: Gpu, purchase: Purchase) -> LeverEffect:
    """Decoding reads memory, so tokens per second go with bandwidth; prefill with arithmetic. A mix lies between."""
    was, becomes = old.hourly(purchase), new.hourly(purchase)
    if was is None or becomes is None:
        missing = old if was is None else new
        raise ValueError(f"nobody says what {missing.sku} costs {purchase.replace('_', ' ')}")
    price = _WIDE.divide(becomes.usd_per_hour, was.usd_per_hour)
    bandwidth = _WIDE.divide(Decimal(new.bandwidth_gb_s), Decimal(old.bandwidth_gb_s))
    arithmetic = _WIDE.divide(Decimal(new.fp16_tflops), Decimal(old.fp16_tflops))
    factors = sorted((_WIDE.divide(price, bandwidth), _WIDE.divide(price, arithmetic)))
    return LeverEffect(
        lever=f"gpu {new.sku}",
        best=factors[0],
        worst=factors[1],
        basis="modelled",
        why=f"{price:.2f} times the price of {old.sku}, {bandwidth:.2f} times its memory bandwidth (decode), "
        f"{arithmetic:.2f} times its arithmetic (prefill)",
    )
