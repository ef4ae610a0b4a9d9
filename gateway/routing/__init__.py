"""Where should it run? Prefix chain, prefix index, placement, what gateways tell each other. Pure: no sockets."""

from ._booking import Booking, Expected, Query, Target, Told
from ._elsewhere import Beside, Elsewhere
from ._index import PrefixIndex
from ._least import least_loaded
from ._load import Load, Loads
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
from ._prefix import BLOCK_BYTES, Chain, prefix_chain
from ._router import Prefix, Router, Strategy
from ._salt import chain_seed, tenant_salt
from ._shadow import ShadowCounts, ShadowedRouter
from ._strategies import LeastLoaded, router_of, session_of, strategy_of

__all__ = [
    "BLOCK_BYTES",
    "Beside",
    "Booking",
    "Chain",
    "Elsewhere",
    "Expected",
    "Held",
    "LeastLoaded",
    "Load",
    "LoadNews",
    "Loads",
    "Place",
    "Placed",
    "PlacementNews",
    "Prefix",
    "PrefixIndex",
    "Query",
    "Router",
    "ShadowCounts",
    "ShadowedRouter",
    "Strategy",
    "Target",
    "Told",
    "chain_seed",
    "least_loaded",
    "pack_held",
    "pack_placed",
    "prefix_chain",
    "read_held",
    "read_placed",
    "router_of",
    "session_of",
    "strategy_of",
    "tenant_salt",
]
