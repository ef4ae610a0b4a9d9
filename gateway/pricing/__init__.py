"""What does it cost: the $/Mtok identity, the price that follows the fleet, and the price of one request.

Money is integer nano-dollars once it is charged and an exact `Decimal` of US dollars before; no float touches it.
No I/O and no clock: callers bring prices and tokens, and get costs back.
"""

from ._hours import GpuSpan, cost_nanousd, gpu_seconds
from ._live import (
    LivePrice,
    LiveTerms,
    Measured,
    live_price,
    measured_usd_per_mtok,
    opencost_input_ratio,
    weighted_tokens,
)
from ._money import NANOUSD_MAX, NANOUSD_PER_USD, nanousd_of_usd, usd_of_nanousd
from ._price import Price, PriceTerms
from ._quote import (
    CACHED_RATIO,
    INPUT_RATIO,
    SECONDS_PER_HOUR,
    Quote,
    blended_usd_per_mtok,
    output_usd_per_mtok,
    quote,
    usd_per_mtok,
)

__all__ = [
    "CACHED_RATIO",
    "INPUT_RATIO",
    "NANOUSD_MAX",
    "NANOUSD_PER_USD",
    "SECONDS_PER_HOUR",
    "GpuSpan",
    "LivePrice",
    "LiveTerms",
    "Measured",
    "Price",
    "PriceTerms",
    "Quote",
    "blended_usd_per_mtok",
    "cost_nanousd",
    "gpu_seconds",
    "live_price",
    "measured_usd_per_mtok",
    "nanousd_of_usd",
    "opencost_input_ratio",
    "output_usd_per_mtok",
    "quote",
    "usd_of_nanousd",
    "usd_per_mtok",
    "weighted_tokens",
]
