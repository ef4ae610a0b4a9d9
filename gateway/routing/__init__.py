"""Where should it run? Prefix chain, prefix index, placement. Pure: no sockets, no clock."""

from ._placement import PrefixIndex, choose
from ._prefix import prefix_chain

__all__ = ["PrefixIndex", "choose", "prefix_chain"]
