"""What does it cost: the $/Mtok identity, the GPU catalogue, and the price of one request.

Money is integer nano-dollars once it is charged and an exact `Decimal` of US dollars before; no float touches it.
No I/O and no clock: callers bring prices and tokens, and get costs back.
"""

from ._gpus import GPUS, Gpu
from ._money import NANOUSD_MAX, NANOUSD_PER_USD, nanousd_of_usd, usd_of_nanousd
from ._price import Price, PriceTerms
from ._quote import Quote, blended_usd_per_mtok, output_usd_per_mtok, quote

__all__ = [
    "GPUS",
    "NANOUSD_MAX",
    "NANOUSD_PER_USD",
    "Gpu",
    "Price",
    "PriceTerms",
    "Quote",
    "blended_usd_per_mtok",
    "nanousd_of_usd",
    "output_usd_per_mtok",
    "quote",
    "usd_of_nanousd",
]
