"""Where should it run? Prefix chain, prefix index, placement, what gateways tell each other. Pure: no sockets."""

from ._elsewhere import Beside, Elsewhere
from ._news import (
    Held,
    LoadNews,
    Place,
    Placed,
    PlacementNews,
    pack_held,
    pack_placed,
    read_held,
    read_placed,
)
from ._placement import PrefixIndex, choose
from ._prefix import prefix_chain

__all__ = [
    "Beside",
    "Elsewhere",
    "Held",
    "LoadNews",
    "Place",
    "Placed",
    "PlacementNews",
    "PrefixIndex",
    "choose",
    "pack_held",
    "pack_placed",
    "prefix_chain",
    "read_held",
    "read_placed",
]
