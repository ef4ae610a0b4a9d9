"""The $/Mtok identity in its simplest form: what a million tokens cost when a fleet really makes that many.

    output $/Mtok = GPU $/h x hours x overhead / output tokens x 1e6

The tokens are those measured at the SLO on the real mix, not at peak. Input costs a ratio of output (0.20 to 0.40).
Blended for a:1 input to output: (a x input + output) / (a + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal

_WIDE = Context(prec=60)
"""Prices are ratios and seldom end; 60 digits are far beyond what is shown, and independent of the caller's context."""

SECONDS_PER_HOUR = 3600
_MTOK = Decimal(1_000_000)

INPUT_RATIO = Decimal("0.28")
CACHED_RATIO = Decimal("0.1")
"""What an uncached and a cached input token cost of an output token where nobody says otherwise."""
BLEND_RATIO = Decimal(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """US dollars per million tokens. `usd_per_hour` is the fleet's, with all its GPUs and before `overhead`."""

    usd_per_hour: Decimal
    output_tokens_per_second: Decimal
    output_mtok_per_hour: Decimal
    overhead: Decimal
    input_ratio: Decimal
    cached_ratio: Decimal
    blend_ratio: Decimal
    output_usd_per_mtok: Decimal
    input_usd_per_mtok: Decimal
    cached_usd_per_mtok: Decimal
    blended_usd_per_mtok: Decimal


def usd_per_mtok(usd: Decimal, tokens: Decimal) -> Decimal:
    """What a million of these tokens cost, of which there is at least a part of one."""
    return _WIDE.divide(_WIDE.multiply(usd, _MTOK), tokens)


def output_usd_per_mtok(
    *, usd_per_hour: Decimal, hours: Decimal, output_tokens: Decimal, overhead: Decimal = Decimal(1)
) -> Decimal:
    """The identity. Raises `ValueError` when nothing was made: no tokens have no price."""
    if output_tokens <= 0:
        raise ValueError("output tokens must be more than 0: an hour that made none has no price per token")
    spent = _WIDE.multiply(_WIDE.multiply(usd_per_hour, hours), overhead)
    return usd_per_mtok(spent, output_tokens)


def blended_usd_per_mtok(*, output_usd: Decimal, input_usd: Decimal, blend_ratio: Decimal) -> Decimal:
    """The price of a token of a mix with `blend_ratio` input tokens for one output token."""
    whole = _WIDE.add(_WIDE.multiply(blend_ratio, input_usd), output_usd)
    return _WIDE.divide(whole, _WIDE.add(blend_ratio, Decimal(1)))


def quote(
    *,
    usd_per_hour: Decimal,
    output_tokens_per_second: Decimal,
    input_ratio: Decimal = INPUT_RATIO,
    cached_ratio: Decimal = CACHED_RATIO,
    blend_ratio: Decimal = BLEND_RATIO,
    overhead: Decimal = Decimal(1),
) -> Quote:
    """What a fleet of `usd_per_hour` sells tokens at when it sustains that many output tokens per second.

    `overhead` covers what the GPUs' own price leaves out (idle hours, egress, control plane, headroom): 1 is none,
    production fleets are at 1.4 to 1.8. Raises `ValueError` for numbers that cannot be priced.
    """
    for name, value in {"usd_per_hour": usd_per_hour, "output_tokens_per_second": output_tokens_per_second}.items():
        if value <= 0:
            raise ValueError(f"{name} must be more than 0, not {value}")
    for name, value in {"input_ratio": input_ratio, "cached_ratio": cached_ratio}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share of the output price, 0 to 1, not {value}")
    if blend_ratio < 0:
        raise ValueError(f"blend_ratio is input tokens for each output token, 0 or more, not {blend_ratio}")
    if overhead < 1:
        raise ValueError(f"overhead is a factor of 1 or more (1.4 to 1.8 for a production fleet), not {overhead}")
    tokens_per_hour = _WIDE.multiply(output_tokens_per_second, Decimal(SECONDS_PER_HOUR))
    output = output_usd_per_mtok(
        usd_per_hour=usd_per_hour, hours=Decimal(1), output_tokens=tokens_per_hour, overhead=overhead
    )
    input_ = _WIDE.multiply(output, input_ratio)
    return Quote(
        usd_per_hour=usd_per_hour,
        output_tokens_per_second=output_tokens_per_second,
        output_mtok_per_hour=_WIDE.divide(tokens_per_hour, Decimal(1_000_000)),
        overhead=overhead,
        input_ratio=input_ratio,
        cached_ratio=cached_ratio,
        blend_ratio=blend_ratio,
        output_usd_per_mtok=output,
        input_usd_per_mtok=input_,
        cached_usd_per_mtok=_WIDE.multiply(output, cached_ratio),
        blended_usd_per_mtok=blended_usd_per_mtok(output_usd=output, input_usd=input_, blend_ratio=blend_ratio),
    )
