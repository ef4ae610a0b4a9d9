"""What engines say of their own caches: vLLM's KV events, read off ZMQ, and what is cached according to them."""

from ._bridge import Bridge
from ._cache import EngineCache, block_names
from ._decode import Batch, Cleared, Removed, Stored, extra_key, read_batch
from ._follower import Followed, Follower
from ._stream import EventStream, Next
from ._subscriber import NoZmq, Subscriber, zmq_context

__all__ = [
    "Batch",
    "Bridge",
    "Cleared",
    "EngineCache",
    "EventStream",
    "Followed",
    "Follower",
    "Next",
    "NoZmq",
    "Removed",
    "Stored",
    "Subscriber",
    "block_names",
    "extra_key",
    "read_batch",
    "zmq_context",
]
